"""Block-sparse attention in bf16 and int8: every instruction tier against the formula in float64."""

from __future__ import annotations

import numpy as np
import pytest
from test_attention import inputs, poison, random_plan, spec_of

from dreamloop.models.core.plan import Plan, build_plan
from dreamloop.runtime import kernels

if reason := kernels.available():
    pytest.skip(reason, allow_module_level=True)

TIERS = kernels.instruction_tiers()
# of standard normal values, where scores are off by as much as half a level of either factor
BOUNDS = {"bf16": 0.03, "int8": 0.06}
EVERY = pytest.mark.parametrize(("precision", "isa"), [(p, isa) for p in BOUNDS for isa in TIERS])


def attention(query: np.ndarray, keys: np.ndarray, values: np.ndarray, plan: Plan, scale: float, precision: str,
              isa: str) -> np.ndarray:
    return kernels.block_sparse_attention(query, keys, values, plan, scale, isa=isa, precision=precision)


def error_of(query: np.ndarray, keys: np.ndarray, values: np.ndarray, plan: Plan, scale: float, precision: str,
             isa: str) -> float:
    found = attention(query, keys, values, plan, scale, precision, isa)
    return float(np.abs(found - kernels.reference_attention(query, keys, values, plan, scale)).max())


@EVERY
@pytest.mark.parametrize("memory", ["window", "sinks", "dilated"])
@pytest.mark.parametrize(("tokens", "block_tokens"), [(1, 0), (17, 0), (17, 5), (256, 48)])
def test_players_at_different_frames_match_the_formula(tokens: int, block_tokens: int, memory: str, precision: str,
                                                       isa: str) -> None:
    """Warm-up, wrap-around, sinks and dilated slots in one batch; nothing unwritten is read."""
    spec = spec_of(tokens, memory, block_tokens)
    frames = np.array([1, 2, 5, 23] if tokens < 256 else [1, 23], np.int64)
    plan = build_plan(spec, frames)
    query, keys, values, scale = inputs(spec, len(frames))
    poison(plan, keys, values)
    error = error_of(query, keys, values, plan, scale, precision, isa)
    assert 1e-5 < error <= BOUNDS[precision]


@EVERY
@pytest.mark.parametrize("head_size", [8, 16, 24, 32, 40, 56, 64, 72, 128])
def test_every_head_size_that_is_a_multiple_of_eight(head_size: int, precision: str, isa: str) -> None:
    spec = spec_of(17, "sinks", 5, head_size=head_size)
    plan = build_plan(spec, np.array([9]))
    assert error_of(*inputs(spec, 1)[:3], plan, head_size**-0.5, precision, isa) <= BOUNDS[precision]


