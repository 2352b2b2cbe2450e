"""What this machine can do with dreamloop, and one line of advice for each thing it cannot. The verb
`dreamloop doctor`.

    dreamloop doctor --json

Every check stands for itself: one that fails says why, and the others go on.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.world import load_world, zoo_names
from dreamloop.runtime import kernels
from dreamloop.runtime.engines import AUTO_ORDER, ENGINE_NAMES, engine_status
from dreamloop.runtime.profiler import percentiles
from dreamloop.runtime.session import Session

OK, NOTE, PROBLEM = "ok", "note", "problem"
TIMED_FRAMES, WARMUP_FRAMES = 30, 5
PLAYING = ("numpy", "safetensors", "pygame", "av", "rich", "onnx", "onnxruntime")
PIP_NAME = {"pygame": "pygame-ce"}


@dataclass(frozen=True)
class Check:
    """status: `ok`, `note` (something more could be had) or `problem` (something does not work)."""

    name: str
    status: str
    detail: str
    advice: str = ""


def doctor(worlds: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run every check; worlds: folders to check besides the worlds of the zoo."""
    checks = list(_checks(worlds))
    return {"ok": all(check.status != PROBLEM for check in checks), "checks": [asdict(check) for check in checks]}


def _checks(worlds: tuple[str, ...]) -> Iterator[Check]:
    yield _machine()
    yield _packages()
    yield _kernels()
    yield from _engines()
    yield _display()
    yield _video()
    yield _cache()
    names = [*zoo_names(), *worlds]
    if not names:
        yield Check("worlds", PROBLEM, "no world came with this package", "make one: dreamloop train doom-arena")
    for name in names:
        yield _world(name)


def _machine() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = ""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = f", {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.1f} GB"
    detail = (f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, "
              f"{cores} cores to use{memory}")
    if sys.version_info[:2] not in ((3, 11), (3, 12)):
        return Check("machine", PROBLEM, detail, "use Python 3.11 or 3.12, which dreamloop is tested with")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > cores:
        return Check("machine", NOTE, f"{detail}, load {load:.1f}",
                     "other programs keep the cores busy: frames will be late until they are done")
    return Check("machine", OK, detail)


def _packages() -> Check:
    missing, found = [], []
    for name in PLAYING:
        try:
            module = importlib.import_module(name)
            found.append(f"{name} {getattr(module, '__version__', None) or version(name)}")
        except (ImportError, OSError):  # OSError: a shared library that does not load
            missing.append(PIP_NAME.get(name, name))
    if missing:
        return Check("packages", PROBLEM, f"cannot be imported: {', '.join(missing)}",
                     f"pip install {' '.join(missing)}")
    return Check("packages", OK, ", ".join(found))


def _kernels() -> Check:
    try:
        return Check("kernels", OK, f"compiled, instruction tier {kernels.instruction_tier()} of "
                                    f"{', '.join(kernels.instruction_tiers())}")
    except DreamloopError as error:
        return Check("kernels", NOTE, _line(error), "worlds play through ONNX Runtime meanwhile")


def _engines() -> Iterator[Check]:
    statuses = {name: engine_status(name) for name in ENGINE_NAMES}
    auto = next((name for name in AUTO_ORDER if statuses[name].available), None)
    for name, status in statuses.items():
        reason, _, install = status.reason.partition("; pip ")
        advice = f"pip {install}" if install else f"not needed to play: auto picks {auto}" if auto else ""
        yield Check(f"engine {name}", OK, reason) if status.available else Check(f"engine {name}", NOTE, reason, advice)
    if auto is None:
        yield Check("engine auto", PROBLEM, "no engine can run here", "pip install onnx onnxruntime")
    else:
        yield Check("engine auto", OK, f"picks {auto}")


def _display() -> Check:
    without = "playing writes a video instead; a window needs a screen, or for example ssh -X"
    try:
        from dreamloop.demos.play import pygame_module
        screen = pygame_module("screen")
        detail = screen.start_display()
        screen.pygame.display.quit()
        return Check("display", OK, detail)
    except DreamloopError as error:
        return Check("display", NOTE, _line(error), without)


def _video() -> Check:
    try:
        import av
        with tempfile.TemporaryDirectory() as folder:
            from dreamloop.demos.sinks import VideoSink
            with VideoSink(Path(folder) / "check.mp4", 64, 64, 30.0) as sink:
                codec = sink.codec
        return Check("video", OK, f"PyAV {av.__version__} writes {codec}")
    except (ImportError, OSError, DreamloopError) as error:
        return Check("video", NOTE, _line(error), "pip install av, to record what is played")


def _cache() -> Check:
    try:
        from dreamloop.runtime.engines.cache import cache_folder
        folder = cache_folder("onnx")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return Check("cache", OK, f"{folder} can be written to")
    except (ImportError, OSError, RuntimeError) as error:
        return Check("cache", NOTE, f"built graphs cannot be kept ({_line(error)})",
                     "every start builds them anew; XDG_CACHE_HOME can name another folder")


def _world(name: str) -> Check:
    """Load a world, which checks every file of it, and play a few frames."""
    label = f"world {Path(name).name}"
    try:
        world = load_world(name)
    except DreamloopError as error:
        return Check(label, PROBLEM, _line(error), "get the world's folder again: its files are not what they must be")
    try:
        with Session(world) as session:
            for _ in range(WARMUP_FRAMES):
                session.step()
            took_ms = percentiles([_timed_ms(session.step) for _ in range(TIMED_FRAMES)])
            engine = f"{session.engine.name} {session.engine.precision}"
    except DreamloopError as error:
        return Check(label, PROBLEM, _line(error), "see the engines above")
    budget_ms = 1000 / world.spec.fps
    detail = (f"{world.hash[:12]}, {world.spec.frame_width}x{world.spec.frame_height}, on {engine} "
              f"{took_ms['p50_ms']:.1f} ms a frame p50, {took_ms['p95_ms']:.1f} p95, of {budget_ms:.1f}")
    if took_ms["p95_ms"] > budget_ms:
        return Check(label, NOTE, detail, "too slow for its pace here: game time will run slower than the game's")
    return Check(label, OK, detail)


def _timed_ms(step: Callable[[], Any]) -> float:
    start = time.perf_counter()
    step()
    return (time.perf_counter() - start) * 1000


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
