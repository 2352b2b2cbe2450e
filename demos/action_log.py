"""The action log: what was pressed, frame by frame, as lines of JSON.

    {"log": 1, "world": "doom-arena", "world_hash": "...", "engine": {...}, "seed": 0, "start": 0, "actions": [...]}
    {"frame": 1, "input": 1, "action": [0.0, 1.0, 0.0], "late": false}
    {"frame": 0, "input": 80, "reset": 1, "late": false}

A start that is an image is logged as its SHA-256. Lines are written as they happen, so a session
that ends badly leaves a log of what there was.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from dreamloop.models.core.errors import DreamloopError
from dreamloop.runtime.loop import Presented
from dreamloop.runtime.session import Session

LOG_FORMAT = 1


def start_identity(start: int | np.ndarray) -> int | dict[str, str]:
    """A start as it stands in a log: its index, or the hash of its pixels."""
    if isinstance(start, np.ndarray):
        return {"image_sha256": hashlib.sha256(np.ascontiguousarray(start).tobytes()).hexdigest()}
    return int(start)


class ActionLog:
    """Writes one session to an NDJSON file."""

    def __init__(self, path: str | os.PathLike[str], session: Session, start: int | np.ndarray) -> None:
        self.path = Path(path)
        try:
            self._file = self.path.open("w", encoding="utf-8")
        except OSError as error:
            raise DreamloopError(f"cannot write {self.path}: {error.strerror}") from error
        world = session.world
        self._write({"log": LOG_FORMAT, "world": world.name, "world_hash": world.hash,
                     "engine": session.engine.describe(), "seed": session.seed, "start": start_identity(start),
                     "actions": list(world.spec.actions.names)})

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, default=str) + "\n")

    def write(self, shown: Presented) -> None:
        """One presented frame."""
        what = {"action": [float(v) for v in shown.action]} if shown.start is None \
            else {"reset": start_identity(shown.start)}
        self._write({"frame": shown.index, "input": shown.input_id, **what, "late": shown.late})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._file.close()
