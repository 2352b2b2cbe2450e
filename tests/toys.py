"""Recipes at toy size: the same stages in seconds.

    from toys import toy_recipe
    pipeline.train(toy_recipe(recipe("doom-arena")), minutes=0.3, ...)
"""

from __future__ import annotations

import dataclasses

import numpy as np

from dreamloop.models.core.spec import AutoencoderSpec, DynamicsSpec, MemorySpec, WorldSpec
from dreamloop.models.training.data import LatentClips
from dreamloop.models.training.distillation.regression import Rollouts, SelfRollout
from dreamloop.models.training.dynamics import DynamicsTraining
from dreamloop.models.training.polish import Polish
from dreamloop.models.training.recipes import Recipe

CLIP_FRAMES = 28


def toy_recipe(recipe: Recipe, **fields: object) -> Recipe:
    """`recipe` with networks of a few thousand parameters, hardly any data and no gates; its game, frame
    size, buttons, cells and loss weights stay. fields: of the spec."""
    stages = len(recipe.spec.autoencoder.widths)
    spec = dataclasses.replace(
        recipe.spec, **{
            "autoencoder": AutoencoderSpec(8, (16,) * stages, (0,) * (stages - 1) + (1,), (0,) * (stages - 1) + (1,)),
            "dynamics": DynamicsSpec(width=32, layers=1, heads=2, mlp_width=64, patch=recipe.spec.dynamics.patch),
            "memory": MemorySpec(window_frames=6, dilated_frames=2, dilation=4), **fields})  # type: ignore[arg-type]
    return dataclasses.replace(
        recipe, spec=spec, record_frames=120, held_out_frames=60, gates={}, begin_from="",
        shares={stage: 0.2 for stage in ("autoencoder", "dynamics", "self_rollout", "decoder", "judges")},
        polish=recipe.polish and Polish(batch_frames=4, dreams=2, dream_frames=CLIP_FRAMES),
        autoencoder=dataclasses.replace(recipe.autoencoder, batch_frames=4),
        dynamics=DynamicsTraining(clip_frames=CLIP_FRAMES, batch_clips=2, object_weight=recipe.dynamics.object_weight),
        distillation=(SelfRollout(clip_frames=CLIP_FRAMES, rollouts=Rollouts(batch_clips=2, real_frames=4)),))


def clips_of(spec: WorldSpec, count: int = 3) -> LatentClips:
    """Latents that drift by what the first key says: a rule that a network can learn; clips of 24 frames."""
    rng = np.random.default_rng(0)
    latents, actions, objects = [], [], []
    for _ in range(count):
        action = rng.integers(0, 2, (80, spec.actions.size)).astype(np.float32)
        shape = spec.latent_shape
        moves = np.where(action[:, :1, None, None] > 0, 0.3, -0.3) * np.ones((80, *shape))
        latents.append((rng.standard_normal(shape) + np.cumsum(moves, axis=0)).astype(np.float16))
        actions.append(action)
        objects.append(rng.random((80, *shape[1:])) < 0.05)  # a tenth of the cells weighs more: there, or just left
    return LatentClips(latents, actions, objects, 24)
