"""Adversarial polish: a discriminator that sees whole clips teaches what regression averages away.

A clip is played and made again in parallel with gradient, as for regression. The discriminator
compares it, frame by frame but with all frames in view, with the recording under the same keys:

    d_loss = softplus(D(dream) - D(game)) + softplus(D(game, other keys) - D(game)) + penalty
    g_loss = regression + weight softplus(D(game) - D(dream))

(relativistic: only the difference counts, so neither side can win by shouting). The second term
of d_loss shows it real clips under the keys of another: without it, obeying the keys is never
asked for. penalty pulls D to be flat around real and dreamed clips, by finite differences instead of
second derivatives:  weight |D(clip + small noise) - D(clip)|^2.

Sources: relativistic pairing (Jolicoeur-Martineau 2018; R3GAN, Huang et al. 2024), approximated R1 and
R2 (Seaweed-APT, 2025), a clip-wide discriminator against motion collapse (AAD-1).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dreamloop.models.networks.discriminator import ClipDiscriminator
from dreamloop.models.training.data import LatentClips
from dreamloop.models.training.distillation.regression import Played, Rollouts, play
from dreamloop.models.training.dynamics import ClipTrainer, optimizers_for


@dataclass(frozen=True)
class Adversarial:
    """weight: of the discriminator beside the regression; warmup: share of the stage in which it learns
    alone, before the student listens."""

    name: str = "adversarial"
    clip_frames: int = 32
    rollouts: Rollouts = field(default_factory=lambda: Rollouts(shortest=8, grow=0.3))
    weight: float = 0.05
    warmup: float = 0.1
    penalty_weight: float = 10.0
    penalty_noise: float = 0.05
    learning_rate: float = 2e-4
    matrix_learning_rate: float = 2e-3
    critic_learning_rate: float = 4e-4
    parallel_share: float = 0.15
    ema_decay: float = 0.995

    def student(self, trainer: ClipTrainer) -> AdversarialStudent:
        return AdversarialStudent(self, trainer)


class AdversarialStudent:
    def __init__(self, settings: Adversarial, trainer: ClipTrainer) -> None:
        self.settings, self.trainer, self.net = settings, trainer, trainer.net
        self.critic = ClipDiscriminator(trainer.spec).to(trainer.run.device)
        self.companions = nn.ModuleDict({"critic": self.critic})
        self.critic_optimizer = torch.optim.AdamW(self.critic.parameters(), lr=settings.critic_learning_rate,
                                                  weight_decay=1e-3, betas=(0.0, 0.99))
        self.optimizers = [*optimizers_for(self.net, settings.learning_rate, settings.matrix_learning_rate),
                           self.critic_optimizer]

    def step(self, clips: LatentClips, rng: np.random.Generator, spent: float) -> dict[str, Tensor]:
        s = self.settings
        torch.manual_seed(int(rng.integers(2**31)))
        if rng.random() < s.parallel_share:
            return {"parallel_loss": self.trainer.parallel_step(clips, rng, 1.0)["loss"]}
        played = play(self.trainer, clips, rng, s.rollouts, spent)
        figures = self._teach_critic(played)
        regression = self.trainer.loss(played.made, played.target, played.objects)
        loss = regression
        if spent >= s.warmup:
            self.critic.requires_grad_(False)  # its gradients are of its own loss alone
            believed = self._verdict(played.target, played.action)
            loss = loss + s.weight * functional.softplus(believed - self._verdict(played.made, played.action)).mean()
        loss.backward()
        self.critic.requires_grad_(True)
        return {"loss": regression, **figures}

    def _verdict(self, latents: Tensor, action: Tensor) -> Tensor:
        with self.trainer.run.autocast():
            return self.critic(latents, action).float()

    def _teach_critic(self, played: Played) -> dict[str, Tensor]:
        """Backward of the critic's loss; its gradients stay until the optimizers step."""
        s = self.settings
        real, dreamed = played.target, played.made.detach()
        believed, doubted = self._verdict(real, played.action), self._verdict(dreamed, played.action)
        other = self._verdict(real, played.action.roll(1, dims=0))
        changed = (played.action != played.action.roll(1, dims=0)).any(-1)  # elsewhere the keys agree
        mismatch = (functional.softplus(other - believed) * changed).sum() / changed.sum().clamp(min=1)
        flat = sum(((self._verdict(clip + s.penalty_noise * torch.randn_like(clip), played.action) - verdict)
                    .square().mean() for clip, verdict in ((real, believed), (dreamed, doubted))), torch.zeros(()))
        loss = functional.softplus(doubted - believed).mean() + mismatch + s.penalty_weight * flat
        loss.backward()
        dream = slice(played.real, None)
        return {"critic_loss": loss, "critic_right": (believed > doubted)[:, dream].float().mean()}
