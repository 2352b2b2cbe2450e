"""The arcade: walk to the machine, play the dream, step back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from worlds import tiny_world

from dreamloop.models.core.world import World
from dreamloop.runtime import Session

pygame = pytest.importorskip("pygame", reason="the arcade is a pygame game")
from hands import down, up  # noqa: E402

from dreamloop.demos import arcade  # noqa: E402
from dreamloop.demos.scripted import ScriptedSource  # noqa: E402


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return tiny_world(tmp_path_factory.mktemp("worlds") / "tiny")


@pytest.fixture
def room(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[arcade.Arcade]:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    room = arcade.Arcade(world)
    pygame.event.get()
    yield room
    room.close()


def run(room: arcade.Arcade, frames: int) -> None:
    for _ in range(frames):
        room.update()
        room.draw()


def monitor(room: arcade.Arcade) -> np.ndarray:
    """What is drawn in the middle of the machine, (H, W, 3) uint8."""
    shown = pygame.surfarray.array3d(room.surface).transpose(1, 0, 2)
    return np.array(shown[275 - 40 : 275 + 40, arcade.MACHINE_X - 60 : arcade.MACHINE_X + 60])


def test_the_machine_dreams_while_nobody_plays(room: arcade.Arcade, world: World) -> None:
    with Session(world) as alone:
        script = ScriptedSource(world.spec.actions)
        for _ in range(8):
            run(room, 1)
            assert (room.dream == alone.step(script.read().action).pixels).all()
    before = monitor(room)
    run(room, 1)
    assert (monitor(room) != before).any()


def test_walking_up_taking_control_and_stepping_back(room: arcade.Arcade, world: World) -> None:
    down("KeyE")
    run(room, 1)
    assert not room.playing  # too far away
    down("KeyD")
    run(room, 80)
    up("KeyD")
    assert room.near and room.x > 500
    down("KeyE")
    run(room, 1)
    assert room.playing
    with room.session.branch() as alone:
        stood = room.x
        down("ArrowLeft", "Space")
        for _ in range(6):
            run(room, 1)
            assert (room.dream == alone.step({"turn_left", "attack"}).pixels).all()
        assert room.x == stood  # the keys are the dream's
        up("ArrowLeft", "Space")
        run(room, 1)
        assert (room.dream == alone.step().pixels).all()
    run(room, 60)
    assert room.zoom > 0.99
    assert room.keys.split("     ") == ["Left: turn left", "Right: turn right", "Space: attack", "Esc: back"]
    down("Escape")
    run(room, 1)
    assert room.open and not room.playing
    down("KeyA")
    run(room, 5)
    assert room.x < stood
    down("Escape")
    run(room, 1)
    assert not room.open


def test_it_runs_as_a_program(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                              capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    tiny_world(tmp_path / "tiny")
    assert arcade.main([str(tmp_path / "tiny"), "--frames", "3"]) == 0
    for wrong in (["nowhere"], ["--frames", "0"]):
        with pytest.raises(SystemExit) as left:
            arcade.main(wrong)
        assert left.value.code == 2 and capsys.readouterr().err.count("\n") == 1
