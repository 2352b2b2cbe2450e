"""Play an action log again. The verb `dreamloop replay`.

    dreamloop replay log.ndjson --verify --json
"""

from __future__ import annotations

import contextlib
from typing import Any

from dreamloop.demos.sinks import VideoSink
from dreamloop.models.core.world import load_world
from dreamloop.runtime.replay import ActionLog, first_difference, open_logged_engine, replay
from dreamloop.runtime.session import Session
from dreamloop.runtime.snapshot import Snapshot


def replay_log(path: str, verify: bool = False, world: str | None = None, engine: str | None = None,
               record: str | None = None, state: str | None = None) -> dict[str, Any]:
    """Replay a log on the engine that it names; returns the report of `dreamloop replay --json`.

    verify: compare the frames with the log's, up to the first that differs; world: a name or a
    folder, where the log's own name is not in the zoo; engine: another one than the log's.
    """
    log = ActionLog(path)
    played = load_world(world or log.said["world"])
    log.header(played)  # a foreign log is refused before an engine is built
    bookmark = None if state is None else Snapshot.load(state)
    opened = open_logged_engine(log, played, engine, strict=verify)
    report: dict[str, Any] = {"log": path, "world": played.name, "engine": opened.name, "precision": opened.precision}
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(Session(played, opened))
        if verify:
            count, difference = first_difference(log, session, bookmark)
            report |= {"frames": count, "equal": difference is None,
                       "difference": None if difference is None else str(difference),
                       "first_different_frame": None if difference is None else difference.frame}
        else:
            spec, count = played.spec, 0
            video = None if record is None else stack.enter_context(
                VideoSink(record, spec.frame_height, spec.frame_width, spec.fps))
            for _, frame in replay(log, session, bookmark):
                count += 1
                if video is not None:
                    video.present(frame)
            report["frames"] = count
    return {**report, "truncated": log.truncated}
