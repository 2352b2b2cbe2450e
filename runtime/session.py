"""One player on an engine: start somewhere, press keys, get frames.

    with Session("doom-arena", seed=7) as session:
        frame = session.step({"turn_left", "attack"})      # frame.index, frame.pixels (H, W, 3) uint8
        bookmark = session.snapshot()
        session.rewind(frames=30)
        session.restore(bookmark)

A step is two halves: `advance` runs the network once, `render` decodes what is there. Whatever is
refused (an unknown action, a frame of the wrong size) is refused before anything changes. How the
past is kept: history.py; how bookmarks share memory: slots.py; their files: snapshot.py.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.spec import WorldSpec
from dreamloop.models.core.world import World, load_world
from dreamloop.runtime.engines import open_engine
from dreamloop.runtime.engines.base import Engine, State, turn_of
from dreamloop.runtime.history import MAX_BYTES, History, Moment, Move
from dreamloop.runtime.slots import SharedSlots
from dreamloop.runtime.snapshot import Snapshot

Action = Iterable[str] | Mapping[str, float] | np.ndarray | None


class FaultError(DreamloopError):
    """The engine made a frame that is not finite; the session stays at the last good one."""


class Frame:
    """index: 0 for the start frame, then 1, 2, ...; pixels: (H, W, 3) uint8, the same array whenever asked for, given
    as such or as the decoding that makes it when somebody first looks."""

    def __init__(self, index: int, pixels: np.ndarray | Callable[[], np.ndarray]) -> None:
        self.index = index
        self._pixels = pixels

    @property
    def pixels(self) -> np.ndarray:
        if not isinstance(self._pixels, np.ndarray):
            self._pixels = self._pixels()
        return self._pixels

    def __repr__(self) -> str:
        return f"Frame(index={self.index})"


class Session:
    """One player. world: a `World`, a zoo name or a folder; engine: a name or an open `Engine`;
    seed: key of the noise, 0 <= seed < 2^64; start: see `reset`; history_bytes: what `rewind` may
    keep of the past; form: of the graphs of the engines that have them, see `open_engine`."""

    def __init__(self, world: World | str | os.PathLike[str], engine: str | Engine = "auto",
                 precision: str | None = None, seed: int = 0, start: int | np.ndarray = 0,
                 threads: int | None = None, history_bytes: int = MAX_BYTES, form: str | None = None) -> None:
        self.world = world if isinstance(world, World) else load_world(world)
        if isinstance(engine, str):
            self.engine = open_engine(self.world, engine, precision, threads, form)
        else:
            if engine.world.hash != self.world.hash:
                raise DreamloopError(f"the engine holds world {engine.world.name} ({engine.world.hash[:12]}), "
                                     f"the session was given {self.world.name} ({self.world.hash[:12]})")
            if precision not in (None, engine.precision):
                raise DreamloopError(f"precision={precision!r}, but the engine given is {engine.precision}")
            self.engine = engine
        self._turn = turn_of(self.engine)
        self._state: State | None = None
        self._given: np.ndarray | None = None
        self._history = History(history_bytes)
        self._slots: SharedSlots  # of the ring of the one state that this session has, made by `reset`
        self._closed = False
        self.seed = checked_seed(seed)
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

    @property
    def ring(self) -> Any:
        """The live keys and values, (L, 2, 1, H, S * T_padded, D), the engine's own array: to look at,
        not to keep, not to write to."""
        return self._live().ring

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
        image = start_image(self.world, start)
        seed = self.seed if seed is None else checked_seed(seed)
        with self._turn:
            latent = self.engine.encode(image[None])
        if self._state is None:
            self._state = self.engine.new_state(1)
            if builds := getattr(self.engine, "building_frames", 0):  # nobody plays yet: let it build now
                with self._turn:
                    for _ in range(builds):
                        self.engine.step(self._state, np.zeros((1, self.world.spec.actions.size), np.float32))
                self._state.ring[...] = 0
            self._slots = SharedSlots(self.world.spec, self._state.ring)
        empty = (None,) * self.world.spec.memory.slots
        self._put(Moment(0, seed, latent[0], _read_only(image), empty))
        self._history.begin(self._moment())
        return self.render()

    def prime(self, frames: np.ndarray, actions: Sequence[Action] | np.ndarray) -> Frame:
        """Start over from real history: frames[0] is the start; for t >= 1 the network runs with
        actions[t], leaves its keys, and its latent gives way to the encoding of frames[t].

        frames: (n, H, W, 3) uint8, n >= 1; actions: n actions, such as (n, A) float32;
        actions[t] is what was pressed while frames[t - 1] was on the screen, actions[0] is unused.
        """
        self._live()
        images = checked_images(self.world.spec, frames, "frames", 4)
        if len(images) < 1 or len(actions) != len(images):
            raise DreamloopError(f"prime needs one action per frame, at least one: {len(images)} frames, "
                                 f"{len(actions)} actions")
        vectors = [self.world.spec.actions.vector(action) for action in actions]
        self.reset(images[0])
        state = self._live()
        for image, vector in zip(images[1:], vectors[1:], strict=True):
            with self._turn:
                self.engine.step(state, vector[None])
                state.latent[:] = self.engine.encode(image[None])
            self._slots.written(self.index)
        self._given = _read_only(images[-1].copy())
        self._history.begin(self._moment())  # real frames cannot be made again from actions
        return self.render()

    # -- playing -----------------------------------------------------------------------------------

    def step(self, action: Action = None, out: np.ndarray | None = None, view_frames: int | None = None) -> Frame:
        """Make and return the next frame.

        action: names of held buttons, a mapping name -> value, a vector (A,), or None; what is
        pressed while the current frame is on the screen. out: a (H, W, 3) uint8 buffer to write
        to and return instead of a fresh array. view_frames: see `advance`. Raises `ActionError` for an
        unknown name.
        """
        self._check_out(out)
        self.advance(action, view_frames)
        return self.render(out)

    def advance(self, action: Action = None, view_frames: int | None = None) -> None:
        """The first half of `step`: one pass of the network, nothing decoded. Raises `FaultError`
        instead of going on to a frame that is not finite.

        view_frames: read no frame that lies so many or more back (2 at least; sinks are always read), an
        approximation that saves time on an engine whose attention reads block lists.
        """
        state, vector = self._live(), self.world.spec.actions.vector(action)
        if view_frames is not None and view_frames < 2:
            raise DreamloopError(f"view_frames={view_frames} must be 2 or more, or None for all")
        frame, latent = state.frame.copy(), state.latent.copy()
        with self._turn:
            self.engine.step(state, vector[None], view_frames)
        if not np.isfinite(state.latent).all():
            # what lay in the slot before is not missed: this frame would not have read it, nor any later one
            self._slots.clear(int(frame[0]) + 1)
            self._slots.doubt()
            state.frame, state.latent = frame, latent
            raise FaultError(f"frame {int(frame[0]) + 1} is not finite; frame {int(frame[0])} stays")
        self._given = None
        self._slots.written(self.index)
        if self._history.note(Move(vector, view_frames)):
            self._history.mark(self._moment())

    def render(self, out: np.ndarray | None = None) -> Frame:
        """The second half of `step`: the frame on the screen, decoded afresh; changes nothing."""
        self._check_out(out)
        state = self._live()
        decode_into = getattr(self.engine, "decode_into", None)
        if out is not None and self._given is None and decode_into and _rows_of_pixels(out):
            with self._turn:
                decode_into(state.latent, out[None])
            return Frame(int(state.frame[0]), out)
        pixels = self._decoded(state.latent) if self._given is None else self._given.copy()
        if out is not None:
            out[...] = pixels
            pixels = out
        return Frame(int(state.frame[0]), pixels)

    def _decoded(self, latent: np.ndarray) -> np.ndarray:
        with self._turn:
            pixels: np.ndarray = self.engine.decode(latent)[0]
        return pixels

    # -- going back --------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Everything that the next frames follow from, and the past. Light: it shares all that has
        not changed since the moment before it."""
        moment = self._moment()
        return Snapshot(self.world.hash, self.engine.describe(), moment, self._history.timeline())

    def restore(self, snapshot: Snapshot) -> Frame:
        """Go to a snapshot of this world on this engine, with its past. Costs no decoding unless somebody looks
        at the pixels of the frame that it returns."""
        self.check(snapshot)
        self._put(snapshot.moment)
        self._history.follow(snapshot.timeline)
        moment = snapshot.moment
        return Frame(moment.index, (lambda: self._decoded(moment.latent[None].copy())) if moment.given is None
                     else moment.given.copy())

    def check(self, snapshot: Snapshot) -> None:
        """Raise a `DreamloopError` that says why this session cannot `restore` a snapshot."""
        self._live()
        if snapshot.world_hash != self.world.hash:
            raise DreamloopError(f"the snapshot is of world {snapshot.world_hash[:12]}, "
                                 f"this session plays {self.world.name} ({self.world.hash[:12]})")
        if snapshot.engine != self.engine.describe():
            raise DreamloopError(f"the snapshot was made on {str(dict(snapshot.engine))[:300]}, this session runs on "
                                 f"{self.engine.describe()}")
        moment = snapshot.moment
        if moment.latent.shape != self.world.spec.latent_shape:
            raise DreamloopError(f"the snapshot's latent is {moment.latent.shape}, expected "
                                 f"{self.world.spec.latent_shape}")
        if moment.given is not None:
            checked_images(self.world.spec, moment.given, "the snapshot's picture", 3)
        self._slots.check(moment.parts, moment.index)

    @property
    def history_frames(self) -> int:
        """How many frames `rewind` can go back now."""
        return self.index - self._history.oldest

    def rewind(self, frames: int) -> Frame:
        """Go `frames` frames back on this timeline and show that frame again; what came after it is
        forgotten. Raises `HistoryError` for more than `history_frames`."""
        self._live()
        try:
            frames = operator.index(frames)
        except TypeError:
            raise DreamloopError(f"frames={frames!r} must be a whole number") from None
        if frames < 0:
            raise DreamloopError(f"frames={frames} must be 0 or more")
        if frames:
            timeline, moves = self._history.back_to(self.index - frames)
            self._put(timeline.marks[-1].moment)
            self._history.follow(timeline)
            for move in moves:
                self.advance(*move)
        return self.render()

    def branch(self) -> Session:
        """Another session on the same engine that stands where this one does and goes its own way."""
        other = Session(self.world, self.engine, seed=self.seed, history_bytes=self._history.max_bytes)
        other.restore(self.snapshot())
        return other

    def _moment(self) -> Moment:
        state = self._live()
        return Moment(self.index, self.seed, _read_only(state.latent[0].copy()), self._given, self._slots.freeze())

    def _put(self, moment: Moment) -> None:
        state = self._live()
        self._slots.put(moment.parts)
        state.latent, state.frame = moment.latent[None].copy(), np.array([moment.index], np.int64)
        state.seed = np.array([moment.seed], np.uint64)
        self._given, self.seed = moment.given, moment.seed

    # -- leaving -----------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of the state; a second call does nothing."""
        self._closed, self._state, self._given = True, None, None
        self._history = History()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    # -- checks ------------------------------------------------------------------------------------

    def _check_out(self, out: np.ndarray | None) -> None:
        if out is not None:
            checked_images(self.world.spec, out, "out", 3)
            if not out.flags.writeable:
                raise DreamloopError("out is read-only; a frame cannot be written to it")


