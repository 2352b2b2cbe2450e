"""The profiler: percentiles, a trace that opens, two profiles side by side, a price that does not show."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clocks import FakeClock, Screen, Script, TimedEngine
from hypothesis import given, settings, strategies as st

from dreamloop.demos.cli import main
from dreamloop.demos.play import PlayOptions, play
from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.world import World
from dreamloop.runtime.engines.torch_engine import TorchEngine
from dreamloop.runtime.loop import FrameLoop
from dreamloop.runtime.profile_plot import draw_profile
from dreamloop.runtime.profiler import PARTS, Profiler, Span, compare, load_profile, percentiles
from dreamloop.runtime.session import Session

STAGES = ("input", "dynamics", "decode", "present")


def profile(frames: int, stage_s: float = 0.002) -> Profiler:
    """Frames of four equal stages, 10 ms apart, from a clock that did not begin at zero."""
    profiler = Profiler()
    for frame in range(1, frames + 1):
        for i, stage in enumerate(STAGES):
            start = 5000.0 + 0.01 * frame + i * stage_s
            profiler.add(frame, stage, start, start + stage_s)
    return profiler


@settings(deadline=None)
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
    draw_profile(profile(50), tmp_path / "profile.png", "tiny", budget_ms=10.0)
    assert (tmp_path / "profile.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DreamloopError, match="cannot write the plot"):
        draw_profile(profile(1), tmp_path / "profile.nonsense")
    draw_profile(profile(3), tmp_path / "named")
    assert (tmp_path / "named").read_bytes().startswith(b"\x89PNG")  # under the very name that was asked for


def staged(frames: int) -> Profiler:
    """Frames in two stages, 10 ms apart: made in 6 ms on a thread, presented 10 ms after their input was read."""
    profiler = Profiler()
    for frame in range(1, frames + 1):
        start = 100.0 + 0.01 * frame
        profiler.add(frame, "input", start, start + 0.001)
        profiler.add(frame, "dynamics", start + 0.001, start + 0.006, "compute")
        profiler.add(frame, "wait", start + 0.006, start + 0.010, "waiting")
        profiler.add(frame, "present", start + 0.010, start + 0.012)
    return profiler


@pytest.mark.parametrize("make", [profile, staged])
def test_an_arrow_leads_from_every_input_to_the_frame_that_shows_it(make: Callable[[int], Profiler]) -> None:
    events = make(4).trace()["traceEvents"]
    spans = [e for e in events if e["ph"] == "X"]
    starts, ends = ({e["id"]: e for e in events if e["ph"] == kind} for kind in "sf")
    assert sorted(starts) == sorted(ends) == [1, 2, 3, 4]
    for frame, (start, end) in enumerate(zip(starts.values(), ends.values(), strict=True), start=1):
        assert (start["cat"], start["name"]) == (end["cat"], end["name"]) and end["bp"] == "e"
        for arrow, stage in ((start, "input"), (end, "present")):  # it binds to the span around it on that track
            span = next(e for e in spans if e["cat"] == stage and e["args"]["frame"] == frame)
            assert arrow["tid"] == span["tid"] and span["ts"] <= arrow["ts"] < span["ts"] + span["dur"]


def test_the_input_of_a_frame_that_was_not_decoded_is_shown_by_the_next_one_that_is() -> None:
    profiler = Profiler()
    for frame, last in enumerate(("present", "hold", "hold", "present", "hold"), start=1):
        profiler.add(frame, "input", frame, frame + 0.1)
        profiler.add(frame, last, frame + 0.5, frame + 0.6)
    assert [(read.frame, shown.frame) for read, shown in profiler.shown()] == [(1, 1), (2, 4), (3, 4), (4, 4)]


def check_trace(trace: dict[str, Any], tracks: set[str]) -> None:
    """Chrome's Trace Event Format, as far as it is used: nothing takes negative time, what overlaps on one track lies
    nested (else it is drawn wrongly), and every flow has one beginning and one later end, each within a slice."""
    events = trace["traceEvents"]
    assert {e["ph"] for e in events} <= {"M", "X", "s", "f"} and trace["displayTimeUnit"] == "ms"
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert set(names.values()) == tracks and all(e["tid"] in names for e in events if e["ph"] != "M")
    slices = [(e["tid"], *(round(1000 * t) for t in (e["ts"], e["ts"] + e["dur"]))) for e in events if e["ph"] == "X"]
    assert slices and all(0 <= start <= stop for _, start, stop in slices)
    for tid in names:
        open_until: list[int] = []
        for _, start, stop in sorted((s for s in slices if s[0] == tid), key=lambda s: (s[1], -s[2])):
            while open_until and open_until[-1] <= start:
                open_until.pop()
            assert not open_until or stop <= open_until[-1]
            open_until.append(stop)
    flows: dict[int, list[dict[str, Any]]] = {}
    for event in (e for e in events if e["ph"] in "sf"):
        flows.setdefault(event["id"], []).append(event)
        at = round(1000 * event["ts"])
        assert any(tid == event["tid"] and start <= at <= stop for tid, start, stop in slices)
    assert flows
    for begin, end in flows.values():
        assert (begin["ph"], end["ph"], end["bp"]) == ("s", "f", "e") and begin["ts"] <= end["ts"]
        assert (begin["cat"], begin["name"]) == (end["cat"], end["name"])


def test_traces_are_sound() -> None:
    check_trace(profile(5).trace(), {"frame loop"})
    check_trace(staged(5).trace(), {"frame loop", "compute", "waiting"})


@pytest.mark.parametrize("pipelined", [False, True])
def test_the_trace_of_a_real_run_is_sound(world: World, folder: Path, tmp_path: Path, pipelined: bool) -> None:
    path = tmp_path / "trace.json"
    options = ["--pipelined"] if pipelined else []
    assert main(["profile", str(folder), "--frames", "120", "--trace", str(path), "--threads", "1", *options]) == 0
    trace = json.loads(path.read_text("utf-8"))
    check_trace(trace, {"frame loop", "compute", "waiting"} if pipelined else {"frame loop"})
    assert sum(event["ph"] == "s" for event in trace["traceEvents"]) == 120


# -- two profiles ----------------------------------------------------------------------------------------


def saved(path: Path, seed: int, dynamics_ms: float, frames: int = 300) -> Path:
    """A profile of frames whose dynamics take about `dynamics_ms` and whose decoding takes about 2."""
    profiler, random = Profiler(), np.random.default_rng(seed)
    for frame in range(frames):
        for stage, ms in (("dynamics", dynamics_ms), ("decode", 2.0)):
            profiler.add(frame, stage, 0.0, ms * random.uniform(0.95, 1.05) / 1000)
    path.write_text("a table\n" + json.dumps({"world": "tiny", "stages": profiler.summary()}) + "\n", "utf-8")
    return path


def test_a_comparison_tells_a_change_from_noise(tmp_path: Path) -> None:
    a, b = saved(tmp_path / "a", 1, 4.0), saved(tmp_path / "b", 2, 6.0)
    rows = compare(load_profile(a), load_profile(b))
    assert rows["dynamics"]["differs"] is True and rows["dynamics"]["ratio"] == pytest.approx(1.5, rel=0.02)
    assert rows["decode"]["differs"] is False and rows["decode"]["ratio"] == pytest.approx(1.0, rel=0.02)
    back = compare(load_profile(b), load_profile(a))
    assert back["dynamics"]["differs"] is True and back["dynamics"]["b_p99_ms"] == rows["dynamics"]["a_p99_ms"]


def test_a_comparison_says_where_it_cannot_tell(tmp_path: Path) -> None:
    short, whole = saved(tmp_path / "a", 1, 4.0, frames=PARTS - 1), saved(tmp_path / "b", 2, 6.0)
    rows = compare(load_profile(short), load_profile(whole))
    assert rows["dynamics"]["differs"] is None and rows["dynamics"]["ratio"] == pytest.approx(1.5, rel=0.05)
    other = {"stages": {"reset": {"p50_ms": 1.0, "p99_ms": 2.0}}}
    assert compare(load_profile(whole), other)["reset"] == {
        "a_p50_ms": None, "b_p50_ms": 1.0, "a_p99_ms": None, "b_p99_ms": 2.0, "ratio": None, "differs": None}


@pytest.mark.parametrize("text", ["", "hello", "[1]", '{"stages": {}}', '{"stages": {"decode": 3}}', "[" * 100_000,
                                  '{"stages": {"decode": {"p50_ms": "1", "p99_ms": 2}}}',
                                  '{"stages": {"decode": {"p50_ms": 1, "p99_ms": NaN}}}',
                                  '{"stages": {"decode": {"p50_ms": 1, "p99_ms": 2, "p50_parts_ms": [null]}}}'])
def test_what_is_no_profile_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "a").write_text(text, "utf-8")
    with pytest.raises(DreamloopError, match="is not a profile"):
        load_profile(tmp_path / "a")
    with pytest.raises(DreamloopError, match="cannot read"):
        load_profile(tmp_path / "none")


# -- the price -------------------------------------------------------------------------------------------


def test_the_price_is_measured_over_the_spans_of_one_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `profile` reports as its cost is the time of exactly what a frame adds, nothing less."""
    profiler, added = profile(7), list[Span]()
    monkeypatch.setattr(Profiler, "add", lambda self, *span: added.append(Span(*span)))
    assert profiler.cost_ms(rounds=2, frames=3) > 0
    assert added == [span for span in profiler.spans if span.frame == 7] * 6
    assert Profiler().cost_ms() == 0


