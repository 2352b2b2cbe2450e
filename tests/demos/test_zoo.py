"""The list of worlds, the sheet of thumbnails, and packs from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pygame
import pytest
from worlds import tiny_world

from dreamloop.demos.cli import main
from dreamloop.models.core import world as worlds
from dreamloop.models.core.world import FIGURES_FILE


@pytest.fixture(autouse=True)
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoo of three: with figures of its weights, with those of others, and one that is damaged."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "zoo"
    for name, size in (("first", (32, 48)), ("second", (64, 48)), ("third", (32, 48))):
        made = tiny_world(folder / name, name=name, frame_height=size[0], frame_width=size[1])
        figures = {"assets": "drawn by hand", "evaluation": {
            "world_hash": made.hash if name == "first" else "0" * 64, "psnr": {"16": 21.25, "64": None},
            "drift": "nonsense", "frames": 1000}}
        (folder / name / FIGURES_FILE).write_text(json.dumps(figures))
    (folder / "third" / "world.json").write_text("{}")
    monkeypatch.setattr(worlds, "ZOO", folder)
    monkeypatch.setattr("dreamloop.demos.zoo.ZOO", folder)
    return folder


def last_json(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def test_worlds_lists_actions_speed_figures_and_licence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["worlds"]) == 0
    told = capsys.readouterr().out
    assert "35 frames a second  turn_left turn_right attack" in told
    assert told.count("21.2 dB at 16 frames after 1000 frames") == 1, "of the one whose weights they are"
    assert told.count("no figures of these weights") == 1 and told.count("learnt from drawn by hand") == 2
    assert "third" in told and "refused" in told
    assert main(["worlds", "--json"]) == 0
    rows = last_json(capsys)["worlds"]
    assert isinstance(rows, list)
    first, second, third = rows
    assert (first["figures"]["psnr"]["16"], first["assets"], first["fps"]) == (21.25, "drawn by hand", 35)
    assert second["figures"] is None and "error" in third


def test_the_sheet_shows_a_start_frame_of_every_world(zoo: Path) -> None:
    assert main(["worlds", "--sheet", "sheet.png"]) == 0
    sheet = pygame.image.load("sheet.png")
    assert sheet.get_width() == 16 + 2 * (320 + 16)
    for i, name in enumerate(("first", "second")):
        start = worlds.load_world(zoo / name).starts[1]
        tall = 320 * start.shape[0] // start.shape[1]
        for row, column in ((0, 0), (20, 30), (31, 47)):
            shown = sheet.get_at((16 + i * 336 + (2 * column + 1) * 320 // 96,
                                  16 + (2 * row + 1) * tall // (2 * start.shape[0])))
            assert tuple(shown)[:3] == tuple(start[row, column])


def test_pack_and_unpack(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", "first", "--json"]) == 0
    report = last_json(capsys)
    assert report["path"] == "first.dreamworld" and report["bytes"] == Path("first.dreamworld").stat().st_size
    assert main(["unpack", "first.dreamworld", "out", "--sha256", str(report["sha256"]), "--json"]) == 0
    assert last_json(capsys)["world"] == "first"
    assert main(["play", "out", "--headless", "--frames", "2"]) == 0


@pytest.mark.parametrize(("arguments", "message"), [
    (["worlds", "--sheet", "sheet.jpg"], "a sheet is a .png file"),
    (["worlds", "--sheet", "none/sheet.png"], "cannot write none/sheet.png"),
    (["pack", "nothing"], "no world 'nothing'"),
    (["pack", "third"], "third"),
    (["pack", "first", "none/f"], "cannot write none/f"),
    (["unpack", "nothing"], "nothing: No such file"),
    (["play", "hub:nobody"], "expected hub:owner/name")])
def test_what_cannot_be_done_is_said_in_one_line(arguments: list[str], message: str,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
