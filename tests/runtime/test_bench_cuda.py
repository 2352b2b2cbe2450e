"""`dreamloop bench --device cuda` rehearsed on a CPU at toy size: every section, what a failure leaves, and the
presets' own mathematics (grouped queries, cross attention). Its figures need a GPU; docs/gpu.md lists what was not
measured."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from worlds import tiny_world

from dreamloop.demos.cli import main
from dreamloop.models.core.spec import DynamicsSpec, MemorySpec, PlanSpec
from dreamloop.models.networks.dit import NORM_EPSILON, rms_norm
from dreamloop.runtime import bench_cuda as whole, bench_cuda_kernels as on_kernels, bench_cuda_steps as on_steps
from dreamloop.runtime.bench import largest_error, oracle_steps
from dreamloop.runtime.bench_cuda import PRESET_WINDOWS, SECTIONS, Run, _sweep
from dreamloop.runtime.bench_cuda_presets import (
    PRESETS,
    TOYS,
    PresetFrame,
    operations,
    random_weights,
    weight_shapes_of,
)
from dreamloop.runtime.engines.base import State
from dreamloop.runtime.engines.torch_engine import TorchEngine
from dreamloop.runtime.engines.triton_network import Network
from dreamloop.runtime.gpu import plain
from dreamloop.runtime.gpu.sizes import DevicePlan, Turns

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def plain_kernels() -> Iterator[None]:
    """Also where tests of the kernels have asked for interpreted ones: those take minutes for a rehearsal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)
        yield