def test_a_frame_costs_well_under_one_percent() -> None:
    """Of a frame of 10 ms; the best of five rounds."""
    assert profile(1).cost_ms() < 0.1


def with_device(frames: int) -> Profiler:
    """`profile`, and of each frame what a device says it did while the host waited in `dynamics`: times as CUDA events
    give them, of a clock that has nothing to do with the host's."""
    profiler = profile(frames, stage_s=0.002)
    for frame in range(1, frames + 1):
        profiler.add_device(frame, [("inputs", 0.0, 0.1), ("network", 0.1, 1.5), ("decoder", 1.5, 1.9)],
                            seen_s=5000.0 + 0.01 * frame + 2 * 0.002)
    return profiler


def test_what_the_device_did_lies_inside_what_the_host_waited_for() -> None:
    stages = with_device(3).stages()
    for waited, inputs, network, decoder in zip(stages["dynamics"], stages["gpu inputs"], stages["gpu network"],
                                                stages["gpu decoder"], strict=True):
        assert waited.start_s < inputs.start_s and decoder.stop_s == pytest.approx(waited.stop_s, abs=1e-9)
        assert (network.ms, decoder.ms) == (pytest.approx(1.4, abs=1e-6), pytest.approx(0.4, abs=1e-6))
        assert inputs.stop_s == network.start_s and network.stop_s == decoder.start_s


