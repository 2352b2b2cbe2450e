"""Block-sparse attention, interpreted, over random plans and those of worlds, against the formula in float64."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
from cases import FRAMES, SPECS, max_error, random, small
from torch import Tensor

from dreamloop.runtime.gpu import plain
from dreamloop.runtime.gpu.sizes import DevicePlan, Geometry

pytest.importorskip("triton", reason="triton comes with dreamloop[gpu]")
FLOOR = 2e-6


@pytest.fixture(scope="module")
def fused() -> ModuleType:
    from dreamloop.runtime.gpu import fused
    return fused


def random_plan(generator: np.random.Generator, lead: tuple[int, int, int], players: int, key_blocks: int,
                block_tokens: int) -> DevicePlan:
    """Lists of any length in any order; blocks behind them that must not be read; one block may be empty."""
    index = np.stack([generator.permutation(key_blocks) for _ in range(int(np.prod(lead)))]).reshape(*lead, key_blocks)
    count = generator.integers(1, key_blocks + 1, lead)
    count.flat[0] = 1
    length = generator.integers(1, block_tokens + 1, (players, key_blocks))
    length[:, int(index.flat[1])] = 0  # never the only block of a row: the first of no list, and lists are longer
    count = np.where(index[..., 0] == index.flat[1], np.maximum(count, 2), count)
    index, count, length = (torch.from_numpy(a.astype(np.int32)) for a in (index, count, length))
    return DevicePlan(index, count, length)


def poisoned(layer: Tensor, plan: DevicePlan, geometry: Geometry) -> Tensor:
    """NaN in every key and value that no row may read."""
    unread = ~plain.token_mask(plan, geometry).any(dim=(1, 2))
    layer = layer.clone()
    layer.transpose(2, 3)[:, unread.expand(layer.shape[1], -1)] = torch.nan
    return layer


CASES = [  # B, T, block_tokens, slots, H, G, D, players, heads and rows of the lists
    (1, 1, 1, 3, 1, 1, 16, (1, 1, 1)), (3, 17, 5, 3, 2, 1, 24, (3, 2, 4)), (2, 6, 4, 4, 4, 2, 8, (2, 1, 2)),
    (2, 20, 20, 3, 2, 2, 32, (2, 1, 1)), (1, 70, 70, 2, 1, 1, 16, (1, 1, 1)), (1, 130, 66, 2, 1, 1, 64, (1, 1, 2)),
    (2, 9, 3, 5, 2, 2, 16, (1, 2, 1))]


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
