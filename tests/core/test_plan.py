"""Block lists and the training mask against masks made by brute force."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from core.strategies import QUICK, memory_specs, plan_specs
from hypothesis import given, strategies as st
from worlds import tiny_spec

from dreamloop.models.core import memory, plan as plans
from dreamloop.models.core.plan import build_plan, frame_mask
from dreamloop.models.core.spec import MemorySpec, PlanSpec, WorldSpec


def reads(spec: MemorySpec, plan: PlanSpec, parts: int, frame: int, past: int, row: int, part: int) -> bool:
    """The policies written anew, block by block: what query block `row` of `frame` may read of a visible frame."""
    age = frame - past
    if past <= spec.sink_frames or plan.policy in ("dense", "top_k"):
        return True
    if plan.policy == "window" or age <= plan.window_frames:
        return age <= plan.window_frames
    doublings = 0
    while age > plan.window_frames * 2**doublings:
        doublings += 1
    every = 1
    while 2 * every <= 2**doublings / 2 ** int(np.log2(parts)):
        every *= 2
    return past % every == 0 and abs(row - part) < parts / 2 ** (doublings + 1)


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
    parts = spec.blocks_per_frame
    assert mask.shape == (len(frames), 1, parts, spec.memory.slots * stride)
    for b, frame in enumerate(frames):
        expected = np.zeros((parts, spec.memory.slots, stride), bool)
        for slot, past in enumerate(memory.visible_frames(spec.memory, frame)):
            for row, token in np.ndindex(parts, spec.tokens):
                expected[row, slot, token] = past != memory.EMPTY and reads(
                    spec.memory, spec.plan, parts, frame, int(past), row, token // spec.block_tokens)
        assert (mask[b, 0] == expected.reshape(parts, -1)).all()


@QUICK
@given(specs(), frame_lists)
def test_lists_are_well_formed(spec: WorldSpec, frames: list[int]) -> None:
    plan = build_plan(spec, np.array(frames, np.int64))
    blocks = spec.memory.slots * spec.slot_blocks
    assert plan.block_index.dtype == plan.block_count.dtype == plan.block_length.dtype == np.int32
    assert plan.block_index.shape[:3] == plan.block_count.shape == (len(frames), 1, spec.blocks_per_frame)
    assert plan.block_length.shape == (len(frames), blocks)
    assert (plan.block_count >= 1).all() and (plan.block_count <= plan.block_index.shape[3]).all()
    for b, h, row in np.ndindex(plan.block_count.shape):
        listed = plan.block_index[b, h, row, : plan.block_count[b, h, row]]
        kept = len(listed) if plan.block_kept is None else int(plan.block_kept[b, h, row])
        assert 1 <= kept <= len(listed) and len(set(listed.tolist())) == len(listed), "a block stands twice"
        assert (np.diff(listed[:kept]) > 0).all() and (np.diff(listed[kept:]) > 0).all(), "out of order"
        assert listed.min() >= 0 and listed.max() < blocks
        assert (plan.block_length[b, listed] > 0).all(), "a listed block holds nothing"


@QUICK
@given(specs(), st.integers(1, 10**9))
def test_the_last_block_of_a_frame_is_as_long_as_its_tail(spec: WorldSpec, frame: int) -> None:
    parts = spec.blocks_per_frame
    length = build_plan(spec, np.array([frame])).block_length.reshape(spec.memory.slots, spec.slot_blocks)
    assert (length[:, parts:] == 0).all()  # mean keys are never read as tokens
    length = length[:, :parts]
    for slot, written in enumerate(memory.visible(spec.memory, frame)):
        assert length[slot].sum() == (spec.tokens if written else 0)
        if written:
            assert (length[slot, :-1] == spec.block_tokens).all()
            assert 1 <= length[slot, -1] <= spec.block_tokens


@QUICK
@given(specs(), st.integers(1, 10**9))
def test_a_frame_always_reads_itself_and_every_sink_before_it(spec: WorldSpec, frame: int) -> None:
    mask = build_plan(spec, np.array([frame])).token_mask()[0, 0].reshape(spec.blocks_per_frame, spec.memory.slots, -1)
    assert mask[:, memory.slot_of(spec.memory, frame), : spec.tokens].any(axis=1).all()
    assert mask[:, : min(spec.memory.sink_frames, frame), : spec.tokens].all()


@QUICK
@given(specs(), frame_lists)
def test_players_of_a_batch_do_not_touch_each_other(spec: WorldSpec, frames: list[int]) -> None:
    together = build_plan(spec, np.array(frames, np.int64)).token_mask()
    for b, frame in enumerate(frames):
        assert (together[b] == build_plan(spec, np.array([frame])).token_mask()[0]).all()


@QUICK
@given(memory_specs(6), plan_specs(), st.integers(1, 60), st.integers(1, 40), st.integers(1, 4))
def test_frame_mask_is_what_a_session_from_an_empty_past_reads(
        spec: MemorySpec, plan: PlanSpec, first: int, count: int, parts: int) -> None:
    """The session is played out here: slots start empty at frame `first` and are written in turn."""
    mask = frame_mask(spec, plan, first, count, parts).reshape(count, parts, count, parts)
    held: dict[int, int] = {}
    for row, frame in enumerate(range(first, first + count)):
        held[memory.slot_of(spec, frame)] = frame  # the old occupant is gone before anyone looks
        expected = np.zeros((parts, count, parts), bool)
        for past in held.values():
            for asks, part in np.ndindex(parts, parts):
                expected[asks, past - first, part] = reads(spec, plan, parts, frame, past, asks, part)
        assert (mask[row] == expected).all()


@QUICK
@given(specs(), st.integers(1, 40))
def test_frame_mask_from_frame_one_equals_the_plan_at_play(spec: WorldSpec, count: int) -> None:
    """In training order the keys lie frame by frame, in the ring slot by slot."""
    parts = spec.blocks_per_frame
    mask = frame_mask(spec.memory, spec.plan, 1, count, parts).reshape(count, parts, count, parts)
    for frame in range(1, count + 1):
        held = memory.visible_frames(spec.memory, frame)
        played = build_plan(spec, np.array([frame])).token_mask().reshape(parts, len(held), spec.slot_blocks, -1)
        expected = np.zeros((parts, count, parts), bool)
        for slot, past in enumerate(held):
            if past != memory.EMPTY:
                expected[:, past - 1] = played[:, slot, :parts].any(axis=-1)
        assert (mask[frame - 1] == expected).all()


@QUICK
@given(specs(), frame_lists)
def test_every_written_block_is_listed_or_skipped_and_sinks_are_never_skipped(spec: WorldSpec,
                                                                              frames: list[int]) -> None:
    plan = build_plan(spec, np.array(frames, np.int64))
    listed, skipped, written = plan.listed(), plan.skipped(), (plan.block_length > 0)[:, None, None]
    assert not (listed & skipped).any() and ((listed | skipped) == written).all()
    assert not skipped[..., : spec.memory.sink_frames * spec.slot_blocks].any()
    for b, frame in enumerate(frames):
        own = memory.slot_of(spec.memory, frame) * spec.slot_blocks
        assert not skipped[b, ..., own : own + spec.slot_blocks].any()
    share = plans.shares(skipped, plan.block_length[:, None, None])
    whole = (share * plan.block_length[:, None, None]).sum(axis=-1)
    np.testing.assert_allclose(whole, skipped.any(axis=-1), atol=1e-12)  # of a mean, or of nothing


@QUICK
@given(memory_specs(6), st.integers(1, 60), st.integers(1, 5), st.randoms(use_true_random=False))
def test_select_takes_what_is_kept_and_the_best_of_the_rest(spec: MemorySpec, frame: int, best: int,
                                                            random: Random) -> None:
    """By brute force: sorted by score, then by place; coarse scores make many equal, some are not numbers."""
    world = tiny_spec(memory=spec, plan=PlanSpec("top_k", block_tokens=2, top_blocks=best))
    plan = build_plan(world, np.array([frame, frame + 7]))
    assert plan.block_kept is not None
    shape = (2, 3, world.blocks_per_frame, plan.block_length.shape[1])
    values = [random.choice([0.0, 1.0, 2.0, -1.0, np.nan]) for _ in range(int(np.prod(shape)))]
    scores = np.array(values).reshape(shape)
    chosen = plan.select(scores, best)
    assert chosen.block_index.dtype == chosen.block_count.dtype == np.int32 and chosen.block_kept is None
    for b, h, row in np.ndindex(shape[:3]):
        listed = plan.block_index[b, 0, row, : plan.block_count[b, 0, row]].tolist()
        held = memory.visible_frames(spec, frame + 7 * b)
        near = [block for block in listed if held[block // world.slot_blocks] <= spec.sink_frames
                or held[block // world.slot_blocks] >= frame + 7 * b - 1]
        score = np.where(np.isnan(scores[b, h, row]), -np.inf, scores[b, h, row])
        rest = sorted((-score[block], block) for block in listed if block not in near)
        found = chosen.block_index[b, h, row, : chosen.block_count[b, h, row]].tolist()
        assert sorted(found) == sorted(near + [block for _, block in rest[:best]])


@pytest.mark.parametrize("parts", [1, 3, 4])
def test_radial_reads_as_much_more_for_each_doubling_of_the_memory(parts: int) -> None:
    """Dense grows with the window, radial by at most three frames at each doubling."""
    last = []
    for window in (16, 32, 64, 128, 256, 512):
        past = 10_000 - np.arange(window)
        last.append(int(plans.reads(PlanSpec("radial", 4), MemorySpec(window_frames=512), parts, 10_000, past).sum()))
    assert (np.diff(last) > 0).all() and (np.diff(last) <= 3 * parts * parts).all()


def test_a_window_plan_reads_less_than_a_dense_one() -> None:
    spec = MemorySpec(window_frames=8)
    dense, window = (frame_mask(spec, plan, 1, 20) for plan in (PlanSpec(), PlanSpec("window", 3)))
    assert dense[-1].sum() == 8 and window[-1].sum() == 4  # ages 0 .. 3
    assert not (window & ~dense).any()
