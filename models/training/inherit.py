"""Weights of a world that is there already, to begin another one from.

A new world of the same engine shares its walls, its weapon and its monsters, and how a turn pans them: what two
cores learnt in a hundred minutes need not be learnt again. Sizes of the dynamics must be the same; keys may
differ, and so may the latents to a token, and the autoencoder. What belongs to a key (its columns in the action's
matrices) goes by the key's name, and a key that the first world does not have begins as one that does nothing. Where a
token has other latents, what reads and writes tokens begins anew, and the blocks between, which are most of the
weights, do not. An autoencoder of other sizes begins anew.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.spec import ActionSpec, WorldSpec, weight_shapes
from dreamloop.models.core.world import World

OF_TOKENS = ("dynamics.input.weight", "dynamics.output.weight", "dynamics.output.bias")
BY_KEY = ("dynamics.action.weight", "dynamics.condition.first.weight")  # keys are their first columns


def inherited(world: World, spec: WorldSpec, part: str) -> dict[str, Tensor]:
    """The weights of a part, `autoencoder` or `dynamics`, for a world of `spec`, by the names of the network's
    `state_dict`; without `OF_TOKENS` where a token has other latents. Raises `DreamloopError` where a tensor has
    another shape."""
    weights, other_tokens = {}, world.spec.dynamics.patch != spec.dynamics.patch or not same_code(world, spec)
    for name, shape in weight_shapes(spec).items():
        if not name.startswith(f"{part}.") or (name in OF_TOKENS and other_tokens):
            continue
        value = world.weights.get(name)
        if value is not None and name in BY_KEY:
            value = _keys_by_name(value, world.spec.actions, spec.actions)
        if value is None or value.shape != shape:
            there = "none" if value is None else "x".join(map(str, value.shape))
            raise DreamloopError(f"{spec.name} cannot begin from {world.spec.name}: {name} is "
                                 f"{'x'.join(map(str, shape))} here, {there} there")
        weights[name.removeprefix(f"{part}.")] = torch.from_numpy(np.array(value, np.float32))
    return weights


def same_code(world: World, spec: WorldSpec) -> bool:
    """Whether the world's autoencoder has the sizes of `spec`'s."""
    return world.spec.autoencoder == spec.autoencoder


def _keys_by_name(value: np.ndarray, before: ActionSpec, now: ActionSpec) -> np.ndarray:
    """value: (W, before.size + others) -> (W, now.size + others)."""
    columns = np.zeros((len(value), now.size), value.dtype)
    for i, name in enumerate(now.names):
        if name in before.names:
            columns[:, i] = value[:, before.names.index(name)]
    return np.concatenate([columns, value[:, before.size :]], axis=1)
