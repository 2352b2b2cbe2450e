"""The distillation family: from the base of stage `dynamics` to a student that needs one step.

A method is a frozen dataclass of settings; `method.student(...)` gives what learns. All students start
from the averaged weights of the stage before, train for a budget of seconds, end in the same network
at noise level 1, and are judged by the same figures; methods can follow one another, each a
stage of its own.

    self_rollout            regression on own rollouts                     regression.py
    scoring                 two answers, a proper scoring rule             scoring.py
    consistency             jumps of a few-step teacher in one             consistency.py
    distribution_matching   real score against fake score (DMD)            distribution_matching.py
    adversarial             a discriminator over whole clips               adversarial.py
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.spec import WorldSpec
from dreamloop.models.networks.dit import Dynamics
from dreamloop.models.training.data import LatentClips
from dreamloop.models.training.dynamics import ClipTrainer, DynamicsTraining, measure
from dreamloop.models.training.run import Run, train_stage


class Student(Protocol):
    """What learns: `net` is what will be played; companions (critics, copies) are thrown away after."""

    net: Dynamics
    companions: nn.ModuleDict
    optimizers: list[torch.optim.Optimizer]

    def step(self, clips: LatentClips, rng: np.random.Generator, spent: float) -> dict[str, Tensor]:
        """Forward and backward of one batch; `spent` in [0, 1]. Figures to show."""
        ...


class Method(Protocol):
    """Settings of a method. name: of its stage; clip_frames: of the clips that it learns from."""

    @property
    def name(self) -> str: ...
    @property
    def clip_frames(self) -> int: ...
    @property
    def ema_decay(self) -> float: ...

    def student(self, trainer: ClipTrainer) -> Student:
        """A student around `trainer.net`, which holds the weights of the stage before."""
        ...


def train_student(run: Run, spec: WorldSpec, method: Method, base: DynamicsTraining, before: str, seconds: float,
                  clips: LatentClips, held_out: LatentClips) -> dict[str, float]:
    """Train one method for `seconds` from the averaged weights of stage `before`; leaves its own in
    `NAME.ckpt`, returns `measure`'s figures."""
    torch.manual_seed(2)
    trainer = ClipTrainer(run, spec, base)
    if (saved := run.load(before)) is None:
        raise DreamloopError(f"{method.name} starts from stage {before}, which this run has not finished")
    trainer.net.load_state_dict(saved["average"])
    student = method.student(trainer)
    values = train_stage(run, method.name, student.net, student.optimizers, seconds,
                         lambda rng, spent: student.step(clips, rng, spent), method.ema_decay,
                         report=lambda average: measure(run, spec, average.values, held_out),
                         companion=student.companions)
    return measure(run, spec, values, held_out)
