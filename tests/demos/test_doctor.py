"""The doctor: every check says what it found, and what is broken has advice."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from worlds import tiny_world

from dreamloop.demos import doctor as doctors
from dreamloop.demos.cli import main
from dreamloop.runtime.engines import ENGINE_NAMES, engine_status


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No display, no zoo, and fewer frames than a user would have timed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctors, "zoo_names", lambda: [])
    monkeypatch.setattr(doctors, "TIMED_FRAMES", 3)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)


def checked(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, dict[str, Any]], list[str]]:
    """(exit status, checks by name, lines printed)."""
    status = main(["doctor", *arguments, "--json"])
    *lines, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    assert report["ok"] == (status == 0)
    return status, {check["name"]: check for check in report["checks"]}, lines


def test_a_world_that_plays_is_ok(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    world = tiny_world(tmp_path / "tiny-with-a-long-name")
    status, checks, lines = checked(capsys, str(tmp_path / "tiny-with-a-long-name"))
    assert status == 0 and checks["world tiny-with-a-long-name"]["detail"].startswith(world.hash[:12])
    assert f"world tiny-with-a-long-name  {world.hash[:12]}" in lines[-1] + lines[-2]
    assert {f"engine {name}" for name in (*ENGINE_NAMES, "auto")} <= checks.keys()
    for name in ENGINE_NAMES:
        check, known = checks[f"engine {name}"], engine_status(name)
        assert known.reason.startswith(check["detail"]) and bool(check["advice"]) != known.available
        assert ("pip install" in known.reason) == check["advice"].startswith("pip install") or known.available
    assert "?" not in checks["packages"]["detail"]
    assert checks["display"]["status"] == "ok" and "dummy" in checks["display"]["detail"]
    assert len(lines) == len(checks) + sum(bool(check["advice"]) for check in checks.values())


def test_without_a_display_there_is_advice_and_no_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_world(tmp_path / "tiny")
    status, checks, _ = checked(capsys, str(tmp_path / "tiny"))
    assert status == 0
    assert checks["display"]["status"] == "note" and "DISPLAY" in checks["display"]["detail"]
    assert "video" in checks["display"]["advice"]


def test_a_broken_world_is_a_problem_and_the_others_are_checked_all_the_same(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cut", "whole"):
        tiny_world(tmp_path / name)
    weights = tmp_path / "cut" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    status, checks, lines = checked(capsys, str(tmp_path / "cut"), str(tmp_path / "whole"))
    assert status == 1
    assert checks["world cut"]["status"] == "problem" and checks["world cut"]["advice"]
    assert checks["world whole"]["status"] in ("ok", "note")
    assert any("world cut" in line for line in lines)


def test_no_world_at_all_is_a_problem(capsys: pytest.CaptureFixture[str]) -> None:
    status, checks, _ = checked(capsys)
    assert status == 1 and "dreamloop train" in checks["worlds"]["advice"]


def test_a_package_that_is_missing_is_named_with_its_install(capsys: pytest.CaptureFixture[str],
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    monkeypatch.delitem(sys.modules, "dreamloop.demos.screen", raising=False)
    status, checks, _ = checked(capsys)
    assert status == 1
    assert checks["packages"]["advice"] == "pip install pygame-ce"
    assert checks["display"]["status"] == "note" and "pygame" in checks["display"]["detail"]


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    _, checks, _ = checked(capsys)
    assert checks["cache"]["status"] == "note" and "XDG_CACHE_HOME" in checks["cache"]["advice"]
