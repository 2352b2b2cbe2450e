"""Codes of weights: the error is bounded by half a step of the channel's own scale; six bits each, deflated."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from core.strategies import QUICK
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from dreamloop.models.core.quantize import (
    LARGEST,
    STEPS,
    deflate,
    dequantize,
    inflate,
    is_quantized,
    most_bytes,
    quantize,
)

weights = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=9),
    # down to the smallest numbers of normal precision: below them a scale has no bits left to be right in
    elements=st.floats(-1e6, 1e6, width=32).map(lambda x: x if abs(x) > 1e-30 else 0.0))


def both_ways(weight: np.ndarray) -> np.ndarray:
    return dequantize(*quantize(weight))


@QUICK
@given(weights)
def test_error_is_at_most_half_a_step(weight: np.ndarray) -> None:
    stored, scale = quantize(weight)
    assert stored.dtype == np.int8 and stored.shape == weight.shape
    assert scale.dtype == np.float32 and scale.shape == weight.shape[:1] and (scale > 0).all()
    error = np.abs(dequantize(stored, scale).astype(np.float64) - weight)
    step = scale.reshape(-1, *[1] * (weight.ndim - 1)).astype(np.float64)
    assert (error <= step * (0.5 + 1e-4)).all()


@QUICK
@given(weights)
def test_a_step_is_a_sixteenth_of_the_root_mean_square_or_the_largest_weight_is_127(weight: np.ndarray) -> None:
    flat = weight.reshape(len(weight), -1).astype(np.float64)
    stored, scale = quantize(weight)
    codes = np.abs(stored.reshape(flat.shape).astype(int)).max(axis=1)
    steps = np.sqrt(np.square(flat).mean(axis=1)) / scale
    fitting = (codes < LARGEST) & (codes > 0)
    # the largest weight is a whole number of them, 16 at least: off by a half at most, or by one and a half
    assert (np.abs(steps[fitting] / STEPS - 1) <= 1.6 / codes[fitting]).all()
    assert (steps[codes == LARGEST] <= STEPS * (1 + 1.6 / LARGEST)).all()


@QUICK
@given(weights)
def test_a_second_round_trip_changes_nothing_more(weight: np.ndarray) -> None:
    once = both_ways(weight)
    np.testing.assert_allclose(both_ways(once), once, rtol=1e-6)


def test_a_large_matrix_takes_six_bits_a_weight_and_stays_the_same_however_often_it_is_saved() -> None:
    weight = np.random.default_rng(0).standard_normal((512, 256)).astype(np.float32)
    stored, scale = quantize(weight)
    assert 5.8 < 8 * len(deflate(stored)) / weight.size < 6.2
    values = dequantize(stored, scale)
    noise = np.square(values - weight).mean() / np.square(weight).mean()
    assert 34 < -10 * np.log10(noise) < 36
    for _ in range(3):
        again = both_ways(values)
        np.testing.assert_allclose(again, values, rtol=1e-6)
        values = again


@QUICK
@given(hnp.arrays(np.int8, hnp.array_shapes(min_dims=1, max_dims=4, max_side=9)))
def test_deflated_codes_come_back(codes: np.ndarray) -> None:
    packed = deflate(codes)
    assert packed.dtype == np.uint8 and packed.ndim == 1 and len(packed) <= most_bytes(codes.shape)
    np.testing.assert_array_equal(inflate(packed, codes.shape), codes)


def test_the_worst_codes_are_within_the_bound() -> None:
    codes = np.random.default_rng(0).integers(-128, 128, (700, 300)).astype(np.int8)
    assert len(deflate(codes)) <= most_bytes(codes.shape)


def test_a_stream_of_another_length_or_a_damaged_one_is_refused() -> None:
    codes = np.arange(-60, 60, dtype=np.int8).reshape(4, 30)
    packed = deflate(codes)
    damaged = packed.copy()
    damaged[len(packed) // 2] ^= 0xFF
    for stored, shape in ((packed, (4, 29)), (packed, (4, 31)), (packed[:-1], (4, 30)), (damaged, (4, 30)),
                          (np.append(packed, packed[:1]), (4, 30)), (packed[:0], (4, 30)), (packed[1:], (4, 30))):
        with pytest.raises(ValueError, match="deflated codes"):
            inflate(stored, shape)
    bomb = np.frombuffer(zlib.compress(bytes(1 << 24), 9), np.uint8)
    with pytest.raises(ValueError, match="does not hold 120 deflated codes"):
        inflate(bomb, (4, 30))


@QUICK
@given(weights, st.integers(0, 8))
def test_channels_do_not_share_a_scale(weight: np.ndarray, channel: int) -> None:
    channel %= len(weight)
    louder = weight.copy()
    louder[channel] *= 1000
    before, after = both_ways(weight), both_ways(louder)
    others = np.arange(len(weight)) != channel
    np.testing.assert_array_equal(before[others], after[others])


def test_a_channel_of_zeros_stays_zero() -> None:
    weight = np.zeros((3, 4), np.float32)
    weight[1] = [1, -2, 0.5, 127]
    assert (both_ways(weight)[[0, 2]] == 0).all()


@pytest.mark.parametrize(("shape", "expected"), [((4096,), False), ((2048, 1), True), ((2047, 1), False),
                                                 ((16, 16, 3, 3), True), ((8, 8, 3, 3), False)])
def test_only_large_matrices_and_kernels_are_quantised(shape: tuple[int, ...], expected: bool) -> None:
    assert is_quantized(shape) is expected
