"""Stage `dynamics`: learn to make the next latent in one evaluation, all frames of a clip in parallel.

The clip runs under the world's own memory and plan. The frame to make enters as pure noise (as at
play) or, for a share, as a noisy version of itself; the previous latent is corrupted, because at
play it is the network's own and never quite right. Later in the stage some clips run twice: the first
time without gradient, and what it made becomes the previous latent of the second (error recycling).

    loss = mean weight (z_hat - z)^2      weight = 1 + object_weight [cell shows a small thing], mean 1

What follows it, on the network's own dreams, is in distillation/.

Sources: Diffusion Forcing (Chen et al. 2024), GameNGen (Valevski et al. 2024: corrupted history),
error recycling (LongLive 2.0).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dreamloop.models.core import conditioning
from dreamloop.models.core.spec import WorldSpec
from dreamloop.models.core.world import World
from dreamloop.models.networks.dit import Dynamics, sequence_geometry
from dreamloop.models.networks.ring import RingPass
from dreamloop.models.training.data import LatentClips
from dreamloop.models.training.inherit import inherited
from dreamloop.models.training.muon import Muon
from dreamloop.models.training.run import Run, multiplies_bfloat16, train_stage

FOREIGN_CELLS = 0.25  # of a spoilt clip
MEASURED_FRAMES = 24  # of a clip, for a stage's figures: eight real ones and sixteen of a rollout


@dataclass(frozen=True)
class DynamicsTraining:
    """history_noise, history_noise_share: deviation of the noise on previous latents, at most, and how many have any;
    foreign_share: of the clips are spoilt by what does not belong there (`ClipTrainer.spoilt`); recycle_from,
    recycle_share: from which share of the stage on how many batches run twice."""

    clip_frames: int = 24
    batch_clips: int = 6
    learning_rate: float = 2e-3
    matrix_learning_rate: float = 2e-2  # Muon, for the matrices of the blocks
    noisy_target_share: float = 0.25
    history_noise: float = 0.5
    history_noise_share: float = 0.7
    history_noise_told: float = 0.5  # how often the level is given as condition; at play it is not
    foreign_share: float = 0.0
    recycle_from: float = 0.5
    recycle_share: float = 0.3
    object_weight: float = 3.0
    ema_decay: float = 0.998


def optimizers_for(net: Dynamics, learning_rate: float, matrix_learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for everything else."""
    matrices = [p for name, p in net.named_parameters()
                if name.startswith("blocks.") and p.ndim == 2 and not name.endswith("table")]
    chosen = {id(p) for p in matrices}
    others = [p for p in net.parameters() if id(p) not in chosen]
    dtype = torch.bfloat16 if multiplies_bfloat16(matrices[0].device) else torch.float32
    return [Muon(matrices, lr=matrix_learning_rate, weight_decay=0.01, dtype=dtype),
            torch.optim.AdamW(others, lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.98))]


