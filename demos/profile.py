"""Where the milliseconds of a frame go, and what two runs differ in. The verb `dreamloop profile`.

    dreamloop profile doom-arena --json > before.json      # change something, and again to after.json
    dreamloop profile --compare before.json after.json
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from dreamloop.demos.play import PlayOptions, play, warm_up
from dreamloop.demos.scripted import ScriptedSource
from dreamloop.models.core.world import World
from dreamloop.runtime.profile_plot import draw_profile
from dreamloop.runtime.profiler import Profiler, compare, load_profile, percentiles
from dreamloop.runtime.session import Session

MOMENT_ROUNDS, MOMENT_FRAMES = 50, 8
COLUMNS = ("p50_ms", "p95_ms", "p99_ms", "worst_ms")


def profile(world: World, options: PlayOptions, trace: str | None = None, plot: str | None = None) -> dict[str, Any]:
    """Play, print a table, write what is asked for; returns the report of `dreamloop profile --json`."""
    profiler = Profiler()
    played = play(world, options, profiler)
    stages = profiler.summary()
    if not stages:  # the window was closed before its first frame
        return {key: played[key] for key in ("world", "engine", "precision", "frames")} | {"stages": {}}
    latency = percentiles([(present.stop_s - read.start_s) * 1000 for read, present in profiler.shown()])
    cost_ms = profiler.cost_ms()
    with Session(world, options.engine, options.precision, options.seed, threads=options.threads) as session:
        moments = moments_ms(session)
    print(f"{'ms a frame':<18}{'p50':>9}{'p95':>9}{'p99':>9}{'worst':>9}")
    for name, row in {**stages, "input to picture": latency}.items():
        print(f"{name:<18}" + "".join(f"{row[key]:9.2f}" for key in COLUMNS))
    share = 100 * cost_ms / stages["frame"]["p50_ms"]
    print(f"snapshot {moments['snapshot_ms']:.3f} ms, restore {moments['restore_ms']:.3f} ms (medians); "
          f"the profiler takes {1000 * cost_ms:.1f} us a frame, {share:.2f}%")
    title = f"{world.name} on {played['engine']} {played['precision']}"
    if trace:
        profiler.save_trace(trace, f"dreamloop {title}")
        print(f"wrote {trace}; open it at https://ui.perfetto.dev")
    if plot:
        draw_profile(profiler, plot, title, 1000 / world.spec.fps)
        print(f"wrote {plot}")
    said: dict[str, Any] = {
        **{key: played[key] for key in ("world", "engine", "precision", "frames", "warmup_frames", "late_frames")},
        "pipelined": options.pipelined, "budget_ms": 1000 / world.spec.fps, "stages": stages,
        "input_to_picture": latency, **moments, "profiler_ms": cost_ms, "profiler_percent": share}
    return {key: _rounded(value) for key, value in said.items()}


def moments_ms(session: Session, rounds: int = MOMENT_ROUNDS, frames: int = MOMENT_FRAMES) -> dict[str, float]:
    """Medians of `Session.snapshot` and of `Session.restore`, each over some frames played in between, once the
    memory is full. What restore returns is not looked at, so nothing is decoded."""
    warm_up(session, 0, frames=2)
    source = ScriptedSource(session.world.spec.actions)
    taken_ms, back_ms = [], []

    def go(count: int) -> None:
        for _ in range(count):
            session.advance(source.read().action)
    go(session.world.spec.memory.slots)
    for _ in range(rounds):
        start = time.perf_counter()
        bookmark = session.snapshot()
        taken_ms.append((time.perf_counter() - start) * 1000)
        go(frames)
        start = time.perf_counter()
        session.restore(bookmark)
        back_ms.append((time.perf_counter() - start) * 1000)
        go(frames // 2)
    return {"snapshot_ms": float(np.median(taken_ms)), "restore_ms": float(np.median(back_ms))}


def compare_profiles(first: str, second: str) -> dict[str, Any]:
    """Print two saved profiles side by side; returns the report of `dreamloop profile --compare --json`."""
    a, b = load_profile(first), load_profile(second)
    for path, run in ((first, a), (second, b)):
        print(f"{path}: {run.get('world')} on {run.get('engine')} {run.get('precision')}, {run.get('frames')} frames")
    other = sorted(key for key in ("world", "engine", "precision", "pipelined") if a.get(key) != b.get(key))
    if other:
        print(f"not of the same kind: {', '.join(other)}")
    print(f"{'ms a frame':<14}{'p50':>9}{'p50':>9}{'p99':>9}{'p99':>9}{'ratio':>8}")
    rows = compare(a, b)
    for stage, row in rows.items():
        cells = [row[key] for key in ("a_p50_ms", "b_p50_ms", "a_p99_ms", "b_p99_ms")]
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
        note = {None: "", True: "  more than the runs varied", False: "  no more than the runs varied"}[row["differs"]]
        print(f"{stage:<14}" + "".join(f"{'-' if cell is None else f'{cell:.2f}':>9}" for cell in cells)
              + f"{ratio:>8}{note}")
    return {"a": first, "b": second, "differ_in": other, "stages": {name: _rounded(row) for name, row in rows.items()}}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return round(value, 4) if isinstance(value, float) else value
