"""int8 per channel: the error is bounded by half a step of the channel's own scale."""

from __future__ import annotations

import numpy as np
import pytest
from core.strategies import QUICK
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from dreamloop.models.core.quantize import dequantize, is_quantized, quantize

weights = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=9),
    # down to the smallest numbers of normal precision: below them a scale has no bits left to be right in
    elements=st.floats(-1e6, 1e6, width=32).map(lambda x: x if abs(x) > 1e-30 else 0.0))


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
def test_a_second_round_trip_changes_nothing_more(weight: np.ndarray) -> None:
    once = dequantize(*quantize(weight))
    np.testing.assert_allclose(dequantize(*quantize(once)), once, rtol=1e-6)


@QUICK
@given(weights, st.integers(0, 8))
def test_channels_do_not_share_a_scale(weight: np.ndarray, channel: int) -> None:
    channel %= len(weight)
    louder = weight.copy()
    louder[channel] *= 1000
    before, after = dequantize(*quantize(weight)), dequantize(*quantize(louder))
    others = np.arange(len(weight)) != channel
    np.testing.assert_array_equal(before[others], after[others])


def test_a_channel_of_zeros_stays_zero() -> None:
    weight = np.zeros((3, 4), np.float32)
    weight[1] = [1, -2, 0.5, 127]
    assert (dequantize(*quantize(weight))[[0, 2]] == 0).all()


@pytest.mark.parametrize(("shape", "expected"), [((4096,), False), ((2048, 1), True), ((2047, 1), False),
                                                 ((16, 16, 3, 3), True), ((8, 8, 3, 3), False)])
def test_only_large_matrices_and_kernels_are_quantised(shape: tuple[int, ...], expected: bool) -> None:
    assert is_quantized(shape) is expected
