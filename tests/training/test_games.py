"""The games of the recipes: their buttons do what their names say, their players play, their finders find."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vizdoom", reason="the real games: pip install 'dreamloop[games]'")

from dreamloop.models.training.games import Game, doom, open_game
from dreamloop.models.training.recording import play_episode


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("games"))
        yield Path.cwd()


@pytest.fixture(scope="module")
def maze(elsewhere: Path) -> Iterator[Game]:
    with open_game("doom-maze") as opened:
        yield opened


def moved(game: Game, name: str, frames: int = 12) -> tuple[float, float, float]:
    """How far a button, held from a start, moves the player: ahead, to the left, and by how many degrees."""
    view = game.reset(6)
    for _ in range(10):
        view = game.step(game.actions.vector(None))
    start = view.variables
    for _ in range(frames):
        view = game.step(game.actions.vector({name}))
    facing = np.radians(start["heading"])
    dx, dy = (view.variables[k] - start[k] for k in ("x", "y"))
    turned = (view.variables["heading"] - start["heading"] + 180) % 360 - 180
    return (dx * np.cos(facing) + dy * np.sin(facing), dy * np.cos(facing) - dx * np.sin(facing), turned)


@pytest.mark.parametrize("shrink", [1, 2, 4])
def test_a_smaller_picture_is_means_over_squares_and_its_marks_are_any_of_them(shrink: int) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (8 * shrink, 12 * shrink, 3), np.uint8)
    squares = picture.reshape(8, shrink, 12, shrink, 3).mean(axis=(1, 3))
    made = doom._shrunk(picture, shrink)
    assert made.dtype == np.uint8 and np.abs(made - squares).max() <= 0.5 and not np.shares_memory(made, picture)
    marks = rng.random((8 * shrink, 12 * shrink)) < 0.2
    np.testing.assert_array_equal(doom._shrunk(marks, shrink), marks.reshape(8, shrink, 12, shrink).any(axis=(1, 3)))


def test_the_six_buttons_of_movement_move_as_they_say(maze: Game) -> None:
    assert len(maze.actions.names) == 6
    way = {"forward": (0, 1), "backward": (0, -1), "strafe_left": (1, 1), "strafe_right": (1, -1),
           "turn_left": (2, 1), "turn_right": (2, -1)}
    for name in maze.actions.names:
        axis, sign = way[name]
        found = moved(maze, name)
        assert sign * found[axis] > 5, (name, found)


def test_an_explorer_gets_about_and_keeps_off_the_walls(maze: Game) -> None:
    """Against keys held at random: more ground covered, less time with nothing but a wall in view."""
    ground, walls = {}, {}
    for name in ("exploring", "held_keys"):
        player = next(p for p in maze.players if p.name == name)
        cells, near = set(), []
        for seed in range(4):
            policy = player.make(maze.actions, np.random.default_rng(seed))
            view = maze.reset(seed)
            for _ in range(600):
                view = maze.step(policy(view))
                if view.done:
                    break
                assert view.clearance is not None
                near.append(max(view.clearance) < 4)
                cells.add((seed, int(view.variables["x"]) // 48, int(view.variables["y"]) // 48))
        ground[name], walls[name] = len(cells), float(np.mean(near))
    assert ground["exploring"] > 1.3 * ground["held_keys"], ground
    assert walls["exploring"] < 0.15, walls


def test_in_the_corridor_all_seven_buttons_are_used_and_shots_are_seen(elsewhere: Path) -> None:
    with open_game("doom-corridor") as game:
        assert len(game.actions.names) == 7
        episodes = [play_episode(game, player, seed, 400) for seed, player in enumerate(game.players)]
    assert min(map(len, episodes)) > 80, "they live long enough to be judged at horizon 64"
    actions = np.concatenate([episode.actions for episode in episodes])
    assert (actions.mean(0) > 0.03).all() and (actions.mean(0) < 0.9).all()
    assert np.diff(np.concatenate([e.variables["ammo"] for e in episodes])).min() < 0, "somebody has fired"
    assert episodes[0].objects.any()


def test_pong_is_found_in_the_picture_where_its_memory_has_it() -> None:
    """The finder that reads dreams, against the console's memory on real frames."""
    pytest.importorskip("ale_py", reason="Atari: pip install 'dreamloop[games]'")
    from dreamloop.models.training.games.pong import COURT, PongGame
    with PongGame() as game:
        assert game.fps == 30
        player = game.players[-1].make(game.actions, np.random.default_rng(1))
        view = game.reset(3)
        same, away, paddles = [], [], []
        for _ in range(500):
            view = game.step(player(view))
            found, at = game.find(view.frame), view.variables
            ball = found["ball"]
            same.append((ball is not None) == bool(at["ball"]))
            if ball is not None and at["ball"]:
                away.append(max(abs(ball.x - at["ball_x"]), abs(ball.y - at["ball_y"])))
            for name in ("player", "enemy"):
                middle, seen = at[f"{name}_y"], found[name]
                if COURT.start + 4 <= middle <= COURT.stop - 4:  # more than its end sticks into the court
                    paddles.append(99.0 if seen is None else abs(seen.y - middle))
            assert view.objects.mean() < 0.02
            if at["ball"] and COURT.start < at["ball_y"] < COURT.stop:
                assert view.objects[int(at["ball_y"]) // 2, int(at["ball_x"]) // 2]
    assert np.mean(same) > 0.98 and len(away) > 150
    assert np.max(away) <= 2 and np.mean(np.array(paddles) <= 2) > 0.98
    assert game.find(np.full((105, 80, 3), (144, 72, 17), np.uint8)) == dict.fromkeys(("ball", "player", "enemy"))


def test_pong_obeys_its_keys_and_repeats_itself() -> None:
    pytest.importorskip("ale_py", reason="Atari: pip install 'dreamloop[games]'")
    with open_game("pong") as game:
        for name, sign in (("up", -1), ("down", 1)):
            before = game.reset(1).variables["player_y"]
            view = [game.step(game.actions.vector(None)) for _ in range(40)][-1]
            before = view.variables["player_y"]
            view = [game.step(game.actions.vector({name})) for _ in range(4)][-1]
            assert sign * (view.variables["player_y"] - before) > 4
        first, again = (play_episode(game, game.players[-1], 9, 60) for _ in range(2))
        other = play_episode(game, game.players[-1], 10, 60)
    np.testing.assert_array_equal(first.frames, again.frames)
    assert not np.array_equal(first.frames, other.frames)


def test_nothing_but_the_keys_says_where_pongs_paddle_goes() -> None:
    """The console reads keys at every second picture. Were episodes begun at any, half of them would answer a picture
    later than the others, which no frame shows."""
    pytest.importorskip("ale_py", reason="Atari: pip install 'dreamloop[games]'")
    with open_game("pong") as game:
        heights = []
        for seed in range(12):
            view = game.reset(seed)
            for key in (None,) * 70 + ("up",) * 5 + ("down",) * 9 + (None,) * 6 + ("up",) * 3:
                view = game.step(game.actions.vector({key} if key else None))
                heights.append(view.variables["player_y"])
    of_seed = np.array(heights).reshape(12, -1)[:, 70:]
    assert len(np.unique(of_seed, axis=0)) == 1 and np.ptp(of_seed) > 20


def test_a_lost_ball_is_served_again() -> None:
    """The recordings that show a dream the way back: a ball that goes anywhere in the court comes again, after as many
    frames as the console lets pass behind a point, or after exactly as many as the window has."""
    pytest.importorskip("ale_py", reason="Atari: pip install 'dreamloop[games]'")
    with open_game("pong") as game:
        plain, meddled = game.players[-1], next(player for player in game.players if player.meddle is not None)
        empty, went = {}, {}
        for player in (plain, meddled):
            episodes = [play_episode(game, player, seed, 1500) for seed in (0, 1)]
            np.testing.assert_array_equal(episodes[0].frames, play_episode(game, player, 0, 1500).frames)
            empty[player], went[player] = [], []
            for variables in (episode.variables for episode in episodes):
                edges = np.diff(variables["ball"])
                for gone in np.flatnonzero(edges < 0):
                    back = np.flatnonzero(edges[gone:] > 0)
                    if len(back) and back[0] > 1:  # one frame: it is hidden at the wall
                        empty[player].append(int(back[0]))
                        went[player].append(variables["ball_x"][gone])
    assert set(empty[plain]) == {31} and set(empty[meddled]) == {31, 36}
    assert 0.05 < np.mean(np.array(empty[meddled]) == 36) < 0.5
    # a point is made at the sides, within three frames' way; what is taken goes from anywhere
    assert np.all([x < 20 or x > 140 for x in went[plain]])
    assert np.mean([40 < x < 120 for x in went[meddled]]) > 0.3
