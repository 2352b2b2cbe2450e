"""A world that begins from another one's weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from worlds import tiny_spec, tiny_world

from dreamloop.models.core import conditioning
from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.spec import ActionSpec, Button, MemorySpec, PlanSpec, WorldSpec
from dreamloop.models.core.world import World
from dreamloop.models.networks.autoencoder import Autoencoder
from dreamloop.models.networks.dit import Dynamics
from dreamloop.models.training.data import LatentClips
from dreamloop.models.training.dynamics import DynamicsTraining, train_dynamics
from dreamloop.models.training.inherit import inherited, same_code
from dreamloop.models.training.recipes import beginning_from, recipe
from dreamloop.models.training.run import Run

OTHER_KEYS = ActionSpec((Button("forward"), Button("attack"), Button("turn_left")))


def made(spec: WorldSpec, weights: dict[str, torch.Tensor], names: set[str]) -> torch.Tensor:
    """Three frames of a clip in which `names` are held."""
    net = Dynamics(spec)
    net.load_state_dict(weights)
    generator = torch.Generator().manual_seed(0)
    previous, noise = (torch.randn(1, 3, *spec.latent_shape, generator=generator) for _ in range(2))
    action = torch.from_numpy(np.tile(spec.actions.vector(names), (1, 3, 1)))
    ones = np.ones((1, 3), np.float32)
    condition = torch.from_numpy(conditioning.condition(action.numpy(), ones, ones, 0 * ones))
    with torch.no_grad():
        return net.sequence(previous, noise, action, condition)


@pytest.fixture
def first(tmp_path: Path) -> World:
    return tiny_world(tmp_path / "first", memory=MemorySpec(window_frames=4), plan=PlanSpec())


def test_keys_keep_what_they_do_by_name_and_a_new_key_does_nothing(first: World) -> None:
    before = inherited(first, first.spec, "dynamics")
    spec = dataclasses.replace(first.spec, actions=OTHER_KEYS)
    after = inherited(first, spec, "dynamics")
    for names in ({"attack"}, {"turn_left", "attack"}, set[str]()):
        torch.testing.assert_close(made(spec, after, names), made(first.spec, before, names))
        torch.testing.assert_close(made(spec, after, names | {"forward"}), made(spec, after, names))
    assert not torch.allclose(made(spec, after, {"attack"}), made(spec, after, set()))


def test_the_autoencoder_is_the_first_worlds(first: World) -> None:
    net = Autoencoder(first.spec)
    net.load_state_dict(inherited(first, dataclasses.replace(first.spec, actions=OTHER_KEYS), "autoencoder"))
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), first.weights[f"autoencoder.{name}"])


def test_tokens_of_other_latents_are_read_anew_by_blocks_that_are_inherited(tmp_path: Path, first: World) -> None:
    d = first.spec.dynamics
    spec = dataclasses.replace(first.spec, dynamics=dataclasses.replace(d, patch=1 if d.patch == 2 else 2))
    run = Run(tmp_path / "run", "tiny", "cpu", resume=False, compiling=False)
    clips = LatentClips([np.random.default_rng(0).normal(size=(60, *spec.latent_shape)).astype(np.float16)],
                        [np.zeros((60, spec.actions.size), np.float32)],
                        [np.zeros((60, *spec.latent_shape[1:]), bool)], 25)
    train_dynamics(run, spec, DynamicsTraining(clip_frames=25), 0.0, clips, clips, begin=first)
    saved = run.load("dynamics")
    assert saved is not None
    own = {name: tuple(value.shape) for name, value in Dynamics(spec).state_dict().items()}
    assert {name: tuple(value.shape) for name, value in saved["module"].items()} == own
    taken = [name for name, value in saved["module"].items()
             if first.weights[f"dynamics.{name}"].shape == value.shape]
    for name in taken:
        np.testing.assert_array_equal(saved["module"][name].numpy(), first.weights[f"dynamics.{name}"])
    assert own.keys() - taken == {"input.weight", "output.weight", "output.bias"}


def test_another_size_is_refused_by_name(first: World) -> None:
    wider = dataclasses.replace(tiny_spec().autoencoder, latent_channels=8)
    with pytest.raises(DreamloopError, match=r"cannot begin from tiny: autoencoder.encoder.head.weight is 8x.* there"):
        inherited(first, dataclasses.replace(first.spec, autoencoder=wider), "autoencoder")


def test_rates_are_gentler_once_however_often_another_beginning_is_named() -> None:
    arena, once = recipe("doom-arena"), beginning_from(recipe("doom-arena"), "doom-arena")
    assert once.dynamics.matrix_learning_rate == arena.dynamics.matrix_learning_rate / 2
    assert beginning_from(once, "pong") == dataclasses.replace(once, begin_from="pong")


@pytest.mark.parametrize(("name", "begins"), [("doom-corridor", "doom-arena"), ("doom-maze", "doom-corridor")])
def test_a_recipe_can_begin_from_the_world_that_ships(name: str, begins: str) -> None:
    from dreamloop.models import load_world
    chosen, world = recipe(name), load_world(begins)
    assert chosen.begin_from == begins and inherited(world, chosen.spec, "dynamics")
    assert same_code(world, chosen.spec) == (name == "doom-corridor")


@pytest.mark.parametrize("name", ["doom-arena", "doom-corridor", "pong"])
def test_a_world_that_ships_can_be_trained_on(name: str) -> None:
    from dreamloop.models import load_world
    for part in ("autoencoder", "dynamics"):
        assert inherited(load_world(name), recipe(name).spec, part)
