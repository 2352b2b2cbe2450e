"""Play a world: in a window, without one, or without a screen at all. The verb `dreamloop play`.

    dreamloop play doom-arena --headless --frames 600 --json

headless: unpaced scripted input, nothing is written unless asked for. No screen: paced scripted
input, written to a video, so that the first command shows something on a server too.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from dreamloop.demos.action_log import ActionLog
from dreamloop.demos.beside import GameBeside, JoinedSink, SharedSource
from dreamloop.demos.bindings import load_bindings
from dreamloop.demos.scripted import ScriptedSource
from dreamloop.demos.sinks import PANE_GAP, NoSink, Sinks, VideoSink
from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.world import World, zoo_names
from dreamloop.runtime.drift import DriftMonitor
from dreamloop.runtime.engines import choice_of
from dreamloop.runtime.loop import FrameLoop, Sink, Source
from dreamloop.runtime.profiler import Profiler, percentiles
from dreamloop.runtime.session import Session

WARMUP_FRAMES = 30
HEADLESS_FRAMES = 600
NO_DISPLAY_SECONDS = 10
FIGURE_FRAMES = 10_000  # figures are of the newest so many, however long the game


@dataclass(frozen=True)
class PlayOptions:
    """How to play. start: index of a start frame or the path of an image; frames: None plays until
    the player leaves (without a window: 600 frames, or ten seconds of them where it is paced);
    record: an .mp4 file; actions: an .ndjson file; hold: action names that scripted input holds;
    scale: screen pixels per pixel of the frame; watch: say where the dream drifts or the engine errs;
    reanchor: and start over then; late: the contract of the frame loop; pipelined: in two stages;
    side_by_side: the real game on the left, under the same keys; bindings: a file of keys instead of
    the user's own."""

    engine: str = "auto"
    precision: str | None = None
    form: str | None = None
    threads: int | None = None
    seed: int = 0
    start: str = "0"
    frames: int | None = None
    headless: bool = False
    record: str | None = None
    actions: str | None = None
    hold: tuple[str, ...] | None = None
    scale: int | None = None
    watch: bool = False
    reanchor: bool = False
    late: str = "slow"
    pipelined: bool = False
    side_by_side: bool = False
    bindings: str | None = None


def peak_rss_mb() -> float:
    """The largest resident memory of this process so far, in MB (10^6 bytes)."""
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def _start(text: str, world: World) -> int | np.ndarray:
    if text.isascii() and text.isdigit() and len(text) < 10:  # longer ones may be more than int() takes
        return int(text)
    return pygame_module("screen").load_image(text, world.spec)


def pygame_module(name: str) -> ModuleType:
    """A module of demos/ that draws, without pygame's greeting; says what to install if it cannot be had."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        return importlib.import_module(f"dreamloop.demos.{name}")
    except ImportError as error:
        raise DreamloopError(f"a window, and an image to start from, need pygame ({error}); "
                             "pip install pygame-ce") from error


def _game(world: World, options: PlayOptions) -> GameBeside:
    for name, used in (("--start", options.start != PlayOptions.start), ("--reanchor", options.reanchor)):
        if used:
            raise DreamloopError(f"--side-by-side starts both from the game's own frame: leave {name} out")
    return GameBeside(world, options.seed)


def warm_up(session: Session, start: int | np.ndarray, frames: int = WARMUP_FRAMES) -> None:
    """Run a few frames and start over, so that no player waits for an engine's first time."""
    source = ScriptedSource(session.world.spec.actions)
    for _ in range(frames):
        session.step(source.read().action)
    session.reset(start)


