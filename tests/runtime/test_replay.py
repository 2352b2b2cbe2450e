"""Action logs: written by a loop, played again bit for bit, refused in one line."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bounds import bounded
from clocks import FakeClock
from worlds import random_frames

from dreamloop.demos import action_log
from dreamloop.demos.cli import main
from dreamloop.demos.replay import replay_log
from dreamloop.demos.scripted import ScriptedSource
from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.world import World
from dreamloop.runtime import Command, FrameLoop, Session, engine_status
from dreamloop.runtime.loop import Presented

ENGINE = "onnxruntime"
QUICK = "native" if engine_status("native").available else ENGINE  # opens in a millisecond, which makes counts cheap
MEMORY_CAP_BYTES = 100_000_000  # the longest line of a log, as text, as JSON and as numbers


class Script:
    """The given commands, then random keys."""

    def __init__(self, world: World, commands: Sequence[Command]) -> None:
        self.commands, self.rest = list(commands), ScriptedSource(world.spec.actions, seed=4)

    def read(self) -> Command:
        return self.commands.pop(0) if self.commands else self.rest.read()


def write_log(path: Path, world: World, commands: Sequence[Command] = (), frames: int = 20,
              start: int | np.ndarray = 1, engine: str = ENGINE) -> list[Presented]:
    with Session(world, engine, seed=5, start=start, threads=1) as session, \
            action_log.ActionLog(path, session, start) as log:
        loop = FrameLoop(session, Script(world, commands), log, clock=FakeClock())
        records = []
        for shown in loop.frames(frames):
            log.write(shown)
            records.append(shown)
    return records


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def every_event(world: World) -> list[Command]:
    steps = [Command({"attack"}), Command({"turn_left"}), Command()]
    return [*steps * 3, Command({"turn_right"}, save="quick"), *steps, Command(rewind=5), *steps,
            Command(advance=False, save="other"), Command(advance=False), *steps, Command(load="quick"), *steps,
            Command(load="other"), *steps, Command(reset=2), *steps, Command(rewind=1000), *steps,
            Command(reset=random_frames(world.spec, 1, seed=9)[0]), *steps]


def test_a_log_with_every_event_replays_bit_for_bit(world: World, folder: Path, tmp_path: Path) -> None:
    commands = every_event(world)
    records = write_log(tmp_path / "log", world, commands, frames=len(commands) + 20)
    said = lines(tmp_path / "log")
    assert len(said) == 1 + len(records)
    assert {key for line in said[1:] for key in line} >= {"action", "reset", "rewind", "save", "load", "hash"}
    assert [line["rewind"] for line in said[1:] if "rewind" in line] == [5, 3]
    report = replay_log(str(tmp_path / "log"), verify=True, world=str(folder))
    assert report["equal"] and report["frames"] == 1 + len(records) and not report["truncated"]


def test_an_image_to_start_from_lies_in_the_log(world: World, folder: Path, tmp_path: Path) -> None:
    write_log(tmp_path / "log", world, start=random_frames(world.spec, 1, seed=3)[0])
    assert replay_log(str(tmp_path / "log"), verify=True, world=str(folder))["equal"]


def test_the_first_different_frame_is_named(world: World, folder: Path, tmp_path: Path,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    write_log(tmp_path / "log", world)
    changed = (tmp_path / "log").read_text("utf-8").splitlines()
    entry = json.loads(changed[7])
    entry["action"][0] = 1.0 - entry["action"][0]
    changed[7] = json.dumps(entry)
    (tmp_path / "log").write_text("\n".join(changed) + "\n", "utf-8")
    status = main(["replay", str(tmp_path / "log"), "--verify", "--world", str(folder), "--json"])
    out = capsys.readouterr().out.splitlines()
    report = json.loads(out[-1])
    assert status == 1 and report["first_different_frame"] == 7 and not report["equal"]
    assert "frame 7 (line 8) differs" in out[0] and report["frames"] == 8


def test_frames_that_were_not_decoded_replay_by_their_actions(world: World, folder: Path, tmp_path: Path) -> None:
    clock = FakeClock()

    class Slow(Script):
        def read(self) -> Command:
            clock.spend(0.05)  # so that every frame is late
            return super().read()
    with Session(world, ENGINE, seed=5, threads=1) as session, \
            action_log.ActionLog(tmp_path / "log", session, 0) as log:
        loop = FrameLoop(session, Slow(world, []), log, 20.0, "degrade", clock)
        for shown in loop.frames(12):
            log.write(shown)
    said = lines(tmp_path / "log")[1:]
    assert [line.get("view") for line in said] == [None] + [2] * 11  # what gives way first
    assert [line["hash"] == "" for line in said] == [False] + [False, True] * 5 + [False]
    assert replay_log(str(tmp_path / "log"), verify=True, world=str(folder))["equal"]


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_a_log_cut_off_by_a_kill_counts_up_to_its_last_whole_line(world: World, folder: Path, tmp_path: Path,
                                                                  cut: int) -> None:
    write_log(tmp_path / "log", world)
    (tmp_path / "log").write_bytes((tmp_path / "log").read_bytes()[:-cut])
    report = replay_log(str(tmp_path / "log"), verify=True, world=str(folder))
    assert report["equal"] and report["truncated"] and report["frames"] == 20


def test_a_killed_process_leaves_every_line_that_was_written(folder: Path, world: World, tmp_path: Path) -> None:
    program = ("import os, signal; from dreamloop.demos.play import PlayOptions, play; "
               "from dreamloop.models.core.world import load_world; import dreamloop.demos.action_log as logs; "
               "write = logs.ActionLog.write\n"
               "def then_die(self, shown):\n"
               "    write(self, shown)\n"
               "    if shown.id == 15: os.kill(os.getpid(), signal.SIGKILL)\n"
               "logs.ActionLog.write = then_die\n"
               f"play(load_world({str(folder)!r}), PlayOptions(engine={ENGINE!r}, threads=1, headless=True, "
               f"frames=60, actions={str(tmp_path / 'log')!r}))")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    report = replay_log(str(tmp_path / "log"), verify=True, world=str(folder))
    assert report["equal"] and report["frames"] == 16


def test_replay_without_verify_records_a_video(world: World, folder: Path, tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="videos are written with PyAV")
    write_log(tmp_path / "log", world, frames=6)
    report = replay_log(str(tmp_path / "log"), world=str(folder), record=str(tmp_path / "out.mp4"))
    assert report["frames"] == 7 and "equal" not in report
    with av.open(str(tmp_path / "out.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 7


def test_a_state_from_before_the_log_is_asked_for(world: World, folder: Path, tmp_path: Path) -> None:
    with Session(world, ENGINE, seed=5, threads=1) as session, \
            action_log.ActionLog(tmp_path / "log", session, 0) as log:
        other = session.branch()
        for _ in range(9):
            other.step({"attack"})
        other.snapshot().save(tmp_path / "state")
        loop = FrameLoop(session, Script(world, [Command(), Command(load="quick")]), log, clock=FakeClock())
        loop.bookmarks["quick"] = other.snapshot()
        for shown in loop.frames(5):
            log.write(shown)
    with pytest.raises(DreamloopError, match=r"line 3: loads 'quick'.*--state"):
        replay_log(str(tmp_path / "log"), verify=True, world=str(folder))
    assert replay_log(str(tmp_path / "log"), verify=True, world=str(folder), state=str(tmp_path / "state"))["equal"]


def edited(path: Path, line: int, **changes: Any) -> None:
    said = lines(path)
    said[line].update(changes)
    path.write_text("".join(json.dumps({k: v for k, v in s.items() if v is not None}) + "\n" for s in said), "utf-8")


BROKEN = {
    "missing": (lambda path: path.unlink(), "cannot read"),
    "empty": (lambda path: path.write_bytes(b""), "line 1: is not a JSON object"),
    "a picture": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256))), "line 1: is not"),
    "other JSON": (lambda path: path.write_text("[1, 2]\n"), "line 1: is not a JSON object"),
    "another file of lines": (lambda path: path.write_text('{"name": 1}\n'), "not an action log"),
    "another version": (lambda path: edited(path, 0, log=2), "not an action log of this version"),
    "another world": (lambda path: edited(path, 0, world_hash="0" * 64), "is of world 'tiny' (000000000000), not of"),
    "no engine": (lambda path: edited(path, 0, engine=None), "no engine"),
    "another engine": (lambda path: edited(path, 0, engine={"engine": ENGINE, "precision": "fp32", "threads": 1}),
                       "made with builder 'None'"),
    "unknown engine": (lambda path: edited(path, 0, engine={"engine": "quantum"}), "no engine 'quantum'"),
    "threads beyond": (lambda path: edited(path, 0, engine={"engine": ENGINE, "threads": 100_000}),
                       "threads=100000 must be 1 to 64"),
    "seed beyond": (lambda path: edited(path, 0, seed=1 << 64), "line 1: seed is not"),
    "start beyond": (lambda path: edited(path, 0, start=9), "start=9"),
    "start image not there": (lambda path: edited(path, 0, start={"image_sha256": "0"}), "the log does not hold"),
    "start image broken": (lambda path: edited(path, 0, start={"image_sha256": "0", "image": "eJw="}), "start image"),
    "no action": (lambda path: edited(path, 3, action=None), "line 4: needs exactly one of"),
    "two kinds": (lambda path: edited(path, 3, rewind=1), "line 4: needs exactly one of"),
    "action too short": (lambda path: edited(path, 3, action=[0.0]), "line 4: action is not a list of 3"),
    "action of text": (lambda path: edited(path, 3, action=["a", 0, 0]), "line 4: action is not"),
    "action not finite": (lambda path: edited(path, 3, action=[float("nan"), 0, 0]), "line 4: action values must be"),
    "rewind below": (lambda path: edited(path, 3, action=None, rewind=-1), "line 4: rewind is not"),
    "rewind beyond": (lambda path: edited(path, 3, action=None, rewind=50), "before the history"),
    "load of nothing": (lambda path: edited(path, 3, action=None, load="x"), "line 4: loads 'x'"),
    "no hash": (lambda path: edited(path, 3, hash=None), "line 4: has no hash"),
    "a line in the middle cut": (
        lambda path: path.write_bytes(path.read_bytes().replace(b'{"frame": 5', b'"frame": 5')),
        "line 6: is not a JSON object"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_bad_log_is_one_line_and_status_two(world: World, folder: Path, tmp_path: Path, case: str,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    breaks, message = BROKEN[case]
    write_log(tmp_path / "log", world, frames=8)
    breaks(tmp_path / "log")
    assert main(["replay", str(tmp_path / "log"), "--verify", "--world", str(folder)]) == 2
    told = capsys.readouterr().err
    assert message in told and told.startswith("dreamloop replay: ") and told.count("\n") == 1


@pytest.mark.parametrize("form", ["sparse", "in_place"])
def test_a_log_is_replayed_on_the_form_that_it_was_made_on(tmp_path: Path, world: World, folder: Path,
                                                           form: str) -> None:
    log = str(tmp_path / "log.ndjson")
    assert main(["play", str(folder), "--headless", "--engine", ENGINE, "--form", form, "--threads", "1",
                 "--frames", "8", "--actions", log]) == 0
    assert f'"form": "{form}"' in Path(log).read_text().splitlines()[0].replace('":"', '": "')
    assert replay_log(log, verify=True, world=str(folder))["equal"]


def mutate_logs(world: World, folder: Path, path: Path, count: int) -> int:
    """How many of `count` mutated logs still replay in full."""
    commands = every_event(world)
    write_log(path, world, commands, frames=len(commands), engine=QUICK)
    data, random, whole = path.read_bytes(), np.random.default_rng(1), 0
    for _ in bounded(range(count), MEMORY_CAP_BYTES):
        changed = bytearray(data)
        for _ in range(int(random.integers(1, 4))):
            at = int(random.integers(0, len(changed)))
            if random.random() < 0.3:
                del changed[at : at + int(random.integers(1, 200))]
            else:
                changed[at] = int(random.integers(256))
        path.write_bytes(changed)
        try:
            whole += bool(replay_log(str(path), verify=True, world=str(folder))["equal"])
        except DreamloopError as error:
            assert str(error).isprintable() and len(str(error)) < 1000, repr(str(error))
    return whole


def test_mutated_logs_never_crash_and_take_little_memory(world: World, folder: Path, tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        assert mutate_logs(world, folder, tmp_path / "log", 25) < 25
        assert tracemalloc.get_traced_memory()[1] < MEMORY_CAP_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.long
def test_ten_thousand_mutated_logs_never_crash(world: World, folder: Path, tmp_path: Path) -> None:
    whole = mutate_logs(world, folder, tmp_path / "log", 10_000)
    print(f"{whole} replayed in full")
    assert whole < 1000


def replay_in_a_new_process(world: World, folder: Path, path: Path, frames: int) -> None:
    write_log(path, world, every_event(world), frames=frames)
    done = subprocess.run([sys.executable, "-m", "dreamloop.demos.cli", "replay", str(path), "--verify",
                           "--world", str(folder), "--json"], capture_output=True, text=True, check=True)
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["equal"] and report["frames"] == frames + 1


def test_a_log_replays_in_a_new_process(world: World, folder: Path, tmp_path: Path) -> None:
    replay_in_a_new_process(world, folder, tmp_path / "log", 200)


@pytest.mark.long
def test_ten_thousand_frames_replay_in_a_new_process(world: World, folder: Path, tmp_path: Path) -> None:
    replay_in_a_new_process(world, folder, tmp_path / "log", 10_000)