@pytest.fixture(scope="module")
def rehearsal(plain_kernels: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a run at toy size leaves."""
    folder = tmp_path_factory.mktemp("bench")
    tiny_world(folder / "world", dynamics=DynamicsSpec(width=32, layers=1, heads=2, mlp_width=48))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        torch.set_num_threads(1)
        assert main(["bench", str(folder / "world"), "--toy", "--frames", "2", "--out", str(folder / "out"),
                     "--json"]) == 0
    return folder / "out"


def test_every_section_has_its_figures(rehearsal: Path) -> None:
    report = json.loads((rehearsal / "report.json").read_text("utf-8"))
    assert [name for name in SECTIONS if not report.get(name)] == ["splits"]
    assert {name for name in report["unavailable"] if "compile" not in name} == set()
    assert all(row["passed"] for row in report["kernels"].values())
    assert set(report["steps"]) == {"torch-eager-bf16", "triton-eager-bf16", "triton-bf16", "triton-bf16-qk8",
                                    "triton-fp8", "triton-fp8-qk8", "triton-fp32"}
    assert all(row["error_vs_oracle"] > 0 and row["p50_ms"] <= row["p99_ms"] for row in report["steps"].values())
    assert {row["density"] for row in report["sweep"]} == {0.25, 0.5, 1.0}
    assert all(row["int8_ms"] > 0 < row["int8_error"] < row["float8_error"] for row in report["sweep"])
    assert len(report["presets"]) == 6 and all("random" in row["weights"] for row in report["presets"].values())
    assert all(row["share_of_copy_limit"] > 0 for row in report["presets"].values())
    assert {"modulated_norm", "gate_residual", "gelu", "qkv_write"} < set(report["rows"])
    assert all(row["ms"] > 0 < row["share_of_copy_limit"] for row in report["rows"].values())
    assert all(row["tflops"] / report["limits"]["bf16"] == pytest.approx(row["share_of_limit"])
               for row in report["sweep"])
    assert list(report["players"]) == ["1", "2", "4"]
    assert all(0 < row["error_vs_oracle"] < 0.1 for row in (*report["players"].values(), report["latency_ms"]))
    assert "rehearsal" in report["device"]
    for name in ("sweep.png", "steps.png", "players.png"):
        assert (rehearsal / name).read_bytes().startswith(b"\x89PNG")


def test_a_section_that_fails_says_why_and_the_next_one_runs(tmp_path: Path) -> None:
    run = Run(tmp_path, {"device": "none"}, budget_s=60)

    def cut() -> None:
        run.put("steps", "first", {"p50_ms": 1.0})
        raise RuntimeError("out of memory\nand a long story")
    run.section("steps", cut)
    run.section("players", lambda: {"1": {"step_ms": 2.0}})
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert report["steps"] == {"first": {"p50_ms": 1.0}} and report["players"] == {"1": {"step_ms": 2.0}}
    assert report["unavailable"] == {"steps": "out of memory"}


def test_a_row_is_on_the_disk_before_the_next_one_begins(tmp_path: Path) -> None:
    run = Run(tmp_path, {}, budget_s=60)
    run.put("presets", "a", {"fps": 1.0})
    assert json.loads((tmp_path / "report.json").read_text("utf-8"))["presets"] == {"a": {"fps": 1.0}}
    run.put("presets", "b", {"unavailable": "too large"})
    assert json.loads((tmp_path / "report.json").read_text("utf-8"))["unavailable"] == {"presets: b": "too large"}


def test_a_sweep_that_is_cut_keeps_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(*_: object) -> Iterator[dict[str, float]]:
        yield {"density": 0.5}
        raise RuntimeError("out of memory")
    monkeypatch.setattr(on_kernels, "sweep_rows", rows)
    run = Run(tmp_path, {}, budget_s=60)
    run.section("sweep", lambda: _sweep(run, CPU, True))
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert report["sweep"] == [{"density": 0.5}] and report["unavailable"] == {"sweep": "out of memory"}


def test_nothing_begins_after_the_budget(tmp_path: Path) -> None:
    run = Run(tmp_path, {}, budget_s=0)
    run.section("steps", lambda: pytest.fail("began"))
    assert "budget" in run.report["unavailable"]["steps"]
    assert list(on_kernels.sweep_rows(on_kernels.TOY, CPU, torch.float32, False, run.left)) == []


def test_what_there_is_is_drawn_where_the_bench_is_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(run: Run, *_: object) -> None:
        run.put("steps", "triton-bf16", {"p50_ms": 1.0, "fps": 1000.0})
        raise KeyboardInterrupt
    drawn: list[dict[str, object]] = []
    monkeypatch.setattr(whole, "_measure", cut)
    monkeypatch.setattr(whole, "_plots", lambda report, folder: drawn.append(report))
    with pytest.raises(KeyboardInterrupt):
        whole.bench_cuda(tiny_world(tmp_path / "world"), str(tmp_path / "out"), "cpu", toy=True, budget_s=0)
    assert [report["steps"] for report in drawn] == [{"triton-bf16": {"p50_ms": 1.0, "fps": 1000.0}}]
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert report["steps"] == drawn[0]["steps"] and "plots" in report["seconds"]


def test_no_compilation_begins_that_could_not_end_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: dict[str, dict[str, object]] = {}
    monkeypatch.setattr(on_steps, "opened", lambda kind, *_: pytest.fail("began") if "compile" in kind else 1 / 0)
    on_steps.steps(tiny_world(tmp_path), "cpu", 3, False, {}, [], lambda: 100.0, rows.__setitem__)
    assert rows["triton-bf16"] == {"unavailable": "division by zero"}
    assert rows["torch-compile-bf16"] == {"unavailable": "no time was left"}


def test_a_kernel_is_held_to_its_twin_under_every_plan(tmp_path: Path) -> None:
    rows = on_kernels.verify_policies(tiny_world(tmp_path).spec, CPU)
    assert {name.split(", ")[1] for name in rows} == {"window", "radial", "top_k"}
    assert {"choose_blocks, top_k", "turn_sinks, window", "sparse_attention, radial"} <= set(rows)
    assert all(row["passed"] for row in rows.values()), rows


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: it would run")
def test_without_a_gpu_bench_says_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--device", "cuda", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip()
    assert "CUDA" in said and len(said.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_an_unknown_preset_and_a_bad_folder_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for more in (["--preset", "wan-99b"], ["--out", str(tmp_path / "file" / "out")], ["--sparse"],
                 ["--engines", "native"]):
        assert main(["bench", "--toy", *more]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_kernel_that_errs_does_not_pass(tmp_path: Path) -> None:
    world = tiny_world(tmp_path)

    class Wrong:
        """The plain kernels, one of which forgets the gate."""

        def __getattr__(self, name: str) -> object:
            return (lambda x, y, gate: x + y) if name == "gate_residual" else getattr(plain, name)
    rows = on_kernels.verify(world.spec, CPU, Wrong(), torch.float32)  # type: ignore[arg-type]
    assert [name for name, row in rows.items() if not row["passed"]] == ["gate_residual"]


def test_a_choice_of_blocks_is_held_to_the_hosts(tmp_path: Path) -> None:
    """Not to its twin: the GPU's kernels choose by the same torch operations."""
    spec = tiny_world(tmp_path, dynamics=DynamicsSpec(width=32, layers=1, heads=2, mlp_width=48)).spec
    spec = dataclasses.replace(spec, memory=MemorySpec(6), plan=PlanSpec("top_k", 0, 2, 2))

    class Wrong:
        """The plain kernels, but the least of all candidates are chosen, and a turn is a tenth of a degree off."""

        def choose_blocks(self, query: torch.Tensor, *more: Any) -> DevicePlan:
            return plain.choose_blocks(-query, *more)

        def rotations(self, *given: Any) -> Turns:
            turns = plain.rotations(*given)
            return dataclasses.replace(turns, store_sin=turns.store_sin + 1.7e-3)

        def __getattr__(self, name: str) -> object:
            return getattr(plain, name)
    rows = on_kernels.verify(spec, CPU, Wrong(), torch.float32)  # type: ignore[arg-type]
    assert {"choose_blocks", "rotations"} <= {name for name, row in rows.items() if not row["passed"]}


def test_a_kernel_that_cannot_run_leaves_the_others_their_rows(tmp_path: Path) -> None:
    world = tiny_world(tmp_path)

    class Lacking:
        """The plain kernels, two of which do not compile."""

        def __getattr__(self, name: str) -> object:
            def fail(*given: object) -> None:
                raise ValueError("no such tile\nand a long story")
            return fail if name in ("gate_residual", "qkv_write") else getattr(plain, name)
    rows = on_kernels.verify(world.spec, CPU, Lacking(), torch.float32)  # type: ignore[arg-type]
    assert {name: row["failed"] for name, row in rows.items() if not row["passed"]} == {
        "gate_residual": "no such tile", "qkv_write": "no such tile"}
    assert rows["ring"]["passed"] and rows["sparse_attention"]["error"] <= rows["sparse_attention"]["bound"]


def test_sections_that_are_not_asked_for_are_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = tiny_world(tmp_path / "world")
    report = whole.bench_cuda(world, str(tmp_path / "out"), "cpu", toy=True, sections=("limits", "kernels"))
    assert report["limits"] and report["kernels"] and not {"sweep", "presets", "steps"} & set(report)
    assert main(["bench", "--toy", "--sections", "limits,colours", "--out", str(tmp_path / "other")]) == 2
    assert "no section 'colours'; known: limits, kernels, " in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [1.1, torch.nan])