def checked_seed(seed: int) -> int:
    """A seed that noise can be keyed with; raises `DreamloopError`."""
    try:
        whole = operator.index(seed)
    except TypeError:
        raise DreamloopError(f"seed={seed!r} must be a whole number") from None
    if not 0 <= whole < 1 << 64:
        raise DreamloopError(f"seed={whole} must be 0 or more, below 2^64")
    return whole


def start_image(world: World, start: int | np.ndarray) -> np.ndarray:
    """The image that `start` (see `Session.reset`) means, a copy, (H, W, 3) uint8."""
    if isinstance(start, np.ndarray) and start.ndim > 0:
        return checked_images(world.spec, start, "start", 3).copy()
    try:
        index = operator.index(start)
    except TypeError:
        raise DreamloopError(f"start={start!r} must be the index of a start frame or an image "
                             "(H, W, 3) uint8") from None
    count = len(world.starts)
    if not 0 <= index < count:
        raise DreamloopError(f"start={index}: world {world.name} has the start frames 0 to {count - 1}")
    return np.array(world.starts[index])


def checked_images(spec: WorldSpec, images: np.ndarray, name: str, dimensions: int) -> np.ndarray:
    """Frames of the world's size, (..., H, W, 3) uint8, or a `DreamloopError` that says what they are."""
    frame = (spec.frame_height, spec.frame_width, 3)
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != dimensions \
            or images.shape[-3:] != frame:
        found = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        wanted = frame if dimensions == 3 else ("n", *frame)
        raise DreamloopError(f"{name} is {found}, expected uint8 ({', '.join(map(str, wanted))})")
    return images


def _read_only(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


def _rows_of_pixels(out: np.ndarray) -> bool:
    """Whether each row of the picture is contiguous, as an engine that writes it in place needs."""
    return out.strides[1:] == (3, 1) and out.strides[0] >= 3 * out.shape[1]