class ClipTrainer:
    """One network on clips: builds the inputs of a batch, runs it, weighs its error."""

    def __init__(self, run: Run, spec: WorldSpec, settings: DynamicsTraining) -> None:
        self.run, self.spec, self.settings = run, spec, settings
        self.net = Dynamics(spec).to(run.device)
        # on a CPU a dilated ring's clips gain a tenth by what takes a minute and more
        plain = spec.memory.dilation > 1 and run.device.type == "cpu"
        self._in_clip = self.net.in_clip if plain else run.compiled(self.net.in_clip)

    def first_frame(self, rng: np.random.Generator) -> int:
        """Index of a clip's first frame: a random phase of the dilated ring; 1 where sinks matter."""
        return 1 if self.spec.memory.sink_frames else 1 + int(rng.integers(0, max(self.spec.memory.dilation, 1)))

    def condition(self, action: Tensor, noise_level: Tensor, history_noise: Tensor) -> Tensor:
        """(B, F, condition_size). Every training pass goes all the way, so step size = noise level."""
        levels = [level.cpu().numpy() for level in (noise_level, noise_level, history_noise)]
        return torch.from_numpy(conditioning.condition(action.cpu().numpy(), *levels)).to(action.device)

    def predict(self, previous: Tensor, x: Tensor, action: Tensor, condition: Tensor, first: int,
                net: Dynamics | None = None, of_many: bool = False) -> Tensor:
        """z_hat (B, F, C, h, w) float32 of a clip in parallel, by `net` (default: the one in training). of_many: most
        batches of the stage have this shape and learn, so it is worth compiling for."""
        geometry = sequence_geometry(self.spec, first, x.shape[1], x.device, x.dtype)
        in_clip = self._in_clip if of_many else (net or self.net).in_clip
        with self.run.autocast():
            out = in_clip(previous, x, action, condition, geometry)
        return out.float()

    def noised(self, latents: Tensor, level: Tensor) -> Tensor:
        """(1 - s) z + s n: latents (B, F, C, h, w) at the noise levels s (B, F)."""
        s = level[..., None, None, None]
        return (1 - s) * latents + s * torch.randn_like(latents)

    def corrupt(self, previous: Tensor) -> tuple[Tensor, Tensor]:
        """Previous latents (B, F, C, h, w) with noise on some frames, and its level as it is told to
        the network, (B, F): now and then not at all, as at play."""
        s, shape = self.settings, previous.shape[:2]

        def chance(share: float) -> Tensor:
            return torch.rand(shape, device=previous.device) < share

        corruption = torch.rand(shape, device=previous.device) * s.history_noise * chance(s.history_noise_share)
        noise = corruption[..., None, None, None] * torch.randn_like(previous)
        if s.foreign_share:
            previous = self.spoilt(previous)
        return previous + noise, corruption * chance(s.history_noise_told)

    def spoilt(self, previous: Tensor) -> Tensor:
        """Some clips with cells that are, from some frame on and ever after, more or less something else: a
        quarter of them, two by two, mixed with any cell of any clip. So a dream goes wrong: the weapon fades to the
        floor behind it and stays so, which noise that comes and goes does not teach to mend. (B, F, C, h, w)."""
        batch, frames, channels, height, width = previous.shape
        device = previous.device
        cells = previous[:, int(torch.randint(frames, ()))].movedim(1, 3).reshape(-1, channels)
        foreign = cells[torch.randperm(len(cells), device=device)].reshape(batch, height, width, channels).movedim(3, 1)
        block = torch.rand(batch, 1, (height + 1) // 2, (width + 1) // 2, device=device)
        share = torch.where(block < FOREIGN_CELLS, block / FOREIGN_CELLS, 0.0)
        share = share.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, :height, :width]
        chosen = torch.rand(batch, 1, device=device) < self.settings.foreign_share
        begun = torch.arange(frames, device=device) >= torch.randint(frames, (batch, 1), device=device)
        mixed = (begun & chosen)[..., None, None, None] * share[:, None]
        return previous + mixed * (foreign[:, None] - previous)

    def loss(self, predicted: Tensor, target: Tensor, objects: Tensor, of_frame: Tensor | None = None) -> Tensor:
        """Weighted mean squared error; latents (B, F, C, h, w), objects (B, F, h, w), of_frame (B, F): weights."""
        weight = 1.0 + self.settings.object_weight * objects[:, :, None]
        if of_frame is not None:
            weight = weight * of_frame[:, :, None, None, None]
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
        level = torch.ones(shape, device=z.device)
        noisy = torch.rand(shape, device=z.device) < s.noisy_target_share
        level[noisy] = torch.sigmoid(torch.randn(shape, device=z.device) + 0.2)[noisy]
        x = self.noised(target, level)
        first = self.first_frame(rng)
        if spent > s.recycle_from and rng.random() < s.recycle_share:
            with torch.no_grad():
                made = self.predict(previous, x, action, self.condition(action, level, torch.zeros_like(level)), first)
            keep = torch.rand(shape, device=z.device)[:, :-1, None, None, None] < 0.8
            previous = torch.cat([previous[:, :1], torch.where(keep, made[:, :-1], previous[:, 1:])], dim=1)
        previous, told = self.corrupt(previous)
        predicted = self.predict(previous, x, action, self.condition(action, level, told), first, of_many=True)
        loss = self.loss(predicted, target, objects)
        loss.backward()
        return {"loss": loss}

    @torch.no_grad()
    def rollout(self, z: Tensor, action: Tensor, seeds: np.ndarray, real_frames: int,
                levels: tuple[float, ...] = (1.0,)) -> tuple[Tensor, Tensor]:
        """Play a clip through the ring, from frame 1, one pass a noise level: the latents that each frame saw as its
        previous one, real for the first `real_frames` frames and the network's own after, and what its last
        pass began from (its noise, where that is the only one); both (B, F, C, h, w)."""
        b, frames = action.shape[:2]
        spec = replace(self.spec, dynamics=replace(self.spec.dynamics, sigmas=levels))
        ring = torch.zeros(spec.ring_shape(b), device=z.device, dtype=self.run.dtype)
        previous, begun, latent = [], [], z[:, 0]
        host_action = action.cpu().numpy()
        for i in range(frames):
            if i < real_frames:
                latent = z[:, i]
            previous.append(latent)
            x = latent
            for index, level in enumerate(levels):
                inputs = conditioning.pass_inputs(spec, np.full(b, i + 1), seeds, host_action[:, i], index)
                noise, condition = (torch.from_numpy(a).to(z.device) for a in (inputs.noise, inputs.condition))
                start = (1 - level) * x + level * noise if index else noise
                with self.run.autocast():
                    x = self.net(latent[:, None], start[:, None], action[:, i : i + 1], condition[:, None],
                                 RingPass(spec, ring, inputs).attend)[:, 0].float()
            begun.append(start)
            latent = x
        return torch.stack(previous, dim=1), torch.stack(begun, dim=1)


