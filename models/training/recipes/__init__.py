"""Recipes: everything that makes one world what it is, as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field

from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.spec import WorldSpec
from dreamloop.models.training.autoencoder import AutoencoderTraining
from dreamloop.models.training.distillation import Method
from dreamloop.models.training.distillation.regression import SelfRollout
from dreamloop.models.training.dynamics import DynamicsTraining


@dataclass(frozen=True)
class Recipe:
    """spec: the world to make; record_frames: how much to record; shares: parts of the time budget
    by stage; gates: least figure by `stage.figure` (the run stops below it); distillation: what follows
    stage `dynamics`, one stage each, by its name; the last one's network is the world's."""

    spec: WorldSpec
    record_frames: int
    held_out_frames: int
    minutes: float
    shares: dict[str, float]
    gates: dict[str, float]
    autoencoder: AutoencoderTraining = field(default_factory=AutoencoderTraining)
    dynamics: DynamicsTraining = field(default_factory=DynamicsTraining)
    distillation: tuple[Method, ...] = (SelfRollout(),)


def recipe(name: str) -> Recipe:
    """The recipe of that name. Raises `DreamloopError` if there is none."""
    from dreamloop.models.training.recipes.doom_arena import DOOM_ARENA
    recipes = {r.spec.name: r for r in (DOOM_ARENA,)}
    if name not in recipes:
        raise DreamloopError(f"unknown recipe {name!r}; known: {', '.join(sorted(recipes))}")
    return recipes[name]
