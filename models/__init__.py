"""Worlds: what they are (`core`), the ones that ship (`zoo`), and how they are made (`networks`,
`training`, which need torch)."""

from __future__ import annotations

from dreamloop.models.core.errors import ActionError, DreamloopError, EngineError, GameError, WorldError
from dreamloop.models.core.spec import ActionSpec, Axis, Button, WorldSpec
from dreamloop.models.core.world import World, load_world, save_world, zoo_names

__all__ = [
    "ActionError", "ActionSpec", "Axis", "Button", "DreamloopError", "EngineError", "GameError", "World",
    "WorldError", "WorldSpec", "load_world", "save_world", "zoo_names",
]
