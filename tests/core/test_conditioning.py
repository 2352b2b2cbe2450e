"""What the host hands an engine: rotary positions that know differences only, and sinks of bounded age."""

from __future__ import annotations

import numpy as np
import pytest
from core.strategies import QUICK
from hypothesis import given, strategies as st
from worlds import tiny_spec

from dreamloop.models.core import memory
from dreamloop.models.core.conditioning import (
    PassInputs,
    condition,
    level_features,
    pass_inputs,
    sink_times,
    space_angles,
    time_angles,
)
from dreamloop.models.core.noise import normal
from dreamloop.models.core.spec import LEVEL_FEATURES, DynamicsSpec, MemorySpec, WorldSpec

SPEC = tiny_spec()
frame_indices = st.one_of(st.integers(1, 60), st.integers(1, 10**7))


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """The rotation of the module's docstring: pairs (i, i + D/2)."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)


def rotate_by(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    return rotate(x, np.cos(angles), np.sin(angles))


def inputs_at(spec: WorldSpec, frame: int) -> PassInputs:
    return pass_inputs(spec, np.array([frame]), np.array([5], np.uint64), np.zeros((1, spec.actions.size), np.float32))


def vectors(seed: int, spec: WorldSpec = SPEC) -> tuple[np.ndarray, np.ndarray]:
    """A query and a key per token, (T, D) float64 each."""
    generator = np.random.default_rng(seed)
    shape = (spec.tokens, spec.dynamics.head_size)
    return generator.standard_normal(shape), generator.standard_normal(shape)


@QUICK
@given(frame_indices, st.integers(0, 40), frame_indices, st.integers(0, 1000))
def test_scores_depend_on_the_difference_of_times_only(frame: int, age: int, later: int, seed: int) -> None:
    q, k = vectors(seed)

    def scores(query_frame: int) -> np.ndarray:
        return rotate_by(q, time_angles(SPEC, query_frame) + space_angles(SPEC)) @ rotate_by(
            k, time_angles(SPEC, query_frame - age) + space_angles(SPEC)).T

    np.testing.assert_allclose(scores(frame + 40), scores(frame + 40 + later), atol=1e-7)


@QUICK
@given(st.integers(0, 10**7), st.integers(0, 200))
def test_float64_angles_at_frame_ten_million_have_exact_differences(frame: int, age: int) -> None:
    """float32 angles would be off by up to half a radian there."""
    difference = time_angles(SPEC, frame + age) - time_angles(SPEC, frame)
    np.testing.assert_allclose(difference, time_angles(SPEC, age), atol=4e-9)


def test_the_pass_rounds_angles_only_after_sine_and_cosine() -> None:
    """Scores from the float32 arrays of `pass_inputs`, at frame 10^7, against the exact ones at frame 30."""
    spec = tiny_spec(memory=MemorySpec(window_frames=5))
    q, k = vectors(1)

    def scores(frame: int) -> np.ndarray:
        now, past = inputs_at(spec, frame), inputs_at(spec, frame - 3)
        return rotate(q, now.cos[0], now.sin[0]) @ rotate(k, past.store_cos[0], past.store_sin[0]).T

    np.testing.assert_allclose(scores(10**7), scores(30), atol=1e-5)


def test_rows_and_columns_turn_pairs_of_their_own() -> None:
    spec = tiny_spec(frame_height=64, frame_width=48)
    pairs = spec.dynamics.head_size // 2
    angles = space_angles(spec).reshape(*spec.grid, pairs)
    half, quarter = pairs // 2, pairs // 2 + pairs // 4
    assert (angles[..., :half] == 0).all() and (time_angles(spec, 9)[half:] == 0).all()
    assert (angles[:, :, half:quarter] == angles[:, :1, half:quarter]).all()  # rows: the same in every column
    assert (angles[:, :, quarter:] == angles[:1, :, quarter:]).all()
    assert (np.diff(angles[:, 0, half:quarter], axis=0) > 0).all()
    assert (np.diff(angles[0, :, quarter:], axis=0) > 0).all()
    flat = angles.reshape(spec.tokens, pairs)
    assert len(np.unique(flat, axis=0)) == spec.tokens, "two tokens stand at the same place"


@QUICK
@given(st.integers(1, 5), st.integers(1, 30), frame_indices, st.integers(0, 1000))
def test_a_sink_is_read_at_its_clamped_age(sinks: int, max_age: int, after: int, seed: int) -> None:
    """Stored without time, turned at the pass: the same key as one rotated for t - min(t - s, max_age)."""
    spec = tiny_spec(memory=MemorySpec(window_frames=3, sink_frames=sinks, max_age=max_age))
    _, k = vectors(seed)
    for sink in range(1, sinks + 1):
        frame = sink + after - 1  # its own frame included
        at_write, at_read = inputs_at(spec, sink), inputs_at(spec, frame)
        stored = rotate(k, at_write.store_cos[0], at_write.store_sin[0])
        found = rotate(stored, at_read.sink_cos[0, sink - 1], at_read.sink_sin[0, sink - 1])
        age = min(frame - sink, max_age)
        expected = rotate_by(k, time_angles(spec, frame - age) + space_angles(spec))
        np.testing.assert_allclose(found, expected, atol=2e-6)
        assert sink_times(spec, frame)[sink - 1] == frame - age


@QUICK
@given(frame_indices)
def test_only_sinks_are_stored_without_time(frame: int) -> None:
    made = inputs_at(SPEC, frame)
    if memory.is_sink(SPEC.memory, frame):
        np.testing.assert_array_equal(made.store_cos[0], np.cos(space_angles(SPEC)).astype(np.float32))
        assert (made.store_sin != made.sin).any()
    else:
        np.testing.assert_array_equal(made.store_cos, made.cos)
        np.testing.assert_array_equal(made.store_sin, made.sin)


@QUICK
@given(st.lists(frame_indices, min_size=1, max_size=4), st.integers(0, 2**64 - 1), st.integers(0, 1))
def test_a_batch_is_its_players_side_by_side(frames: list[int], seed: int, index: int) -> None:
    spec = tiny_spec(dynamics=DynamicsSpec(width=32, layers=1, heads=2, mlp_width=8, sigmas=(1.0, 0.4)))
    seeds = np.array([(seed + i) % 2**64 for i in range(len(frames))], np.uint64)
    actions = np.random.default_rng(0).random((len(frames), spec.actions.size)).astype(np.float32)
    together = pass_inputs(spec, np.array(frames), seeds, actions, index)
    for b, frame in enumerate(frames):
        alone = pass_inputs(spec, np.array([frame]), seeds[b : b + 1], actions[b : b + 1], index)
        for name in ("condition", "action", "noise", "cos", "sin", "store_cos", "store_sin", "sink_cos", "sink_sin"):
            one, all_of_them = getattr(alone, name), getattr(together, name)
            assert all_of_them.dtype == np.float32, name
            np.testing.assert_array_equal(one[0], all_of_them[b], err_msg=name)
        assert together.slot[b] == alone.slot[0] == memory.slot_of(spec.memory, frame)
        size = int(np.prod(spec.latent_shape))
        np.testing.assert_array_equal(together.noise[b].reshape(-1), normal(int(seeds[b]), frame, size, index))


def test_condition_is_the_action_and_then_the_levels() -> None:
    action = np.array([[1.0, 0.0, 0.5]], np.float32)
    made = condition(action, np.array([1.0]), np.array([0.25]), np.array([0.0]))
    assert made.shape == (1, SPEC.condition_size) and made.dtype == np.float32
    expected = [action[0], *(level_features(np.array(level)) for level in (1.0, 0.25, 0.0))]
    np.testing.assert_array_equal(made[0], np.concatenate(expected))


def test_levels_are_told_apart() -> None:
    levels = np.linspace(0, 1, 101)
    features = level_features(levels)
    assert features.shape == (101, LEVEL_FEATURES)
    distances = np.linalg.norm(features[:, None] - features[None], axis=-1) + np.eye(101) * 9
    assert distances.min() > 0.05


@pytest.mark.parametrize(("index", "level"), [(0, 1.0), (1, 0.4)])
def test_each_pass_of_a_few_step_world_is_told_to_go_all_the_way(index: int, level: float) -> None:
    spec = tiny_spec(dynamics=DynamicsSpec(width=32, layers=1, heads=2, mlp_width=8, sigmas=(1.0, 0.4)))
    action = np.zeros((1, spec.actions.size), np.float32)
    made = pass_inputs(spec, np.array([3]), np.array([0], np.uint64), action, index)
    expected = condition(action, np.array([level]), np.array([level]), np.array([0.0]))
    np.testing.assert_allclose(made.condition, expected, atol=1e-6)
