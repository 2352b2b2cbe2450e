"""Where the milliseconds of a frame go: spans per frame and stage, percentiles, a trace, a comparison.

    dreamloop profile doom-arena --trace trace.json        # open it at https://ui.perfetto.dev

An engine that has the device's own times adds them on a track of their own (`add_device`), beside those of the host.

A span is five values in a tuple, so the profiler itself costs about a microsecond a frame; `cost_ms` measures it.
Trace format: "Trace Event Format", Google 2016: complete events (`ph` X) on a track per thread, times in
microseconds; a flow (`s`, `f`) leads from the reading of an input to the presenting of the first frame
that shows it. Pictures of a profile: profile_plot.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dreamloop.models.core.errors import DreamloopError

MAX_SPANS = 1_000_000
WHOLE = "frame"  # the name of the span from the first stage's start to the last stage's end
LOOP = "frame loop"  # the thread that reads input and presents
DEVICE = "gpu"  # the track of what the device says of itself
PARTS = 10  # of a run, whose medians say how much it varies


class Span(NamedTuple):
    """One stage of one frame; times in seconds of the clock that was used; track: the thread, or what waits."""

    frame: int
    stage: str
    start_s: float
    stop_s: float
    track: str

    @property
    def ms(self) -> float:
        return (self.stop_s - self.start_s) * 1000


def percentiles(values_ms: Sequence[float] | np.ndarray) -> dict[str, float]:
    """p50_ms, p95_ms, p99_ms and worst_ms of a list of milliseconds that is not empty."""
    p50, p95, p99, worst = np.percentile(np.asarray(values_ms, np.float64), (50, 95, 99, 100))
    return {"p50_ms": float(p50), "p95_ms": float(p95), "p99_ms": float(p99), "worst_ms": float(worst)}


class Profiler:
    """Collects spans; the newest `capacity` of them are kept."""

    def __init__(self, capacity: int = MAX_SPANS) -> None:
        self.spans: deque[Span] = deque(maxlen=capacity)

    def add(self, frame: int, stage: str, start_s: float, stop_s: float, track: str = LOOP) -> None:
        """Note that `stage` of frame `frame` ran from start_s to stop_s, in seconds."""
        self.spans.append(Span(frame, stage, start_s, stop_s, track))

    def add_device(self, frame: int, stages: Sequence[tuple[str, float, float]], seen_s: float) -> None:
        """Note stages of a frame by the device's own clock: (stage, start_ms, stop_ms) from its first one. Only
        differences of that clock mean anything to the host's, so the last stage is put to end at `seen_s`, when the
        host saw that all was done: a moment late, by what it takes the host to wake."""
        if stages:
            last_ms = stages[-1][2]
            for stage, start_ms, stop_ms in stages:
                start_s, stop_s = (seen_s + (ms - last_ms) / 1000 for ms in (start_ms, stop_ms))
                self.add(frame, f"{DEVICE} {stage}", start_s, stop_s, DEVICE)

    def stages(self) -> dict[str, list[Span]]:
        """Spans by stage, in the order in which stages were first seen, the whole frame last."""
        by_stage: dict[str, list[Span]] = {}
        whole: dict[int, Span] = {}
        for span in self.spans:
            by_stage.setdefault(span.stage, []).append(span)
            if span.track == DEVICE:
                continue  # lies inside what the host waited for
            known = whole.get(span.frame, span)
            whole[span.frame] = Span(span.frame, WHOLE, min(known.start_s, span.start_s),
                                     max(known.stop_s, span.stop_s), LOOP)
        return {**by_stage, WHOLE: list(whole.values())} if by_stage else {}

    def summary(self) -> dict[str, dict[str, Any]]:
        """stage -> frames (how many), p50_ms, p95_ms, p99_ms, worst_ms, and p50_parts_ms: the medians of ten parts of
        the run, one after the other, where there are that many frames. `frame` is the whole, from input to picture."""
        found = {}
        for stage, spans in self.stages().items():
            values = [span.ms for span in spans]
            parts = np.array_split(np.array(values), PARTS) if len(values) >= PARTS else []
            found[stage] = {"frames": len(values), **percentiles(values),
                            "p50_parts_ms": [float(np.median(part)) for part in parts]}
        return found

    def cost_ms(self, rounds: int = 5, frames: int = 1000) -> float:
        """What profiling adds to a frame: the time of noting the spans of one, measured now, the best of several
        rounds. The loop reads its clock with a profiler as often as without."""
        if not self.spans:
            return 0.0
        last = [span for span in self.spans if span.frame == self.spans[-1].frame]

        def spent() -> float:
            trial, start = Profiler(capacity=len(last) * frames), time.perf_counter()
            for _ in range(frames):
                for span in last:
                    trial.add(*span)
            return (time.perf_counter() - start) * 1000 / frames
        return min(spent() for _ in range(rounds))

    # -- a trace -----------------------------------------------------------------------------------

    def trace(self, process: str = "dreamloop") -> dict[str, Any]:
        """The spans as a Chrome trace. Where one thread does everything, stages lie nested in their frame; where
        there are more, frames overlap, and each thread has its own track without them."""
        stages = self.stages()
        origin = min((span.start_s for span in self.spans), default=0.0)
        tracks = list(dict.fromkeys([LOOP, *(span.track for span in self.spans)]))
        alone = set(tracks) <= {LOOP, DEVICE}
        shown = [span for name, spans in stages.items() if name != WHOLE or alone for span in spans]

        def at(span: Span) -> dict[str, Any]:
            return {"pid": 1, "tid": 1 + tracks.index(span.track), "ts": _nanoseconds(span.start_s, origin) / 1000}

        def event(span: Span) -> dict[str, Any]:
            # whole nanoseconds, so that a stage never sticks out of its frame by a rounding
            length = _nanoseconds(span.stop_s, origin) - _nanoseconds(span.start_s, origin)
            name = f"frame {span.frame}" if span.stage == WHOLE else span.stage
            return {"name": name, "cat": span.stage, "ph": "X", **at(span), "dur": length / 1000,
                    "args": {"frame": span.frame}}

        def arrow(read: Span, present: Span) -> Iterator[dict[str, Any]]:
            # each end lies at the start of its span, which it binds to
            for span, kind in ((read, {"ph": "s"}), (present, {"ph": "f", "bp": "e"})):
                yield {"name": "input to picture", "cat": "latency", "id": read.frame, **kind, **at(span),
                       "args": {"input": read.frame, "frame": present.frame}}
        names = [{"name": "process_name", "ph": "M", "pid": 1, "tid": 0, "args": {"name": process}}]
        names += [{"name": "thread_name", "ph": "M", "pid": 1, "tid": tid, "args": {"name": track}}
                  for tid, track in enumerate(tracks, start=1)]
        return {"displayTimeUnit": "ms", "traceEvents": [
            *names, *map(event, sorted(shown, key=lambda s: (s.start_s, s.start_s - s.stop_s))),
            *(end for read, present in self.shown() for end in arrow(read, present))]}

    def shown(self) -> Iterator[tuple[Span, Span]]:
        """(the reading of an input, the presenting of the first frame that shows it), for those that were shown: the
        input of a frame that was not decoded is seen in the next one that is."""
        unseen: list[Span] = []
        for span in self.spans:
            if span.stage == "input":
                unseen.append(span)
            elif span.stage == "present":
                yield from ((read, span) for read in unseen)
                unseen = []

    def save_trace(self, path: str | os.PathLike[str], process: str = "dreamloop") -> None:
        """Write `trace` to a file, whole or not at all."""
        target = Path(path)
        part = target.parent / f"{target.name}.part"
        try:
            part.write_text(json.dumps(self.trace(process)), "utf-8")
            os.replace(part, target)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink()
            raise DreamloopError(f"cannot write the trace {target}: {error.strerror}") from error


def _nanoseconds(moment_s: float, origin_s: float) -> int:
    return round((moment_s - origin_s) * 1e9)


# -- two profiles ------------------------------------------------------------------------------------------


def load_profile(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The report of `dreamloop profile --json`, from a file with that as its last line."""
    try:
        lines = Path(path).read_text("utf-8").strip().splitlines()
        said = json.loads(lines[-1]) if lines else None
    except OSError as error:
        raise DreamloopError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError):
        said = None
    stages = said.get("stages") if isinstance(said, dict) else None
    if not isinstance(stages, dict) or not stages or not all(_is_row(row) for row in stages.values()):
        raise DreamloopError(f"{path} is not a profile: its last line must be that of `dreamloop profile --json`")
    assert isinstance(said, dict)
    return said


