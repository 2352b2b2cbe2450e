"""Stages `dynamics` and `self_rollout`: learn to make the next latent in one evaluation.

dynamics: all frames of a clip in parallel under the world's own memory and plan. The frame to make
enters as pure noise (as at play) or, for a few, as a noisy version of itself; the previous latent
is corrupted, because at play it is the network's own and never quite right. Later in the stage some
clips run twice: the first time without gradient, and what it made becomes the previous latent of
the second (error recycling).

self_rollout: the clip is played. Some real frames fill the ring, then the network runs on its own
latents for K frames, one at a time through the same ring as at play; the same inputs then pass once
in parallel (cached equals uncached, so they give the same latents) with gradient, and every
frame is pulled towards the recording. K grows over the stage. Clips of the first stage are mixed in.

    loss = mean weight (z_hat - z)^2      weight = 1 + object_weight [cell shows a small thing], mean 1

Sources: Diffusion Forcing (Chen et al. 2024), GameNGen (Valevski et al. 2024: corrupted history),
DIAMOND (Alonso et al. 2024: own detached predictions as context, real targets), Self Forcing
(Huang et al. 2025: roll out through the cache that play uses).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dreamloop.models.core import conditioning
from dreamloop.models.core.spec import WorldSpec
from dreamloop.models.networks.dit import Dynamics
from dreamloop.models.networks.ring import RingPass
from dreamloop.models.training.data import LatentClips
from dreamloop.models.training.run import Run, train_stage


@dataclass(frozen=True)
class DynamicsTraining:
    clip_frames: int = 24
    batch_clips: int = 6
    learning_rate: float = 2e-3
    matrix_learning_rate: float = 2e-2  # Muon, for the matrices of the blocks
    noisy_target_share: float = 0.25
    history_noise: float = 0.5
    history_noise_share: float = 0.7
    history_noise_told: float = 0.5  # how often the level is given as condition; at play it is not
    recycle_from: float = 0.5
    recycle_share: float = 0.3
    object_weight: float = 3.0
    ema_decay: float = 0.998


@dataclass(frozen=True)
class SelfRolloutTraining:
    clip_frames: int = 32
    batch_clips: int = 4
    learning_rate: float = 1e-3
    matrix_learning_rate: float = 1e-2
    real_frames: int = 8
    shortest_rollout: int = 4
    parallel_share: float = 0.25  # of the batches are those of the stage before
    ema_decay: float = 0.997


def optimizers_for(net: Dynamics, learning_rate: float, matrix_learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for everything else."""
    matrices = [p for name, p in net.named_parameters()
                if name.startswith("blocks.") and p.ndim == 2 and not name.endswith("table")]
    chosen = {id(p) for p in matrices}
    others = [p for p in net.parameters() if id(p) not in chosen]
    return [torch.optim.Muon(matrices, lr=matrix_learning_rate, weight_decay=0.01),
            torch.optim.AdamW(others, lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.98))]


