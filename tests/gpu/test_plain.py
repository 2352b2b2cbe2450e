"""The plain operations against the pass that training and the torch engine run (models/networks/dit.py, ring.py)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import FRAMES, SPECS, max_error, random, small

from dreamloop.models.core import conditioning
from dreamloop.models.networks.dit import rms_norm
from dreamloop.models.networks.ring import RingPass
from dreamloop.runtime.gpu import plain
from dreamloop.runtime.gpu.sizes import Geometry


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("view", [None, 3])
def test_a_pass_over_the_ring_is_that_of_the_networks(name: str, view: int | None) -> None:
    """Norm, rotation, write, sinks, choice of blocks and attention, of players at different times, in float64."""
    spec = small(SPECS[name])
    batch, (t, h, d), double = len(FRAMES), (spec.tokens, 2, 16), torch.float64
    inputs = conditioning.pass_inputs(spec, FRAMES, np.zeros(batch, np.uint64), np.zeros((batch, 3), np.float32), 0,
                                      view)
    ring = random(*spec.ring_shape(batch), dtype=double)
    theirs, ours = ring.clone(), ring[0].clone()
    q, k, v = random(3, batch, t, h, d, seed=1, dtype=double)
    gains = 1 + 0.2 * random(2, d, seed=2, dtype=double)
    other = [x.transpose(1, 2)[:, :, None] for x in (rms_norm(q) * gains[0], rms_norm(k) * gains[1], v)]
    expected = RingPass(spec, theirs, inputs).attend(0, *other)[:, :, 0].transpose(1, 2)

    geometry, frames = Geometry.of(spec), torch.from_numpy(FRAMES)
    slot, plan = plain.slot_and_plan(spec, frames, None if view is None else torch.full_like(frames, view))
    turns = plain.rotations(spec, frames)
    query = plain.qkv_write(q, k, v, gains[0], gains[1], turns, ours, slot, geometry)
    turned = plain.turn_sinks(ours, turns, geometry)
    if spec.plan.policy == "top_k":
        plan = plain.choose_blocks(query, ours, plan, geometry, spec.plan.top_blocks)
    found = plain.sparse_attention(query, ours, plan, geometry, turned)
    assert max_error(ours, theirs[0]) <= 1e-6  # the host's angles and the device's, rounded to float32
    assert max_error(found, expected) <= 1e-6
