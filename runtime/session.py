"""One player on an engine: start somewhere, press keys, get frames.

    with Session("doom-arena", seed=7) as session:
        frame = session.step({"turn_left", "attack"})      # frame.index, frame.pixels (H, W, 3) uint8
        bookmark = session.snapshot()
        session.restore(bookmark)

A step is two halves: `advance` runs the network once, `render` decodes what is there. Whatever is
refused (an unknown action, a frame of the wrong size) is refused before anything changes.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np

from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.world import World, load_world
from dreamloop.runtime.engines import open_engine
from dreamloop.runtime.engines.base import Engine, State

Action = Iterable[str] | Mapping[str, float] | np.ndarray | None


@dataclass(frozen=True)
class Frame:
    """index: 0 for the start frame, then 1, 2, ...; pixels: (H, W, 3) uint8."""

    index: int
    pixels: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Snapshot:
    """Everything that the next frames of a session follow from; immutable, restored any number of
    times. world_hash and engine: what it belongs to; given: the start or primed image that was on
    the screen, None where the frame was dreamed."""

    world_hash: str
    engine: Mapping[str, Any] = field(repr=False)
    index: int
    _state: State = field(repr=False)
    _given: np.ndarray | None = field(repr=False)


class Session:
    """One player. world: a `World`, a zoo name or a folder; engine: a name or an open `Engine`;
    seed: key of the noise, 0 <= seed < 2^64; start: see `reset`."""

    def __init__(self, world: World | str | os.PathLike[str], engine: str | Engine = "auto",
                 precision: str | None = None, seed: int = 0, start: int | np.ndarray = 0,
                 threads: int | None = None) -> None:
        self.world = world if isinstance(world, World) else load_world(world)
        if isinstance(engine, str):
            self.engine = open_engine(self.world, engine, precision, threads)
        else:
            if engine.world.hash != self.world.hash:
                raise DreamloopError(f"the engine holds world {engine.world.name} ({engine.world.hash[:12]}), "
                                     f"the session was given {self.world.name} ({self.world.hash[:12]})")
            if precision not in (None, engine.precision):
                raise DreamloopError(f"precision={precision!r}, but the engine given is {engine.precision}")
            self.engine = engine
        self._state: State | None = None
        self._given: np.ndarray | None = None
        self._closed = False
        self.seed = self._checked_seed(seed)
        self.reset(start)

    # -- where it stands ---------------------------------------------------------------------------

    @property
    def index(self) -> int:
        """Index of the frame on the screen."""
        return int(self._live().frame[0])

    @property
    def latent(self) -> np.ndarray:
        """z of the frame on the screen, a copy, (C, latent height, latent width) float32."""
        return self._live().latent[0].copy()

    def _live(self) -> State:
        if self._closed or self._state is None:
            raise DreamloopError("the session is closed")
        return self._state

    # -- starting ----------------------------------------------------------------------------------

    def reset(self, start: int | np.ndarray = 0, seed: int | None = None) -> Frame:
        """Start over with an empty memory and show the start as frame 0.

        start: index of one of the world's start frames, or an image (H, W, 3) uint8; seed: None
        keeps the session's seed.
        """
        if self._closed:
            raise DreamloopError("the session is closed")
        image = self._start_image(start)
        self.seed = self.seed if seed is None else self._checked_seed(seed)
        state = self.engine.new_state(1)
        state.seed[:] = self.seed
        state.latent[:] = self.engine.encode(image[None])
        self._state, self._given = state, image
        return self.render()

    def prime(self, frames: np.ndarray, actions: Sequence[Action] | np.ndarray) -> Frame:
        """Start over from real history: frames[0] is the start; for t >= 1 the network runs with
        actions[t], leaves its keys, and its latent gives way to the encoding of frames[t].

        frames: (n, H, W, 3) uint8, n >= 1; actions: n actions, such as (n, A) float32;
        actions[t] is what was pressed while frames[t - 1] was on the screen, actions[0] is unused.
        """
        self._live()
        images = self._checked_images(frames, "frames", 4)
        if len(images) < 1 or len(actions) != len(images):
            raise DreamloopError(f"prime needs one action per frame, at least one: {len(images)} frames, "
                                 f"{len(actions)} actions")
        vectors = [self.world.spec.actions.vector(action) for action in actions]
        self.reset(images[0])
        state = self._live()
        for image, vector in zip(images[1:], vectors[1:], strict=True):
            self.engine.step(state, vector[None])
            state.latent[:] = self.engine.encode(image[None])
        self._given = images[-1].copy()
        return self.render()

    # -- playing -----------------------------------------------------------------------------------

    def step(self, action: Action = None, out: np.ndarray | None = None) -> Frame:
        """Make and return the next frame.

        action: names of held buttons, a mapping name -> value, a vector (A,), or None; what is
        pressed while the current frame is on the screen. out: a (H, W, 3) uint8 buffer to write
        to and return instead of a fresh array. Raises `ActionError` for an unknown name.
        """
        self._check_out(out)
        self.advance(action)
        return self.render(out)

    def advance(self, action: Action = None) -> None:
        """The first half of `step`: one pass of the network, nothing decoded."""
        vector = self.world.spec.actions.vector(action)
        self.engine.step(self._live(), vector[None])
        self._given = None

    def render(self, out: np.ndarray | None = None) -> Frame:
        """The second half of `step`: the frame on the screen, decoded afresh; changes nothing."""
        self._check_out(out)
        state = self._live()
        decode_into = getattr(self.engine, "decode_into", None)
        if out is not None and self._given is None and decode_into and _rows_of_pixels(out):
            decode_into(state.latent, out[None])
            return Frame(int(state.frame[0]), out)
        pixels = self.engine.decode(state.latent)[0] if self._given is None else self._given.copy()
        if out is not None:
            out[...] = pixels
            pixels = out
        return Frame(int(state.frame[0]), pixels)

    # -- bookmarks ---------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """A copy of everything that the next frames follow from (one copy of the ring)."""
        state = self._live().copy()
        for array in (state.ring, state.latent, state.frame, state.seed):
            if isinstance(array, np.ndarray):
                array.setflags(write=False)
        return Snapshot(self.world.hash, self.engine.describe(), int(state.frame[0]), state, self._given)

    def restore(self, snapshot: Snapshot) -> Frame:
        """Go back to a snapshot of this world on this engine, and show its frame again."""
        self._live()
        if snapshot.world_hash != self.world.hash:
            raise DreamloopError(f"the snapshot is of world {snapshot.world_hash[:12]}, "
                                 f"this session plays {self.world.name} ({self.world.hash[:12]})")
        if snapshot.engine != self.engine.describe():
            raise DreamloopError(f"the snapshot was made on {snapshot.engine}, this session runs on "
                                 f"{self.engine.describe()}")
        self._state, self._given = snapshot._state.copy(), snapshot._given
        self.seed = int(self._state.seed[0])
        return self.render()

    # -- leaving -----------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of the state; a second call does nothing."""
        self._closed, self._state, self._given = True, None, None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    # -- checks ------------------------------------------------------------------------------------

    @staticmethod
    def _checked_seed(seed: int) -> int:
        if not 0 <= seed < 1 << 64:
            raise DreamloopError(f"seed={seed} must be 0 or more, below 2^64")
        return int(seed)

    def _start_image(self, start: int | np.ndarray) -> np.ndarray:
        if isinstance(start, np.ndarray) and start.ndim > 0:
            return self._checked_images(start, "start", 3).copy()
        try:
            index = operator.index(start)
        except TypeError:
            raise DreamloopError(f"start={start!r} must be the index of a start frame or an image "
                                 "(H, W, 3) uint8") from None
        count = len(self.world.starts)
        if not 0 <= index < count:
            raise DreamloopError(f"start={index}: world {self.world.name} has the start frames 0 to {count - 1}")
        return np.array(self.world.starts[index])

    def _checked_images(self, images: np.ndarray, name: str, dimensions: int) -> np.ndarray:
        spec = self.world.spec
        frame = (spec.frame_height, spec.frame_width, 3)
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != dimensions \
                or images.shape[-3:] != frame:
            found = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
            wanted = frame if dimensions == 3 else ("n", *frame)
            raise DreamloopError(f"{name} is {found}, expected uint8 ({', '.join(map(str, wanted))})")
        return images

    def _check_out(self, out: np.ndarray | None) -> None:
        if out is not None:
            self._checked_images(out, "out", 3)
            if not out.flags.writeable:
                raise DreamloopError("out is read-only; a frame cannot be written to it")


def _rows_of_pixels(out: np.ndarray) -> bool:
    """Whether each row of the picture is contiguous, as an engine that writes it in place needs."""
    return out.strides[1:] == (3, 1) and out.strides[0] >= 3 * out.shape[1]
