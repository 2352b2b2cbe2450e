"""Where the milliseconds of a frame go: spans per frame and stage, percentiles, a trace, a plot.

    dreamloop profile doom-arena --trace trace.json        # open it at https://ui.perfetto.dev

A span is four numbers in a list, so the profiler itself costs about a microsecond a frame.
Trace format: "Trace Event Format", Google 2016; complete events (`ph` X), times in microseconds.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dreamloop.models.core.errors import DreamloopError

MAX_SPANS = 1_000_000
WHOLE = "frame"  # the name of the span from the first stage's start to the last stage's end


class Span(NamedTuple):
    """One stage of one frame; times in seconds of the clock that was used."""

    frame: int
    stage: str
    start_s: float
    stop_s: float


def percentiles(values_ms: Sequence[float] | np.ndarray) -> dict[str, float]:
    """p50_ms, p95_ms, p99_ms and worst_ms of a list of milliseconds that is not empty."""
    p50, p95, p99, worst = np.percentile(np.asarray(values_ms, np.float64), (50, 95, 99, 100))
    return {"p50_ms": float(p50), "p95_ms": float(p95), "p99_ms": float(p99), "worst_ms": float(worst)}


class Profiler:
    """Collects spans; the newest `capacity` of them are kept."""

    def __init__(self, capacity: int = MAX_SPANS) -> None:
        self.spans: deque[Span] = deque(maxlen=capacity)

    def add(self, frame: int, stage: str, start_s: float, stop_s: float) -> None:
        """Note that `stage` of frame `frame` ran from start_s to stop_s, in seconds."""
        self.spans.append(Span(frame, stage, start_s, stop_s))

    def stages(self) -> dict[str, list[Span]]:
        """Spans by stage, in the order in which stages were first seen, the whole frame last."""
        by_stage: dict[str, list[Span]] = {}
        whole: dict[int, Span] = {}
        for span in self.spans:
            by_stage.setdefault(span.stage, []).append(span)
            known = whole.get(span.frame, span)
            whole[span.frame] = Span(span.frame, WHOLE, min(known.start_s, span.start_s),
                                     max(known.stop_s, span.stop_s))
        return {**by_stage, WHOLE: list(whole.values())} if by_stage else {}

    def summary(self) -> dict[str, dict[str, float]]:
        """stage -> frames (how many), p50_ms, p95_ms, p99_ms, worst_ms; `frame` is the whole."""
        return {stage: {"frames": len(spans), **percentiles([(s.stop_s - s.start_s) * 1000 for s in spans])}
                for stage, spans in self.stages().items()}

    def trace(self, process: str = "dreamloop") -> dict[str, Any]:
        """The spans as a Chrome trace: stages nested in their frame, on one thread."""
        stages = self.stages()
        origin = min((span.start_s for span in self.spans), default=0.0)

        def event(span: Span) -> dict[str, Any]:
            # whole nanoseconds, so that a stage never sticks out of its frame by a rounding
            start, stop = (round((t - origin) * 1e9) for t in (span.start_s, span.stop_s))
            name = f"frame {span.frame}" if span.stage == WHOLE else span.stage
            return {"name": name, "cat": span.stage, "ph": "X", "ts": start / 1000, "dur": (stop - start) / 1000,
                    "pid": 1, "tid": 1, "args": {"frame": span.frame}}

        names = [{"name": kind, "ph": "M", "pid": 1, "tid": 1, "args": {"name": value}}
                 for kind, value in (("process_name", process), ("thread_name", "frame loop"))]
        ordered = [*stages.get(WHOLE, []), *(s for stage, spans in stages.items() if stage != WHOLE for s in spans)]
        return {"traceEvents": names + [event(span) for span in ordered], "displayTimeUnit": "ms"}

    def save_trace(self, path: str | os.PathLike[str], process: str = "dreamloop") -> None:
        """Write `trace` to a file, whole or not at all."""
        target = Path(path)
        part = target.with_name(target.name + ".part")
        try:
            part.write_text(json.dumps(self.trace(process)), "utf-8")
            os.replace(part, target)
        except OSError as error:
            raise DreamloopError(f"cannot write the trace {target}: {error.strerror}") from error

    def plot(self, path: str | os.PathLike[str], title: str = "", budget_ms: float | None = None) -> None:
        """Draw stages over time, stacked, beside the distribution of whole frames, to an image file."""
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise DreamloopError(f"a plot needs matplotlib ({error}); pip install matplotlib") from error
        stages = {name: spans for name, spans in self.stages().items() if name != WHOLE}
        frames = sorted({span.frame for span in self.spans})
        row = {frame: i for i, frame in enumerate(frames)}
        figure = Figure(figsize=(11, 4), layout="constrained")
        over_time, spread = figure.subplots(1, 2, width_ratios=(3, 1), sharey=True)
        total = np.zeros(len(frames))
        for name, spans in stages.items():
            part_ms = np.zeros(len(frames))
            for span in spans:
                part_ms[row[span.frame]] += (span.stop_s - span.start_s) * 1000
            over_time.fill_between(frames, total, total + part_ms, step="mid", label=name, linewidth=0)
            total += part_ms
        spread.hist(total, bins=60, orientation="horizontal", color="0.5")
        for axis in (over_time, spread):
            if budget_ms is not None:
                axis.axhline(budget_ms, color="crimson", linestyle="--", linewidth=1,
                             label=f"budget {budget_ms:.1f} ms")
        over_time.set(xlabel="frame", ylabel="milliseconds", title=title, ylim=(0, None), xmargin=0)
        spread.set(xlabel="frames", title="whole frame")
        over_time.legend(loc="upper right", ncols=3, fontsize="small")
        try:
            figure.savefig(path, dpi=120)
        except (OSError, ValueError) as error:  # ValueError: a file type that matplotlib does not know
            raise DreamloopError(f"cannot write the plot {path}: {error}") from error
