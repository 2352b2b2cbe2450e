"""Stage `decoder`: the decoder alone learns to give texture back, from latents that stay as they are.

A decoder that is trained on fidelity alone answers what the code does not say with its mean: walls
go smooth, and the picture keeps two thirds of the game's gradients. Here it goes on, behind the frozen
encoder, against a judge of patches (networks/discriminator.py):

    loss = fidelity + gradient_weight gradients + weight softplus(D(game) - D(decoded))
    D    = softplus(D(decoded) - D(game)) + penalty_weight |D(x + small noise) - D(x)|^2

The latents do not change, so the dynamics need not learn anything anew, and the stage may come last. A
share of the latents are the world's own dreams, some seconds in: they have no right answer to be close to,
and only the judge speaks. Where a game is all but certain they have one, the game's frame, for as long as the dream has
not parted from it (`parted`): then the decoder learns what a dreamed latent, never quite right, is meant to show.

Sources: VQGAN (Esser et al. 2021: patch discriminator on a decoder), relativistic pairing (R3GAN, Huang et al.
2024), decoder-only fine-tuning on frozen latents (GameNGen, Valevski et al. 2024), weights between a network and
its fine-tuning (WiSE-FT, Wortsman et al. 2022).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dreamloop.models.core.spec import WorldSpec
from dreamloop.models.networks.autoencoder import Autoencoder
from dreamloop.models.networks.discriminator import PatchDiscriminator
from dreamloop.models.training.autoencoder import (
    AutoencoderTraining,
    batch_of,
    channels_last,
    fidelity,
    gradient_loss,
    measure,
    sample_batch,
)
from dreamloop.models.training.data import LatentClips, Recording
from dreamloop.models.training.distillation.regression import alike
from dreamloop.models.training.dynamics import ClipTrainer, DynamicsTraining
from dreamloop.models.training.run import GateError, Run, train_stage


@dataclass(frozen=True)
class Polish:
    """weight: of the judge beside the fidelity; warmup: share of the stage in which the judge learns alone; no judge
    where weight is 0; batch_frames: of the recording; dream_share: of them are joined by a dreamed latent; dreams,
    dream_frames: how many rollouts give those, and of how many frames; parted: see above and `regression.Rollouts`, 0
    where nobody knows what a dream should show; kept: how far the weights go
    from the autoencoder's decoder to the polished one. On the way texture comes sooner than the loss of PSNR; at the
    end of it, in doom-arena, dreams were covered by a grid of coloured grain, though every statistic was within its
    bounds."""

    batch_frames: int = 12
    learning_rate: float = 5e-4
    critic_learning_rate: float = 4e-4
    weight: float = 0.08
    gradient_weight: float = 0.25
    warmup: float = 0.05
    penalty_weight: float = 10.0
    penalty_noise: float = 0.05
    dream_share: float = 0.25
    dreams: int = 128
    dream_frames: int = 48
    parted: float = 0.0
    kept: float = 0.6
    ema_decay: float = 0.998


@dataclass(frozen=True)
class Dreams:
    """Latents of the world's own, (N, C, h, w) float16; where it is known what they should show, frames
    (N, H, W, 3) uint8 and objects (N, H, W) bool of the recording, else None."""

    latents: Tensor
    frames: np.ndarray | None = None
    objects: np.ndarray | None = None


class DecoderStudent:
    """An autoencoder whose decoder learns beside a judge of patches. net: its encoder is frozen."""

    def __init__(self, run: Run, spec: WorldSpec, settings: Polish, base: AutoencoderTraining, net: Autoencoder,
                 data: Recording, dreamed: Dreams | None = None) -> None:
        self.run, self.spec, self.settings, self.base = run, spec, settings, base.later(1.0)
        self.data, self.dreamed = data, dreamed
        self.net = channels_last(net.to(run.device))
        self.net.encoder.requires_grad_(False)
        self.critic = PatchDiscriminator().to(run.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(net.decoder.parameters(), lr=settings.learning_rate, weight_decay=1e-4,
                              betas=(0.5, 0.99)),
            torch.optim.AdamW(self.critic.parameters(), lr=settings.critic_learning_rate, weight_decay=1e-3,
                              betas=(0.0, 0.99))]
        self._encoder, self._decoder, self._judge = (run.compiled(f) for f in (net.encoder, net.decoder, self.critic))

    def step(self, rng: np.random.Generator, spent: float) -> dict[str, Tensor]:
        """Forward and backward of one batch, of decoder and judge; `spent` in [0, 1]. Figures to show."""
        s = self.settings
        torch.manual_seed(int(rng.integers(2**31)))
        pixels, before, objects = sample_batch(self.run, self.spec, self.data, rng, s.batch_frames)
        latents, shown = self._latents(pixels), [(pixels, before, objects)]
        if self.dreamed is not None:
            chosen = rng.integers(0, len(self.dreamed.latents), round(s.batch_frames * s.dream_share))
            latents = torch.cat([latents, self.dreamed.latents[torch.from_numpy(chosen)].to(latents)])
            if self.dreamed.frames is not None and self.dreamed.objects is not None:
                shown.append(batch_of(self.run, self.spec, self.dreamed.frames[chosen], self.dreamed.frames[chosen],
                                      self.dreamed.objects[chosen]))
        decoded = self._decode(latents)
        known, last, things = (torch.cat(parts) for parts in zip(*shown, strict=True))
        of_game = decoded[: len(known)]
        loss = regression = (fidelity(self.base, of_game, known, last, things)
                             + s.gradient_weight * gradient_loss(of_game - known))
        if not s.weight:
            loss.backward()
            return {"loss": regression}
        # the judge compares pairs; a dreamed frame is paired with any of the game
        game = torch.cat([pixels, pixels[: len(decoded) - s.batch_frames]])
        if spent >= s.warmup:
            self.critic.requires_grad_(False)  # its gradients are of its own loss alone
            with torch.no_grad():
                believed = self._verdict(game)
            loss = loss + s.weight * functional.softplus(believed - self._verdict(decoded)).mean()
        loss.backward()
        self.critic.requires_grad_(True)
        return {"loss": regression, **self._teach_critic(game, decoded.detach())}

    def _latents(self, pixels: Tensor) -> Tensor:
        """Of the frames, with noise as the autoencoder's decoder had it."""
        net, device = self.net, pixels.device
        with torch.no_grad(), self.run.autocast():
            raw = self._encoder(pixels).float()
        latents = (raw - net.latent_mean[:, None, None]) / net.latent_std[:, None, None]
        deviation = torch.rand(len(latents), 1, 1, 1, device=device) * self.base.latent_noise
        return latents + deviation * torch.randn_like(latents)

    def _decode(self, latents: Tensor) -> Tensor:
        with self.run.autocast():
            return self._decoder(latents * self.net.latent_std[:, None, None]
                                 + self.net.latent_mean[:, None, None]).float()

    def _verdict(self, pixels: Tensor) -> Tensor:
        with self.run.autocast():
            return self._judge(pixels).float()

    def _teach_critic(self, game: Tensor, decoded: Tensor) -> dict[str, Tensor]:
        """Backward of the judge's loss; its gradients stay until the optimizers step."""
        s = self.settings
        believed, doubted = self._verdict(game), self._verdict(decoded)
        flat = sum(((self._verdict(x + s.penalty_noise * torch.randn_like(x)) - verdict).square().mean()
                    for x, verdict in ((game, believed), (decoded, doubted))), torch.zeros((), device=game.device))
        loss = functional.softplus(doubted - believed).mean() + s.penalty_weight * flat
        loss.backward()
        return {"critic_loss": loss, "critic_right": (believed > doubted).float().mean()}


