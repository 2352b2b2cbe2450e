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


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("name", ["top_k_with_sinks_and_a_tail", "window"])
def test_narrow_keys_follow_the_ring(fused: ModuleType, name: str, dtype: torch.dtype) -> None:
    """First all slots, then a frame's own and the sinks alone: the same codes as all of them anew."""
    spec = small(SPECS[name])
    geometry, layer = Geometry.of(spec), layer_of(spec, 2, 16, torch.float32)
    slot, plan = plain.slot_and_plan(spec, FRAMES)
    narrow, expected = (plain.new_narrow_keys(layer, geometry, dtype) for _ in range(2))
    fused.narrow_keys(layer, geometry, narrow)
    turned = None
    for player in range(len(FRAMES)):
        first = int(slot[player]) * geometry.stride
        layer[0, player, :, first : first + geometry.stride] *= 3
    if geometry.sinks:
        turned = 2 * layer[0, :, :, : geometry.sinks * geometry.stride]
    fused.narrow_keys(layer, geometry, narrow, slot, turned)
    plain.narrow_keys(layer, geometry, expected, slot, turned)
    tokens = torch.arange(layer.shape[3]) % geometry.stride < geometry.tokens
    blocks = torch.arange(plan.length.shape[1]) % geometry.slot_blocks < geometry.parts
    assert max_error(narrow.scale[..., blocks], expected.scale[..., blocks]) <= 1e-6
    found, theirs = narrow.codes[:, :, tokens].float(), expected.codes[:, :, tokens].float()
    assert float(((found - theirs).abs() / theirs.abs().clamp_min(8)).max()) <= 0.126  # a step, where rounding decides
    assert float((found != theirs).float().mean()) <= 0.01
