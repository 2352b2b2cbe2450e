"""Scoring: a one-step generator without a critic, by a proper scoring rule.

Regression answers an uncertain frame with its mean, which is mist. Here the network answers twice,
from two noises, and is scored by the energy score:

    S = (|z1 - z| + |z2 - z|) / 2  -  |z1 - z2| / 2                norms over the channels of a patch

Its expectation is least exactly when the answers are drawn from the distribution of z given the
history and the keys: the first term alone would ask for the middle, the second pays for being as
spread as the truth is. So the noise is put to use, every answer is one of the sharp frames that might
be, and there is nothing to balance and no second network. Patches of one cell and of one token are
scored: small ones for sharpness, larger ones for parts that fit together.

A share `spread` of what the second term pays may be paid instead: answers then lie closer to the middle. Of one
normal number with variance v the best answers have v spread^2 / (2 - spread^2). Unlike less noise at play
(packing.with_less_noise) the network learns so, and its rollouts and its error bank are those of play.

Clips are made behind the recording's latents, corrupted as in stage `dynamics`, and a few behind the
network's own (played through the ring, then made again in parallel, as for self-rollout), but of four
frames only. The recording is one of the ways in which the real frames may go on, the dream is
another; a network that is scored on the one behind a long past of the other learns to forget what it
chose, and flickers (measured: with rollouts of up to 16 frames on 40% of the batches the one-step error
rose from .223 to .268 within ten minutes). The way back from what dreams come to after hundreds of frames is taught by
an error bank (error_bank.py), where there is one.

Sources: Gneiting and Raftery 2007 (strictly proper scoring rules), Shen and Meinshausen 2023 (engression);
ensembles trained so forecast the weather (Lang et al. 2024, AIFS-CRPS; Alet et al. 2025, FGN).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.training.data import LatentClips
from dreamloop.models.training.distillation.error_bank import Dreaming, ErrorBank
from dreamloop.models.training.distillation.regression import Rollouts, own_past
from dreamloop.models.training.dynamics import ClipTrainer, optimizers_for


@dataclass(frozen=True)
class Scoring:
    """batch_clips: of the parallel batches, each made twice; rollout_share: of the batches are behind
    own latents, from share `rollouts_from` of the stage on, `rollouts.shortest` frames; bank: of dreams far in, that
    the parallel batches are mixed with; spread: of what two answers' difference pays, see `energy_score`."""

    name: str = "scoring"
    clip_frames: int = 24
    batch_clips: int = 4
    rollouts: Rollouts = field(default_factory=lambda: Rollouts(batch_clips=3, shortest=4, grow=math.inf))
    rollout_share: float = 0.15
    rollouts_from: float = 0.3
    bank: ErrorBank | None = None
    spread: float = 1.0
    learning_rate: float = 1.5e-3
    matrix_learning_rate: float = 1.5e-2
    ema_decay: float = 0.997

    def __post_init__(self) -> None:
        if not 0.0 <= self.spread <= 1.0:
            raise DreamloopError(f"scoring: spread={self.spread} must be 0..1")
        if self.bank and self.bank.frames < self.clip_frames:
            raise DreamloopError(f"scoring: a clip of {self.clip_frames} frames is not to be had from an error bank's "
                                 f"stretch of {self.bank.frames}")

    def student(self, trainer: ClipTrainer) -> ScoredStudent:
        return ScoredStudent(self, trainer)


def energy_score(first: Tensor, second: Tensor, target: Tensor, weight: Tensor, spread: float = 1.0) -> Tensor:
    """Mean energy score of two answers per patch, in units of one channel's deviation.

    first, second, target: (..., P, D) vectors of patches; weight (..., P), mean 1; spread: share of the second term."""
    def distance(a: Tensor, b: Tensor) -> Tensor:
        return ((a - b).square().mean(-1) + 1e-6).sqrt()

    score = 0.5 * (distance(first, target) + distance(second, target) - spread * distance(first, second))
    return (weight * score).mean()


class ScoredStudent:
    def __init__(self, settings: Scoring, trainer: ClipTrainer) -> None:
        self.settings, self.trainer, self.net = settings, trainer, trainer.net
        self.companions = nn.ModuleDict()
        self.optimizers = optimizers_for(self.net, settings.learning_rate, settings.matrix_learning_rate)
        self.dreaming = Dreaming(settings.bank, trainer) if settings.bank else None

    def step(self, clips: LatentClips, rng: np.random.Generator, spent: float) -> dict[str, Tensor]:
        s, trainer = self.settings, self.trainer
        if self.dreaming:
            self.dreaming.step(clips, rng)
        torch.manual_seed(int(rng.integers(2**31)))
        if spent >= s.rollouts_from and rng.random() < s.rollout_share:
            past = own_past(trainer, clips, rng, s.rollouts, spent)
            told = torch.zeros(past.action.shape[:2], device=past.target.device)
            score = self._score(past.previous, past.target, past.action, past.objects, told, 1)
            score.backward()
            return {"own_score": score}
        z, action, objects = trainer.sample(clips, rng, s.batch_clips)
        previous = self.dreaming.mixed(z[:, :-1]) if self.dreaming else z[:, :-1]
        previous, told = trainer.corrupt(previous)
        score = self._score(previous, z[:, 1:], action, objects, told, trainer.first_frame(rng), of_many=True)
        score.backward()
        return {"score": score}

    def _score(self, previous: Tensor, target: Tensor, action: Tensor, objects: Tensor, told: Tensor,
               first: int, of_many: bool = False) -> Tensor:
        """Score of two answers to the same clip, (B, F, ...) all, from noises drawn here."""
        trainer = self.trainer
        condition = trainer.condition(action, torch.ones_like(told), told)
        twice = [x.repeat(2, *[1] * (x.ndim - 1)) for x in (previous, action, condition)]
        noise = torch.randn(2 * len(target), *target.shape[1:], device=target.device)
        answers = trainer.predict(twice[0], noise, twice[1], twice[2], first, of_many=of_many).chunk(2)
        weight = 1.0 + trainer.settings.object_weight * objects
        weight = weight / weight.mean()
        cells = [x.flatten(3).transpose(2, 3) for x in (*answers, target)]  # (B, F, h * w, C)
        tokens = [self.net.patchify(x) for x in (*answers, target)]
        of_token = self.net.patchify(weight[:, :, None]).mean(-1)
        spread = self.settings.spread
        return 0.5 * (energy_score(cells[0], cells[1], cells[2], weight.flatten(2), spread)
                      + energy_score(tokens[0], tokens[1], tokens[2], of_token, spread))
