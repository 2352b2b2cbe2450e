"""The linear branch, interpreted, over random plans and those of worlds, against the formula in float64."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from cases import FRAMES, SPECS, max_error, random, small
from plans import CASES, random_plan
from worlds import tiny_world

from dreamloop.models.core.plan import build_plan, narrowed, shares
from dreamloop.models.core.spec import DynamicsSpec, MemorySpec, PlanSpec
from dreamloop.runtime.engines.triton_engine import TritonEngine
from dreamloop.runtime.gpu import plain
from dreamloop.runtime.gpu.sizes import DevicePlan, Geometry, Skipped

pytest.importorskip("triton", reason="triton comes with dreamloop[gpu]")
FLOOR = 2e-6
F32, BF16 = torch.float32, torch.bfloat16
WIDE = (1, 5, 3, 2, 1, 1, 80, (1, 1, 2))  # a head of more columns than a program holds


@pytest.fixture(scope="module")
def fused() -> ModuleType:
    from dreamloop.runtime.gpu import fused
    return fused


def poisoned(layer: torch.Tensor, skipped: Skipped, geometry: Geometry) -> torch.Tensor:
    """NaN in every key and value that no row skips, and in every row that holds no token."""
    read = (torch.arange(geometry.block_tokens) < skipped.length[..., None]).flatten(1)
    layer = layer.clone()
    layer.transpose(2, 3)[:, ~read.expand(layer.shape[1], -1)] = torch.nan
    return layer


@pytest.mark.parametrize(("case", "dtype"), [(CASES[0], F32), (CASES[1], BF16), (CASES[2], F32), (CASES[4], BF16),
                                             (CASES[5], F32), (WIDE, F32), (WIDE, BF16)], ids=str)
def test_random_plans_match_the_formula_and_nothing_else_is_read(fused: ModuleType, case: tuple,
                                                                 dtype: torch.dtype) -> None:
    b, t, block_tokens, slots, h, g, d, (players, _, rows) = case
    geometry = Geometry(t, block_tokens, -(-t // block_tokens))
    plan = random_plan(np.random.default_rng(t), (players, 1, rows), b if players > 1 else 1,
                       slots * geometry.slot_blocks, block_tokens)
    plan.count.clamp_(max=max(slots * geometry.slot_blocks // 2, 1))  # something is left to skip
    skipped = plain.skipped_blocks(plan)
    layer = poisoned(random(2, b, g, slots * geometry.stride, d, dtype=dtype), skipped, geometry)
    query, out = random(b, t, h + 1, d, seed=1, dtype=dtype)[:, :, 1:], random(b, t, h, d, seed=3, dtype=dtype)
    weights = random(h, d, d, seed=2, dtype=dtype) / d**0.5
    exact = plain.add_skipped(*(x.double() for x in (out, query, layer)), skipped, geometry, weights.double())
    usual = plain.add_skipped(out, query, layer, skipped, geometry, weights)
    found = fused.add_skipped(out.clone(), query, layer, skipped, geometry, weights)
    assert found.dtype == dtype and found.is_contiguous() and found.shape == query.shape
    assert max_error(found, exact) <= 2 * max_error(usual, exact) + FLOOR
    assert max_error(exact, out.double()) > 0.1 or not skipped.length.any()


@pytest.mark.parametrize("name", ["window", "radial", "radial_with_sinks"])
@pytest.mark.parametrize("view", [None, 3])
def test_what_is_skipped_is_what_the_host_says(name: str, view: int | None) -> None:
    """Players at different times: warm-up skips nothing, sinks are never skipped, a narrowed view skips more."""
    spec = SPECS[name]
    host = build_plan(spec, FRAMES)
    views = None if view is None else torch.full((len(FRAMES),), view)
    if view is not None:
        host = narrowed(host, spec, FRAMES, view)
    found = plain.skipped_blocks(plain.slot_and_plan(spec, torch.from_numpy(FRAMES), views)[1])
    skipped = host.skipped()
    expected = torch.from_numpy(shares(skipped, host.block_length[:, None, None]))
    assert found.share.dtype == torch.float32 and found.length.dtype == torch.int32
    assert max_error(found.share.expand_as(expected), expected) <= 1e-7
    assert found.length.tolist() == np.where(skipped.any((1, 2)), host.block_length, 0).tolist()
    assert not found.share[0].any() and found.share[-1].any()
    assert not found.share[..., : spec.memory.sink_frames * spec.slot_blocks].any()


def test_players_of_a_world_at_different_times(fused: ModuleType) -> None:
    """By the plan that the kernels make on the device, with sinks, dilated slots and a tail."""
    spec, frames = small(SPECS["radial_with_sinks"]), torch.from_numpy(FRAMES[[0, 4, 7]])
    geometry, (t, h, d) = Geometry.of(spec), (spec.tokens, 2, 16)
    skipped = fused.skipped_blocks(fused.slot_and_plan(spec, frames)[1])
    layer = random(2, len(frames), h, spec.memory.slots * spec.tokens_padded, d)
    layer = poisoned(layer, skipped, geometry)
    query, weights = random(len(frames), t, h, d, seed=1), random(h, d, d, seed=2)
    out = random(len(frames), t, h, d, seed=3)
    exact = plain.add_skipped(*(x.double() for x in (out, query, layer)), skipped, geometry, weights.double())
    found = fused.add_skipped(out.clone(), query, layer, skipped, geometry, weights)
    assert max_error(found, exact) <= 2e-6 * float(exact.abs().max())
    assert torch.equal(found[0], out[0]) and max_error(found[-1], out[-1]) > 0.1  # the first frame skips nothing


def test_the_engine_runs_it_as_in_plain_torch(fused: ModuleType, tmp_path: Path) -> None:
    """One step far enough in that the window skips something, from the same state."""
    world = tiny_world(tmp_path, memory=MemorySpec(5), plan=PlanSpec("window", 2, 4, linear=True),
                       dynamics=DynamicsSpec(width=32, layers=1, heads=2, mlp_width=8))
    engine = TritonEngine(world, "fp32", device="cpu")
    assert engine.network.kernels is fused
    state, action = engine.new_state(1), np.ones((1, world.spec.actions.size), np.float32)
    state.frame[:], state.latent[:] = 9, 0.5
    state.ring.copy_(random(*state.ring.shape))
    made = []
    for kernels in (fused, plain):
        engine.network.kernels, copy = kernels, state.copy()
        engine.step(copy, action)
        made.append(copy.latent)
    assert np.abs(made[0] - made[1]).max() <= 1e-5
    engine.network.layers[0].skipped.zero_()
    engine.step(state, action)
    assert np.abs(state.latent - made[1]).max() > 1e-3


def test_a_plan_that_lists_everything_adds_nothing(fused: ModuleType) -> None:
    geometry, layer = Geometry(5, 2, 3), torch.full((2, 1, 1, 12, 16), torch.nan)
    plan = DevicePlan(torch.arange(6, dtype=torch.int32)[None, None, None], torch.tensor([[[6]]], dtype=torch.int32),
                      torch.tensor([[2, 2, 1, 2, 2, 1]], dtype=torch.int32))
    out, query, weights = random(1, 5, 1, 16), random(1, 5, 1, 16, seed=1), random(1, 16, 16, seed=2)
    for kernels in (plain, fused):
        skipped = kernels.skipped_blocks(plan)
        assert torch.equal(kernels.add_skipped(out.clone(), query, layer, skipped, geometry, weights), out)
