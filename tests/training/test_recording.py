"""Recordings of the real game: repeatable, resumable, balanced, and aligned with their actions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vizdoom", reason="the real game: pip install 'dreamloop[games]'")

from dreamloop.models.core.errors import GameError
from dreamloop.models.training.games import Game, open_game
from dreamloop.models.training.games.doom_players import FIGHTERS
from dreamloop.models.training.games.players import OPPOSITES
from dreamloop.models.training.recording import (
    HELD_OUT_SEED,
    Episode,
    load_episode,
    play_episode,
    record,
    save_episode,
)

GAME = "doom-arena"
PLAYERS = {player.name: player for player in FIGHTERS}
ARRAYS = ("frames", "actions", "objects")


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to stand in while the game runs: ViZDoom leaves its own files in the current one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("game"))
        yield Path.cwd()


@pytest.fixture(scope="module")
def game(elsewhere: Path) -> Iterator[Game]:
    with open_game(GAME) as opened:
        yield opened


@pytest.fixture(scope="module")
def recording(elsewhere: Path) -> tuple[Path, dict[str, float]]:
    """3,000 frames of training data, and what `record` says of them."""
    folder = elsewhere / "recording"
    return folder, record(GAME, folder, 3000)


def assert_equal(one: Episode, two: Episode) -> None:
    assert (one.seed, one.policy, len(one)) == (two.seed, two.policy, len(two))
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)
    assert list(one.variables) == list(two.variables)
    for name, values in one.variables.items():
        np.testing.assert_array_equal(values, two.variables[name], err_msg=name)


@pytest.mark.parametrize("policy", PLAYERS)
def test_same_seed_and_policy_give_the_same_episode(game: Game, policy: str) -> None:
    """Even with another episode in between, and in another process of the game."""
    first = play_episode(game, PLAYERS[policy], 11, 120)
    other = play_episode(game, PLAYERS[policy], 12, 120)
    assert not np.array_equal(first.actions[:100], other.actions[:100])
    assert_equal(first, play_episode(game, PLAYERS[policy], 11, 120))
    with open_game(GAME) as fresh:
        assert_equal(first, play_episode(fresh, PLAYERS[policy], 11, 120))


def test_an_episode_is_what_its_docstring_says(game: Game) -> None:
    episode = play_episode(game, PLAYERS["held_keys"], 3, 60)
    assert len(episode) == 60
    assert episode.frames.shape == (60, game.frame_height, game.frame_width, 3) and episode.frames.dtype == np.uint8
    assert episode.actions.shape == (60, game.actions.size) and episode.actions.dtype == np.float32
    assert episode.objects.shape == (60, game.frame_height, game.frame_width) and episode.objects.dtype == bool
    assert not episode.actions[0].any(), "no key led to the first frame"
    assert set(np.unique(episode.actions)) <= {0.0, 1.0}
    assert episode.objects.any() and episode.objects.mean() < 0.5, "monsters are in view, and small"
    assert len(np.unique(episode.frames[0])) > 20, "the frame is not a picture"
    assert (episode.frames[1:] != episode.frames[:-1]).any((1, 2, 3)).mean() > 0.5, "the game stands still"


@pytest.mark.parametrize(("button", "sign"), [("turn_left", 1), ("turn_right", -1)])
def test_the_frame_with_the_action_is_the_frame_that_turned(game: Game, button: str, sign: int) -> None:
    """actions[t] leads from frames[t-1] to frames[t]: the heading moves at the index of the key, not after."""
    view = game.reset(5)
    held = game.actions.vector({button})
    headings, pressed = [view.variables["heading"]], [0.0]
    for t in range(1, 40):
        press = 10 <= t < 20 or 25 <= t < 28
        view = game.step(held if press else game.actions.vector(None))
        headings.append(view.variables["heading"])
        pressed.append(float(press))
    turned = (np.diff(headings) + 180) % 360 - 180
    moved = np.sign(np.round(turned, 3))
    np.testing.assert_array_equal(moved, sign * np.array(pressed[1:]))


def test_recorded_actions_are_aligned_with_recorded_headings(recording: tuple[Path, dict[str, float]],
                                                             game: Game) -> None:
    left, right = (game.actions.names.index(name) for name in ("turn_left", "turn_right"))
    agree, one_late = [], []
    for path in sorted((recording[0] / "train").iterdir()):
        episode = load_episode(path)
        turned = (np.diff(episode.variables["heading"]) + 180) % 360 - 180
        wanted = episode.actions[:, left] - episode.actions[:, right]
        agree.append(np.sign(np.round(turned, 3)) == wanted[1:])
        one_late.append(np.sign(np.round(turned, 3)) == wanted[:-1])
    assert np.concatenate(agree).mean() > 0.99
    assert np.concatenate(one_late).mean() < 0.98, "too few changes of key to tell an alignment"


def test_an_episode_file_holds_the_episode(game: Game, tmp_path: Path) -> None:
    episode = play_episode(game, PLAYERS["mixed"], 21, 50)
    save_episode(tmp_path / "one.safetensors", GAME, episode)
    assert_equal(episode, load_episode(tmp_path / "one.safetensors"))
    assert [path.name for path in tmp_path.iterdir()] == ["one.safetensors"]


def test_record_says_what_it_wrote(recording: tuple[Path, dict[str, float]], game: Game) -> None:
    folder, report = recording
    episodes = [load_episode(path) for path in sorted((folder / "train").iterdir())]
    assert report["episodes"] == len(episodes)
    assert report["frames"] == sum(map(len, episodes)) >= 3000
    assert sum(map(len, episodes[:-1])) < 3000, "it went on after it had enough"
    assert {episode.policy for episode in episodes} == set(PLAYERS), "every policy takes its turn"
    actions = np.concatenate([episode.actions for episode in episodes])
    for i, name in enumerate(game.actions.names):
        assert report[f"held_{name}"] == pytest.approx(actions[:, i].mean(), abs=1e-3)


def test_every_button_is_held_often_and_released_often(recording: tuple[Path, dict[str, float]], game: Game) -> None:
    actions = np.concatenate([load_episode(path).actions for path in sorted((recording[0] / "train").iterdir())])
    for name, share in zip(game.actions.names, actions.mean(axis=0), strict=True):
        assert 0.05 <= share <= 0.9, name
    changes = np.abs(np.diff(actions, axis=0)).sum(axis=0)
    assert (changes > 30).all(), "a button is hardly ever pressed or released"
    assert (actions == 0).all(axis=1).mean() > 0.03, "hardly any idle time"
    assert (actions.sum(axis=1) >= 2).mean() > 0.03, "buttons are hardly ever held together"
    for pair in OPPOSITES:
        if set(pair) <= set(game.actions.names):
            both = [game.actions.names.index(name) for name in pair]
            assert (actions[:, both] == 1).all(axis=1).mean() < 0.05, pair


def test_a_recording_goes_on_where_it_stopped(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer frames first, more later: the first files are not touched, the result is that of one run."""
    played: list[int] = []

    def counted(*args: object) -> Episode:
        episode = play_episode(*args[:3], 40)  # type: ignore[arg-type]
        played.append(episode.seed)
        return episode

    monkeypatch.setattr("dreamloop.models.training.recording.play_episode", counted)
    folder = elsewhere / "resumed"
    record(GAME, folder, 80, seed=100)
    before = {path: path.stat().st_mtime_ns for path in (folder / "train").iterdir()}
    (folder / "train" / "0000000102.partial").write_bytes(b"half an episode")
    assert played == [100, 101]
    report = record(GAME, folder, 160, seed=100)
    assert played == [100, 101, 102, 103], "an episode was played twice, or a partial file was taken for one"
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert record(GAME, folder, 160, seed=100) == report and len(played) == 4
    at_once = record(GAME, elsewhere / "at-once", 160, seed=100)
    assert at_once == report
    for path in (folder / "train").glob("*.safetensors"):
        assert_equal(load_episode(path), load_episode(elsewhere / "at-once" / "train" / path.name))


