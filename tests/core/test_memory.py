"""The ring against a simulation that writes one slot after another and knows no closed form."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from core.strategies import QUICK, memory_specs
from hypothesis import given, settings, strategies as st

from dreamloop.models.core import memory
from dreamloop.models.core.memory import EMPTY, oldest_age, slot_frames, slot_of, visible, visible_frames
from dreamloop.models.core.spec import MemorySpec


def simulate(spec: MemorySpec, frames: int) -> Iterator[tuple[int, list[int], int]]:
    """For frame 1, 2, ..., `frames`: (frame, what lies in each slot just before it runs, its slot).

    The window ring is a pointer that moves on by one with each frame that no other part takes.
    """
    held = [EMPTY] * spec.slots
    pointer = 0
    for frame in range(1, frames + 1):
        if frame <= spec.sink_frames:
            slot = frame - 1
        elif spec.dilation and frame % spec.dilation == 0:
            slot = spec.sink_frames + frame // spec.dilation % spec.dilated_frames
        else:
            slot = spec.sink_frames + spec.dilated_frames + pointer
            pointer = (pointer + 1) % spec.window_frames
        yield frame, list(held), slot
        held[slot] = frame


def period(spec: MemorySpec) -> int:
    """After this many frames every ring is back at the same slot."""
    if not spec.dilation:
        return spec.window_frames
    return spec.dilation * math.lcm(spec.window_frames, spec.dilated_frames)


@QUICK
@given(memory_specs(), st.integers(1, 300))
def test_slots_equal_the_simulation(spec: MemorySpec, frames: int) -> None:
    for frame, held, slot in simulate(spec, frames):
        assert slot_of(spec, frame) == slot
        assert slot_frames(spec, frame).tolist() == held


@settings(max_examples=4, deadline=None)
@given(memory_specs(largest=20))
def test_slots_equal_the_simulation_for_thousands_of_frames(spec: MemorySpec) -> None:
    for frame, held, slot in simulate(spec, 4000):
        assert slot_of(spec, frame) == slot
        if frame % 7 == 0 or frame > 3900:
            assert slot_frames(spec, frame).tolist() == held


@QUICK
@given(memory_specs(), st.integers(1, 10**15), st.integers(0, 10**6))
def test_a_huge_frame_repeats_an_early_one_a_whole_number_of_periods_back(
        spec: MemorySpec, periods: int, offset: int) -> None:
    """With the simulation above this pins every frame index there is, not only small ones."""
    settled = spec.sink_frames + oldest_age(spec) + 2
    early = settled + offset % period(spec)
    late = early + periods * period(spec)
    assert slot_of(spec, late) == slot_of(spec, early)
    sinks = spec.sink_frames
    assert (slot_frames(spec, late)[:sinks] == np.arange(1, sinks + 1)).all()
    assert (slot_frames(spec, late)[sinks:] - slot_frames(spec, early)[sinks:] == late - early).all()


@QUICK
@given(memory_specs(), st.integers(1, 10**15))
def test_a_frame_is_found_in_its_slot_one_frame_later(spec: MemorySpec, frame: int) -> None:
    slot = slot_of(spec, frame)
    assert 0 <= slot < spec.slots
    assert slot_frames(spec, frame + 1)[slot] == frame
    assert (slot_frames(spec, frame) < frame).all()


@QUICK
@given(memory_specs(), st.integers(1, 200))
def test_a_frame_sees_itself_and_all_but_the_one_it_overwrites(spec: MemorySpec, frames: int) -> None:
    for frame, held, slot in simulate(spec, frames):
        expected = {past for past in held if past != EMPTY} - {held[slot]} | {frame}
        seen = visible_frames(spec, frame)
        assert {int(past) for past in seen if past != EMPTY} == expected
        assert seen[slot] == frame
        assert visible(spec, frame).tolist() == (seen != EMPTY).tolist()


@QUICK
@given(memory_specs(), st.integers(1, 10**12))
def test_memory_never_grows_and_no_frame_lies_in_two_slots(spec: MemorySpec, frame: int) -> None:
    seen = visible_frames(spec, frame)
    assert seen.shape == (spec.slots,)
    written = seen[seen != EMPTY]
    assert len(set(written.tolist())) == len(written) <= spec.slots


@QUICK
@given(memory_specs(), st.integers(2, 200))
def test_a_sink_stays_where_it_is_for_ever(spec: MemorySpec, frame: int) -> None:
    for sink in range(1, min(spec.sink_frames, frame - 1) + 1):
        assert slot_frames(spec, frame)[sink - 1] == sink
        assert memory.is_sink(spec, sink)
    assert not memory.is_sink(spec, spec.sink_frames + 1) and not memory.is_sink(spec, 0)


@QUICK
@given(memory_specs())
def test_oldest_age_bounds_every_age_read_by_one_frame(spec: MemorySpec) -> None:
    """It bounds the ages over a whole period of the rings, and it is one above the largest of them:
    a clip of `oldest_age` frames, which holds the ages 0 .. oldest_age - 1, shows every age."""
    largest = 0
    for frame in range(1, spec.sink_frames + 2 * oldest_age(spec) + period(spec) + 2):
        pasts = visible_frames(spec, frame)
        ages = [frame - int(past) for past in pasts if past != EMPTY and not memory.is_sink(spec, int(past))]
        largest = max([largest, *ages])
    assert largest + 1 == oldest_age(spec)


def test_the_picture_of_the_ring_after_twelve_frames() -> None:
    """Two sinks, two dilated slots for every third frame, a window of three; read by hand."""
    spec = MemorySpec(window_frames=3, sink_frames=2, dilated_frames=2, dilation=3, max_age=20)
    assert slot_frames(spec, 13).tolist() == [1, 2, 12, 9, 8, 10, 11]
    assert visible_frames(spec, 13).tolist() == [1, 2, 12, 9, 13, 10, 11]  # 8 is about to be overwritten


def test_frame_zero_has_no_slot() -> None:
    with pytest.raises(AssertionError):
        slot_of(MemorySpec(window_frames=3), 0)
