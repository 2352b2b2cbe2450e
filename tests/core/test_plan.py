"""Block lists and the training mask against masks made by brute force."""

from __future__ import annotations

import numpy as np
from core.strategies import QUICK, memory_specs, plan_specs
from hypothesis import given, strategies as st
from worlds import tiny_spec

from dreamloop.models.core import memory
from dreamloop.models.core.plan import build_plan, frame_mask, read_slots
from dreamloop.models.core.spec import MemorySpec, PlanSpec, WorldSpec


def reads(spec: MemorySpec, plan: PlanSpec, frame: int, past: int) -> bool:
    """The policies in one line each, written anew: what `frame` reads of a frame that is visible."""
    if plan.policy == "window":
        return past <= spec.sink_frames or frame - past <= plan.window_frames
    return True


@st.composite
def specs(draw: st.DrawFn) -> WorldSpec:
    """Tiny worlds of 6 tokens a frame with any memory, policy and block size."""
    return tiny_spec(memory=draw(memory_specs(6)), plan=draw(plan_specs(6)))


frame_lists = st.lists(st.one_of(st.integers(1, 40), st.integers(1, 10**12)), min_size=1, max_size=4)


@QUICK
@given(specs(), frame_lists)
def test_token_mask_is_visible_and_kept_and_written(spec: WorldSpec, frames: list[int]) -> None:
    plan = build_plan(spec, np.array(frames, np.int64))
    mask = plan.token_mask()
    stride = spec.tokens_padded
    assert mask.shape == (len(frames), 1, spec.blocks_per_frame, spec.memory.slots * stride)
    for b, frame in enumerate(frames):
        expected = np.zeros((spec.memory.slots, stride), bool)
        for slot, past in enumerate(memory.visible_frames(spec.memory, frame)):
            if past != memory.EMPTY and reads(spec.memory, spec.plan, frame, int(past)):
                expected[slot, : spec.tokens] = True
        assert (mask[b] == expected.reshape(-1)).all()


@QUICK
@given(specs(), frame_lists)
def test_lists_are_well_formed(spec: WorldSpec, frames: list[int]) -> None:
    plan = build_plan(spec, np.array(frames, np.int64))
    blocks = spec.memory.slots * spec.blocks_per_frame
    assert plan.block_index.dtype == plan.block_count.dtype == plan.block_length.dtype == np.int32
    assert plan.block_index.shape[:3] == plan.block_count.shape == (len(frames), 1, spec.blocks_per_frame)
    assert plan.block_length.shape == (len(frames), blocks)
    assert (plan.block_count >= 1).all() and (plan.block_count <= plan.block_index.shape[3]).all()
    for b, h, row in np.ndindex(plan.block_count.shape):
        listed = plan.block_index[b, h, row, : plan.block_count[b, h, row]]
        assert (np.diff(listed) > 0).all(), "a block stands twice, or out of order"
        assert listed[0] >= 0 and listed[-1] < blocks
        assert (plan.block_length[b, listed] > 0).all(), "a listed block holds nothing"


@QUICK
@given(specs(), st.integers(1, 10**9))
def test_the_last_block_of_a_frame_is_as_long_as_its_tail(spec: WorldSpec, frame: int) -> None:
    length = build_plan(spec, np.array([frame])).block_length.reshape(spec.memory.slots, spec.blocks_per_frame)
    for slot, written in enumerate(memory.visible(spec.memory, frame)):
        assert length[slot].sum() == (spec.tokens if written else 0)
        if written:
            assert (length[slot, :-1] == spec.block_tokens).all()
            assert 1 <= length[slot, -1] <= spec.block_tokens


@QUICK
@given(specs(), st.integers(1, 10**9))
def test_a_frame_always_reads_itself_and_every_sink_before_it(spec: WorldSpec, frame: int) -> None:
    slots = set(read_slots(spec, frame).tolist())
    assert memory.slot_of(spec.memory, frame) in slots
    assert set(range(min(spec.memory.sink_frames, frame))) <= slots


@QUICK
@given(specs(), frame_lists)
def test_players_of_a_batch_do_not_touch_each_other(spec: WorldSpec, frames: list[int]) -> None:
    together = build_plan(spec, np.array(frames, np.int64)).token_mask()
    for b, frame in enumerate(frames):
        assert (together[b] == build_plan(spec, np.array([frame])).token_mask()[0]).all()


@QUICK
@given(memory_specs(6), plan_specs(), st.integers(1, 60), st.integers(1, 60))
def test_frame_mask_is_what_a_session_from_an_empty_past_reads(
        spec: MemorySpec, plan: PlanSpec, first: int, count: int) -> None:
    """The session is played out here: slots start empty at frame `first` and are written in turn."""
    mask = frame_mask(spec, plan, first, count)
    held: dict[int, int] = {}
    for row, frame in enumerate(range(first, first + count)):
        held[memory.slot_of(spec, frame)] = frame  # the old occupant is gone before anyone looks
        expected = np.zeros(count, bool)
        for past in held.values():
            expected[past - first] = reads(spec, plan, frame, past)
        assert mask[row].tolist() == expected.tolist()


@QUICK
@given(specs(), st.integers(1, 80))
def test_frame_mask_from_frame_one_equals_the_plan_at_play(spec: WorldSpec, count: int) -> None:
    mask = frame_mask(spec.memory, spec.plan, 1, count)
    for frame in range(1, count + 1):
        pasts = memory.visible_frames(spec.memory, frame)[read_slots(spec, frame)]
        assert sorted(pasts.tolist()) == (np.flatnonzero(mask[frame - 1]) + 1).tolist()


def test_a_window_plan_reads_less_than_a_dense_one() -> None:
    spec = MemorySpec(window_frames=8)
    dense, window = (frame_mask(spec, plan, 1, 20) for plan in (PlanSpec(), PlanSpec("window", 3)))
    assert dense[-1].sum() == 8 and window[-1].sum() == 4  # ages 0 .. 3
    assert not (window & ~dense).any()