@EVERY
def test_random_lists_and_strides_match_the_formula(precision: str, isa: str) -> None:
    """Any plan of the format, and any strides but that of the last axis; nothing beside the output is written."""
    generator = np.random.default_rng(3)
    for _ in range(25):
        batch, heads, tokens, key_blocks = generator.integers(1, [4, 4, 40, 12])
        block_tokens, head_size = int(generator.integers(1, tokens + 1)), 8 * int(generator.integers(1, 6))
        plan = random_plan(generator, *generator.choice([[1, 1], [batch, 1], [1, heads], [batch, heads]]).tolist(),
                           -(-tokens // block_tokens), key_blocks, block_tokens)
        query = generator.standard_normal((batch, tokens, 3, heads, head_size), dtype=np.float32)[:, :, 1]
        keys, values = generator.standard_normal((2, batch, heads, 2 * key_blocks * block_tokens, head_size + 3),
                                                 dtype=np.float32)[:, :, ::-1, ::2, 1:-2]
        out = np.full((heads, tokens + 1, batch, head_size + 8), 77, np.float32)
        view = out[:, :tokens, :, 8:].transpose(2, 0, 1, 3)
        kernels.block_sparse_attention(query.swapaxes(1, 2), keys, values, plan, 0.2, out=view, isa=isa,
                                       precision=precision)
        expected = kernels.reference_attention(query.swapaxes(1, 2), keys, values, plan, 0.2)
        assert np.abs(view - expected).max() <= BOUNDS[precision]
        view[:] = 77
        assert (out == 77).all(), "wrote beside out"


@EVERY
def test_many_faint_keys_are_not_lost_beside_a_strong_one(precision: str, isa: str) -> None:
    """One key has 255 times the weight of each of 271 others: with levels of a fixed size those would round away."""
    spec = spec_of(17, "window", heads=1, head_size=8)
    plan = Plan(np.zeros((1, 1, 1, 1), np.int32), np.ones((1, 1, 1), np.int32), np.array([[272]], np.int32), 272)
    query = np.zeros((1, 1, 1, 8), np.float32)
    keys, values = np.zeros((2, 1, 1, 272, 8), np.float32)
    query[..., 0], keys[0, 0, 200, 0] = 1, np.log(255)
    values[0, 0, :, 1], values[0, 0, 200, 1] = 1, -1
    assert spec.tokens == 17
    assert error_of(query, keys, values, plan, 1.0, precision, isa) <= 0.02


@EVERY
def test_one_key_that_stands_out_is_what_comes_out(precision: str, isa: str) -> None:
    """Scores of some 2000: no overflow, and every other weight vanishes."""
    spec = spec_of(17, "window")
    query, keys, values, _ = inputs(spec, 1)
    plan = build_plan(spec, np.array([9]))
    query = 20 * keys[:, :, 20:37]
    expected = values[:, :, 20:37]
    assert np.abs(attention(query, keys, values, plan, 5.0, precision, isa) - expected).max() <= BOUNDS[precision]


@EVERY
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_reaches_every_query_that_reads_it_and_no_other(bad: float, precision: str,
                                                                           isa: str) -> None:
    spec = spec_of(17, "window", 5)
    query, keys, values, scale = inputs(spec, 1)
    plan = build_plan(spec, np.array([9]))
    plan.block_count[0, 0, 1] = 2  # query block 1 reads blocks 0 and 1 alone
    keys[0, 0, 11, 3], values[0, 1, 11, 3] = bad, bad  # block 2
    found = attention(query, keys, values, plan, scale, precision, isa)
    spared = np.zeros((2, 17), bool)
    spared[:, 5:10] = True
    assert np.isfinite(found[0, spared]).all()
    read = found[0] if precision == "int8" else found[0, :, :, 3]
    if bad != bad:  # an infinite key is the answer to a softmax, or none
        assert np.isnan(read[~spared]).all()
    query[0, 0, 4, 2] = bad
    assert not np.isfinite(attention(query, keys, values, plan, scale, precision, isa)[0, 0, 4]).any()


@EVERY
def test_a_player_has_the_same_bits_in_any_batch(precision: str, isa: str) -> None:
    spec = spec_of(17, "dilated", 5)
    frames = np.array([23, 2, 7], np.int64)
    query, keys, values, scale = inputs(spec, 3)
    together = attention(query, keys, values, build_plan(spec, frames), scale, precision, isa)
    for b in range(3):
        one = slice(b, b + 1)
        alone = attention(query[one], keys[one], values[one], build_plan(spec, frames[one]), scale, precision, isa)
        assert (alone == together[one]).all()


@pytest.mark.parametrize("precision", BOUNDS)
def test_the_instructions_and_their_stand_ins_give_the_same_bits(precision: str) -> None:
    if not {"avx512", "avx512vnni"} <= set(TIERS):
        pytest.skip("this processor has no VNNI and BF16 to compare with")
    spec = spec_of(256, "dilated", 48, head_size=40)
    query, keys, values, scale = inputs(spec, 1)
    plan = build_plan(spec, np.array([23]))
    found = [attention(query, keys, values, plan, scale, precision, isa) for isa in ("avx512", "avx512vnni")]
    assert (found[0] == found[1]).all()


def test_an_unknown_precision_is_refused() -> None:
    spec = spec_of(1, "window")
    query, keys, values, scale = inputs(spec, 1)
    with pytest.raises(ValueError, match="precision must be fp32, bf16 or int8"):
        attention(query, keys, values, build_plan(spec, np.array([9])), scale, "fp8", TIERS[-1])
