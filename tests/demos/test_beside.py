"""The real game beside its dream: one action for both, one start for both."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from worlds import tiny_world

from dreamloop.demos.beside import GameBeside, SharedSource
from dreamloop.demos.cli import main
from dreamloop.models.core.world import World
from dreamloop.runtime import Command, FrameLoop, Session

pytest.importorskip("vizdoom", reason="the game beside the dream is ViZDoom")
pygame = pytest.importorskip("pygame", reason="the window is drawn with pygame")
from hands import down, up  # noqa: E402

from dreamloop.demos.player import Window  # noqa: E402
from dreamloop.models.training.games import open_game  # noqa: E402


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A tiny world of doom-arena's size, keys and game: its dream is noise, but everything around it is real."""
    return tiny_world(tmp_path_factory.mktemp("worlds") / "arena", name="arena", game="doom-arena",
                      frame_height=120, frame_width=160)


@pytest.fixture(scope="module")
def opened(world: World) -> Iterator[GameBeside]:
    with GameBeside(world, seed=3) as game:
        yield game


@pytest.fixture
def game(opened: GameBeside) -> GameBeside:
    opened._seed = 3
    opened.begin()
    return opened


class Keys:
    """A source with a list of commands."""

    def __init__(self, commands: list[Command]) -> None:
        self.commands = commands

    def read(self) -> Command:
        return self.commands.pop(0)


class Pictures:
    """A sink that remembers the game and the dream of every frame."""

    def __init__(self, game: GameBeside) -> None:
        self.game, self.seen = game, list[tuple[np.ndarray, np.ndarray]]()

    def present(self, frame: object) -> None:
        self.seen.append((self.game.frame, frame.pixels))  # type: ignore[attr-defined]

    def hold(self) -> None:
        pass


def test_both_take_every_action_once_and_start_over_together(world: World, game: GameBeside) -> None:
    left, shoot = np.array([1, 0, 0], np.float32), np.array([0, 0, 1], np.float32)
    commands = [Command({"turn_left"}), Command(advance=False), Command({"attack"}), Command(reset=2),
                Command({"turn_left"})]
    first = game.frame
    with Session(world, threads=1, start=first) as session:
        sink = Pictures(game)
        FrameLoop(session, SharedSource(Keys(commands), game), sink).run(4)
    with open_game("doom-arena") as alone, Session(world, threads=1, start=first) as dream:
        for seed, actions, shown in ((3, [left, shoot], sink.seen[:2]), (4, [None, left], sink.seen[2:])):
            view = alone.reset(seed)
            for _ in range(30):
                view = alone.step(np.zeros(3, np.float32))
            pixels = dream.reset(view.frame).pixels
            assert (pixels == view.frame).all()  # a dream begins with the game's own frame
            for action, (of_game, of_dream) in zip(actions, shown, strict=True):
                if action is not None:
                    view, pixels = alone.step(action), dream.step(action).pixels
                assert (of_game == view.frame).all() and (of_dream == pixels).all()


def test_a_game_that_is_over_stands_still_until_both_start_again(game: GameBeside) -> None:
    for _ in range(2200):
        game.step(np.zeros(3, np.float32))
    assert game.over
    last = game.frame
    game.step(np.ones(3, np.float32))
    assert game.frame is last
    assert not np.array_equal(game.begin(), last) and not game.over


def test_the_window_shows_both_and_does_not_go_back(world: World, game: GameBeside, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.chdir(tmp_path)
    window = Window(world, scale=2, beside=game)
    window.read()
    with Session(world, threads=1, start=game.frame) as session:
        loop = FrameLoop(session, SharedSource(window, game), window)
        window.attach(loop)
        window._hint_until = 0
        down("ArrowLeft")
        loop.run(3)
        shown = pygame.surfarray.array3d(pygame.display.get_surface()).transpose(1, 0, 2)
        assert shown.shape == (240, 648, 3)
        assert (shown[80::2, :320:2] == game.frame[40:]).all()
        assert (shown[80::2, 328::2] == session.render().pixels[40:]).all()
        down("Backspace", "F5", "KeyB")
        loop.run(2)
        assert session.index == 5 and "cannot go back" in window._toast and list(tmp_path.iterdir()) == []
        up("Backspace")
        down("KeyR")
        loop.run(1)
        assert session.index == 0 and (session.render().pixels == game.frame).all()
        window.read()
    window.close()


def test_the_verb_plays_both_and_films_both(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    av = pytest.importorskip("av", reason="videos are written with PyAV")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "arena"
    tiny_world(folder, name="arena", game="doom-arena", frame_height=120, frame_width=160)
    assert main(["play", str(folder), "--side-by-side", "--headless", "--frames", "5", "--record", "both.mp4",
                 "--actions", "log.ndjson", "--json"]) == 0
    with av.open("both.mp4") as video:
        assert (video.streams.video[0].width, video.streams.video[0].height) == (648, 240)
    assert main(["replay", "log.ndjson", "--verify", "--world", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["equal"]


@pytest.mark.parametrize(("fields", "options", "message"), [
    ({"game": "none"}, [], "unknown game 'none'"),
    ({"game": "doom-arena"}, [], "doom-arena is 160x120"),
    ({"game": "doom-arena", "frame_height": 120, "frame_width": 160}, ["--start", "1"], "leave --start out"),
    ({"game": "doom-arena", "frame_height": 120, "frame_width": 160}, ["--reanchor"], "leave --reanchor out")])
def test_what_cannot_stand_side_by_side_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                    fields: dict[str, object], options: list[str],
                                                    message: str) -> None:
    tiny_world(tmp_path / "tiny", **fields)
    assert main(["play", str(tmp_path / "tiny"), "--side-by-side", "--headless", *options]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1


def test_a_game_that_is_not_installed_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "vizdoom", None)
    monkeypatch.delitem(__import__("sys").modules, "dreamloop.models.training.games.doom", raising=False)
    tiny_world(tmp_path / "tiny", game="doom-arena", frame_height=120, frame_width=160)
    assert main(["play", str(tmp_path / "tiny"), "--side-by-side", "--headless"]) == 2
    told = capsys.readouterr().err
    assert "pip install 'dreamloop[games]'" in told and told.count("\n") == 1
