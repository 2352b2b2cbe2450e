"""What packing does to a world's weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from worlds import tiny_spec, tiny_world

from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.spec import WorldSpec
from dreamloop.models.networks.dit import Dynamics
from dreamloop.models.training.packing import with_less_noise
from dreamloop.models.training.recipes import beginning_from, only, recipe


def answers(spec: WorldSpec, weights: dict[str, np.ndarray], noise: torch.Tensor) -> torch.Tensor:
    net = Dynamics(spec)
    net.load_state_dict({name.removeprefix("dynamics."): torch.from_numpy(np.array(value, np.float32))
                         for name, value in weights.items() if name.startswith("dynamics.")})
    frames = noise.shape[1]
    previous = torch.randn(noise.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return net.sequence(previous, noise, torch.zeros(1, frames, spec.actions.size),
                            torch.zeros(1, frames, spec.condition_size))


def test_less_noise_at_play_is_the_network_on_smaller_noise(tmp_path: Path) -> None:
    world = tiny_world(tmp_path / "world")
    before = {name: value.copy() for name, value in world.weights.items()}
    packed = with_less_noise(world.spec, dict(world.weights), 0.5)
    noise = torch.randn(1, 3, *world.spec.latent_shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(answers(world.spec, packed, noise), answers(world.spec, before, 0.5 * noise))
    assert not torch.allclose(answers(world.spec, packed, noise), answers(world.spec, before, noise))
    for name, value in world.weights.items():
        np.testing.assert_array_equal(value, before[name], err_msg="the given weights are the caller's")


def test_noise_of_a_world_of_several_steps_has_no_scale() -> None:
    spec = tiny_spec()
    several = dataclasses.replace(spec, dynamics=dataclasses.replace(spec.dynamics, sigmas=(1.0, 0.5)))
    with pytest.raises(DreamloopError, match="played at 2 noise levels"):
        with_less_noise(several, {}, 0.5)


def test_noise_is_scaled_once_however_often_other_stages_are_trained_on() -> None:
    chosen = beginning_from(dataclasses.replace(recipe("doom-arena"), noise_at_play=0.8), "doom-arena")
    assert only(chosen, ["decoder"], judged=True).noise_at_play == 1.0
    assert only(chosen, ["scoring", "decoder"], judged=True).noise_at_play == 0.8