def test_a_device_has_a_track_of_its_own_and_changes_no_other_figure() -> None:
    plain, both = profile(20), with_device(20)
    assert {name: row for name, row in both.summary().items() if not name.startswith("gpu ")} == plain.summary()
    events = both.trace()["traceEvents"]
    track = next(e["tid"] for e in events if e["name"] == "thread_name" and e["args"]["name"] == "gpu")
    assert {e["name"] for e in events if e["ph"] == "X" and e["tid"] == track} == {
        "gpu inputs", "gpu network", "gpu decoder"}
    assert any(e["name"] == "frame 7" for e in events)  # frames still enclose the stages of the host


class WithDevice(TimedEngine):
    """Tells what a device did in each frame, once it was asked to measure."""

    measuring = 0

    def measure_stages(self) -> None:
        self.measuring += 1

    def device_stages(self) -> list[tuple[str, float, float]]:
        return [("network", 0.0, 3.0), ("decoder", 3.0, 4.0)] if self.measuring else []


def test_a_loop_asks_an_engine_for_its_device_only_where_it_is_profiled(world: World) -> None:
    clock, profiler = FakeClock(), Profiler()
    for watched, measuring in ((None, 0), (profiler, 1)):
        engine = WithDevice(world, clock, [0.005] * 3)
        loop = FrameLoop(Session(world, engine), Script(clock), Screen(clock, 0.001), clock=clock, profiler=watched)
        assert len(list(loop.frames(3))) == 3 and engine.measuring == measuring
    stages = profiler.stages()
    assert [span.ms for span in stages["gpu network"]] == pytest.approx([3.0] * 3)
    for waited, decoder in zip(stages["dynamics"], stages["gpu decoder"], strict=True):
        assert decoder.stop_s == pytest.approx(waited.stop_s)  # seen when the host was done waiting


def test_what_measuring_builds_is_built_in_the_warm_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A captured graph is captured anew for it: not in a frame that counts."""
    done: list[str] = []
    step = TorchEngine.step
    monkeypatch.setattr(TorchEngine, "measure_stages", lambda self: done.append("measure"), raising=False)
    monkeypatch.setattr(TorchEngine, "device_stages", lambda self: [], raising=False)
    monkeypatch.setattr(TorchEngine, "step", lambda *given: (done.append("step"), step(*given))[1])
    play(world, PlayOptions(engine="torch", headless=True, frames=2), Profiler(), say=lambda _: None)
    first = done.index("measure")
    assert done[first + 1 :].count("step") >= 2 + 3  # building_frames of an engine with graphs


def test_a_frame_without_device_times_adds_nothing() -> None:
    profiler = profile(1)
    profiler.add_device(1, [], seen_s=5001.0)
    assert len(profiler.spans) == len(STAGES)
