"""`dreamloop bench`: verified before timed, the keys that its readers use, figures that follow from the clock."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clocks import FakeClock, TimedEngine
from worlds import tiny_spec, tiny_world

from dreamloop.demos.cli import main
from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.memory import visible
from dreamloop.models.core.spec import DynamicsSpec, MemorySpec, PlanSpec, weight_shapes
from dreamloop.models.core.world import World
from dreamloop.runtime import (
    bench as benches,
    bench_limits as limits,
    bench_sparse as sparse,
    bench_worlds as worlds,
    kernels,
)
from dreamloop.runtime.engines.base import Engine

KEYS = {"p50_ms", "p95_ms", "p99_ms", "fps", "error_vs_oracle", "ratio", "dynamics_ms", "decode_ms"}
SMALL = ("native-fp32", "native-int8", "torch-eager-fp32", "onnxruntime-fp32", "onnxruntime-int8")
EXPECTED = [name for name in SMALL if not (name.startswith("native") and kernels.available())]


def test_the_verb_reports_every_engine_that_ran(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_world(tmp_path / "tiny")
    assert main(["bench", str(tmp_path / "tiny"), "--engines", ",".join(EXPECTED), "--frames", "5", "--threads", "1",
                 "--json"]) == 0
    said = capsys.readouterr().out.splitlines()
    report = json.loads(said[-1])
    assert set(report["engines"]) == set(EXPECTED) and report["unavailable"] == {}
    for name, row in report["engines"].items():
        assert row.keys() >= KEYS and 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["ratio"] > 0 and 0 <= row["error_vs_oracle"] < (0.2 if "int8" in name else 1e-4)
        assert ("share_of_limit" in row) == (kernels.available() is None)
        assert (name in report["operations"]) == ("pass_ms" in row) == name.startswith("native")
        assert any(line.startswith(name) for line in said)
    assert report["engines"]["torch-eager-fp32"]["ratio"] == 1


def test_an_engine_that_errs_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One weight off, as a wrong kernel would be; and a NaN must not pass for small."""
    world = tiny_world(tmp_path)

    def opened(value: float) -> Any:
        def open_wrong(world: World, threads: int) -> Engine:
            weights = {name: w.copy() for name, w in world.weights.items()}
            weights["dynamics.output.bias"][0] += value
            return benches.open_engine(World(world.spec, weights, world.starts, world.hash), "torch", "fp32", threads)
        return open_wrong

    for value in (0.1, np.nan):
        wrong = benches.Variant("wrong", "fp32", opened(value))
        monkeypatch.setitem(benches.VARIANTS, "wrong", wrong)
        report = benches.bench(world, "wrong", frames=2, threads=1)
        assert set(report["engines"]) == {"torch-eager-fp32"}
        assert "above the bound" in report["unavailable"]["wrong"]


def test_an_engine_that_cannot_run_is_listed_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = benches.Variant("missing", "fp32", lambda world, threads: benches.open_engine(world, "tensorrt"))
    monkeypatch.setitem(benches.VARIANTS, "missing", missing)
    report = benches.bench(tiny_world(tmp_path), "missing", frames=2, threads=1)
    assert "tensorrt" in report["unavailable"]["missing"] and "missing" not in report["engines"]


def test_openvino_is_listed_with_what_would_bring_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # its import fails, as where it is not installed
    report = benches.bench(tiny_world(tmp_path), "openvino", frames=1, threads=1)
    assert set(report["engines"]) == {"torch-eager-fp32"}
    assert "pip install 'dreamloop[openvino]'" in report["unavailable"]["openvino-fp32"]