def test_an_attention_that_errs_is_not_timed(wrong: float) -> None:
    exact = torch.ones(1, 3, 2, 4)
    row = on_kernels.checked(partial(partial, torch.mul, exact, wrong), exact, 2e-2, CPU, "flex")
    assert "flex_ms" not in row and "is above 0.02" in row["flex_unavailable"]
    right = on_kernels.checked(partial(partial, torch.mul, exact, 1.01), exact, 2e-2, CPU, "flex")
    assert right["flex_ms"] >= 0 and right["flex_error"] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("block", [64, 128])
def test_tiles_of_flex_attention_divide_its_blocks(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Its own, on an H100 and for heads of 128, are of 128 queries and 64 keys."""
    tiles: dict[str, int] = {}

    def attention(q: torch.Tensor, *_: torch.Tensor, kernel_options: dict[str, int], **__: object) -> torch.Tensor:
        tiles.update(kernel_options)
        return q
    monkeypatch.setattr(torch, "compile", lambda *_, **__: attention)
    plan, g = on_kernels.random_plan(on_kernels.Sweep(130, 1, 16), block, 2, 1.0, CPU)
    on_kernels.flex_call(torch.zeros(1, 1, 130, 16), torch.zeros(2, 1, 1, 2 * g.stride, 16), plan, g)()
    assert block % tiles.get("BLOCK_M", 128) == block % tiles.get("BLOCK_N", 64) == 0


@pytest.mark.long
def test_flex_attention_reads_the_same_lists() -> None:
    """Compiled, for a CPU: run as it stands it applies the mask and not the lists."""
    sweep = on_kernels.Sweep(100, 2, 16)
    plan, g = on_kernels.random_plan(sweep, 64, 3, 0.5, CPU)
    layer, query = torch.randn(2, 1, 2, 3 * g.stride, 16), torch.randn(1, 100, 2, 16)
    exact = plain.sparse_attention(query, layer, plan, g)
    found = on_kernels.flex_call(query.transpose(1, 2).contiguous(), layer, plan, g)()
    assert float((found - exact).abs().max()) <= 1e-4 * float(exact.abs().max())


def test_an_attention_that_cannot_run_says_why() -> None:
    def make() -> partial[torch.Tensor]:
        raise RuntimeError("no such tile\nand a long story")
    row = on_kernels.checked(make, torch.ones(1), 1, CPU, "x")
    assert row == {"x_unavailable": "no such tile"}


class Mixing(TorchEngine):
    """Gives the second of two players the first one's frame."""

    def step(self, state: State, actions: np.ndarray, view_frames: int | None = None) -> None:
        super().step(state, actions, view_frames)
        state.latent[1:] = state.latent[0]


def test_an_operation_is_held_to_the_limit_of_its_own_format() -> None:
    flop, limits = {"qkv": 2e9, "attention": 3e9, "out": 1e9}, {"bf16": 1.0, "fp8": 2.0}
    assert on_steps.least_ms(flop, limits, "bf16") == pytest.approx(6.0)
    assert on_steps.least_ms(flop, limits, "fp8-qk8") == pytest.approx(5.0)  # of these, qkv alone is in FP8
    assert on_steps.least_ms(flop, limits, "fp32") is None and on_steps.least_ms(flop, {"bf16": 1.0}, "fp8") is None


def test_players_at_different_times_are_held_to_the_oracle_together(tmp_path: Path) -> None:
    world = tiny_world(tmp_path)
    history = oracle_steps(world)
    assert largest_error(TorchEngine(world), history, players=3) <= 1e-5
    assert on_steps.verified(Mixing(world), "fp32", history) <= 1e-5
    with pytest.raises(RuntimeError, match="against the float64 oracle"):
        on_steps.verified(Mixing(world), "fp32", history, players=2)


# -- presets -----------------------------------------------------------------------------------------------


def test_presets_have_the_sizes_that_their_names_promise() -> None:
    wan, waypoint = PRESETS["wan-1.3b"].spec, PRESETS["waypoint-1b"].spec
    of_wan, of_waypoint = (dataclasses.astuple(spec.dynamics)[:4] for spec in (wan, waypoint))
    assert of_wan == (1536, 30, 12, 8960) and of_waypoint == (2048, 24, 32, 8192)
    assert PRESETS["wan-1.3b"].text_keys == 512 and PRESETS["waypoint-1b"].text_keys == 0
    assert PRESET_WINDOWS == {"wan-1.3b": (7, 21), "waypoint-1b": (16,)}
    assert (wan.tokens, wan.dynamics.head_size, wan.frame_width, wan.frame_height) == (1560, 128, 832, 480)
    assert (waypoint.tokens, waypoint.dynamics.head_size, PRESETS["waypoint-1b"].key_heads) == (512, 64, 16)
    # linear products, cross attention and W frames of self attention, as docs/gpu.md adds them up
    assert sum(operations(PRESETS["wan-1.3b"].visible(7)).values()) == pytest.approx(7.2e12, rel=0.02)
    assert sum(operations(PRESETS["wan-1.3b"].visible(21)).values()) == pytest.approx(13.5e12, rel=0.02)
    in_bf16, in_fp8 = (PresetFrame(TOYS["wan-1.3b"], CPU, precision).read_bytes for precision in ("bf16", "fp8"))
    d = TOYS["wan-1.3b"].spec.dynamics
    assert in_bf16 - in_fp8 == d.layers * d.width * (3 * d.width + 2 * d.mlp_width)
    sizes = {name: sum(int(np.prod(shape)) for shape in weight_shapes_of(preset).values())
             for name, preset in PRESETS.items()}
    assert sizes["wan-1.3b"] == pytest.approx(1.3e9, rel=0.05)
    assert sizes["waypoint-1b"] == pytest.approx(1.1e9, rel=0.05)


def test_grouped_queries_are_repeated_keys() -> None:
    """Two key heads for four query heads give what four key heads give, of which two and two are alike."""
    preset = TOYS["waypoint-1b"]
    frame = PresetFrame(preset, CPU, "fp32")
    frame.network.kernels = plain
    d = preset.spec.dynamics
    weights = dict(random_weights(preset, CPU, torch.float32))
    for i in range(d.layers):
        whole = weights[f"blocks.{i}.qkv.weight"]
        q, k, v = whole.split((d.width, d.width // 2, d.width // 2))
        k, v = (x.unflatten(0, (2, d.head_size)).repeat_interleave(2, dim=0).flatten(0, 1) for x in (k, v))
        weights[f"blocks.{i}.qkv.weight"] = torch.cat([q, k, v])
    repeated = Network(preset.spec, weights, plain)
    ring = frame.ring.repeat_interleave(2, dim=3)
    expected = repeated(frame.latent, frame.noise, frame.action, 0, repeated.inputs(frame.frame), ring)
    assert float((frame.step() - expected).abs().max()) <= 1e-5


def test_cross_attention_reads_all_of_the_text() -> None:
    frame = PresetFrame(TOYS["wan-1.3b"], CPU, "fp32")
    network, text = frame.network, frame.text
    network.kernels = plain
    assert text is not None
    h = torch.randn(1, frame.spec.tokens, frame.spec.dynamics.width)
    cross = network.layers[1].cross
    assert cross is not None
    q = functional.linear(rms_norm(h), cross.query.weight).unflatten(-1, (network.heads, -1))
    q = functional.rms_norm(q, (network.head_size,), cross.gain, NORM_EPSILON).transpose(1, 2)
    read = functional.scaled_dot_product_attention(q, text.ring[1, 0], text.ring[1, 1]).transpose(1, 2).flatten(2)
    expected = functional.linear(read, cross.out.weight)
    assert float((network._cross(1, cross, h) - expected).abs().max()) <= 1e-5


@pytest.mark.parametrize("name", TOYS)
def test_a_decoder_makes_whole_frames_that_hang_on_the_frame_before(name: str) -> None:
    frame = PresetFrame(TOYS[name], CPU, "fp32")
    frame.eagerly()
    first = frame.pixels.clone()
    assert first.shape == (1, frame.spec.frame_height, frame.spec.frame_width, 3) and first.any()
    same = PresetFrame(TOYS[name], CPU, "fp32")
    same.eagerly()
    assert torch.equal(same.pixels, first)
    with torch.inference_mode():  # the same latent after another past
        assert not torch.equal(same.decoder(same.step()), first)
    assert int(frame.frame) == 1001


def test_a_captured_network_is_held_to_the_eager_one() -> None:
    latent, expected = torch.zeros(1, 4, 2, 2), torch.ones(1, 4, 2, 2)
    assert on_steps.same_network(expected.clone(), expected, latent) == 0
    for wrong in (expected * 1.1, expected * torch.nan):
        with pytest.raises(RuntimeError, match="the captured network differs"):
            on_steps.same_network(wrong, expected, latent)
