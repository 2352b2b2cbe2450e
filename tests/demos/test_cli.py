"""The command line as a user meets it: JSON last, one line for what they can put right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from worlds import tiny_world

from dreamloop.demos.cli import main
from dreamloop.models.core.world import World
from dreamloop.runtime.engines import ENGINE_NAMES, engine_status

PLAY_KEYS = {"world", "engine", "precision", "frames", "fps", "p50_ms", "p95_ms", "p99_ms", "late_frames",
             "peak_rss_mb"}
MISSING = next(name for name in ("tensorrt", "tensorrt-rtx", "triton") if not engine_status(name).available)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worlds") / "tiny"
    tiny_world(folder)
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No display, and a current folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)


def last_json(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def test_headless_play_reports_and_writes_nothing(folder: Path, tmp_path: Path,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["play", str(folder), "--headless", "--frames", "20", "--json"]) == 0
    report = last_json(capsys)
    assert report.keys() >= PLAY_KEYS
    assert (report["world"], report["frames"]) == ("tiny", 20)
    assert 0 < report["p50_ms"] <= report["p95_ms"] <= report["p99_ms"]  # type: ignore[operator]
    assert report["fps"] > 0 and report["peak_rss_mb"] > 1  # type: ignore[operator]
    assert list(tmp_path.iterdir()) == []


def test_without_a_display_it_says_so_and_writes_a_video(folder: Path, tmp_path: Path,
                                                         capsys: pytest.CaptureFixture[str]) -> None:
    av = pytest.importorskip("av", reason="videos are written with PyAV")
    assert main(["play", str(folder), "--frames", "7"]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "no display" in line]
    assert len(said) == 1 and "dreamloop-tiny.mp4" in said[0]
    assert [path.name for path in tmp_path.iterdir()] == ["dreamloop-tiny.mp4"]
    with av.open("dreamloop-tiny.mp4") as video:
        assert sum(1 for _ in video.decode(video=0)) == 8  # the start frame, and seven dreamed ones


def test_an_action_log_names_all_that_made_the_frames(folder: Path, capsys: pytest.CaptureFixture[str],
                                                      tmp_path: Path) -> None:
    command = ["play", str(folder), "--headless", "--frames", "30", "--seed", "5", "--start", "1", "--actions"]
    assert main([*command, "a.ndjson"]) == 0 == main([*command, "b.ndjson"])
    header, *lines = (json.loads(line) for line in Path("a.ndjson").read_text("utf-8").splitlines())
    assert (header["world"], header["seed"], header["start"]) == ("tiny", 5, 1)
    assert len(header["world_hash"]) == 64 and header["engine"]
    assert header["actions"] == ["turn_left", "turn_right", "attack"]
    assert [line["frame"] for line in lines] == list(range(1, 31))
    assert all(len(line["action"]) == 3 for line in lines)
    assert len({tuple(line["action"]) for line in lines}) > 1
    again = [json.loads(line)["action"] for line in Path("b.ndjson").read_text("utf-8").splitlines()[1:]]
    assert again == [line["action"] for line in lines]


def test_held_actions_are_held(folder: Path) -> None:
    assert main(["play", str(folder), "--headless", "--frames", "3", "--hold", "turn_left,attack",
                 "--actions", "a.ndjson"]) == 0
    lines = [json.loads(line) for line in Path("a.ndjson").read_text("utf-8").splitlines()[1:]]
    assert [line["action"] for line in lines] == [[1.0, 0.0, 1.0]] * 3


def test_an_image_is_a_start(folder: Path, tmp_path: Path) -> None:
    pygame = pytest.importorskip("pygame", reason="images are read with pygame")
    pygame.image.save(pygame.surfarray.make_surface(np.full((30, 20, 3), 90, np.uint8)), "start.png")
    assert main(["play", str(folder), "--headless", "--frames", "2", "--start", "start.png", "--actions", "a"]) == 0
    assert "image_sha256" in json.loads(Path("a").read_text("utf-8").splitlines()[0])["start"]


def test_profile_covers_every_stage(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", str(folder), "--frames", "10", "--trace", "trace.json", "--json"]) == 0
    report = last_json(capsys)
    stages = report["stages"]
    assert isinstance(stages, dict) and list(stages) == ["input", "dynamics", "decode", "present", "frame"]
    assert all({"p50_ms", "p95_ms", "p99_ms", "worst_ms"} <= row.keys() and row["frames"] == 10
               for row in stages.values())
    assert len(json.loads(Path("trace.json").read_text("utf-8"))["traceEvents"]) == 2 + 50 + 20
    assert report["snapshot_ms"] > 0 and report["restore_ms"] > 0  # type: ignore[operator]
    assert report["profiler_percent"] > 0 and not report["pipelined"]  # type: ignore[operator]


def test_two_profiles_are_compared_stage_by_stage(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, options in (("a.json", []), ("b.json", ["--pipelined"])):
        assert main(["profile", str(folder), "--frames", "12", "--json", *options]) == 0
        Path(name).write_text(capsys.readouterr().out, "utf-8")
    assert main(["profile", "--compare", "a.json", "b.json", "--json"]) == 0
    said = capsys.readouterr().out
    report = json.loads(said.splitlines()[-1])
    assert list(report["stages"]) == ["input", "dynamics", "decode", "present", "frame", "wait"]
    assert report["differ_in"] == ["pipelined"] and "not of the same kind: pipelined" in said
    assert report["stages"]["wait"]["a_p50_ms"] is None and report["stages"]["decode"]["ratio"] > 0


def test_playing_in_two_stages_makes_the_same_frames(folder: Path) -> None:
    hashes = []
    for name, options in (("a", []), ("b", ["--pipelined"])):
        assert main(["play", str(folder), "--headless", "--frames", "12", "--actions", name, *options]) == 0
        hashes.append([json.loads(line)["hash"] for line in Path(name).read_text("utf-8").splitlines()])
    assert hashes[0] == hashes[1] and len(hashes[0]) == 13


def test_worlds_and_engines_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["worlds", "--json"]) == 0
    assert isinstance(last_json(capsys)["worlds"], list)
    assert main(["engines", "--json"]) == 0
    report = last_json(capsys)
    assert {*report["available"], *report["unavailable"]} == set(ENGINE_NAMES)  # type: ignore[misc]
    assert all(report["unavailable"].values())  # type: ignore[attr-defined]


BAD = {
    "frames below one": (["play", "TINY", "--headless", "--frames", "-3"], "--frames: -3 must be 1 or more"),
    "frames not a number": (["play", "TINY", "--frames", "many"], "--frames: 'many' is not a whole number"),
    "unknown verb": (["fly"], "fly"),
    "unknown option": (["play", "--fly"], "--fly"),
    "unknown world": (["play", "nowhere"], "no world 'nowhere'"),
    "unknown world to profile": (["profile", "nowhere"], "no world 'nowhere'"),
    "unknown world to evaluate": (["evaluate", "nowhere"], "no world 'nowhere'"),
    "a human to evaluate": (["evaluate", "pong", "--policy", "human"], "is for `dreamloop record`"),
    "unknown player to evaluate": (["evaluate", "pong", "--policy", "fast"], "no policy 'fast'"),
    "missing engine": (["play", "TINY", "--headless", "--engine", MISSING], f"engine {MISSING} is not available: "),
    "unknown engine": (["play", "TINY", "--headless", "--engine", "quantum"], "no engine 'quantum'"),
    "unknown precision": (["play", "TINY", "--headless", "--precision", "fp3"], "fp3"),
    "unknown action": (["play", "TINY", "--headless", "--hold", "fly"], "unknown action fly"),
    "held without headless": (["play", "TINY", "--hold", "attack"], "--headless"),
    "start beyond": (["play", "TINY", "--headless", "--start", "99"], "start=99"),
    "no such image": (["play", "TINY", "--headless", "--start", "none.png"], "none.png"),
    "start with a name that no file has": (["play", "TINY", "--headless", "--start", "9" * 5000], "no such image"),
    "not an image": (["play", "TINY", "--headless", "--start", "broken.png"], "not an image"),
    "not a video": (["play", "TINY", "--headless", "--record", "out.txt"], ".mp4"),
    "no such folder": (["play", "TINY", "--headless", "--record", "none/out.mp4"], "cannot write none/out.mp4"),
    "video and log in one": (["play", "TINY", "--headless", "--record", "a.mp4", "--actions", "./a.mp4"],
                             "cannot be both"),
    "begin from nowhere": (["train", "doom-arena", "--begin", "nowhere"], "no world 'nowhere'"),
    "log in no folder": (["play", "TINY", "--headless", "--actions", "none/a"], "cannot write none/a"),
    "trace in no folder": (["profile", "TINY", "--frames", "1", "--trace", "none/t"], "cannot write the trace none/t"),
    "trace in place of a folder": (["profile", "TINY", "--frames", "1", "--trace", "."], "cannot write the trace ."),
    "no such bindings": (["play", "TINY", "--headless", "--bindings", "none.toml"], "cannot read none.toml"),
    "no profile to compare": (["profile", "--compare", "none", "none"], "cannot read none"),
    "not a profile": (["profile", "--compare", "broken.png", "broken.png"], "broken.png is not a profile"),
    "compared and drawn": (["profile", "--compare", "a", "b", "--plot", "p.png"], "--compare plays nothing"),
    "verified and filmed": (["replay", "log", "--verify", "--record", "out.mp4"], "one at a time"),
    "more players than numbers": (["profile", "TINY", "--players", "1" + "0" * 30], "must be 1 to 65536"),
    "no minutes": (["train", "doom-arena", "--minutes", "0"], "--minutes: 0 must be above 0"),
    "truncated weights": (["play", "CUT", "--headless"], "cut"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_two(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                              case: str) -> None:
    arguments, message = BAD[case]
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no more")
    if "CUT" in arguments:
        tiny_world(tmp_path / "cut")
        weights = tmp_path / "cut" / "weights.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
    places = {"TINY": str(folder), "CUT": str(tmp_path / "cut")}
    try:
        status = main([places.get(a, a) for a in arguments])
    except SystemExit as left:  # argparse's way out
        status = left.code  # type: ignore[assignment]
    told = capsys.readouterr().err
    assert status == 2
    assert message in told and told.startswith("dreamloop") and told.count("\n") == 1


def test_a_failed_recording_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="videos are written with PyAV")
    assert main(["play", str(folder), "--headless", "--record", "out.mp4", "--actions", "none/a"]) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [["--record", "out.mp4"], ["--actions", "log"], ["--trace", "trace.json"]])
def test_a_full_disk_is_one_line_and_leaves_no_half_file(folder: Path, tmp_path: Path, options: list[str]) -> None:
    resource = pytest.importorskip("resource", reason="the size of files is bounded in POSIX's way")
    if options[0] == "--record":
        pytest.importorskip("av", reason="videos are written with PyAV")
    verb = ["profile", str(folder)] if options[0] == "--trace" else ["play", str(folder), "--headless"]
    done = subprocess.run([sys.executable, "-m", "dreamloop.demos.cli", *verb, "--frames", "60", *options],
                          capture_output=True, text=True, check=False,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048)))
    assert done.returncode == 2 and "cannot write" in done.stderr and f"{options[1]}: " in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == (["log"] if options[1] == "log" else [])


def test_help_of_every_verb_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("play", "profile", "evaluate", "replay", "record", "train", "export", "bindings", "worlds", "engines",
                 "doctor"):
        with pytest.raises(SystemExit) as left:
            main([verb, "--help"])
        assert left.value.code == 0
        assert f"Example: dreamloop {verb}" in capsys.readouterr().out


def test_playing_imports_neither_torch_nor_a_game(folder: Path) -> None:
    if not engine_status("onnxruntime").available:
        pytest.skip("onnxruntime is not installed")
    program = ("import sys; from dreamloop.demos.cli import main; "
               f"main(['play', {str(folder)!r}, '--headless', '--frames', '2', '--engine', 'onnxruntime']); "
               "print(sorted({'torch', 'vizdoom', 'gymnasium', 'matplotlib'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_pipe_sees_each_line_when_it_is_said(folder: Path) -> None:
    command = [sys.executable, "-m", "dreamloop.demos.cli", "play", str(folder), "--headless", "--frames", "100000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as playing:
        assert playing.stdout is not None
        assert playing.stdout.readline().startswith("tiny: 48x32")  # long before it is done
        assert playing.poll() is None
        playing.kill()


def test_a_reader_that_leaves_is_no_defect() -> None:
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "dreamloop.demos.cli", "engines"]
    with subprocess.Popen(command, stdout=writing, stderr=subprocess.PIPE, text=True) as listing:
        os.close(writing)
        os.close(reading)
        assert (listing.communicate()[1], listing.returncode) == ("", 141)


def test_the_module_runs_as_a_command(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "dreamloop.demos.cli", "play", str(folder / "none")],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr and done.stderr.count("\n") == 1


def test_a_defect_of_ours_keeps_its_traceback(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> World:
        raise ZeroDivisionError
    monkeypatch.setattr("dreamloop.models.core.world.load_world", broken)
    with pytest.raises(ZeroDivisionError):
        main(["play", str(folder), "--headless"])


def test_a_file_where_a_folder_should_be_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "taken"
    there.write_text("mine")
    assert main(["train", "doom-arena", "--run-folder", str(there), "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("dreamloop train: ") and said.count("\n") == 1 and str(there) in said
    assert there.read_text() == "mine"
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        assert main(["train", "doom-arena", "--run-folder", str(tmp_path / "run"), "--device", "cuda"]) == 2
        assert "no CUDA device" in capsys.readouterr().err and not (tmp_path / "run").exists()