def test_openvino_plays_what_the_oracle_plays(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed; it is an extra of its own")
    report = benches.bench(tiny_world(tmp_path), "openvino-fp32", frames=2, threads=1)
    assert report["unavailable"] == {} and report["engines"]["openvino-fp32"]["error_vs_oracle"] <= 1e-5


def test_an_unknown_variant_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(DreamloopError, match="'quantum'; known: all, native-fp32"):
        benches.bench(tiny_world(tmp_path), "quantum")


def test_figures_are_percentiles_of_whole_frames() -> None:
    times = np.stack([np.arange(1, 101) * 1e-3, np.full(100, 1e-3)], axis=1)
    row = benches.figures(times)
    assert row["p50_ms"] == 51.5 and row["p99_ms"] == pytest.approx(100.01) and row["fps"] == round(1e3 / 51.5, 2)
    assert row["dynamics_ms"] == 50.5 and row["decode_ms"] == 1


def test_operations_are_those_of_the_network() -> None:
    """Counted by hand for a world of one layer: 6 tokens, width 32, MLP 48, a memory of 3 frames."""
    spec = tiny_spec(dynamics=DynamicsSpec(width=32, layers=1, heads=2, mlp_width=48),
                     memory=MemorySpec(window_frames=3), plan=PlanSpec())
    assert spec.tokens == 6
    found = limits.pass_operations(spec)
    blocks = {"qkv": 2 * 6 * 32 * 96, "out": 2 * 6 * 32 * 32, "up": 2 * 6 * 32 * 48, "down": 2 * 6 * 32 * 48}
    assert {name: found[name] for name in blocks} == blocks
    assert found["attention"] == 2 * (2 * 6 * 18 * 32)
    assert found["input"] == 2 * 6 * 8 * 32 and found["output"] == 2 * 6 * 4 * 32
    own = sum(blocks.values()) + found["attention"]
    rest = sum(found.values()) - own
    rates = {"fp32": 1e9, "int8": 4e9}
    for precision in ("int8", "int8-static"):
        assert limits.least_seconds(spec, rates, precision) == pytest.approx(own / 4e9 + rest / 1e9)
    whole = limits.least_seconds(spec, rates, "int8", float_attention=True)
    assert whole == pytest.approx((own - found["attention"]) / 4e9 + (rest + found["attention"]) / 1e9)


@pytest.mark.parametrize(("plan", "keys"), [
    (PlanSpec(block_tokens=4), 6 * 60), (PlanSpec("window", 2, 4), 6 * 18),
    (PlanSpec("top_k", block_tokens=2, top_blocks=5), 6 * (2 * 6 + 5 * 2))], ids=lambda value: str(value)[:30])
def test_keys_are_those_that_the_plan_reads(plan: PlanSpec, keys: int) -> None:
    assert limits.keys_read(tiny_spec(memory=MemorySpec(window_frames=10), plan=plan)) == keys


def test_the_linear_branch_is_counted_by_hand() -> None:
    """Seven of ten frames of six tokens skipped by two rows of blocks; 32 wide, 16 a head; two layers."""
    plain, branched = (limits.pass_operations(tiny_spec(memory=MemorySpec(window_frames=10),
                                                        plan=PlanSpec("window", 2, 4, linear=linear)))
                       for linear in (False, True))
    assert branched == {**plain, "skipped": 2 * (2 * 32 * 16) * (7 * 6 + 2 * 7 * 2 + 2 * 6)}


def test_the_breakdown_is_medians_and_shares_of_them() -> None:
    spec = tiny_spec()
    flop = limits.pass_operations(spec)
    seconds = [{"norm": 1e-3 * i, "qkv": 2e-3 * i, "attention": 4e-3 * i} for i in (1, 2, 30)]
    rows = limits.breakdown(spec, seconds, {"fp32": 1e9, "int8": 4e9}, "int8")
    assert rows["norm"] == {"ms": 2.0}
    assert rows["qkv"]["ms"] == 4.0 and rows["qkv"]["share_of_limit"] == round(flop["qkv"] / 4e9 / 4e-3, 3)
    assert rows["attention"]["share_of_limit"] == round(flop["attention"] / 4e9 / 8e-3, 3)


@pytest.mark.skipif(kernels.available() is not None, reason="compares plans on the native engine")
def test_plans_are_verified_then_timed_window_by_window(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--sparse", "--windows", "2,12", "--frames", "2", "--threads", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["windows"] == [2, 12] and set(report["plans"]) == {"dense", "window", "radial", "top_k"}
    for plan in report["plans"].values():
        assert all(row["p50_ms"] > 0 and row["error_vs_oracle"] <= 1e-4 for row in plan["windows"].values())
        assert plan["growth"] == pytest.approx(
            plan["windows"]["12"]["p50_ms"] / plan["windows"]["2"]["p50_ms"], rel=0.01)
    keys = {name: plan["windows"]["12"]["keys"] for name, plan in report["plans"].items()}
    assert keys["dense"] == 12 * 80 and keys["window"] == 9 * 80 and keys["radial"] < keys["dense"]


def test_a_plan_that_errs_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "_error", lambda engine, state: float("nan"))
    if kernels.available():
        pytest.skip("compares plans on the native engine")
    with pytest.raises(DreamloopError, match="plan dense over 2 frames errs by nan"):
        sparse.bench_sparse((2,), frames=1, threads=1)


def test_presets_are_worlds_of_the_size_they_say(capsys: pytest.CaptureFixture[str]) -> None:
    world = worlds.preset("cpu-300")
    d = world.spec.dynamics
    assert (world.spec.tokens, d.width, d.layers, int(visible(world.spec.memory, 1 << 20).sum())) == (300, 384, 8, 8)
    assert (world.spec.frame_width, world.spec.frame_height) == (320, 240) == world.starts.shape[2:0:-1]
    assert {name: value.shape for name, value in world.weights.items()} == weight_shapes(world.spec)
    assert main(["bench", "--preset", "gpu-9000"]) == 2
    assert "known: cpu-300" in capsys.readouterr().err


def test_the_clock_is_read_around_each_half_of_a_frame(tmp_path: Path) -> None:
    clock = FakeClock()
    engine: Any = TimedEngine(tiny_world(tmp_path), clock, itertools.repeat(3e-3), decode_s=2e-3)
    times = benches.timed({"a": engine}, 4, clock.now)["a"]
    assert times == pytest.approx(np.tile([3e-3, 2e-3], (4, 1)))


def test_engines_take_turns_and_the_first_frames_of_a_turn_do_not_count(tmp_path: Path) -> None:
    clock, world = FakeClock(), tiny_world(tmp_path)
    slow = itertools.chain.from_iterable([*[1.0] * benches.SETTLING, *[3e-3] * benches.TURN] for _ in itertools.count())
    engines: Any = {"a": TimedEngine(world, clock, slow), "b": TimedEngine(world, clock, itertools.repeat(2e-3))}
    times = benches.timed(engines, 2 * benches.TURN, clock.now)
    assert times["a"][:, 0] == pytest.approx(np.full(2 * benches.TURN, 3e-3))
    assert times["b"][:, 0] == pytest.approx(np.full(2 * benches.TURN, 2e-3))
