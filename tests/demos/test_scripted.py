"""Scripted input and recorded video."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from dreamloop.demos.scripted import HOLD_FRAMES, ScriptedSource
from dreamloop.demos.sinks import VideoSink
from dreamloop.models.core.errors import ActionError, DreamloopError
from dreamloop.models.core.spec import ActionSpec, Button
from dreamloop.runtime import Frame

ACTIONS = ActionSpec(tuple(Button(name) for name in ("forward", "backward", "turn_left", "turn_right", "attack")))


def script(seed: int, count: int = 400) -> list[frozenset[str]]:
    source = ScriptedSource(ACTIONS, seed)
    return [frozenset(source.read().action) for _ in range(count)]  # type: ignore[arg-type]


@given(st.integers(0, 2**32))
def test_scripts_follow_their_seed_and_never_press_opposite_keys(seed: int) -> None:
    actions = script(seed, 200)
    assert actions == script(seed, 200)
    for held in actions:
        assert not {"turn_left", "turn_right"} <= held and not {"forward", "backward"} <= held


def test_scripts_hold_keys_and_use_them_all() -> None:
    actions = script(0)
    changes = [i for i in range(1, len(actions)) if actions[i] != actions[i - 1]]
    assert min(np.diff(changes)) >= HOLD_FRAMES[0]
    assert frozenset().union(*actions) == set(ACTIONS.names)
    assert frozenset() in actions


def test_an_unknown_held_action_is_refused() -> None:
    with pytest.raises(ActionError, match="fly"):
        ScriptedSource(ACTIONS, hold=["fly"])


def test_a_video_holds_every_frame_at_the_worlds_pace(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="videos are written with PyAV")
    frames = [np.full((33, 47, 3), value, np.uint8) for value in (20, 120, 220, 60)]  # odd sizes
    with VideoSink(tmp_path / "out.mp4", 33, 47, 35.0) as sink:
        assert not (tmp_path / "out.mp4").exists()
        for i, pixels in enumerate(frames):
            sink.present(Frame(i, pixels))
            sink.hold()
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    with av.open(str(tmp_path / "out.mp4")) as video:
        stream = video.streams.video[0]
        assert (stream.average_rate, stream.pix_fmt) == (Fraction(35), "yuv420p")
        decoded = [frame.to_ndarray(format="rgb24") for frame in video.decode(stream)]
    assert [frame.shape for frame in decoded] == [(66, 94, 3)] * 4
    for shown, meant in zip(decoded, frames, strict=True):
        assert abs(float(shown.mean()) - float(meant.mean())) < 4


@pytest.mark.parametrize("frames", [0, 2])
def test_a_recording_that_fails_leaves_what_was_there(tmp_path: Path, frames: int) -> None:
    pytest.importorskip("av", reason="videos are written with PyAV")
    target = tmp_path / "out.mp4"
    target.write_bytes(b"older")
    with pytest.raises(ZeroDivisionError), VideoSink(target, 32, 48, 35.0) as sink:
        for i in range(frames):
            sink.present(Frame(i, np.zeros((32, 48, 3), np.uint8)))
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"] and target.read_bytes() == b"older"


def test_a_target_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="videos are written with PyAV")
    for target, reason in ((tmp_path / "none" / "out.mp4", "cannot write"), (tmp_path / "out.gif", ".mp4")):
        with pytest.raises(DreamloopError, match=reason):
            VideoSink(target, 32, 48, 35.0)
