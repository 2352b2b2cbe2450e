"""Play an action log again, and say where the first frame differs.

    dreamloop replay log.ndjson --verify

A log is lines of JSON. The header names the world, the engine and the seed; every further line is
one presented frame, with the hash of its pixels and what made it:

    {"log": 1, "world": "doom-arena", "world_hash": "...", "engine": {...}, "seed": 0, "start": 0,
     "actions": ["forward", ...], "hash": "..."}
    {"frame": 1, "input": 1, "action": [0.0, 1.0, 0.0], "hash": "4f0c...", "late": false}
    {"frame": 0, "input": 80, "reset": 1, "hash": "...", "late": false}           started over
    {"frame": 51, "input": 96, "rewind": 30, ...}                                  went 30 frames back
    {"frame": 52, "input": 97, "save": "quick", "action": [...], ...}              a bookmark, then a frame
    {"frame": 51, "input": 99, "load": "quick", ...}                               back to the bookmark
    {"frame": 51, "input": 100, "fault": "...", ...}                               the frame before was held
    {"frame": 52, "input": 101, "action": [...], "view": 7, ...}                   made from 7 frames alone

The last is the contract `degrade`: `view` is the `view_frames` of `Session.advance`, and a frame that was made but
not decoded has an empty hash; its picture was never seen, and only its index is compared.

Every complete line counts; a last line without its end (the game was killed) is left out. The frames are the same
bits for the same engine, precision, threads and library versions, all of which the header holds.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.spec import WorldSpec
from dreamloop.models.core.world import World
from dreamloop.runtime.engines import open_engine
from dreamloop.runtime.session import Frame, Session
from dreamloop.runtime.snapshot import Snapshot

LOG_FORMAT = 1
MAX_LINE_BYTES = 8 << 20
MAX_IMAGE_BYTES = 4 << 20  # a larger start image is logged by its hash alone
JUMPS = ("action", "reset", "rewind", "load", "fault")  # every line has one of them


class LogError(DreamloopError):
    """A log that was refused."""


def frame_hash(pixels: np.ndarray) -> str:
    """BLAKE2b of a frame's pixels, 16 hexadecimal digits."""
    return hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=8).hexdigest()


def start_entry(start: int | np.ndarray) -> int | dict[str, str]:
    """A start as it stands in a log: its index, or its pixels' SHA-256 with the pixels themselves."""
    if not isinstance(start, np.ndarray):
        return int(start)
    data = np.ascontiguousarray(start).tobytes()
    entry = {"image_sha256": hashlib.sha256(data).hexdigest()}
    if len(data) <= MAX_IMAGE_BYTES:
        entry["image"] = base64.b64encode(zlib.compress(data)).decode("ascii")
    return entry


@dataclass(frozen=True)
class Header:
    """What a log begins with. start: an index or an image (H, W, 3) uint8; hash: of frame 0."""

    world: str
    world_hash: str
    engine: Mapping[str, Any]
    seed: int
    start: int | np.ndarray = field(repr=False)
    hash: str


@dataclass(frozen=True)
class Entry:
    """One line, one presented frame. kind: one of `JUMPS`; value: the action (A,) float32, the start,
    the number of frames, the bookmark's name, or the fault; save: a bookmark to take before it; view_frames: of
    the action."""

    line: int
    frame: int
    hash: str
    kind: str
    value: Any = field(repr=False)
    save: str = ""
    view_frames: int | None = None


