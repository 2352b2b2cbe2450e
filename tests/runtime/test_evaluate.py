"""Evaluation against its definitions: known errors, pooling, horizons, and a real game."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds import tiny_world

from dreamloop.models.core.errors import DreamloopError, WorldError
from dreamloop.models.core.world import World
from dreamloop.runtime import evaluate as ev, evaluate_clips, metrics
from dreamloop.runtime.engines import open_engine
from dreamloop.runtime.engines.base import State, empty_state

FRAMES = 20


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A tiny random world with the size and the buttons of the real game."""
    return tiny_world(tmp_path_factory.mktemp("world"), frame_height=120, frame_width=160, game="doom-arena")


@pytest.fixture(scope="module")
def truths() -> list[ev.Truth]:
    pytest.importorskip("vizdoom")
    from dreamloop.models.training.games import open_game
    with open_game("doom-arena") as game:
        return ev.play_game(game, game.players[-1], 2, FRAMES)


class Oracle:
    """An engine that plays back the game itself, `late` frames too late: what a perfect dream, and
    one that is off by `late`, must score. A latent holds (episode, frame of the episode)."""

    name, precision = "oracle", "exact"

    def __init__(self, world: World, truths: list[ev.Truth], late: int = 0) -> None:
        self.world, self.truths, self.late = world, truths, late
        self.known = {frame.tobytes(): (e, t) for e, truth in enumerate(truths) for t, frame in enumerate(truth.frames)}
        self.pressed: list[np.ndarray] = []

    def new_state(self, batch: int = 1) -> State:
        return empty_state(self.world.spec, np.zeros(batch), batch)

    def encode(self, frames: np.ndarray) -> np.ndarray:
        latents = np.zeros((len(frames), *self.world.spec.latent_shape), np.float32)
        for latent, frame in zip(latents, frames, strict=True):
            latent.flat[:2] = self.known[frame.tobytes()]
        return latents

    def step(self, state: State, actions: np.ndarray, view_frames: int | None = None) -> None:
        self.pressed.append(actions)
        state.latent = state.latent.copy()
        state.latent.reshape(state.batch, -1)[:, 1] += 1
        state.frame = state.frame + 1
        if state.frame[0] == ev.PRIMED_FRAMES:
            state.latent.reshape(state.batch, -1)[:, 1] -= self.late

    def decode(self, latents: np.ndarray) -> np.ndarray:
        places = latents.reshape(len(latents), -1)[:, :2].astype(int)
        return np.stack([self.truths[e].frames[min(t, len(self.truths[e].frames) - 1)] for e, t in places])

    def describe(self) -> dict[str, Any]:
        return {"engine": self.name}


def test_psnr_of_a_known_error_and_of_none() -> None:
    black, grey = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 51, np.uint8)
    assert metrics.squared_error(black, grey) == 51**2
    assert metrics.pooled_psnr(np.array([51.0**2])) == pytest.approx(20 * np.log10(255 / 51))
    assert metrics.pooled_psnr(np.array([0.0])) == metrics.PSNR_LIMIT_DB
    assert metrics.pooled_psnr(np.array([np.nan])) is None


