"""Block-sparse attention, interpreted, over random plans and those of worlds, against the formula in float64."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
from cases import FRAMES, SPECS, max_error, random, small
from plans import CASES, poisoned, random_plan

from dreamloop.runtime.gpu import plain
from dreamloop.runtime.gpu.sizes import Geometry

pytest.importorskip("triton", reason="triton comes with dreamloop[gpu]")
FLOOR = 2e-6


@pytest.fixture(scope="module")
def fused() -> ModuleType:
    from dreamloop.runtime.gpu import fused
    return fused


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_lists_match_the_formula_and_nothing_else_is_read(fused: ModuleType, case: tuple,
                                                                 dtype: torch.dtype) -> None:
    b, t, block_tokens, slots, h, g, d, lead = case
    geometry = Geometry(t, block_tokens, -(-t // block_tokens))
    plan = random_plan(np.random.default_rng(t), lead, b if lead[0] > 1 else 1, slots * geometry.slot_blocks,
                       block_tokens)
    layer = random(2, b, g, slots * geometry.stride, d, dtype=dtype)
    query = random(b, t, h + 1, d, seed=1, dtype=dtype)[:, :, 1:]
    expected = plain.sparse_attention(query.double(), layer.double(), plan, geometry)
    usual = plain.sparse_attention(query, layer, plan, geometry)
    found = fused.sparse_attention(query, poisoned(layer, plan, geometry), plan, geometry)
    assert found.dtype == dtype and found.is_contiguous() and found.shape == query.shape
    assert max_error(found, expected) <= 2 * max_error(usual, expected) + FLOOR


@pytest.mark.parametrize("name", SPECS)
def test_plans_of_worlds_with_players_at_different_times(fused: ModuleType, name: str) -> None:
    """Warm-up, wrap-around, sinks read at their time, dilated slots and chosen blocks in one batch."""
    spec = small(SPECS[name])
    frames = torch.from_numpy(FRAMES[[0, 2, 5]])
    geometry, batch = Geometry.of(spec), len(frames)
    _, plan = plain.slot_and_plan(spec, frames)
    layer = random(*spec.ring_shape(batch)[1:])
    query = random(batch, spec.tokens, 2, 16, seed=1)
    if spec.plan.policy == "top_k":
        plan = plain.choose_blocks(query, layer, plan, geometry, spec.plan.top_blocks)
    turned = plain.turn_sinks(layer, plain.rotations(spec, frames), geometry)
    wide = None if turned is None else turned.double()
    expected = plain.sparse_attention(query.double(), layer.double(), plan, geometry, wide)
    ring = layer if spec.plan.policy == "top_k" else poisoned(layer, plan, geometry)
    if turned is not None:
        ring[0, :, :, : turned.shape[2]] = torch.nan  # the sinks' keys are read from `turned` alone
    assert max_error(fused.sparse_attention(query, ring, plan, geometry, turned), expected) <= FLOOR


@pytest.mark.parametrize("narrow", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("case", CASES[1:5], ids=str)
def test_keys_in_one_byte_match_the_same_codes_in_plain_torch(fused: ModuleType, case: tuple,
                                                              narrow: torch.dtype) -> None:
    """And cost a bounded part of the answer."""
    b, t, block_tokens, slots, h, g, d, lead = case
    geometry = Geometry(t, block_tokens, -(-t // block_tokens))
    plan = random_plan(np.random.default_rng(t), lead, b, slots * geometry.slot_blocks, block_tokens)
    layer = random(2, b, g, slots * geometry.stride, d)
    query = random(b, t, h, d, seed=1)
    tail = torch.arange(plan.length.shape[1]) % geometry.parts == geometry.parts - 1
    plan.length[:, tail] = plan.length[:, tail].clamp_max(t - (geometry.parts - 1) * block_tokens)
    keys = plain.new_narrow_keys(layer, geometry, narrow)
    plain.narrow_keys(layer, geometry, keys)
    found = fused.sparse_attention(query, layer, plan, geometry, keys=keys)
    assert max_error(found, plain.sparse_attention(query, layer, plan, geometry, keys=keys)) <= 1e-2
    exact = plain.sparse_attention(query.double(), layer.double(), plan, geometry)
    assert max_error(found, exact) <= (0.05 if narrow == torch.int8 else 0.2)
