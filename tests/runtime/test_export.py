"""`dreamloop export`: a folder that another program runs alone, refused where it would lose or mislead."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import oracle
import pytest
from worlds import tiny_world

from dreamloop.demos.cli import main
from dreamloop.models.core import conditioning, memory, noise, plan
from dreamloop.models.core.spec import PlanSpec
from dreamloop.runtime import export_example, export_readme
from dreamloop.runtime.engines import onnx_graph, open_engine

CASES = [*((form, "sinks_dilated_window_and_block_tail") for form in onnx_graph.FORMS), ("sparse", "window_plan"),
         ("portable", "two_noise_levels"), ("in_place", "patch_of_two_padded"), ("in_place", "window_only")]


def exported(tmp_path: Path, *options: str, overrides: dict[str, Any] | None = None, status: int = 0) -> Path:
    tiny_world(tmp_path / "world", **(overrides or {}))
    assert main(["export", str(tmp_path / "world"), "--to", "onnx", str(tmp_path / "out"), *options]) == status
    return tmp_path / "out"


def run_alone(folder: Path, tmp_path: Path, *options: str) -> str:
    """run.py of a copy of the folder, in a process that cannot import dreamloop."""
    alone = tmp_path / "alone"
    shutil.copytree(folder, alone)
    program = ("import sys, runpy; sys.modules['dreamloop'] = None; sys.argv = ['run.py', *sys.argv[1:]]; "
               "sys.path.insert(0, '.'); runpy.run_path('run.py', run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", program, *options], cwd=alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "in-place optimization not activated" not in done.stderr  # what ONNX Runtime says when it copies a ring
    return done.stdout


@pytest.mark.parametrize(("form", "scenario"), CASES)
def test_the_folder_alone_makes_the_frames_of_the_engine(tmp_path: Path, form: str, scenario: str) -> None:
    folder = exported(tmp_path, "--form", form, overrides=oracle.SCENARIOS[scenario])
    said = run_alone(folder, tmp_path, "--check")
    frames, difference = int(said.split()[0]), float(said.split()[-1])
    slots = json.loads((folder / "layout.json").read_text())["slots"]
    assert frames > 2 * slots and difference <= 1e-5  # past wrap-around; other noise would make it about 1


@pytest.mark.parametrize("form", onnx_graph.FORMS)
def test_in_int8_the_folder_makes_the_frames_of_the_engine_too(tmp_path: Path, form: str) -> None:
    """On a processor without VNNI as well: the products that ONNX Runtime would choose by itself overflow there."""
    folder = exported(tmp_path, "--form", form, "--precision", "int8")
    assert float(run_alone(folder, tmp_path, "--check").split()[-1]) <= 1e-5
    assert "session.x64quantprecision" in (folder / "README.md").read_text("utf-8")


def test_the_example_dreams_and_writes_a_picture(tmp_path: Path) -> None:
    folder = exported(tmp_path, "--precision", "fp16")
    assert "frame 100 with turn_left held" in run_alone(folder, tmp_path)
    assert (tmp_path / "alone" / "frame.ppm").read_bytes().startswith(b"P6 48 32 255\n")


def test_the_programs_in_the_readme_run(tmp_path: Path) -> None:
    folder = exported(tmp_path)
    program = (folder / "README.md").read_text("utf-8").split("```python\n")[1].split("```")[0]
    program += "assert picture.shape == (32, 48, 3) and picture.std() > 5 and player.frame == 100\n"
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_session_to_compare_with_has_dreamloops_own_noise(tmp_path: Path) -> None:
    """So a port is held to what a session with seed 0 shows, not to the example."""
    folder = exported(tmp_path)
    engine = open_engine(tiny_world(tmp_path / "again"), "torch", "fp64")
    state = engine.new_state(1)
    state.latent = np.load(folder / "start.npy")
    actions, noises, latents = (np.load(folder / "check" / f"{name}.npy") for name in ("actions", "noise", "latents"))
    for frame, (action, expected) in enumerate(zip(actions, latents, strict=True), start=1):
        drawn = noise.normal(0, frame, expected.size).reshape(expected.shape)
        assert np.array_equal(noises[frame - 1, 0], drawn)
        engine.step(state, action[None])
        assert np.max(np.abs(state.latent[0] - expected)) <= 1e-4


@pytest.mark.parametrize("scenario", ["sinks_dilated_window_and_block_tail", "sinks_clamped_early", "window_plan"])
def test_the_rules_of_the_example_are_those_of_dreamloop(tmp_path: Path, scenario: str) -> None:
    world = tiny_world(tmp_path, **oracle.SCENARIOS[scenario])
    spec, w = world.spec, export_readme.layout(world)
    held = [0] * spec.memory.slots
    for t in range(1, 120):
        assert export_example.slot_of(w, t) == memory.slot_of(spec.memory, t)
        held[memory.slot_of(spec.memory, t)] = t
        listed = plan.build_plan(spec, np.array([t]))
        blocks = listed.block_index[0, 0, 0, : listed.block_count[0, 0, 0]]
        assert export_example.read_slots(w, held, t) == sorted(set((blocks // spec.blocks_per_frame).tolist()))
    inputs = conditioning.pass_inputs(spec, np.array([50]), np.zeros(1, np.uint64), np.ones((1, 3), np.float32))
    angles = export_example.time_angles(w, 50) + export_example.space_angles(w)
    assert np.array_equal(np.cos(angles).astype(np.float32), inputs.cos[0])
    assert np.allclose(export_example.condition(w, np.ones(3), 0), inputs.condition[0], atol=1e-7)


def test_the_report_says_sizes_and_what_was_fused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = exported(tmp_path, "--json")
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads((folder / "report.json").read_text()) == {k: v for k, v in report.items() if k != "check"}
    assert report["form"] == "portable" and report["precision"] == "fp32" and report["engines"] == {}
    for kind, row in report["graphs"].items():
        assert row["bytes"] == (folder / f"{kind}.onnx").stat().st_size
        assert row["bytes"] >= report["fp32_weight_bytes"][kind] and row["runs"]
    assert report["graphs"]["step"]["fused"]["SimplifiedLayerNormalization"] >= 2
    said = {e.key: e.value for e in onnx.load(folder / "step.onnx").metadata_props}
    assert said["world_hash"] == report["world_hash"]


def test_a_graph_that_this_onnxruntime_cannot_run_is_exported_and_said_so(tmp_path: Path,
                                                                         capsys: pytest.CaptureFixture[str]) -> None:
    folder = exported(tmp_path, "--precision", "bf16", "--json")
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not report["graphs"]["step"]["runs"] and report["graphs"]["step"]["reason"]
    assert report["check_frames_made_by"] == "onnxruntime fp32" and (folder / "check" / "latents.npy").exists()


def test_check_passes_on_what_was_exported_and_fails_on_what_was_changed(tmp_path: Path,
                                                                        capsys: pytest.CaptureFixture[str],
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    folder = exported(tmp_path, "--check", "--frames", "12", "--json")
    report = json.loads(capsys.readouterr().out.splitlines()[-1])["check"]
    assert report["ok"] and 0 < report["worst_error"] <= report["bound"] and report["reference"] == "torch fp64"
    assert report["frames"] == 12 and 0 < report["p50_ms"] <= report["p99_ms"]
    assert json.loads((folder / "check.json").read_text())["ok"]

    from dreamloop.runtime import export
    lasting = export.export

    def spoilt(*args: Any) -> dict[str, Any]:
        done = lasting(*args)
        model = onnx.load(folder / "step.onnx")
        bias = next(w for w in model.graph.initializer if w.name == "dynamics.output.bias")
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 1, bias.name))
        onnx.save(model, folder / "step.onnx")
        return done

    monkeypatch.setattr(export, "export", spoilt)
    assert main(["export", str(tmp_path / "world"), "--to", "onnx", str(folder), "--check", "--frames", "3"]) == 1
    assert "ABOVE" in capsys.readouterr().out


def test_an_earlier_export_is_replaced_and_nothing_else_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = exported(tmp_path)
    (folder / "mine.txt").write_text("kept")
    exported(tmp_path, "--form", "sparse")
    assert json.loads((folder / "report.json").read_text())["form"] == "sparse"
    assert (folder / "mine.txt").read_text() == "kept" and not list(tmp_path.glob(".out.*"))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "step.onnx").write_text("not ours")
    assert main(["export", str(tmp_path / "world"), "--to", "onnx", str(foreign)]) == 2
    assert "not empty" in capsys.readouterr().err and (foreign / "step.onnx").read_text() == "not ours"


@pytest.mark.parametrize(("options", "message"), [
    (["--to", "tflite", "out"], "onnx, tensorrt, tensorrt-rtx"),
    (["--to", "onnx", "out", "--form", "round"], "portable, sparse, in_place"),
    (["--to", "onnx", "out", "--precision", "fp7"], "fp32"),
    (["--to", "onnx", "out", "--arch", "sm_89"], "--arch is for tensorrt"),
    (["--to", "onnx", "out", "--precision", "bf16", "--check"], "--check cannot run bf16"),
    (["--to", "onnx", "file"], "is a file"),
    (["--to", "onnx", "file/out"], "cannot write"),
    (["--to", "onnx"], "--to")], ids=lambda value: "_".join(value) if isinstance(value, list) else None)
def test_bad_options_are_one_line_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                    capsys: pytest.CaptureFixture[str], options: list[str],
                                                    message: str) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_world(tmp_path / "world", plan=PlanSpec())
    (tmp_path / "file").write_text("")
    try:
        status = main(["export", "world", *options])
    except SystemExit as left:  # argparse's way out
        status = int(str(left.code))
    said = capsys.readouterr().err
    assert status == 2 and message in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["portable", "sparse"])
def test_a_radial_plan_has_graphs_and_a_readme_and_no_program(tmp_path: Path, form: str) -> None:
    folder = exported(tmp_path, "--form", form, overrides=oracle.SCENARIOS["radial_plan"])
    assert not (folder / "run.py").exists() and "no run.py" in (folder / "README.md").read_text("utf-8")
    assert (folder / "step.onnx").exists() and (folder / "check" / "latents.npy").exists()


def test_a_plan_with_a_linear_branch_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported(tmp_path, overrides=oracle.WITH_LINEAR["linear_window"], status=2)
    assert "linear branch" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_plan_that_chooses_at_play_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported(tmp_path, overrides=oracle.CHOSEN_AT_PLAY["top_k"], status=2)
    assert "top_k" in capsys.readouterr().err and not (tmp_path / "out").exists()