def test_errors_are_pooled_before_the_logarithm() -> None:
    pooled = metrics.pooled_psnr(np.array([1.0, 99.0, np.nan]))
    assert pooled == pytest.approx(10 * np.log10(255**2 / 50))
    assert pooled != pytest.approx((10 * np.log10(255**2) + 10 * np.log10(255**2 / 99)) / 2)


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Of 200 samples of 24 episodes, about 95% give an interval that holds the true mean."""
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(200):
        found = metrics.interval(rng.normal(5.0, 2.0, 24), lambda values: float(values.mean()), resamples=200)
        assert found is not None and found[0] < found[1]
        hits += found[0] <= 5.0 <= found[1]
    assert 0.87 <= hits / 200 <= 0.99
    assert metrics.interval(np.array([1.0]), lambda values: 1.0) is None
    assert metrics.interval(np.zeros(9), lambda values: None) is None
    assert metrics.interval(np.full(9, 4.0), lambda values: float(values.mean())) == (4.0, 4.0)


def test_balanced_accuracy_counts_both_classes_alike() -> None:
    truth = np.array([True] * 2 + [False] * 8)
    assert metrics.balanced_accuracy(np.zeros(10, bool), truth) == 0.5
    assert metrics.balanced_accuracy(truth, truth) == 1.0
    assert metrics.balanced_accuracy(np.array([True, False] + [False] * 6 + [True] * 2), truth) == pytest.approx(0.625)
    assert metrics.balanced_accuracy(truth, np.ones(10, bool)) is None


def test_statistics_of_a_frame_with_known_answers() -> None:
    frame = np.zeros((4, 6, 3), np.uint8)
    frame[:, 3:] = 100  # one edge of 100 among five columns' differences, none among the rows'
    mean, spread, motion, gradient = metrics.frame_statistics(frame, np.full_like(frame, 10))
    assert (mean, spread, motion) == (50, 50, pytest.approx(50))
    assert gradient == pytest.approx((100 / 5 + 0) / 2)


def test_a_perfect_dream_has_no_error_and_no_drift(world: World, truths: list[ev.Truth]) -> None:
    oracle = Oracle(world, truths)
    dream = ev.run_dream(oracle, truths, FRAMES)
    for episode, truth in enumerate(truths):
        np.testing.assert_array_equal(dream.frames[episode], truth.frames[ev.PRIMED_FRAMES :])
    errors = ev.compare(oracle, truths, dream, ev.HORIZONS)
    figures = ev.quality(truths, dream, errors, ev.HORIZONS)
    assert figures["psnr"] == {"1": 100.0, "16": 100.0, "64": None, "256": None} == figures["psnr_ceiling"]
    assert figures["ssim"] == {"1": 1.0, "16": 1.0, "64": None, "256": None}
    assert figures["episodes_at"] == {"1": 2, "16": 2, "64": 0, "256": 0}
    assert ev.drift_at(truths, dream, FRAMES, FRAMES) == dict.fromkeys(metrics.STATISTICS, 1.0)


def test_every_dreamed_frame_gets_the_action_of_its_own_frame(world: World, truths: list[ev.Truth]) -> None:
    oracle = Oracle(world, truths)
    ev.run_dream(oracle, truths, FRAMES)
    given = np.stack(oracle.pressed, axis=1)  # (E, PRIMED_FRAMES - 1 + FRAMES, A)
    np.testing.assert_array_equal(given, np.stack([truth.actions[1:] for truth in truths]))


def test_a_dream_one_frame_late_is_found_out(world: World, truths: list[ev.Truth]) -> None:
    late = Oracle(world, truths, late=1)
    dream = ev.run_dream(late, truths, FRAMES)
    errors = ev.compare(late, truths, dream, ev.HORIZONS)
    figures = ev.quality(truths, dream, errors, ev.HORIZONS)
    assert figures["psnr"]["1"] == figures["psnr_copy_last"]["1"] < 50  # horizon 1 shows the last primed frame
    assert figures["psnr"]["16"] < 50
    assert figures["psnr_ceiling"]["16"] == 100.0


def test_an_episode_that_ends_early_is_left_out_of_far_horizons_only(world: World, truths: list[ev.Truth]) -> None:
    short = ev.Truth(truths[1].seed, truths[1].actions, truths[1].frames[: ev.PRIMED_FRAMES + 15],
                     truths[1].statistics[:15])
    pair = [truths[0], short]
    dream = ev.run_dream(Oracle(world, truths), pair, FRAMES)
    errors = ev.compare(Oracle(world, truths), pair, dream, (1, 15, 16))
    assert np.isnan(errors["dream"]).tolist() == [[False] * 3, [False, False, True]]


def test_the_game_plays_the_same_episode_again(truths: list[ev.Truth]) -> None:
    from dreamloop.models.training.games import open_game
    with open_game("doom-arena") as game:
        again = ev._play_episode(game, game.players[-1], truths[1].seed, FRAMES, keep=FRAMES)
    np.testing.assert_array_equal(again.frames, truths[1].frames)
    assert len({truth.seed for truth in truths}) == 2
    assert np.abs(truths[0].frames.astype(int) - truths[1].frames).max() > 0


def test_whoever_touches_no_key_is_judged_as_well(truths: list[ev.Truth]) -> None:
    from dreamloop.models.training.games import open_game
    from dreamloop.models.training.games.players import find_player
    with open_game("doom-arena") as game:
        looked_at = ev.play_game(game, find_player("idle"), 2, FRAMES)
    assert [truth.seed for truth in looked_at] == [truth.seed for truth in truths]
    assert not any(truth.actions.any() for truth in looked_at) and all(truth.actions.any() for truth in truths)
    np.testing.assert_array_equal(looked_at[0].frames[0], truths[0].frames[0])


def test_a_thing_that_a_dream_loses_is_drift(tmp_path: Path) -> None:
    pytest.importorskip("ale_py")
    from dreamloop.models.training.games.pong import PongGame

    class WithoutBall(Oracle):
        def decode(self, latents: np.ndarray) -> np.ndarray:
            frames = super().decode(latents).copy()
            for frame in frames:
                if (ball := game.find(frame)["ball"]) is not None:
                    row, column = int(ball.y) // 2, int(ball.x) // 2
                    frame[row - 4 : row + 5, column - 3 : column + 4] = frame[60, 2]  # the bare court
            return frames

    with PongGame() as game:
        assert ev._finder(game) is game
        truths = ev.play_game(game, game.players[-1], 1, ev.DRIFT_WINDOW)
        world = tiny_world(tmp_path / "pong", frame_height=105, frame_width=80, game="pong")
        for engine, balls in ((Oracle(world, truths), 1.0), (WithoutBall(world, truths), 0.0)):
            dream = ev.run_dream(engine, truths, ev.DRIFT_WINDOW, finder=game)
            drift = ev.drift_at(truths, dream, ev.DRIFT_WINDOW, ev.DRIFT_WINDOW, game)
            assert (drift["ball"], drift["player"], drift["enemy"]) == (balls, 1.0, 1.0)


def test_seeds_are_neither_training_nor_its_held_out_split() -> None:
    from dreamloop.models.training.recording import HELD_OUT_SEED
    assert HELD_OUT_SEED + 100_000_000 < ev.EVALUATION_SEED < 2**31 - 1_000_000  # ViZDoom takes 31 bits


@pytest.mark.parametrize(("asked", "window", "given"), [(None, 3, 16), (None, 20, 20), (5, 20, 5)])
def test_a_dream_is_given_as_many_real_frames_as_the_world_remembers(
        world: World, truths: list[ev.Truth], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: int | None,
        window: int, given: int) -> None:
    monkeypatch.setattr(evaluate_clips, "STEPS", 1)
    memory = dataclasses.replace(world.spec.memory, window_frames=window)
    longer = dataclasses.replace(world, spec=dataclasses.replace(world.spec, memory=memory))
    oracle = Oracle(longer, truths)

    def played(game: Any, player: Any, episodes: int, frames: int, primed: int) -> list[ev.Truth]:
        return [dataclasses.replace(truth, primed=primed) for truth in truths]

    monkeypatch.setattr(ev, "play_game", played)
    monkeypatch.setattr(ev, "play_turns", lambda *_: [])
    report = ev.evaluate(longer, engine=oracle, frames=10, primed=asked, judge=tmp_path / "none")
    assert report["primed_frames"] == given and len(oracle.pressed) == given - 1 + 10
    assert report["psnr"]["1"] == 100.0  # the frame after the last one that was given


def test_drift_is_measured_at_two_times_whichever_is_the_longer(world: World, truths: list[ev.Truth], tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ev, "COMPARED_FRAMES", 4)
    monkeypatch.setattr(ev, "DRIFT_WINDOW", 3)
    monkeypatch.setattr(ev, "play_game", lambda *_: truths)
    monkeypatch.setattr(ev, "play_turns", lambda *_: [])

    def judged(frames: int, drift_frames: int) -> dict[str, Any]:
        return ev.evaluate(world, engine=Oracle(world, truths), frames=frames, drift_frames=drift_frames,
                           judge=tmp_path / "none")

    early, late = judged(FRAMES, 10), judged(10, FRAMES)
    for one, other in ((early["drift"], late["drift_long"]), (late["drift"], early["drift_long"])):
        assert {**one, "frames": other["frames"]} == other, "each beside as much of the game"
        assert all(low <= one[name] <= high for name, (low, high) in one["interval"].items())
    assert early["drift"] != late["drift"]


@pytest.mark.parametrize(("name", "path", "message"), [
    ("plot", "none/a.png", "no such folder"), ("strip", "a.jpg", "ends in .png"), ("video", "a.mkv", "ends in .mp4"),
    ("plot", "folder.svg", "is a folder")])
def test_what_cannot_be_written_is_refused_before_anything_is_dreamed(world: World, tmp_path: Path, name: str,
                                                                      path: str, message: str) -> None:
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(DreamloopError, match=message):
        ev.evaluate(world, engine="no such engine", **{name: tmp_path / path})  # type: ignore[arg-type]


def test_evaluate_a_world_against_the_real_game(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vizdoom")
    monkeypatch.setattr(evaluate_clips, "STEPS", 1)
    plot, strip, video = tmp_path / "plot.png", tmp_path / "strip.png", tmp_path / "video.mp4"
    report = ev.evaluate(world, engine="torch", frames=FRAMES, episodes=1, threads=1, plot=plot, strip=strip,
                         video=video, judge=tmp_path / "none", drift_frames=FRAMES + 4)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["episodes"] == 1 and report["frames"] == FRAMES and report["engine"] == "torch"
    assert 0 < report["psnr"]["1"] < 40 and report["psnr"]["64"] is None
    assert 0 < report["psnr_ceiling"]["1"] < 40
    assert set(report["drift"]) == {"interval", *metrics.STATISTICS}
    assert set(report["drift_long"]) == {"frames", "interval", *metrics.STATISTICS}
    assert report["drift_long"]["frames"] == FRAMES + 4
    assert report["events"]["flash_shots"] is not None and report["clip_discriminator"]["8"] is None  # one episode
    assert report["lpips"] is None and "--lpips" in report["perceptual_note"]
    assert report["inverse_dynamics_real"] is None and "no judge" in report["inverse_dynamics_note"]
    for path in (plot, strip):
        assert path.read_bytes().startswith(b"\x89PNG")
    av = pytest.importorskip("av")
    with av.open(str(video)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(pictures) == FRAMES + 4 + 1
    left, right = np.split(pictures[0].astype(int), [pictures[0].shape[1] // 2], axis=1)
    assert np.abs(left[:, :-2] - right[:, 2:]).mean() < 3  # before the dream sets in both sides are the game


def test_a_judge_reads_a_perfect_dream_as_it_reads_the_game(world: World, truths: list[ev.Truth],
                                                            tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from dreamloop.models.networks.inverse_dynamics import InverseDynamics, JudgeSpec, write_judge
    torch.manual_seed(1)
    names = tuple(b.name for b in world.spec.actions.buttons)
    spec = JudgeSpec("doom-arena", 120, 160, names)
    judge = write_judge(tmp_path / "judge", spec, InverseDynamics(spec).state_dict(), {})
    figures = ev.inverse_dynamics(judge, truths, ev.run_dream(Oracle(world, truths), truths, FRAMES))
    assert figures["inverse_dynamics_real_per_button"] == figures["inverse_dynamics_dreamed_per_button"]
    assert list(figures["inverse_dynamics_real_per_button"]) == list(names)
    low, high = figures["inverse_dynamics_real_interval"]
    assert low <= figures["inverse_dynamics_real"] <= high
    late = ev.inverse_dynamics(judge, truths, ev.run_dream(Oracle(world, truths, late=3), truths, FRAMES))
    assert late["inverse_dynamics_real"] == figures["inverse_dynamics_real"] is not None

    found, note = ev._find_judge(world.spec, tmp_path / "judge")
    assert found is not None and found.hash == judge.hash and note == ""
    (tmp_path / "judge" / "judge.json").write_text("{}")
    with pytest.raises(WorldError, match="unknown or missing key"):
        ev._find_judge(world.spec, tmp_path / "judge")


def test_impossible_requests_are_refused_in_one_line(world: World, tmp_path: Path) -> None:
    with pytest.raises(DreamloopError, match="frames=-3 must be 1 or more"):
        ev.evaluate(world, frames=-3)
    with pytest.raises(DreamloopError, match="unknown game 'none'"):
        ev.evaluate(tiny_world(tmp_path / "no-game"), engine="torch")
    with pytest.raises(DreamloopError, match="frame height 32 differs from the game's 120"):
        ev.evaluate(tiny_world(tmp_path / "small", game="doom-arena"), engine="torch")


def test_the_dream_does_not_depend_on_which_frames_are_decoded(world: World, truths: list[ev.Truth]) -> None:
    some = ev.run_dream(open_engine(world, "torch", threads=1), truths, FRAMES)
    watched = ev.run_dream(open_engine(world, "torch", threads=1), truths, FRAMES, everything=True, watch=1)
    np.testing.assert_array_equal(some.frames, watched.frames)
    np.testing.assert_array_equal(watched.watched, watched.frames[1])