def _is_row(row: Any) -> bool:
    def numbers(values: list[Any]) -> bool:
        return all(type(v) in (int, float) and 0 <= v < float("inf") for v in values)
    return (isinstance(row, dict) and numbers([row.get("p50_ms"), row.get("p99_ms")])
            and isinstance(row.get("p50_parts_ms", []), list) and numbers(row.get("p50_parts_ms", [])))


def compare(a: dict[str, Any], b: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """stage -> p50_ms and p99_ms of both profiles, ratio (b's median over a's), and differs: whether the medians of
    the ten parts of one run all lie above those of the other, None where a run has no parts. Parts of one run vary
    less than runs on a machine with other work do: what does not differ here is noise, what does may still be."""
    rows: dict[str, dict[str, Any]] = {}
    for stage in [*a["stages"], *(stage for stage in b["stages"] if stage not in a["stages"])]:
        first, second = a["stages"].get(stage), b["stages"].get(stage)
        row: dict[str, Any] = {"a_p50_ms": first and first["p50_ms"], "b_p50_ms": second and second["p50_ms"],
                               "a_p99_ms": first and first["p99_ms"], "b_p99_ms": second and second["p99_ms"],
                               "ratio": None, "differs": None}
        if first and second:
            row["ratio"] = second["p50_ms"] / first["p50_ms"] if first["p50_ms"] else None
            parts_a, parts_b = first.get("p50_parts_ms"), second.get("p50_parts_ms")
            if parts_a and parts_b:
                row["differs"] = min(parts_b) > max(parts_a) or max(parts_b) < min(parts_a)
        rows[stage] = row
    return rows