def noise_levels(steps: int) -> tuple[float, ...]:
    """Of a world that is played with so many passes a frame: from 1 down, evenly."""
    return tuple((steps - i) / steps for i in range(steps))


def train_dynamics(run: Run, spec: WorldSpec, settings: DynamicsTraining, seconds: float, clips: LatentClips,
                   held_out: LatentClips, *, begin: World | None = None) -> dict[str, float]:
    """Stage `dynamics`; leaves its averaged weights in `dynamics.ckpt`, returns `measure`'s figures. begin: a world
    whose weights are the first ones."""
    torch.manual_seed(1)
    trainer = ClipTrainer(run, spec, settings)
    if begin is not None:
        trainer.net.load_state_dict({**trainer.net.state_dict(), **inherited(begin, spec, "dynamics")})
    values = train_stage(run, "dynamics", trainer.net,
                         optimizers_for(trainer.net, settings.learning_rate, settings.matrix_learning_rate), seconds,
                         lambda rng, spent: trainer.parallel_step(clips, rng, spent), settings.ema_decay,
                         report=lambda average: measure(run, spec, average.values, held_out))
    return measure(run, spec, values, held_out)


@torch.no_grad()
def measure(run: Run, spec: WorldSpec, values: dict[str, Tensor], clips: LatentClips,
            count: int = 16) -> dict[str, float]:
    """Mean squared latent error on held-out clips, in units of the latents' variance.

    one_step: every previous latent real; copy_last: z_(t-1) taken for z_t; shuffled: one_step with
    the actions of another clip, and shuffle_ratio, its ratio to one_step (1 means keys do nothing);
    rollout_16, copy_16: sixteen frames into a rollout from eight real frames; spread_16: how much those
    latents differ from clip to clip, in units of the real ones' (mist is below 1).
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
            "copy_16": float((z[:, 7] - z[:, 23]).square().mean()),
            "spread_16": float(seen[:, 23].std(0).mean() / z[:, 23].std(0).mean())}
