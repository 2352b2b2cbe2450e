"""The schedule and the ladder of `degrade`, without a loop around them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from dreamloop.runtime.pace import LATE, MOST_PATIENCE_FRAMES, PATIENCE_FRAMES, Pace, Relief

QUICK = settings(deadline=None, max_examples=100)


@pytest.mark.parametrize(("window", "views"), [(14, (7, 3)), (16, (8, 4)), (8, (4, 2)), (4, (2,)), (3, ()), (1, ())])
def test_views_are_half_the_window_and_a_quarter_where_two_frames_are_left(window: int, views: tuple[int, ...]) -> None:
    assert Relief(window).views == views


@QUICK
@given(window=st.integers(1, 40), late=st.lists(st.booleans(), max_size=300))
def test_a_shorter_view_comes_before_skipping_and_skipping_never_twice(window: int, late: list[bool]) -> None:
    relief, skipped = Relief(window), False
    for was_late in late:
        assert not (relief.skips_decoding and skipped)
        assert not relief.skips_decoding or relief.level == len(relief.views)
        skipped = relief.skips_decoding
        before = relief.level
        relief.after(was_late, not skipped)
        assert relief.level == min(before + 1, len(relief.views)) if was_late else relief.level in (before, before - 1)
        assert relief.view_frames == (None if relief.level == 0 else relief.views[relief.level - 1])


def test_a_world_with_a_window_too_short_to_halve_skips_at_once() -> None:
    relief = Relief(3)
    relief.after(True, True)
    assert (relief.view_frames, relief.skips_decoding) == (None, True)


def test_trials_of_a_wider_view_wait_longer_and_longer_but_never_for_ever() -> None:
    """An overload that the first level cures: late whenever the whole view is tried."""
    relief, waits, count = Relief(14), list[int](), 0
    for _ in range(20_000):
        late = relief.level == 0
        if late:
            waits.append(count)
        count = 0 if late else count + 1
        relief.after(late, True)
    doubled = [PATIENCE_FRAMES << i for i in range(60)]
    assert waits[1:] == [min(wait, MOST_PATIENCE_FRAMES) for wait in doubled][: len(waits) - 1] and len(waits) > 20


def test_after_the_overload_the_whole_view_is_back_and_patience_is_forgotten() -> None:
    relief = Relief(14)
    for late in [True] * 5 + [False] * PATIENCE_FRAMES * 4:
        relief.after(late, not relief.skips_decoding)
    assert relief.level == 0 and relief.view_frames is None and not relief.skips_decoding
    relief.after(True, True)
    for _ in range(PATIENCE_FRAMES):
        relief.after(False, True)
    assert relief.level == 0


@QUICK
@given(late=st.sampled_from(LATE), steps=st.lists(st.floats(-50.0, 50.0), min_size=1, max_size=50))
def test_whatever_a_clock_does_the_next_frame_is_due_within_a_budget(late: str, steps: list[float]) -> None:
    pace, now = Pace(20.0, late), 1000.0
    pace.begin(now)
    for step in steps:
        now += step
        was_late, repeats = pace.settle(now)
        assert pace.due_s <= now + 0.020 + 1e-9
        assert pace.due_s >= now - 1e-9 or not was_late
        assert repeats >= 0 and (was_late or repeats == 0) and (late != "slow" or repeats == 0)
