"""Writing an action log: what was pressed, frame by frame, as lines of JSON (see runtime/replay.py).

    dreamloop play doom-arena --actions log.ndjson

Every line is written out before the next frame is made, so a game that is killed leaves a log of
all that there was.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from dreamloop.models.core.errors import DreamloopError
from dreamloop.runtime.loop import Presented
from dreamloop.runtime.replay import LOG_FORMAT, frame_hash, start_entry
from dreamloop.runtime.session import Frame, Session


class ActionLog:
    """Writes one session to an NDJSON file. It is a sink, too, and so knows the frame of a record;
    its hash is made after the frame was shown."""

    def __init__(self, path: str | os.PathLike[str], session: Session, start: int | np.ndarray) -> None:
        self.path = Path(path)
        try:
            self._file = self.path.open("w", encoding="utf-8", buffering=1)  # a line at a time
        except OSError as error:
            raise self._refused(error) from error
        world = session.world
        self._frame = session.render()
        self._write({"log": LOG_FORMAT, "world": world.name, "world_hash": world.hash,
                     "engine": session.engine.describe(), "seed": session.seed, "start": start_entry(start),
                     "actions": list(world.spec.actions.names), "hash": frame_hash(self._frame.pixels)})

    def _write(self, line: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(line, default=str) + "\n")
        except OSError as error:  # such as a full disk
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> DreamloopError:
        return DreamloopError(f"cannot write {self.path}: {error.strerror}")

    def present(self, frame: Frame) -> None:
        self._frame = frame

    def hold(self) -> None:
        pass

    def write(self, shown: Presented) -> None:
        """One presented frame, the last one that `present` was given."""
        what: dict[str, Any] = {"save": shown.saved} if shown.saved else {}
        if shown.fault:
            what["fault"] = shown.fault
        elif shown.start is not None:
            what["reset"] = start_entry(shown.start)
        elif shown.loaded:
            what["load"] = shown.loaded
        elif shown.rewound is not None:
            what["rewind"] = shown.rewound
        else:
            what["action"] = [float(v) for v in shown.action]
            if shown.view_frames is not None:
                what["view"] = shown.view_frames
        if shown.alarms:
            what["alarms"] = list(shown.alarms)
        self._write({"frame": shown.index, "input": shown.input_id, **what,
                     "hash": "" if not shown.decoded else frame_hash(self._frame.pixels), "late": shown.late})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        try:
            self._file.close()
        except OSError as failure:
            if kind is None:  # else the first failure is the one to tell
                raise self._refused(failure) from failure
