"""What coming and going costs: counted in time that the test owns, and the verb."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from clocks import FakeClock, TimedEngine
from worlds import tiny_world

from dreamloop.demos.cli import main
from dreamloop.demos.profile_players import CHANGE_EVERY_FRAMES, changes, frame_times_ms
from dreamloop.models.core.world import World
from dreamloop.runtime.batch import BatchedSession


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return tiny_world(tmp_path_factory.mktemp("worlds") / "tiny")


def test_frames_around_a_change_stand_apart_and_somebody_always_stays(world: World,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass takes 10 ms, a join 4, a leaving 1; the frame after a change belongs to it."""
    clock, seats = FakeClock(), list[tuple[str, int]]()
    join, leave = BatchedSession.join, BatchedSession.leave

    def joined(game: BatchedSession, *args: Any) -> int:
        clock.spend(0.004)
        seats.append(("join", join(game, *args)))
        return seats[-1][1]

    def left(game: BatchedSession, seat: int) -> None:
        clock.spend(0.001)
        seats.append(("leave", seat))
        leave(game, seat)
    monkeypatch.setattr(BatchedSession, "join", joined)
    monkeypatch.setattr(BatchedSession, "leave", left)
    engine: Any = TimedEngine(world, clock, iter(lambda: 0.010, None))
    times = frame_times_ms(world, 3, engine, 40, clock=clock)
    assert times["joining"] == pytest.approx([14, 10, 14, 10])
    assert times["leaving"] == pytest.approx([11, 10, 11, 10])
    assert times["nobody"] == pytest.approx([10] * (40 - 8))
    assert seats[3:] == [("leave", 0), ("join", 0), ("leave", 1), ("join", 1)]
    report = changes({**times, "nobody": [*times["nobody"], 25.0]})
    assert (report["ratio"], report["ratio_without"]) == (1.4, 2.5)
    assert report["leaving"]["frames"] == 4 and report["joining"]["worst_ms"] == 14


def test_the_verb_prints_the_ratio(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_world(tmp_path / "tiny")
    assert main(["profile", str(tmp_path / "tiny"), "--players", "3", "--frames", "30", "--json"]) == 0
    said = capsys.readouterr().out
    report = json.loads(said.splitlines()[-1])
    worst = max(report[kind]["worst_ms"] for kind in ("leaving", "joining"))
    assert report["ratio"] == pytest.approx(worst / report["nobody"]["p50_ms"], rel=0.01)
    assert f"worst frame around a change: {report['ratio']:.2f} of the median" in said
    assert [report[kind]["frames"] for kind in ("nobody", "leaving", "joining")] == [24, 4, 2]


@pytest.mark.parametrize("options", [("--players", "1"), ("--frames", str(2 * CHANGE_EVERY_FRAMES - 1)), ("--window",),
                                     ("--pipelined",), ("--trace", "t.json"), ("--plot", "p.png")])
def test_what_players_cannot_be_asked_for_is_one_line(options: tuple[str, ...], tmp_path: Path,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    tiny_world(tmp_path / "tiny")
    try:
        status = main(["profile", str(tmp_path / "tiny"), "--players", "2", *options])
    except SystemExit as left:  # argparse's way out
        status = int(left.code or 0)
    told = capsys.readouterr().err
    assert status == 2 and told.startswith("dreamloop profile: ") and told.count("\n") == 1
