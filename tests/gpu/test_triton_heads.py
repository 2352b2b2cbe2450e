"""Kernels around the ring, interpreted: write into the slot, mean keys, sinks at their time, keys in one byte."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from cases import SPECS, max_error, random, small
from torch import Tensor

from dreamloop.models.core.spec import WorldSpec
from dreamloop.runtime.gpu import plain
from dreamloop.runtime.gpu.sizes import Geometry, Turns

pytest.importorskip("triton", reason="triton comes with dreamloop[gpu]")
FRAMES = torch.tensor([1, 23])
NAMES = ("dense_with_a_tail", "window", "top_k_with_sinks_and_a_tail", "top_k")


@pytest.fixture(scope="module")
def fused() -> ModuleType:
    from dreamloop.runtime.gpu import fused
    return fused


def layer_of(spec: WorldSpec, g: int, d: int, dtype: torch.dtype) -> Tensor:
    """One layer of a ring of two players, a view between the others."""
    rows = spec.memory.slots * spec.tokens_padded
    return random(3, 2, len(FRAMES), g, rows, d, dtype=dtype)[1]


def written(kernels: ModuleType, spec: WorldSpec, layer: Tensor, d: int, heads: tuple[int, int],
            wide: bool = False) -> tuple[Tensor, Tensor]:
    """Queries, and the layer after the write; wide: all in float64."""
    (h, g), dtype = heads, layer.dtype
    qkv = random(len(FRAMES), spec.tokens, (h + 2 * g) * d, seed=3, dtype=dtype)
    q, k, v = qkv.unflatten(2, (-1, d)).split([h, g, g], dim=2)
    gains = (1 + 0.2 * random(2, d, seed=4)).to(dtype)
    slot, _ = plain.slot_and_plan(spec, FRAMES)
    angles = random(3, len(FRAMES), spec.tokens, d // 2, seed=5)
    turns = Turns(angles[0].cos(), angles[0].sin(), angles[1].cos(), angles[1].sin(), angles[2].cos(), angles[2].sin())
    layer = layer.clone()
    if wide:
        q, k, v, gains, layer = (a.double() for a in (q, k, v, gains, layer))
    query = kernels.qkv_write(q, k, v, gains[0], gains[1], turns, layer, slot, Geometry.of(spec))
    return query, layer


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("heads", "d", "dtype"), [((2, 2), 16, torch.float32), ((4, 2), 24, torch.bfloat16)])
def test_the_slot_and_nothing_else_is_written(fused: ModuleType, name: str, heads: tuple[int, int], d: int,
                                              dtype: torch.dtype) -> None:
    spec = small(SPECS[name])
    layer = layer_of(spec, heads[1], d, dtype)
    query, ring = written(fused, spec, layer, d, heads)
    usual_query, usual = written(plain, spec, layer, d, heads)
    exact_query, exact = written(plain, spec, layer, d, heads, wide=True)
    assert query.shape == exact_query.shape
    assert max_error(query, exact_query) <= 2 * max_error(usual_query, exact_query) + 1e-6
    assert max_error(ring, exact) <= 2 * max_error(usual, exact) + 1e-6
    untouched = exact == layer.double()
    assert torch.equal(ring[untouched], layer[untouched])
    assert not untouched.all(-1).all()


@pytest.mark.parametrize("name", ["dense_with_a_tail", "dense_whole_frames"])
@pytest.mark.parametrize("d", [16, 40])
def test_sinks_are_turned_to_their_time(fused: ModuleType, name: str, d: int) -> None:
    spec = small(SPECS[name])
    layer, angles = layer_of(spec, 2, d, torch.float32), random(len(FRAMES), spec.memory.sink_frames, d // 2, seed=6)
    turns = Turns(*[angles] * 4, angles.cos(), angles.sin())
    found = fused.turn_sinks(layer, turns, Geometry.of(spec))
    assert max_error(found, plain.turn_sinks(layer.double(), turns, Geometry.of(spec))) <= 1e-6


def test_without_sinks_there_is_nothing_to_turn(fused: ModuleType) -> None:
    spec = small(SPECS["window"])
    angles = torch.zeros(len(FRAMES), 0, 8)
    for kernels in (fused, plain):
        layer = layer_of(spec, 2, 16, torch.float32)
        assert kernels.turn_sinks(layer, Turns(*[angles] * 6), Geometry.of(spec)) is None


@pytest.mark.parametrize(("name", "dtype"), [("top_k_with_sinks_and_a_tail", torch.float8_e4m3fn),
                                             ("top_k_with_sinks_and_a_tail", torch.int8), ("window", torch.int8)])
def test_narrow_keys_are_the_written_keys_and_read_no_others(fused: ModuleType, name: str, dtype: torch.dtype) -> None:
    """Sinks at their time; what was never written is NaN there."""
    spec = small(SPECS[name])
    geometry, layer = Geometry.of(spec), layer_of(spec, 2, 16, torch.float32)
    _, plan = plain.slot_and_plan(spec, FRAMES)
    turned = 2 * layer[0, :, :, : geometry.sinks * geometry.stride] if geometry.sinks else None
    expected = plain.narrow_keys(layer, plan, geometry, dtype, turned)
    within = torch.arange(geometry.block_tokens)
    written = (within < plan.length[..., None]).flatten(1)[:, None].expand(expected.scale.shape)
    found = fused.narrow_keys(torch.where(written[..., None], layer, torch.nan), plan, geometry, dtype, turned)
    assert max_error(found.scale[written], expected.scale[written]) <= 1e-6
    codes, theirs = found.codes[written].float(), expected.codes[written].float()
    assert float(((codes - theirs).abs() / theirs.abs().clamp_min(8)).max()) <= 0.126  # a step, where rounding decides
    assert float((codes != theirs).float().mean()) <= 0.01
    exact = layer[0] if turned is None else torch.cat([turned, layer[0, :, :, turned.shape[2] :]], dim=2)
    again = found.codes.float() * found.scale[..., None]
    largest = exact.abs().amax(-1, keepdim=True)
    assert float(((again - exact).abs() / largest)[written].max()) <= (0.004 if dtype == torch.int8 else 0.04)
