"""The profiler: percentiles, a trace that opens, a price that does not show."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from dreamloop.models.core.errors import DreamloopError
from dreamloop.runtime.profiler import Profiler, percentiles

STAGES = ("input", "dynamics", "decode", "present")


def profile(frames: int, stage_s: float = 0.002) -> Profiler:
    """Frames of four equal stages, 10 ms apart, from a clock that did not begin at zero."""
    profiler = Profiler()
    for frame in range(1, frames + 1):
        for i, stage in enumerate(STAGES):
            start = 5000.0 + 0.01 * frame + i * stage_s
            profiler.add(frame, stage, start, start + stage_s)
    return profiler


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=200))
def test_percentiles_rise_and_stay_within_the_values(values: list[float]) -> None:
    p = percentiles(values)
    assert min(values) <= p["p50_ms"] <= p["p95_ms"] <= p["p99_ms"] <= p["worst_ms"] == max(values)


def test_percentiles_of_a_ramp() -> None:
    assert percentiles(np.arange(101.0)) == {"p50_ms": 50.0, "p95_ms": 95.0, "p99_ms": 99.0, "worst_ms": 100.0}


def test_the_whole_frame_is_from_the_first_start_to_the_last_stop() -> None:
    summary = profile(20).summary()
    assert list(summary) == [*STAGES, "frame"]
    assert summary["decode"]["p50_ms"] == pytest.approx(2.0)
    assert summary["frame"]["worst_ms"] == pytest.approx(8.0)
    assert all(row["frames"] == 20 for row in summary.values())


def test_no_spans_no_summary_and_an_empty_trace() -> None:
    assert Profiler().summary() == {}
    assert [event["ph"] for event in Profiler().trace()["traceEvents"]] == ["M", "M"]


def test_the_oldest_spans_go_first() -> None:
    profiler = Profiler(capacity=8)
    for frame in range(5):
        for stage in STAGES:
            profiler.add(frame, stage, float(frame), frame + 0.5)
    assert {span.frame for span in profiler.spans} == {3, 4}


def test_the_trace_is_what_perfetto_reads(tmp_path: Path) -> None:
    profile(3).save_trace(tmp_path / "trace.json", "dreamloop tiny")
    trace = json.loads((tmp_path / "trace.json").read_text("utf-8"))
    events = trace["traceEvents"]
    names = {event["name"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    assert names == {"process_name": "dreamloop tiny", "thread_name": "frame loop"}
    spans = [event for event in events if event["ph"] == "X"]
    assert len(spans) == 3 * (len(STAGES) + 1)
    assert all({"name", "ts", "dur", "pid", "tid"} <= event.keys() and event["ts"] >= 0 for event in spans)
    assert min(event["ts"] for event in spans) == 0
    first = [event for event in spans if event["args"]["frame"] == 2]
    whole = next(event for event in first if event["cat"] == "frame")
    assert whole["dur"] == pytest.approx(8000.0)  # microseconds
    for event in first:
        start, stop = (round(1000 * value) for value in (event["ts"], event["ts"] + event["dur"]))
        assert round(1000 * whole["ts"]) <= start <= stop <= round(1000 * (whole["ts"] + whole["dur"]))
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]


def test_a_trace_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(DreamloopError, match="cannot write the trace"):
        profile(1).save_trace(tmp_path / "nowhere" / "trace.json")


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots are drawn with matplotlib")
    profile(50).plot(tmp_path / "profile.png", "tiny", budget_ms=10.0)
    assert (tmp_path / "profile.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DreamloopError, match="cannot write the plot"):
        profile(1).plot(tmp_path / "profile.nonsense")


def test_a_frame_costs_well_under_one_percent() -> None:
    """Four spans of a frame of 10 ms may cost 100 microseconds; the best of five rounds of 5,000 frames."""
    def cost() -> float:
        profiler, start = Profiler(), time.perf_counter()
        for frame in range(5000):
            for stage in STAGES:
                profiler.add(frame, stage, 1.0, 2.0)
        return (time.perf_counter() - start) / 5000
    assert min(cost() for _ in range(5)) < 100e-6