def train_decoder(run: Run, spec: WorldSpec, settings: Polish, base: AutoencoderTraining, dynamics: str,
                  seconds: float, data: Recording, held_out: Recording, clips: LatentClips) -> dict[str, float]:
    """Train the decoder for `seconds` from the autoencoder's, beside dreams of stage `dynamics`; leaves the whole
    autoencoder, its encoder as it was, in `polished.ckpt`; returns figures."""
    torch.manual_seed(4)
    net = Autoencoder(spec)
    saved = run.load("autoencoder")
    assert saved is not None, "the autoencoder is trained before its decoder is polished"
    net.load_state_dict(saved["average"])
    dreamed = dream(run, spec, dynamics, clips, settings.dreams, settings.parted, data)
    student = DecoderStudent(run, spec, settings, base, net, data, dreamed)

    def figures(values: dict[str, Tensor]) -> dict[str, float]:
        kept = measure(run, spec, values, held_out)
        kept.pop("motion_error")  # of the latents, which are the autoencoder's
        return kept

    values = train_stage(run, "decoder", student.net, student.optimizers, seconds, student.step, settings.ema_decay,
                         report=lambda average: figures(average.values), companion=student.critic)
    values = {name: before.to(run.device).lerp(values[name], settings.kept)
              for name, before in saved["average"].items()}
    run.save("polished", {"average": values})
    return figures(values)


@torch.no_grad()
def dream(run: Run, spec: WorldSpec, stage: str, clips: LatentClips, count: int, parted: float,
          data: Recording) -> Dreams:
    """The second half of `count` rollouts, on the host. parted: 0, or the first half is real and of the second are kept
    the frames before a dream has parted from the recording, with what they should show."""
    trainer = ClipTrainer(run, spec, DynamicsTraining())
    saved = run.load(stage)
    assert saved is not None, f"stage {stage} comes before its dreams"
    trainer.net.load_state_dict(saved["average"])
    rng = np.random.default_rng(13)
    latents: list[Tensor] = []
    frames: list[np.ndarray] = []
    objects: list[np.ndarray] = []
    half = clips.clip_frames // 2
    with run.console.status(f"dreaming {count} clips"):
        for first in range(0, count, 16):
            places = clips.places(rng, min(16, count - first))
            z, action = (torch.from_numpy(x).to(run.device) for x in clips.cut(places)[:2])
            seeds = rng.integers(0, 2**32, len(z)).astype(np.uint64)
            seen, _ = trainer.rollout(z, action, seeds, half if parted else 1)
            if not parted:
                latents.append(seen[:, half:].flatten(0, 1).half().cpu())
                continue
            kept = alike(seen, z[:, :-1], parted).sum(1).int().tolist()
            for clip, end, (episode, start) in zip(seen, kept, places, strict=True):
                latents.append(clip[half:end].half().cpu())
                for list_of, read in ((frames, data.frames), (objects, data.objects)):
                    list_of.append(read(clips.episodes[episode], start + half, max(end - half, 0)))
    if not parted:
        return Dreams(torch.cat(latents))
    if not (found := torch.cat(latents)).shape[0]:
        raise GateError(f"decoder: no dream of stage {stage} follows the recording for one frame")
    return Dreams(found, np.concatenate(frames), np.concatenate(objects))