def test_held_out_episodes_share_no_seed_with_training(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreamloop.models.training.recording.play_episode",
                        lambda game, player, seed: play_episode(game, player, seed, 20))
    folder = elsewhere / "splits"
    record(GAME, folder, 60)
    record(GAME, folder, 60, split="held_out")
    seeds = {split: {load_episode(path).seed for path in (folder / split).iterdir()} for split in ("train", "held_out")}
    assert len(seeds["train"]) == len(seeds["held_out"]) == 3
    assert max(seeds["train"]) < HELD_OUT_SEED <= min(seeds["held_out"])
    # the game knows 31 bits of a seed: the held-out ones must still be others there
    assert not {seed & 0x7FFFFFFF for seed in seeds["train"]} & {seed & 0x7FFFFFFF for seed in seeds["held_out"]}


@pytest.mark.parametrize("frames", [0, -3])
def test_no_frames_are_refused(tmp_path: Path, frames: int) -> None:
    with pytest.raises(GameError, match=f"frames={frames}"):
        record(GAME, tmp_path / "none", frames)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("seed", [-1, HELD_OUT_SEED, HELD_OUT_SEED - 5])
def test_a_seed_whose_episodes_could_be_held_out_ones_is_refused(tmp_path: Path, seed: int) -> None:
    with pytest.raises(GameError, match=f"seed={seed}"):
        record(GAME, tmp_path / "none", 10, seed=seed)
    with pytest.raises(GameError, match="split 'test'"):
        record(GAME, tmp_path / "none", 10, split="test")
    assert not (tmp_path / "none").exists()


def test_an_unknown_game_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(GameError, match=f"known: .*{GAME}"):
        record("no-such-game", tmp_path, 10)