class ActionLog:
    """A log opened for reading: `header`, then its entries, one at a time. truncated: whether the
    last line was cut off, known once all entries were read."""

    def __init__(self, path: str | os.PathLike[str], world: World | None = None) -> None:
        self.path = Path(path)
        self.truncated = False
        try:
            with self.path.open("rb") as file:
                self.said = self._object(self._line(file, 1), 1)
        except OSError as error:
            raise LogError(f"cannot read {self.path}: {error.strerror}") from error
        if self.said.get("log") != LOG_FORMAT:
            raise LogError(f"{self.path.name} is not an action log of this version of dreamloop")
        for key, kind in (("world", str), ("world_hash", str), ("engine", dict), ("hash", str)):
            if not isinstance(self.said.get(key), kind):
                raise LogError(f"{self.path.name}: its header has no {key}")

    def header(self, world: World) -> Header:
        """The header, checked against the world that it must name."""
        said = self.said
        if said["world_hash"] != world.hash:
            raise LogError(f"{self.path.name} is of world {said['world'][:100]!r} ({said['world_hash'][:12]}), not of "
                           f"{world.name} ({world.hash[:12]})")
        seed = self._number(said.get("seed"), "seed", 1, 1 << 64)
        return Header(said["world"], said["world_hash"], said["engine"], seed,
                      self._start(said.get("start"), world.spec, 1), said["hash"])

    def entries(self, world: World) -> Iterator[Entry]:
        """The frames, in the order in which they were presented. Raises `LogError` at a bad line."""
        with self.path.open("rb") as file:
            self._line(file, 1)
            number = 2
            while line := self._line(file, number):
                if not line.endswith(b"\n"):
                    self.truncated = True
                    return
                yield self._entry(self._object(line, number), number, world.spec)
                number += 1

    def _entry(self, said: dict[str, Any], line: int, spec: WorldSpec) -> Entry:
        kinds = [kind for kind in JUMPS if kind in said]
        if len(kinds) != 1:
            raise self._fault(line, f"needs exactly one of {', '.join(JUMPS)}")
        kind, value = kinds[0], said[kinds[0]]
        if kind == "action":
            names = spec.actions.names
            if not isinstance(value, list) or len(value) != len(names) \
                    or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in value):
                raise self._fault(line, f"action is not a list of {len(names)} numbers")
            try:
                value = spec.actions.vector(np.array(value, np.float64))
            except (DreamloopError, OverflowError, ValueError) as error:
                raise self._fault(line, str(error)) from error
        elif kind == "reset":
            value = self._start(value, spec, line)
        elif kind == "rewind":
            value = self._number(value, "rewind", line, 1 << 53)
        elif not isinstance(value, str):
            raise self._fault(line, f"{kind} is not a text")
        save, digest = said.get("save", ""), said.get("hash")
        if not isinstance(save, str) or not isinstance(digest, str):
            raise self._fault(line, "has no hash, or a save that is not a text")
        view = None if "view" not in said or kind != "action" else self._number(said["view"], "view", line, 1 << 31)
        return Entry(line, self._number(said.get("frame"), "frame", line, 1 << 53), digest, kind, value, save, view)

    def _start(self, said: Any, spec: WorldSpec, line: int) -> int | np.ndarray:
        if not isinstance(said, dict):
            return self._number(said, "start", line, 1 << 31)
        if not isinstance(said.get("image"), str):
            raise self._fault(line, "starts from an image that the log does not hold")
        shape = (spec.frame_height, spec.frame_width, 3)
        size = int(np.prod(shape))
        try:
            data = zlib.decompressobj().decompress(base64.b64decode(said["image"], validate=True), size + 1)
        except (binascii.Error, zlib.error, ValueError) as error:
            raise self._fault(line, f"its start image is broken: {error}") from error
        if len(data) != size or hashlib.sha256(data).hexdigest() != said.get("image_sha256"):
            raise self._fault(line, "its start image is not the one that it names")
        return np.frombuffer(data, np.uint8).reshape(shape)

    def _line(self, file: BinaryIO, number: int) -> bytes:
        line = file.readline(MAX_LINE_BYTES + 1)
        if len(line) > MAX_LINE_BYTES:
            raise self._fault(number, f"is longer than {MAX_LINE_BYTES} bytes")
        return line

    def _object(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict):
            raise self._fault(number, "is not a JSON object")
        return said

    def _number(self, value: Any, name: str, line: int, top: int) -> int:
        if type(value) is not int or not 0 <= value < top:
            raise self._fault(line, f"{name} is not a whole number from 0 up to {top - 1}")
        return value

    def _fault(self, line: int, what: str) -> LogError:
        return LogError(f"{self.path.name} line {line}: {what}")


@dataclass(frozen=True)
class Difference:
    """A frame that is not the one of the log."""

    line: int
    frame: int
    logged: str
    made: str

    def __str__(self) -> str:
        return f"frame {self.frame} (line {self.line}) differs: the log has {self.logged}, the replay {self.made}"


def open_logged_engine(log: ActionLog, world: World, engine: str | None = None, strict: bool = True) -> Any:
    """The engine that the log was made on, or `engine`. strict: refuse one that is not identical."""
    said = log.said["engine"]
    if engine is not None:
        return open_engine(world, engine)
    threads, precision, form = said.get("threads"), said.get("precision"), said.get("form")
    opened = open_engine(world, str(said.get("engine")), str(precision) if precision else None,
                         threads if type(threads) is int else None, str(form) if form else None)
    now = json.loads(json.dumps(opened.describe(), default=str))
    other = sorted(key for key in {*said, *now} if said.get(key) != now.get(key))
    if strict and other:
        key = other[0]
        raise LogError(f"the log was made with {key} {str(said.get(key))[:100]!r}, here it is "
                       f"{str(now.get(key))[:100]!r}: frames need not be equal; --engine replays it all the same")
    return opened


def replay(log: ActionLog, session: Session, state: Snapshot | None = None) -> Iterator[tuple[Entry, Frame]]:
    """Play a log on a session of its world, which starts over; yields each line with its frame.

    state: what a `load` goes to whose bookmark the log does not hold.
    """
    header = log.header(session.world)
    first = session.reset(header.start, seed=header.seed)
    yield Entry(1, 0, header.hash, "reset", header.start), first
    bookmarks: dict[str, Snapshot] = {}
    for entry in log.entries(session.world):
        if entry.save:
            bookmarks[entry.save] = session.snapshot()
        try:
            bookmark = bookmarks.get(entry.value, state) if entry.kind == "load" else None
            yield entry, _made(entry, session, bookmark)
        except LogError:
            raise
        except DreamloopError as error:
            raise LogError(f"{log.path.name} line {entry.line}: {error}") from error


def _made(entry: Entry, session: Session, bookmark: Snapshot | None) -> Frame:
    if entry.kind == "action":
        return session.step(entry.value, view_frames=entry.view_frames)
    if entry.kind == "reset":
        return session.reset(entry.value)
    if entry.kind == "rewind":
        return session.rewind(entry.value)
    if entry.kind == "fault":
        return session.render()
    if bookmark is None:
        raise DreamloopError(f"loads {entry.value[:100]!r}, saved before this log began; give it with --state")
    return session.restore(bookmark)


def first_difference(log: ActionLog, session: Session, state: Snapshot | None = None) -> tuple[int, Difference | None]:
    """(frames compared, the first one that is not the log's, or None)."""
    count = 0
    for entry, frame in replay(log, session, state):
        count += 1
        made = frame_hash(frame.pixels)
        if (entry.hash and made != entry.hash) or frame.index != entry.frame:
            return count, Difference(entry.line, entry.frame, entry.hash, made)
    return count, None
