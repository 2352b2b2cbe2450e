"""A plan whose view is shortened, against the mask of the whole one."""

from __future__ import annotations

import numpy as np
from core.strategies import QUICK, memory_specs, plan_specs
from hypothesis import given, strategies as st
from worlds import tiny_spec

from dreamloop.models.core import memory
from dreamloop.models.core.conditioning import pass_inputs
from dreamloop.models.core.plan import build_plan, narrowed
from dreamloop.models.core.spec import MemorySpec, PlanSpec

FRAMES = st.lists(st.one_of(st.integers(1, 40), st.integers(1, 10**12)), min_size=1, max_size=4)


@QUICK
@given(memory_specs(6), plan_specs(6), FRAMES, st.integers(2, 12))
def test_a_narrowed_plan_reads_what_the_whole_one_reads_of_near_frames_and_sinks(
        memory_spec: MemorySpec, plan_spec: PlanSpec, frames: list[int], view_frames: int) -> None:
    spec = tiny_spec(memory=memory_spec, plan=plan_spec)
    whole = build_plan(spec, np.array(frames))
    plan = narrowed(whole, spec, np.array(frames), view_frames)
    before, after = whole.token_mask(), plan.token_mask()
    for b, frame in enumerate(frames):
        held = memory.visible_frames(memory_spec, frame)
        near = (held != memory.EMPTY) & ((held <= memory_spec.sink_frames) | (frame - held < view_frames))
        assert (after[b] == before[b] & near.repeat(before.shape[-1] // len(held))).all()
    assert (plan.block_count >= 1).all() and (plan.block_count <= whole.block_count).all()
    for b, h, row in np.ndindex(plan.block_count.shape):  # each block once
        listed = plan.block_index[b, h, row, : plan.block_count[b, h, row]]
        assert len(set(listed.tolist())) == len(listed)


def test_the_whole_plan_is_left_as_it_was() -> None:
    spec, frames = tiny_spec(), np.array([30, 7])
    whole = build_plan(spec, frames)
    index, count = whole.block_index.copy(), whole.block_count.copy()
    assert (narrowed(whole, spec, frames, 2).block_count < count).all()
    assert (whole.block_index == index).all() and (whole.block_count == count).all()


def test_a_pass_is_made_with_the_narrowed_plan_and_else_the_same_inputs() -> None:
    spec, frames, seeds = tiny_spec(), np.array([30]), np.array([5], np.uint64)
    whole, short = (pass_inputs(spec, frames, seeds, np.zeros((1, 3), np.float32), view_frames=view)
                    for view in (None, 2))
    assert (short.plan.block_count == narrowed(whole.plan, spec, frames, 2).block_count).all()
    assert all((getattr(whole, name) == getattr(short, name)).all() for name in ("condition", "noise", "cos", "slot"))
