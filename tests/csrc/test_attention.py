"""Block-sparse attention: every instruction tier against the formula in float64."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import numpy as np
import pytest
from worlds import tiny_spec

from dreamloop.models.core.errors import EngineError
from dreamloop.models.core.plan import Plan, build_plan
from dreamloop.models.core.spec import DynamicsSpec, MemorySpec, PlanSpec, WorldSpec
from dreamloop.runtime import kernels

BOUND = 4e-6  # float32 sums of standard normal values; measured: 1e-6

if reason := kernels.available():
    pytest.skip(reason, allow_module_level=True)

TIERS = kernels.instruction_tiers()
MEMORIES = {
    "window": MemorySpec(window_frames=3),
    "sinks": MemorySpec(window_frames=3, sink_frames=2, max_age=9),
    "dilated": MemorySpec(window_frames=3, sink_frames=1, dilated_frames=2, dilation=4, max_age=9)}
GRIDS = {1: (16, 16), 17: (16, 272), 256: (256, 256)}  # tokens -> frame of that many 16x16 patches


def spec_of(tokens: int, memory: str, block_tokens: int = 0, policy: str = "dense", heads: int = 2,
            head_size: int = 16) -> WorldSpec:
    height, width = GRIDS[tokens]
    return tiny_spec(frame_height=height, frame_width=width, memory=MEMORIES[memory],
                     dynamics=DynamicsSpec(width=heads * head_size, layers=1, heads=heads, mlp_width=8),
                     plan=PlanSpec(policy, 2 if policy == "window" else 0, block_tokens))


def inputs(spec: WorldSpec, batch: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """query, and keys and values as views of layer 1 of a ring (L, 2, B, H, S * T_padded, D)."""
    generator = np.random.default_rng(seed)
    d = spec.dynamics
    ring = generator.standard_normal((3, *spec.ring_shape(batch)[1:]), dtype=np.float32)
    query = generator.standard_normal((batch, d.heads, spec.tokens, d.head_size), dtype=np.float32)
    return query, ring[1, 0], ring[1, 1], d.head_size**-0.5


def poison(plan: Plan, *rings: np.ndarray) -> None:
    """NaN in every key and value that the plan does not let the kernel read (lists shared by heads)."""
    for b in range(len(rings[0])):
        unread = ~plan.token_mask()[b, 0].any(axis=0)
        for ring in rings:
            ring[b, :, unread] = np.nan


def error_of(query: np.ndarray, keys: np.ndarray, values: np.ndarray, plan: Plan, scale: float, isa: str) -> float:
    found = kernels.block_sparse_attention(query, keys, values, plan, scale, isa=isa)
    return float(np.abs(found - kernels.reference_attention(query, keys, values, plan, scale)).max())


@pytest.mark.parametrize("isa", TIERS)
@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize(("tokens", "block_tokens"), [(1, 0), (17, 0), (17, 5), (17, 16), (256, 0), (256, 48)])
def test_players_at_different_frames_match_the_formula(tokens: int, block_tokens: int, memory: str, isa: str) -> None:
    """Warm-up, wrap-around, sinks and dilated slots in one batch; nothing unwritten is read."""
    spec = spec_of(tokens, memory, block_tokens)
    frames = np.array([1, 2, 5, 23] if tokens < 256 else [1, 23], np.int64)
    plan = build_plan(spec, frames)
    query, keys, values, scale = inputs(spec, len(frames))
    poison(plan, keys, values)
    assert error_of(query, keys, values, plan, scale, isa) <= BOUND


@pytest.mark.parametrize("isa", TIERS)
@pytest.mark.parametrize("policy", ["dense", "window"])
def test_every_frame_index_of_a_session_matches_the_formula(policy: str, isa: str) -> None:
    spec = spec_of(17, "dilated", 5, policy, heads=1, head_size=8)
    query, keys, values, scale = inputs(spec, 1)
    for frame in range(1, 31):
        plan = build_plan(spec, np.array([frame]))
        assert error_of(query, keys, values, plan, scale, isa) <= BOUND, frame


@pytest.mark.parametrize("isa", TIERS)
@pytest.mark.parametrize("head_size", [8, 16, 24, 32, 40, 56, 64, 72, 128])
def test_every_head_size_that_is_a_multiple_of_eight(head_size: int, isa: str) -> None:
    spec = spec_of(17, "sinks", 5, head_size=head_size)
    plan = build_plan(spec, np.array([9]))
    assert error_of(*inputs(spec, 1)[:3], plan, head_size**-0.5, isa) <= BOUND


def random_plan(generator: np.random.Generator, batch: int, heads: int, query_blocks: int, key_blocks: int,
                block_tokens: int) -> Plan:
    """Another list, in any order, of another length, for every player, head and query block."""
    index = np.full((batch, heads, query_blocks, key_blocks), -7, np.int32)  # unused entries are no block
    count = generator.integers(1, key_blocks + 1, (batch, heads, query_blocks)).astype(np.int32)
    for place in np.ndindex(count.shape):
        index[place][: count[place]] = generator.permutation(key_blocks)[: count[place]]
    length = generator.integers(1, block_tokens + 1, (batch, key_blocks)).astype(np.int32)
    return Plan(index, count, length, block_tokens)


@pytest.mark.parametrize("isa", TIERS)
def test_random_lists_and_strides_match_the_formula(isa: str) -> None:
    """Any plan of the format, and any strides but that of the last axis, negative ones included."""
    generator = np.random.default_rng(3)
    for _ in range(40):
        batch, heads, tokens, key_blocks = generator.integers(1, [4, 4, 40, 12])
        block_tokens, head_size = int(generator.integers(1, tokens + 1)), 8 * int(generator.integers(1, 6))
        plan = random_plan(generator, *generator.choice([[1, 1], [batch, 1], [1, heads], [batch, heads]]).tolist(),
                           -(-tokens // block_tokens), key_blocks, block_tokens)
        if generator.random() < 0.5:
            plan = dataclasses.replace(plan, block_length=np.resize(plan.block_length, (batch, key_blocks)))
        query = generator.standard_normal((batch, tokens, 3, heads, head_size), dtype=np.float32)[:, :, 1]
        keys, values = generator.standard_normal((2, batch, heads, 2 * key_blocks * block_tokens, head_size + 3),
                                                 dtype=np.float32)[:, :, ::-1, ::2, 1:-2]
        out = np.full((heads, tokens + 1, batch, head_size + 8), 77, np.float32)
        view = out[:, :tokens, :, 8:].transpose(2, 0, 1, 3)
        found = kernels.block_sparse_attention(query.swapaxes(1, 2), keys, values, plan, 0.3, out=view, isa=isa)
        assert found is view
        expected = kernels.reference_attention(query.swapaxes(1, 2), keys, values, plan, 0.3)
        assert np.abs(view - expected).max() <= BOUND
        view[:] = 77
        assert (out == 77).all(), "wrote beside out"


def test_reference_is_dense_attention_under_the_token_mask() -> None:
    """The float64 reference reads the lists; the mask that training uses says the same."""
    spec = spec_of(17, "dilated", 5, "window")
    plan = build_plan(spec, np.array([3, 14]))
    query, keys, values, scale = inputs(spec, 2)
    rows = np.arange(17) // 5
    scores = np.einsum("bhtd,bhjd->bhtj", query.astype(np.float64), keys) * scale
    scores = np.where(plan.token_mask()[:, :, rows], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("bhtj,bhjd->bhtd", weights / weights.sum(-1, keepdims=True), values)
    assert np.abs(kernels.reference_attention(query, keys, values, plan, scale) - expected).max() <= 1e-12


@pytest.mark.parametrize("isa", TIERS)
def test_large_scores_do_not_overflow(isa: str) -> None:
    spec = spec_of(17, "window")
    query, keys, values, _ = inputs(spec, 1)
    plan = build_plan(spec, np.array([9]))
    assert error_of(query, keys, values, plan, 200.0, isa) <= 1e-3  # scores of some 2000, each off by 1e-4


@pytest.mark.parametrize("isa", TIERS)
@pytest.mark.parametrize("payload", [0x7FC00000, 0x7FC00001, 0xFFFFFFFF, 0x7F800001])
def test_nan_in_a_key_reaches_every_query_that_reads_it_and_no_other(payload: int, isa: str) -> None:
    spec = spec_of(17, "window", 5)
    query, keys, values, scale = inputs(spec, 1)
    plan = build_plan(spec, np.array([9]))
    plan.block_count[0, 0, 1] = 2  # query block 1 reads blocks 0 and 1 alone
    keys[0, 0, 11, 3] = np.array(payload, np.uint32).view(np.float32)  # block 2
    found = kernels.block_sparse_attention(query, keys, values, plan, scale, isa=isa)
    spared = np.zeros((2, 17), bool)
    spared[1], spared[0, 5:10] = True, True
    assert (np.isfinite(found[0]).all(axis=-1) == spared).all()
    assert not np.isfinite(found[0, ~spared]).any()


@pytest.mark.parametrize("isa", TIERS)
def test_a_player_has_the_same_bits_in_any_batch(isa: str) -> None:
    spec = spec_of(17, "dilated", 5)
    frames = np.array([23, 2, 7], np.int64)
    query, keys, values, scale = inputs(spec, 3)
    together = kernels.block_sparse_attention(query, keys, values, build_plan(spec, frames), scale, isa=isa)
    for b in range(3):
        one = slice(b, b + 1)
        alone = kernels.block_sparse_attention(query[one], keys[one], values[one], build_plan(spec, frames[one]), scale,
                                               isa=isa)
        assert (alone == together[one]).all()


@pytest.mark.parametrize("isa", TIERS)
def test_threads_do_not_disturb_each_other(isa: str) -> None:
    spec = spec_of(256, "window", 48)
    plan = build_plan(spec, np.array([9]))
    calls = [inputs(spec, 1, seed) for seed in range(4)]
    expected = [kernels.block_sparse_attention(*call[:3], plan, call[3], isa=isa) for call in calls]
    found: dict[int, np.ndarray] = {}

    def work(i: int) -> None:
        query, keys, values, scale = calls[i]
        found[i] = kernels.block_sparse_attention(query, keys, values, plan, scale, isa=isa)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((found[i] == expected[i]).all() for i in range(4))


def changed(array: np.ndarray, place: tuple[int, ...], value: int) -> np.ndarray:
    array = array.copy()
    array[place] = value
    return array


PLAN_FAULTS: dict[str, tuple[str, Any, str]] = {
    "index above the ring": ("block_index", lambda a: changed(a, (0, 0, 3, 1), 16), "block_index 16 of query block 3"),
    "index below zero": ("block_index", lambda a: changed(a, (0, 0, 0, 0), -1), "block_index -1"),
    "block twice": ("block_index", lambda a: changed(a, (0, 0, 2, 1), a[0, 0, 2, 0]), "stands twice"),
    "empty list": ("block_count", lambda a: changed(a, (0, 0, 1), 0), "block_count 0 of query block 1"),
    "count above the list": ("block_count", lambda a: changed(a, (0, 0, 1), 17), "block_count 17"),
    "length above the block": ("block_length", lambda a: changed(a, (0, 5), 6), "block_length 6 of block 5"),
    "length below zero": ("block_length", lambda a: changed(a, (0, 5), -1), "block_length -1"),
    "nothing written": ("block_length", lambda a: a * 0, "names no written token"),
    "wide integers": ("block_index", lambda a: a.astype(np.int64), "expected int32"),
    "a row missing": ("block_index", lambda a: a[:, :, 1:], "block_index has shape"),
    "counts of other players": ("block_count", lambda a: np.repeat(a, 2, axis=0), "block_count has shape"),
    "counts per head, lists shared": ("block_count", lambda a: np.repeat(a, 2, axis=1), "block_count has shape"),
    "lengths missing": ("block_length", lambda a: a[:, :-1], "block_length has shape"),
    "flat index": ("block_index", lambda a: a.reshape(-1), "block_index has shape"),
    "no tokens in a block": ("block_tokens", lambda a: 0, "block_tokens=0"),
    "another block size": ("block_tokens", lambda a: 7, "multiple of block_tokens=7")}


@pytest.mark.parametrize("fault", PLAN_FAULTS)
def test_a_bad_plan_is_refused_and_nothing_is_written(fault: str) -> None:
    spec = spec_of(17, "sinks", 5)
    spec = dataclasses.replace(spec, memory=MemorySpec(window_frames=4))  # 16 key blocks of 5
    query, keys, values, scale = inputs(spec, 1)
    good = build_plan(spec, np.array([9]))
    out = np.full(query.shape, 77, np.float32)
    field, change, message = PLAN_FAULTS[fault]
    bad = dataclasses.replace(good, **{field: change(getattr(good, field))})
    with pytest.raises(ValueError, match=message):
        kernels.block_sparse_attention(query, keys, values, bad, scale, out=out)
    assert (out == 77).all()
    kernels.block_sparse_attention(query, keys, values, good, scale, out=out)
    assert not (out == 77).any()


def misaligned(array: np.ndarray) -> np.ndarray:
    return np.frombuffer(b"x" + array.tobytes(), np.float32, offset=1).reshape(array.shape)


ARRAY_FAULTS: dict[str, tuple[str, Any, str]] = {
    "double query": ("query", lambda a: a.astype(np.float64), "query is float64"),
    "half keys": ("ring_keys", lambda a: a.astype(np.float16), "ring_keys is float16"),
    "swapped bytes": ("query", lambda a: a.astype(">f4"), "expected float32"),
    "last axis strided": ("ring_values", lambda a: np.repeat(a, 2, -1)[..., ::2], "contiguous along its last axis"),
    "no players axis": ("query", lambda a: a[0], "query has shape"),
    "keys of one head": ("ring_keys", lambda a: a[:, :1], "ring_keys has shape"),
    "values of a shorter ring": ("ring_values", lambda a: a[:, :, :-5], "ring_values has shape"),
    "head size 12": ("query", lambda a: a[..., :12], "multiple of 8"),
    "no token": ("query", lambda a: a[:, :, :0], "none may be empty"),
    "unaligned": ("query", misaligned, "not aligned"),
    "read-only out": ("out", lambda a: np.broadcast_to(a[:, :, :1], a.shape), "read-only"),
    "out of another shape": ("out", lambda a: a[:, :, 1:], "out has shape")}


@pytest.mark.parametrize("fault", ARRAY_FAULTS)
def test_a_bad_array_is_refused(fault: str) -> None:
    spec = spec_of(17, "sinks", 5)
    query, keys, values, scale = inputs(spec, 1)
    arrays = {"query": query, "ring_keys": keys, "ring_values": values, "out": np.empty_like(query)}
    field, change, message = ARRAY_FAULTS[fault]
    arrays[field] = change(arrays[field])
    with pytest.raises(ValueError, match=message):
        kernels.block_sparse_attention(plan=build_plan(spec, np.array([9])), scale=scale, **arrays)


@pytest.mark.parametrize("overlapped", ["query", "ring_keys", "ring_values"])
def test_out_that_overlaps_an_input_is_refused(overlapped: str) -> None:
    spec = spec_of(17, "sinks", 5)
    query, keys, values, scale = inputs(spec, 1)
    out = {"query": query, "ring_keys": keys[:, :, 3:20], "ring_values": values[:, :, 3:20]}[overlapped]
    with pytest.raises(ValueError, match=f"out overlaps {overlapped}"):
        kernels.block_sparse_attention(query, keys, values, build_plan(spec, np.array([9])), scale, out=out)


def test_the_environment_forces_a_tier_and_an_unknown_one_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(kernels.ISA_VARIABLE, raising=False)
    assert kernels.instruction_tier() == TIERS[-1]
    monkeypatch.setenv(kernels.ISA_VARIABLE, "portable")
    assert kernels.instruction_tier() == "portable"
    monkeypatch.setenv(kernels.ISA_VARIABLE, "sse9")
    with pytest.raises(EngineError, match="DREAMLOOP_ISA='sse9' cannot run here; usable: portable"):
        kernels.instruction_tier()
    spec = spec_of(1, "window")
    query, keys, values, scale = inputs(spec, 1)
    with pytest.raises(ValueError, match="instruction tier 'sse9' cannot run here"):
        kernels.block_sparse_attention(query, keys, values, build_plan(spec, np.array([9])), scale, isa="sse9")


def test_a_forced_tier_is_the_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the environment and by name the same bits, and each tier its own, but for the last two,
    which share this kernel."""
    spec = spec_of(256, "dilated")
    plan = build_plan(spec, np.array([23]))
    query, keys, values, scale = inputs(spec, 1)
    bits = set()
    for isa in TIERS:
        monkeypatch.setenv(kernels.ISA_VARIABLE, isa)
        forced = kernels.block_sparse_attention(query, keys, values, plan, scale)
        assert (forced == kernels.block_sparse_attention(query, keys, values, plan, scale, isa=isa)).all()
        bits.add(forced.tobytes())
    assert len(bits) == len(set(TIERS) - {"avx512vnni"})
