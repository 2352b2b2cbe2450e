"""Block-sparse attention, interpreted, over random plans and those of worlds, against the formula in float64."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
from cases import FRAMES, SPECS, max_error, random, small
from plans import CASES, poisoned, random_plan

from dreamloop.runtime.gpu import plain
from dreamloop.runtime.gpu.sizes import DevicePlan, Geometry

pytest.importorskip("triton", reason="triton comes with dreamloop[gpu]")
FLOOR = 2e-6


@pytest.fixture(scope="module")
def fused() -> ModuleType:
    from dreamloop.runtime.gpu import fused
    return fused


@pytest.mark.parametrize(("case", "dtype", "splits"), [
    *((case, torch.float32, 1) for case in CASES), *((case, torch.bfloat16, 2) for case in CASES),
    *((CASES[place], torch.float32, 4) for place in (0, 3, 5))], ids=str)
def test_random_lists_match_the_formula_and_nothing_else_is_read(fused: ModuleType, case: tuple, dtype: torch.dtype,
                                                                 splits: int) -> None:
    """Whole or split: of four programs over a list of one block three see nothing."""
    b, t, block_tokens, slots, h, g, d, lead = case
    geometry = Geometry(t, block_tokens, -(-t // block_tokens))
    plan = random_plan(np.random.default_rng(t), lead, b if lead[0] > 1 else 1, slots * geometry.slot_blocks,
                       block_tokens)
    layer = random(2, b, g, slots * geometry.stride, d, dtype=dtype)
    query = random(b, t, h + 1, d, seed=1, dtype=dtype)[:, :, 1:]
    expected = plain.sparse_attention(query.double(), layer.double(), plan, geometry)
    usual = plain.sparse_attention(query, layer, plan, geometry)
    found = fused.sparse_attention(query, poisoned(layer, plan, geometry), plan, geometry, splits=splits)
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


@pytest.mark.parametrize(("narrow", "splits", "cases"), [(torch.int8, 1, (1, 4)), (torch.int8, 2, (5,)),
                                                         (torch.float8_e4m3fn, 4, (3,))])
@pytest.mark.filterwarnings("ignore:All-NaN slice")  # the largest value of a written key that no row lists
def test_keys_in_one_byte_match_the_same_codes_in_plain_torch(fused: ModuleType, narrow: torch.dtype, splits: int,
                                                              cases: tuple[int, ...]) -> None:
    """Codes and all, from rings with poison; and cost a bounded part of the answer."""
    for b, t, block_tokens, slots, h, g, d, lead in (CASES[place] for place in cases):
        geometry = Geometry(t, block_tokens, -(-t // block_tokens))
        plan = random_plan(np.random.default_rng(t), lead, b, slots * geometry.slot_blocks, block_tokens)
        layer = random(2, b, g, slots * geometry.stride, d)
        query = random(b, t, h, d, seed=1)
        ring = poisoned(layer, plan, geometry)
        keys = fused.narrow_keys(ring, plan, geometry, narrow)
        found = fused.sparse_attention(query, ring, plan, geometry, keys=keys, splits=splits)
        theirs = plain.narrow_keys(layer, plan, geometry, narrow)
        usual = plain.sparse_attention(query, layer, plan, geometry, keys=theirs)
        assert max_error(found, usual) <= 1e-2
        exact = plain.sparse_attention(query.double(), layer.double(), plan, geometry)
        assert max_error(found, exact) <= (0.05 if narrow == torch.int8 else 0.2)


def test_a_row_that_lists_nothing_written_is_zero_whole_or_split(fused: ModuleType) -> None:
    geometry, index = Geometry(3, 3, 1), torch.tensor([[[[0, 1]]]], dtype=torch.int32)
    plan = DevicePlan(index, torch.full((1, 1, 1), 2, dtype=torch.int32), torch.zeros(1, 2, dtype=torch.int32))
    layer = torch.full((2, 1, 1, 6, 16), torch.nan)
    for splits in (1, 2):
        found = fused.sparse_attention(random(1, 3, 1, 16), layer, plan, geometry, splits=splits)
        assert torch.equal(found, torch.zeros_like(found))


def test_lists_are_split_where_processors_would_idle_and_not_where_a_launch_costs_more() -> None:
    from dreamloop.runtime.gpu.attention import splits_of
    assert splits_of(programs=4, key_tiles=5, values=32 * 64, processors=132) == 1  # one session of the shipped world
    assert splits_of(programs=6, key_tiles=30, values=128 * 32, processors=132) >= 4
    assert splits_of(programs=132, key_tiles=128, values=128 * 64, processors=132) == 1  # one whole wave
    assert splits_of(programs=156, key_tiles=182, values=128 * 128, processors=132) >= 2  # a wave and a fifth
    assert splits_of(programs=64 * 6, key_tiles=15, values=128 * 32, processors=132) == 1  # many players
