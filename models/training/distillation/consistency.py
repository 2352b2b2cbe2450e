"""Consistency distillation: the many small steps of a teacher, learnt as one jump.

The base, trained at every noise level, is a teacher: its guess z_hat at (x_s, s) is a step of the
flow from noise to latent,

    x_r = (r / s) x_s + (1 - r / s) z_hat(x_s, s)                  r the next lower level of a grid

and a student is consistent if its guess does not change along that path:

    loss = | f(x_s, s) - stop f_ema(x_r, r) |^2                    f_ema(x_0, 0) = z, the recording

so that f at pure noise lands where the teacher's whole path would. All frames of a clip at once, each
at a level of its own, behind real previous latents with the corruption of the base's training.

Sources: Consistency Models (Song et al. 2023), its causal form for video in Causal Forcing (2025).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dreamloop.models.networks.dit import Dynamics
from dreamloop.models.training.data import LatentClips
from dreamloop.models.training.dynamics import ClipTrainer, optimizers_for


@dataclass(frozen=True)
class Consistency:
    """levels: points of the grid between 0 and 1; pure_share: of the frames start at level 1, where play
    starts; ema: of the copy that gives the targets."""

    name: str = "consistency"
    clip_frames: int = 24
    batch_clips: int = 4
    levels: int = 16
    pure_share: float = 0.3
    ema: float = 0.95
    learning_rate: float = 5e-4
    matrix_learning_rate: float = 5e-3
    ema_decay: float = 0.997

    def student(self, trainer: ClipTrainer) -> ConsistentStudent:
        return ConsistentStudent(self, trainer)


def flow_step(x: Tensor, guess: Tensor, level: Tensor, lower: Tensor) -> Tensor:
    """One step of the teacher's flow from `level` to `lower`; levels (B, F), the rest (B, F, C, h, w)."""
    ratio = (lower / level)[..., None, None, None]
    return ratio * x + (1 - ratio) * guess


class ConsistentStudent:
    def __init__(self, settings: Consistency, trainer: ClipTrainer) -> None:
        self.settings, self.trainer, self.net = settings, trainer, trainer.net
        teacher, target = (copy.deepcopy(trainer.net).requires_grad_(False) for _ in range(2))
        self.companions = nn.ModuleDict({"teacher": teacher, "target": target})
        self.optimizers = optimizers_for(self.net, settings.learning_rate, settings.matrix_learning_rate)

    def step(self, clips: LatentClips, rng: np.random.Generator, spent: float) -> dict[str, Tensor]:
        s, trainer = self.settings, self.trainer
        z, action, objects = trainer.sample(clips, rng, s.batch_clips)
        torch.manual_seed(int(rng.integers(2**31)))
        previous, told = trainer.corrupt(z[:, :-1])
        target = z[:, 1:]
        point = torch.randint(1, s.levels + 1, target.shape[:2], device=z.device)
        point[torch.rand(point.shape, device=z.device) < s.pure_share] = s.levels
        level, lower = point / s.levels, (point - 1) / s.levels
        first = trainer.first_frame(rng)
        x = trainer.noised(target, level)

        def guess(net: nn.Module, x: Tensor, at: Tensor) -> Tensor:
            assert isinstance(net, Dynamics)
            return trainer.predict(previous, x, action, trainer.condition(action, at, told), first, net)

        with torch.no_grad():
            self._follow()
            stepped = flow_step(x, guess(self.companions["teacher"], x, level), level, lower)
            aim = guess(self.companions["target"], stepped, lower)
            aim = torch.where((point == 1)[..., None, None, None], target, aim)
        loss = trainer.loss(guess(self.net, x, level), aim, objects)
        loss.backward()
        return {"loss": loss}

    def _follow(self) -> None:
        """The target network follows the student."""
        for slow, fast in zip(self.companions["target"].parameters(), self.net.parameters(), strict=True):
            slow.lerp_(fast, 1 - self.settings.ema)
