"""Recordings made elsewhere as a game: `folder:PATH`.

    PATH/game.json         {"fps": 30, "buttons": ["left", "right", {"name": "fire", "keys": ["Space"]}]}
    PATH/EPISODE.mp4       the pictures (.mp4, .mkv, .webm, .avi: what PyAV reads), one size, at that speed
    PATH/EPISODE.ndjson    a line for each picture, in order: {"frame": 17, "action": ["left", "fire"]}

The action of a line is what was held while the picture before it was on the screen: it LED TO picture
`frame`. Pictures count from 0, and nothing led to picture 0: its line may be left out. An action is
a list of names, or of one number a button. The pair that `dreamloop play --record EPISODE.mp4
--actions EPISODE.ndjson` writes is such an episode as it is, if nobody rewound, loaded or began anew meanwhile.

Every tenth episode, at least one, is held out, so there must be two. Everything is read strictly:
an unknown button, a line that is missing, a video of another length or speed is refused by name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np

from dreamloop.models.core.errors import ActionError, GameError, WorldError
from dreamloop.models.core.spec import ActionSpec, Button
from dreamloop.models.training.games import FOLDER, NoMoreEpisodes, Player, View
from dreamloop.models.training.games.controls import bound
from dreamloop.models.training.games.players import recorded
from dreamloop.models.training.games.sizes import frame_size, moving, resized

VIDEOS = (".mp4", ".mkv", ".webm", ".avi")
SPLIT_SEEDS = 500_000_000  # training counts up from 0; every other range of this length is held out
HELD_OUT_EVERY = 10
MOST_BYTES = 256 << 20  # of a log


class FolderGame:
    """A `Game` (see games/__init__.py) that shows what was recorded; `step` takes no other action."""

    players: tuple[Player, ...] = (Player("recorded", 1.0, recorded),)

    def __init__(self, name: str) -> None:
        self._folder = Path(name.removeprefix(FOLDER)).expanduser()
        if not self._folder.is_dir():
            raise GameError(f"no folder {self._folder}")
        stem = "".join(c if c.isprintable() and c not in "/\\" else "-" for c in self._folder.resolve().name)
        self.name = f"{FOLDER}{stem or 'recordings'}"
        self.fps, self.actions = _read_game(self._folder / "game.json")
        videos = sorted(p for p in self._folder.iterdir() if p.suffix.lower() in VIDEOS)
        if len(videos) < 2:
            raise GameError(f"{self._folder} holds {len(videos)} videos ({', '.join(VIDEOS)}): a world needs two at "
                            "least, for one is held out")
        held_out = videos[::-HELD_OUT_EVERY]
        self._episodes = {"train": [v for v in videos if v not in held_out], "held_out": held_out}
        self._size = _size(videos[0])
        self.frame_height, self.frame_width = frame_size(*self._size)
        self._actions = np.zeros((0, self.actions.size), np.float32)
        self._pictures: Iterator[np.ndarray] = iter(())
        self._video = videos[0]
        self._index = 0
        self._last = np.zeros((self.frame_height, self.frame_width, 3), np.uint8)

    def reset(self, seed: int) -> View:
        episodes = self._episodes["train" if seed < SPLIT_SEEDS else "held_out"]
        number = seed % SPLIT_SEEDS
        if number >= len(episodes):
            raise NoMoreEpisodes(f"{self.name} has {len(episodes)} episodes")
        self._video = episodes[number]
        log = self._video.with_suffix(".ndjson")
        self._actions = read_log(log, self.actions)
        self._pictures = self._decoded(self._video)
        self._index = 0
        self._last = next(self._pictures)
        return self._view(self._last, self._last)

    def step(self, action: np.ndarray) -> View:
        if not np.array_equal(action, self._actions[self._index + 1]):
            raise GameError(f"{self.name} is a recording: only its own players can play it")
        self._index += 1
        before = self._last
        self._last = next(self._pictures)
        if self._index + 1 == len(self._actions):
            next(self._pictures, None)  # refuses a video that goes on
        return self._view(self._last, before)

    def _view(self, now: np.ndarray, before: np.ndarray) -> View:
        following = self._index + 1
        if following < len(self._actions):
            return View(now, moving(now, before), variables={"frame": float(self._index)},
                        recorded=self._actions[following])
        return View(now, moving(now, before), variables={"frame": float(self._index)}, done=True)

    def _decoded(self, path: Path) -> Iterator[np.ndarray]:
        """Every picture that the log tells of, at the world's size; refuses a video of another length."""
        count = 0
        with _opened(path) as container:
            stream = container.streams.video[0]
            rate = stream.average_rate
            if rate is not None and abs(float(rate) / self.fps - 1) > 0.01:
                raise GameError(f"{path.name} runs at {float(rate):g} frames a second, game.json says {self.fps:g}")
            try:
                for frame in container.decode(stream):
                    if (frame.height, frame.width) != self._size:
                        raise GameError(f"{path.name} is {frame.width}x{frame.height}, the first video is "
                                        f"{self._size[1]}x{self._size[0]}")
                    count += 1
                    if count > len(self._actions):
                        raise GameError(f"{path.name} has more frames than the {len(self._actions)} that "
                                        f"{path.stem}.ndjson tells of")
                    yield resized(frame.to_ndarray(format="rgb24"), self.frame_height, self.frame_width)
            except av.error.FFmpegError as error:
                raise GameError(f"{path.name}: frame {count} cannot be read: {error}") from error
        if count < len(self._actions):
            raise GameError(f"{path.name} has {count} frames, {path.stem}.ndjson tells of {len(self._actions)}")

    def close(self) -> None:
        self._pictures = iter(())

    def __enter__(self) -> FolderGame:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def read_log(path: Path, actions: ActionSpec) -> np.ndarray:
    """The actions that led to each picture, (N, A) float32, the first all zero."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise GameError(f"{path.name} is larger than {MOST_BYTES} bytes")
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise GameError(f"{path.name}: cannot be read: {error}") from error
    rows: list[np.ndarray] = [np.zeros(actions.size, np.float32)]
    ours = False  # a log that `dreamloop play` wrote has a header, and more in a line
    for number, text in enumerate(lines, 1):
        where = f"{path.name}, line {number}"
        line = _parsed(text, where)
        if number == 1 and "log" in line:
            ours = True
            if line.get("actions") != list(actions.names):
                raise GameError(f"{where}: its buttons are {line.get('actions')}, game.json has "
                                f"{', '.join(actions.names)}")
            continue
        if "action" not in line or "frame" not in line or (not ours and set(line) != {"frame", "action"}):
            raise GameError(f"{where}: expected frame and action, found {', '.join(sorted(line))[:100] or 'nothing'}")
        vector = _action(line["action"], actions, where)
        if line["frame"] == 0 and len(rows) == 1 and not ours:
            if vector.any():
                raise GameError(f"{where}: an action leads to frame 0; an action belongs to the frame that it led to")
            continue
        if type(line["frame"]) is not int or line["frame"] != len(rows):
            raise GameError(f"{where}: frame {str(line['frame'])[:20]}, expected {len(rows)}")
        rows.append(vector)
    if len(rows) < 2:
        raise GameError(f"{path.name} tells of no action")
    return np.stack(rows)


def _action(value: Any, actions: ActionSpec, where: str) -> np.ndarray:
    if not isinstance(value, list):
        raise GameError(f"{where}: action is {str(value)[:40]!r}, expected a list")
    try:
        if all(isinstance(v, str) for v in value):
            return actions.vector(value)
        if not all(type(v) in (int, float) and v in (0, 1) for v in value):
            raise GameError(f"{where}: action {str(value)[:60]}: expected names of buttons, or 0 or 1 for each")
        return actions.vector(np.array(value, np.float32))
    except ActionError as error:
        raise GameError(f"{where}: {error}") from error


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GameError(f"{where}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise GameError(f"{where}: expected an object, found {type(found).__name__}")
    return found


def _read_game(path: Path) -> tuple[float, ActionSpec]:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise GameError(f"{path} cannot be read: {error}") from error
    found = _parsed(text, path.name)
    if set(found) != {"fps", "buttons"}:
        raise GameError(f"{path.name}: expected fps and buttons, found {', '.join(sorted(found))[:100] or 'nothing'}")
    fps, buttons = found["fps"], found["buttons"]
    if type(fps) not in (int, float) or not (math.isfinite(fps) and 0 < fps <= 1000):
        raise GameError(f"{path.name}: fps={str(fps)[:40]} must be above 0, at most 1000")
    if not isinstance(buttons, list) or not all(_is_button(b) for b in buttons):
        raise GameError(f"{path.name}: buttons must be a list of names, or of objects with a name and a list of keys")
    try:
        default = bound([b if isinstance(b, str) else b["name"] for b in buttons])
        return float(fps), ActionSpec(tuple(
            button if isinstance(given, str) else Button(given["name"], tuple(given["keys"]))
            for button, given in zip(default.buttons, buttons, strict=True)))
    except WorldError as error:
        raise GameError(f"{path.name}: {error}") from error


def _is_button(value: Any) -> bool:
    if isinstance(value, dict):
        return (set(value) == {"name", "keys"} and isinstance(value["name"], str) and isinstance(value["keys"], list)
                and all(isinstance(k, str) for k in value["keys"]))
    return isinstance(value, str)


def _opened(path: Path) -> Any:
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        raise GameError(f"{path.name}: not a video that can be read: {error}") from error
    if not container.streams.video:
        container.close()
        raise GameError(f"{path.name}: there are no pictures in it")
    return container


def _size(path: Path) -> tuple[int, int]:
    with _opened(path) as container:
        stream = container.streams.video[0]
        return int(stream.height), int(stream.width)