class ClipTrainer:
    """One network on clips: builds the inputs of a batch, runs it, weighs its error."""

    def __init__(self, run: Run, spec: WorldSpec, settings: DynamicsTraining) -> None:
        self.run, self.spec, self.settings = run, spec, settings
        self.net = Dynamics(spec).to(run.device)

    def first_frame(self, rng: np.random.Generator) -> int:
        """Index of a clip's first frame: a random phase of the dilated ring; 1 where sinks matter."""
        return 1 if self.spec.memory.sink_frames else 1 + int(rng.integers(0, max(self.spec.memory.dilation, 1)))

    def condition(self, action: Tensor, noise_level: Tensor, history_noise: Tensor) -> Tensor:
        """(B, F, condition_size). Every training pass goes all the way, so step size = noise level."""
        levels = [level.cpu().numpy() for level in (noise_level, noise_level, history_noise)]
        return torch.from_numpy(conditioning.condition(action.cpu().numpy(), *levels)).to(action.device)

    def predict(self, previous: Tensor, x: Tensor, action: Tensor, condition: Tensor, first: int) -> Tensor:
        """z_hat (B, F, C, h, w) float32 of a clip in parallel."""
        with self.run.autocast():
            out = self.net.sequence(previous, x, action, condition, first)
        return out.float()

    def loss(self, predicted: Tensor, target: Tensor, objects: Tensor) -> Tensor:
        weight = 1.0 + self.settings.object_weight * objects[:, :, None]
        return (weight / weight.mean() * (predicted - target).square()).mean()

    def sample(self, clips: LatentClips, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """z (B, F + 1, C, h, w), actions (B, F, A), objects (B, F, h, w) float."""
        z, action, objects = clips.sample(rng, count)
        return tuple(torch.from_numpy(x).to(self.run.device) for x in (z, action, objects))  # type: ignore[return-value]

    def parallel_step(self, clips: LatentClips, rng: np.random.Generator, spent: float) -> dict[str, Tensor]:
        """Forward and backward of one batch of the `dynamics` stage."""
        s = self.settings
        z, action, objects = self.sample(clips, rng, s.batch_clips)
        previous, target = z[:, :-1], z[:, 1:]
        shape = target.shape[:2]
        torch.manual_seed(int(rng.integers(2**31)))

        def chance(share: float) -> Tensor:
            return torch.rand(shape, device=z.device) < share

        level = torch.ones(shape, device=z.device)
        noisy = chance(s.noisy_target_share)
        level[noisy] = torch.sigmoid(torch.randn(shape, device=z.device) + 0.2)[noisy]
        x = (1 - level)[..., None, None, None] * target + level[..., None, None, None] * torch.randn_like(target)
        first = self.first_frame(rng)
        if spent > s.recycle_from and rng.random() < s.recycle_share:
            with torch.no_grad():
                made = self.predict(previous, x, action, self.condition(action, level, torch.zeros_like(level)), first)
            keep = chance(0.8)[:, :-1, None, None, None]
            previous = torch.cat([previous[:, :1], torch.where(keep, made[:, :-1], previous[:, 1:])], dim=1)
        corruption = torch.rand(shape, device=z.device) * s.history_noise * chance(s.history_noise_share)
        previous = previous + corruption[..., None, None, None] * torch.randn_like(previous)
        told = corruption * chance(s.history_noise_told)
        predicted = self.predict(previous, x, action, self.condition(action, level, told), first)
        loss = self.loss(predicted, target, objects)
        loss.backward()
        return {"loss": loss}

    @torch.no_grad()
    def rollout(self, z: Tensor, action: Tensor, seeds: np.ndarray, real_frames: int) -> tuple[Tensor, Tensor]:
        """Play a clip through the ring, from frame 1: the latents that each frame saw as its previous
        one, real for the first `real_frames` frames and the network's own after, and the noise it
        saw; both (B, F, C, h, w)."""
        b, frames = action.shape[:2]
        ring = torch.zeros(self.spec.ring_shape(b), device=z.device, dtype=torch.bfloat16)
        previous, noises, latent = [], [], z[:, 0]
        host_action = action.cpu().numpy()
        for i in range(frames):
            if i < real_frames:
                latent = z[:, i]
            inputs = conditioning.pass_inputs(self.spec, np.full(b, i + 1), seeds, host_action[:, i])
            noise, condition = (torch.from_numpy(a).to(z.device)[:, None] for a in (inputs.noise, inputs.condition))
            previous.append(latent)
            noises.append(noise[:, 0])
            with self.run.autocast():
                latent = self.net(latent[:, None], noise, action[:, i : i + 1], condition,
                                  RingPass(self.spec, ring, inputs).attend)[:, 0].float()
        return torch.stack(previous, dim=1), torch.stack(noises, dim=1)

    def rollout_step(self, clips: LatentClips, rng: np.random.Generator, settings: SelfRolloutTraining,
                     spent: float) -> dict[str, Tensor]:
        """Forward and backward of one batch of the `self_rollout` stage."""
        z, action, objects = self.sample(clips, rng, settings.batch_clips)
        frames = action.shape[1]
        longest = frames - settings.real_frames
        # rollouts grow from shortest_rollout to the whole clip over the first half of the stage
        reach = min(1.0, 2.0 * spent)
        rolled = int(rng.integers(settings.shortest_rollout, settings.shortest_rollout
                                  + max(int(reach * (longest - settings.shortest_rollout)), 1) + 1))
        count = settings.real_frames + rolled
        z, action, objects = z[:, : count + 1], action[:, :count], objects[:, :count]
        seeds = rng.integers(0, 2**63, len(z)).astype(np.uint64)
        previous, noise = self.rollout(z, action, seeds, settings.real_frames)
        ones = torch.ones(action.shape[:2], device=z.device)
        predicted = self.predict(previous, noise, action, self.condition(action, ones, torch.zeros_like(ones)), 1)
        loss = self.loss(predicted, z[:, 1:], objects)
        loss.backward()
        return {"loss": loss, "rolled_frames": torch.tensor(float(rolled))}


def train_dynamics(run: Run, spec: WorldSpec, settings: DynamicsTraining, seconds: float, clips: LatentClips,
                   held_out: LatentClips) -> dict[str, float]:
    """Stage `dynamics`; leaves its averaged weights in `dynamics.ckpt`, returns `measure`'s figures."""
    torch.manual_seed(1)
    trainer = ClipTrainer(run, spec, settings)
    values = train_stage(run, "dynamics", trainer.net,
                         optimizers_for(trainer.net, settings.learning_rate, settings.matrix_learning_rate), seconds,
                         lambda rng, spent: trainer.parallel_step(clips, rng, spent), settings.ema_decay,
                         report=lambda average: measure(run, spec, average.values, held_out))
    return measure(run, spec, values, held_out)


def train_self_rollout(run: Run, spec: WorldSpec, settings: SelfRolloutTraining, before: DynamicsTraining,
                       seconds: float, clips: LatentClips, held_out: LatentClips) -> dict[str, float]:
    """Stage `self_rollout`, from the averaged weights of `dynamics`."""
    trainer = ClipTrainer(run, spec, before)
    saved = run.load("dynamics")
    assert saved is not None, "self_rollout follows dynamics"
    trainer.net.load_state_dict(saved["average"])

    def step(rng: np.random.Generator, spent: float) -> dict[str, Tensor]:
        if rng.random() < settings.parallel_share:
            return {"parallel_loss": trainer.parallel_step(clips, rng, 1.0)["loss"]}
        return trainer.rollout_step(clips, rng, settings, spent)

    values = train_stage(run, "self_rollout", trainer.net,
                         optimizers_for(trainer.net, settings.learning_rate, settings.matrix_learning_rate), seconds,
                         step, settings.ema_decay, report=lambda average: measure(run, spec, average.values, held_out))
    return measure(run, spec, values, held_out)


@torch.no_grad()
def measure(run: Run, spec: WorldSpec, values: dict[str, Tensor], clips: LatentClips,
            count: int = 16) -> dict[str, float]:
    """Mean squared latent error on held-out clips, in units of the latents' variance.

    one_step: every previous latent real; copy_last: z_(t-1) taken for z_t; shuffled: one_step with
    the actions of another clip, and shuffle_ratio, its ratio to one_step (1 means keys do nothing);
    rollout_16, copy_16: sixteen frames into a rollout from eight real frames.
    """
    trainer = ClipTrainer(run, spec, DynamicsTraining())
    trainer.net.load_state_dict(values)
    rng = np.random.default_rng(11)
    z, action, _ = trainer.sample(clips, rng, count)
    ones = torch.ones(action.shape[:2], device=z.device)
    noise = torch.randn(z[:, 1:].shape, generator=torch.Generator().manual_seed(3)).to(z.device)

    def error(pressed: Tensor) -> float:
        condition = trainer.condition(pressed, ones, torch.zeros_like(ones))
        return float((trainer.predict(z[:, :-1], noise, pressed, condition, 1) - z[:, 1:]).square().mean())

    one_step, shuffled = error(action), error(action.roll(1, dims=0))
    frames = 8 + 17
    seen, _ = trainer.rollout(z, action[:, :frames], np.arange(count).astype(np.uint64), 8)
    # seen[:, i] is the latent of frame i: the network's own from frame 8 on; frame 7 + 16 is 16 made frames in
    return {"one_step": one_step, "copy_last": float((z[:, 1:] - z[:, :-1]).square().mean()),
            "shuffle_ratio": shuffled / one_step,
            "rollout_16": float((seen[:, 23] - z[:, 23]).square().mean()),
            "copy_16": float((z[:, 7] - z[:, 23]).square().mean())}
