"""Self-Forcing with distribution matching (DMD): the dream's frames are moved to where real ones are.

A clip is played; every made frame is noised again to a random level s and denoised twice, by the
frozen base (what real frames would be) and by a copy that is kept trained on the dream's own frames
(what dreamed frames are). Where the two differ the dream is unlike the game:

    gradient = (z_fake - z_real) / mean |z_hat - z_real|         applied as  |z_hat - stop(z_hat - gradient)|^2 / 2

The copy, the fake score, learns five times as often as the student. Both see the dream's own past, so
what is matched is a frame given its history and its keys; the recording is not an aim. A share of regression
on the played clip keeps the student on the keys.

A student of several steps plays each clip with the first of its passes only, as many as chance will have it (random
exit): every pass is the last one in turn, has the gradient, and leaves its keys and values, as it would at play.

Sources: DMD2 (Yin et al. 2024), Self Forcing (Huang et al. 2025).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from dreamloop.models.networks.dit import Dynamics
from dreamloop.models.training.data import LatentClips
from dreamloop.models.training.distillation.regression import Played, Rollouts, play
from dreamloop.models.training.dynamics import ClipTrainer, noise_levels


@dataclass(frozen=True)
class DistributionMatching:
    """steps: passes a frame of the student, at most; critic_updates: of the fake score for one of the student; lowest,
    highest: noise levels at which scores are compared; regression_weight: of the recording's pull on played clips."""

    name: str = "distribution_matching"
    clip_frames: int = 24
    steps: int = 1
    rollouts: Rollouts = field(default_factory=lambda: Rollouts(batch_clips=3, grow=0.3))
    critic_updates: int = 5
    lowest: float = 0.1
    highest: float = 0.95
    regression_weight: float = 0.25
    learning_rate: float = 2e-5
    critic_learning_rate: float = 5e-5
    ema_decay: float = 0.99

    def student(self, trainer: ClipTrainer) -> MatchingStudent:
        return MatchingStudent(self, trainer)


class MatchingStudent:
    def __init__(self, settings: DistributionMatching, trainer: ClipTrainer) -> None:
        self.settings, self.trainer, self.net = settings, trainer, trainer.net
        base = trainer.run.load("dynamics")
        real, fake = copy.deepcopy(trainer.net), copy.deepcopy(trainer.net)
        if base is not None:
            for score in (real, fake):
                score.load_state_dict(base["average"])
        self.companions = nn.ModuleDict({"real": real.requires_grad_(False), "fake": fake})
        self.student_optimizer = torch.optim.AdamW(self.net.parameters(), lr=settings.learning_rate,
                                                   weight_decay=0.0, betas=(0.0, 0.99))
        self.critic_optimizer = torch.optim.AdamW(fake.parameters(), lr=settings.critic_learning_rate,
                                                  weight_decay=0.0, betas=(0.0, 0.99))
        self.optimizers: list[torch.optim.Optimizer] = [self.student_optimizer, self.critic_optimizer]
        self.steps = 0

    def _score(self, which: str, played: Played, latents: Tensor, level: Tensor, x: Tensor) -> Tensor:
        """A score network's guess of the latents behind x, given the dream's own past."""
        net = self.companions[which]
        assert isinstance(net, Dynamics)
        zeros = torch.zeros_like(level)
        previous = torch.cat([played.previous[:, :1], latents[:, :-1]], dim=1)
        return self.trainer.predict(previous, x, played.action,
                                    self.trainer.condition(played.action, level, zeros), 1, net)

    def _level(self, played: Played) -> Tensor:
        s = self.settings
        return s.lowest + (s.highest - s.lowest) * torch.rand(played.action.shape[:2], device=played.made.device)

    def step(self, clips: LatentClips, rng: np.random.Generator, spent: float) -> dict[str, Tensor]:
        """One update of the fake score, or, every `critic_updates` + 1 steps, one of the student."""
        s = self.settings
        torch.manual_seed(int(rng.integers(2**31)))
        turn = self.steps % (s.critic_updates + 1) == s.critic_updates
        self.steps += 1
        levels = noise_levels(s.steps)[: int(rng.integers(1, s.steps + 1))]
        played = play(self.trainer, clips, rng, s.rollouts, spent, gradient=turn, levels=levels)
        latents = played.made.detach()
        level = self._level(played)
        x = self.trainer.noised(latents, level)
        if not turn:
            loss = (self._score("fake", played, latents, level, x) - latents).square().mean()
            loss.backward()
            return {"critic_loss": loss}
        with torch.no_grad():
            real, fake = (self._score(which, played, latents, level, x) for which in ("real", "fake"))
            scale = (latents - real).abs().mean((2, 3, 4), keepdim=True).clamp(min=1e-3)
            gradient = (fake - real) / scale
        dreamed = slice(played.real, None)  # a frame behind real ones is no dream yet
        matching = 0.5 * (played.made - (latents - gradient))[:, dreamed].square().mean()
        regression = self.trainer.loss(played.made, played.target, played.objects)
        (matching + s.regression_weight * regression).backward()
        return {"loss": regression, "gradient": gradient[:, dreamed].abs().mean()}
