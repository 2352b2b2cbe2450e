"""Recipes: everything that makes one world what it is, as frozen dataclasses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.spec import WorldSpec
from dreamloop.models.training.autoencoder import AutoencoderTraining
from dreamloop.models.training.distillation import Method
from dreamloop.models.training.distillation.regression import SelfRollout
from dreamloop.models.training.dynamics import DynamicsTraining
from dreamloop.models.training.polish import Polish


@dataclass(frozen=True)
class Recipe:
    """spec: the world to make; record_frames: how much to record; shares: parts of the time budget
    by stage; gates: least figure by `stage.figure` (the run stops below it); distillation: what follows
    stage `dynamics`, one stage each, by its name; the last one's network is the world's; polish: what stage
    `decoder` does after them, if anything; game: what `open_game` takes, where the name in the spec is not
    enough (a folder's path); noise_at_play: deviation of the noise that the packed world answers from, of what it was
    trained with (packing.with_less_noise); begin_from: the world (of the zoo, or a folder) whose weights are the first
    ones (inherit.py)."""

    spec: WorldSpec
    record_frames: int
    held_out_frames: int
    minutes: float
    shares: dict[str, float]
    gates: dict[str, float]
    autoencoder: AutoencoderTraining = field(default_factory=AutoencoderTraining)
    dynamics: DynamicsTraining = field(default_factory=DynamicsTraining)
    distillation: tuple[Method, ...] = (SelfRollout(),)
    polish: Polish | None = None
    game: str = ""
    noise_at_play: float = 1.0
    begin_from: str = ""

    @property
    def game_name(self) -> str:
        """What `open_game` takes."""
        return self.game or self.spec.game


def beginning_from(recipe: Recipe, world: str) -> Recipe:
    """The recipe with the weights of `world` as the first ones, and gentler rates, for they are not random."""
    if recipe.begin_from:  # its rates are gentle already
        return replace(recipe, begin_from=world)
    a, d = recipe.autoencoder, recipe.dynamics
    return replace(
        recipe, begin_from=world, autoencoder=replace(a, learning_rate=a.learning_rate * 2 / 3),
        dynamics=replace(d, learning_rate=d.learning_rate / 2, matrix_learning_rate=d.matrix_learning_rate / 2))


def only(recipe: Recipe, stages: Sequence[str], judged: bool = False) -> Recipe:
    """The recipe with all its minutes for these stages; what the others would make stays as it is in the world that it
    begins from. So do its judges, where there are any (`judged`), else new ones have their share, and need not pass
    their gates in so short a run. Raises `DreamloopError` where there is no such world or no such stage."""
    networks = [name for name in recipe.shares if name != "judges"]
    if unknown := [name for name in stages if name not in networks]:
        raise DreamloopError(f"{recipe.spec.name} has no stage {unknown[0]!r} to train; it has {', '.join(networks)}")
    if not recipe.begin_from:
        raise DreamloopError(f"to train only {', '.join(stages)}, name a world to begin from: --begin WORLD")
    spent = sum(recipe.shares[name] for name in set(stages))
    for_judges = 0.0 if judged else recipe.shares["judges"]
    gates = {name: least for name, least in recipe.gates.items() if not name.startswith("judges.")}
    # a network that is not trained anew has been packed once, and reads its noise as it should
    dynamics = {"dynamics", *(method.name for method in recipe.distillation)}
    noise = recipe.noise_at_play if dynamics & set(stages) else 1.0
    return replace(recipe, gates=gates, noise_at_play=noise, shares={"judges": for_judges} | {
        name: (1.0 - for_judges) * recipe.shares[name] / spent if name in stages else 0.0 for name in networks})


BATCHES = ("batch_clips", "batch_frames")  # every stage's word for how many a step learns from


def in_batches(recipe: Recipe, times: int) -> Recipe:
    """The recipe with so many times the clips and frames in every step of autoencoder, dynamics, distillation and
    decoder. Rates stay: the recipes' batches are those of two cores, and small."""
    def larger(settings: Any) -> Any:
        if isinstance(settings, tuple):
            return tuple(larger(each) for each in settings)
        if not is_dataclass(settings):
            return settings
        found = {f.name: getattr(settings, f.name) for f in fields(settings)}
        return replace(settings, **{  # type: ignore[type-var]
            name: times * value if name in BATCHES else larger(value) for name, value in found.items()})

    return replace(recipe, autoencoder=larger(recipe.autoencoder), dynamics=larger(recipe.dynamics),
                   distillation=larger(recipe.distillation), polish=larger(recipe.polish))


def recipes() -> dict[str, Recipe]:
    """Every recipe by name."""
    from dreamloop.models.training.recipes.doom_arena import DOOM_ARENA
    from dreamloop.models.training.recipes.doom_corridor import DOOM_CORRIDOR
    from dreamloop.models.training.recipes.doom_maze import DOOM_MAZE
    from dreamloop.models.training.recipes.doom_maze_hd import DOOM_MAZE_HD
    from dreamloop.models.training.recipes.doom_maze_study import DOOM_MAZE_STUDY
    from dreamloop.models.training.recipes.pong import PONG
    return {r.spec.name: r for r in (DOOM_ARENA, DOOM_CORRIDOR, DOOM_MAZE, DOOM_MAZE_HD, DOOM_MAZE_STUDY, PONG)}


def recipe(name: str) -> Recipe:
    """The recipe of that name. Raises `DreamloopError` if there is none."""
    known = recipes()
    if name not in known:
        raise DreamloopError(f"unknown recipe {name!r}; known: {', '.join(sorted(known))}, or any game with --game")
    return known[name]
