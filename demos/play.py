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
from collections.abc import Callable
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


@dataclass(frozen=True)
class PlayOptions:
    """How to play. start: index of a start frame or the path of an image; frames: None plays until
    the player leaves (without a window: 600 frames, or ten seconds of them where it is paced);
    record: an .mp4 file; actions: an .ndjson file; hold: action names that scripted input holds;
    scale: screen pixels per pixel of the frame; watch: say where the dream drifts or the engine errs;
    reanchor: and start over then; late: the contract of the frame loop; side_by_side: the real game on the left,
    under the same keys; bindings: a file of keys instead of the user's own."""

    engine: str = "auto"
    precision: str | None = None
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
    side_by_side: bool = False
    bindings: str | None = None


def peak_rss_mb() -> float:
    """The largest resident memory of this process so far, in MB (10^6 bytes)."""
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def _start(text: str, world: World) -> int | np.ndarray:
    if text.isascii() and text.isdigit():
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


def play(world: World, options: PlayOptions, profiler: Profiler | None = None,
         say: Callable[[str], None] = print) -> dict[str, Any]:
    """Play, and report. Returns the figures of `dreamloop play --json`: times are of whole frames,
    from reading the input to finished pixels (step and decode), without the warm-up."""
    spec, start = world.spec, _start(options.start, world)
    if options.hold is not None:
        spec.actions.vector(options.hold)  # an unknown name is refused before an engine is built
    bindings = None if options.headless and not options.bindings else load_bindings(spec, options.bindings)
    if bindings and (strange := sorted({*bindings.strangers} - {*zoo_names()})):
        say(f"{bindings.path} has keys for {', '.join(strange)}: no world of the zoo, nor the one played")
    with contextlib.ExitStack() as stack:
        game = stack.enter_context(_game(world, options)) if options.side_by_side else None
        if game is not None:
            start = game.frame
        session = stack.enter_context(Session(world, options.engine, options.precision, options.seed, start,
                                              options.threads))
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
        warm_up(session, start)
        log = stack.enter_context(ActionLog(options.actions, session, start)) if options.actions else None
        if log is not None:
            sinks.append(log)
        sink: Sink = sinks[0] if len(sinks) == 1 else Sinks(*sinks) if sinks else NoSink()
        monitor = DriftMonitor(session.engine, options.reanchor) if options.watch or options.reanchor else None
        loop = FrameLoop(session, source, sink, None if options.headless else 1000 / spec.fps, options.late,
                         profiler=profiler, monitor=monitor)
        if window is not None:
            window.attach(loop)
        sink.present(session.render())
        made_ms, shown_ms = _run(loop, frames, log, say)
        report = _report(session, loop, made_ms, shown_ms, paced=not options.headless)
    if record is not None:
        say(f"wrote {record}")
    return report


def _run(loop: FrameLoop, frames: int | None, log: ActionLog | None,
         say: Callable[[str], None]) -> tuple[array[float], array[float]]:
    """Milliseconds that each frame took to make, and that lay between two of them."""
    made_ms, shown_ms = array("d"), array("d")
    gc.collect()
    gc.freeze()  # what is loaded stays: a collection in the middle of a frame need not look at it
    try:
        for shown in loop.frames(frames):
            made_ms.append(shown.made_ms)
            if shown.interval_ms:
                shown_ms.append(shown.interval_ms)
            if log is not None:
                log.write(shown)
            for alarm in shown.alarms:
                say(f"alarm: {alarm}")
    finally:
        gc.unfreeze()
    return made_ms, shown_ms


def _report(session: Session, loop: FrameLoop, made_ms: array[float], shown_ms: array[float],
            paced: bool) -> dict[str, Any]:
    spec = session.world.spec
    between = shown_ms if paced else made_ms
    times = percentiles(made_ms) if made_ms else dict.fromkeys(("p50_ms", "p95_ms", "p99_ms"))
    late = loop.late_frames if paced else sum(ms > 1000 / spec.fps for ms in made_ms)
    return {"world": session.world.name, "engine": session.engine.name, "precision": session.engine.precision,
            "frames": len(made_ms), "fps": _rounded(1000 * len(between) / sum(between) if between else None),
            **{name: _rounded(times[name]) for name in ("p50_ms", "p95_ms", "p99_ms")}, "late_frames": late,
            "repeated_frames": loop.repeated_frames, "degraded_frames": loop.degraded_frames,
            "held_frames": loop.held_frames, **({"alarms": len(loop.monitor.alarms)} if loop.monitor else {}),
            "peak_rss_mb": _rounded(peak_rss_mb()), "warmup_frames": WARMUP_FRAMES}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