@contextlib.contextmanager
def settled_memory() -> Iterator[None]:
    """What is loaded stays: a collection in the middle of a frame need not look at it."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def play(world: World, options: PlayOptions, profiler: Profiler | None = None,
         say: Callable[[str], None] = print) -> dict[str, Any]:
    """Play, and report. Returns the figures of `dreamloop play --json`: times are of whole frames,
    from reading the input to finished pixels (step and decode), without the warm-up."""
    spec, start = world.spec, _start(options.start, world)
    if options.hold is not None:
        spec.actions.vector(options.hold)  # an unknown name is refused before an engine is built
    if options.record and options.actions and os.path.abspath(options.record) == os.path.abspath(options.actions):
        raise DreamloopError(f"{options.record} cannot be both the video and the log")
    bindings = None if options.headless and not options.bindings else load_bindings(spec, options.bindings)
    if bindings and (strange := sorted({*bindings.strangers} - {*zoo_names()})):
        say(f"{bindings.path} has keys for {', '.join(strange)}: no world of the zoo, nor the one played")
    with contextlib.ExitStack() as stack:
        game = stack.enter_context(_game(world, options)) if options.side_by_side else None
        if game is not None:
            start = game.frame
        session = stack.enter_context(Session(world, options.engine, options.precision, options.seed, start,
                                              options.threads, form=options.form))
        say(f"{world.name}: {spec.frame_width}x{spec.frame_height} at {spec.fps:g} frames a second; "
            f"engine {choice_of(session.engine)}, {session.engine.precision}")
        scripted = ScriptedSource(spec.actions, options.seed, options.hold)
        source: Source = scripted
        sinks: list[Sink] = []
        frames, record, window = options.frames, options.record, None
        if options.headless:
            frames = frames or HEADLESS_FRAMES
        elif options.hold is not None:
            raise DreamloopError("--hold is scripted input: it needs --headless")
        else:
            screen = pygame_module("player")
            try:
                window = screen.Window(world, start if isinstance(start, int) else -1, options.scale, bindings, game)
                stack.callback(window.close)
                source = window
                sinks.append(window)
            except screen.NoDisplay as error:
                frames = frames or round(NO_DISPLAY_SECONDS * spec.fps)
                record = record or f"dreamloop-{Path(world.name).name}.mp4"
                say(f"{error}: playing {frames} frames of scripted input, written to {record}")
        if record is not None:
            wide = spec.frame_width if game is None else 2 * spec.frame_width + PANE_GAP
            video = stack.enter_context(VideoSink(record, spec.frame_height, wide, spec.fps))
            sinks.append(video if game is None else JoinedSink(video, game))
        if game is not None:
            source = SharedSource(source, game)
        if profiler is not None and (measure := getattr(session.engine, "measure_stages", None)):
            measure()  # before the warm-up, for frames are built anew with it
        warm_up(session, start)
        log = stack.enter_context(ActionLog(options.actions, session, start)) if options.actions else None
        if log is not None:
            sinks.append(log)
        sink: Sink = sinks[0] if len(sinks) == 1 else Sinks(*sinks) if sinks else NoSink()
        monitor = DriftMonitor(session.engine, options.reanchor) if options.watch or options.reanchor else None
        compute = stack.enter_context(ThreadPoolExecutor(1)) if options.pipelined else None
        loop = FrameLoop(session, source, sink, None if options.headless else 1000 / spec.fps, options.late,
                         profiler=profiler, monitor=monitor, compute=compute)
        if window is not None:
            window.attach(loop)
        sink.present(session.render())
        times = _run(loop, frames, log, say)
        report = _report(session, loop, times, paced=not options.headless)
    if record is not None:
        say(f"wrote {record}")
    return report


class _Newest:
    """The newest `FIGURE_FRAMES` of a series of milliseconds, in memory that never grows."""

    def __init__(self) -> None:
        self._values, self.count = array("d", bytes(8 * FIGURE_FRAMES)), 0

    def add(self, value_ms: float) -> None:
        self._values[self.count % FIGURE_FRAMES] = value_ms
        self.count += 1

    def kept(self) -> np.ndarray:
        """Those that are there, in no order, (n,) float64."""
        return np.frombuffer(self._values)[: self.count]


@dataclass
class _Times:
    """Milliseconds that frames took to make, that lay between two of them, and from input to picture; over:
    how many took longer to make than the budget."""

    made: _Newest
    between: _Newest
    latency: _Newest
    over: int = 0


def _run(loop: FrameLoop, frames: int | None, log: ActionLog | None, say: Callable[[str], None]) -> _Times:
    times, budget_ms = _Times(_Newest(), _Newest(), _Newest()), 1000 / loop.session.world.spec.fps
    with settled_memory():
        for shown in loop.frames(frames):
            times.made.add(shown.made_ms)
            times.latency.add(shown.latency_ms)
            times.over += shown.made_ms > budget_ms
            if shown.interval_ms:
                times.between.add(shown.interval_ms)
            if log is not None:
                log.write(shown)
            for alarm in shown.alarms:
                say(f"alarm: {alarm}")
    return times


def _report(session: Session, loop: FrameLoop, times: _Times, paced: bool) -> dict[str, Any]:
    between = (times.between if paced or loop.compute else times.made).kept()
    made, latency = (percentiles(series.kept()) if series.count else dict.fromkeys(("p50_ms", "p95_ms", "p99_ms"))
                     for series in (times.made, times.latency))
    return {"world": session.world.name, "engine": session.engine.name, "precision": session.engine.precision,
            "frames": times.made.count, "fps": _rounded(1000 * len(between) / between.sum() if len(between) else None),
            **{name: _rounded(made[name]) for name in ("p50_ms", "p95_ms", "p99_ms")},
            "latency_p50_ms": _rounded(latency["p50_ms"]), "latency_p99_ms": _rounded(latency["p99_ms"]),
            "late_frames": loop.late_frames if paced else times.over,
            "repeated_frames": loop.repeated_frames, "degraded_frames": loop.degraded_frames,
            "held_frames": loop.held_frames, **({"alarms": loop.monitor.count} if loop.monitor else {}),
            "peak_rss_mb": _rounded(peak_rss_mb()), "warmup_frames": WARMUP_FRAMES}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 2)
