"""Every recipe rehearsed, and a game of the user's own: from the game to a world that plays, at toy size."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from toys import toy_recipe

pytest.importorskip("vizdoom", reason="the real games: pip install 'dreamloop[games]'")

from dreamloop.demos.cli import main
from dreamloop.models.core.world import load_world
from dreamloop.models.training import pipeline
from dreamloop.models.training.games import Game, gymnasium_game, open_game
from dreamloop.models.training.recipes import Recipe, own, recipes
from dreamloop.models.training.run import Run
from dreamloop.runtime import Session, evaluate as ev, evaluate_clips

CAR = "gymnasium:MountainCar-v0"


@pytest.fixture(autouse=True)
def small_and_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No compiler (it would take longer than all else), one thread, a folder of the test's own, and
    short judgements."""
    monkeypatch.setattr(Run, "compiled", lambda self, function: function)
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setattr(evaluate_clips, "STEPS", 1)
    monkeypatch.setattr(ev, "evaluate", partial(ev.evaluate, frames=20, episodes=2, engine="torch", threads=1))


@pytest.mark.parametrize("name", ["doom-corridor", pytest.param("doom-maze", marks=pytest.mark.long),
                                  pytest.param("doom-maze-hd", marks=pytest.mark.long), "pong"])
def test_a_recipe_makes_a_world_of_its_game(name: str, tmp_path: Path) -> None:  # doom-arena: test_pipeline.py
    if name == "pong":
        pytest.importorskip("ale_py", reason="Atari: pip install 'dreamloop[games]'")
    chosen = recipes()[name]
    with open_game(name) as game:
        assert (game.frame_height, game.frame_width, game.fps) == (
            chosen.spec.frame_height, chosen.spec.frame_width, chosen.spec.fps)
        assert game.actions == chosen.spec.actions
    folder = pipeline.train(toy_recipe(chosen), minutes=0.06, device="cpu", run_folder=tmp_path / "run")
    world = load_world(folder)
    assert chosen.spec.game in world.card and ("Freedoom" in world.card) == (name != "pong")
    report = ev.evaluate(world, judge=folder.parent / "judges" / name)
    assert report["psnr"]["16"] is not None and report["inverse_dynamics_real"] is not None
    assert set(report["state_error"]) == ({"ball", "player", "enemy"} if name == "pong" else {"heading", "position"})
    assert (report["events"] is not None) == ("attack" in chosen.spec.actions.names)
    if name == "pong":
        assert report["state_error"]["player"]["16"]["frames"] == 2 * 8


def test_a_game_of_ones_own_becomes_a_world_by_one_command(monkeypatch: pytest.MonkeyPatch,
                                                           capsys: pytest.CaptureFixture[str]) -> None:
    """The example of the README, and `play` on what it made."""
    def toy(name: str, game: Game) -> Recipe:
        return toy_recipe(own_recipe(name, game))

    own_recipe = own.own_recipe
    monkeypatch.setattr(own, "own_recipe", toy)
    monkeypatch.setattr(gymnasium_game, "EPISODE_FRAMES", 120)
    Path("rocking.py").write_text("def play(view, rng):\n"
                                  "    back = rng.random() < 0.2\n"
                                  "    return {'right' if (view.variables['observation_1'] > 0) != back else 'left'}\n")
    assert main(["train", "--game", CAR, "--policy", "rocking:play", "--minutes", "0.06", "--device", "cpu",
                 "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["path"] == "runs/mountaincar-v0/world" and report["psnr"]["16"] is not None
    world = load_world("runs/mountaincar-v0/world")
    assert (world.spec.game, world.spec.fps, world.spec.actions.names) == (CAR, 30, ("left", "right"))
    assert f"dreamloop train --game {CAR}" in world.card and "licence of its package" in world.card
    assert main(["play", "runs/mountaincar-v0/world", "--headless", "--frames", "3", "--hold", "left"]) == 0
    with Session(world, engine="onnxruntime") as session:
        assert session.step({"right"}).pixels.shape == (85, 128, 3)
    assert main(["evaluate", report["path"], "--frames", "20", "--episodes", "1"]) == 0, "a world knows its game"

    # again, from a recording that lies there, into another folder
    assert main(["train", "--game", CAR, "--recordings", "runs/mountaincar-v0/recording", "--minutes", "0.04",
                 "--device", "cpu", "--run-folder", "second"]) == 0
    assert not Path("second/recording").exists()
    assert json.loads(Path("second/run.json").read_text())["stages"]["record"]["train_episodes"] == 1
    assert main(["train", "--game", CAR, "--run-folder", "second"]) == 2
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "message"), [
    (["train"], "name a RECIPE or a --game"),
    (["train", "doom-arena", "--game", CAR], "name a RECIPE or a --game"),
    (["train", "--game", "gymnasium:Pendulum-v1"], "must be Discrete"),
    (["train", "--game", CAR, "--policy", "human"], "is for `dreamloop record`"),
    (["train", "--game", CAR, "--policy", "none:f"], "policy none:f"),
    (["train", "--game", CAR, "--recordings", "none"], "no train episodes in none"),
    (["record", CAR, "out", "--policy", "clever"], "no policy 'clever'"),
    (["record", "folder:none", "out"], "no folder none")])
def test_what_cannot_be_made_is_refused_in_one_line(arguments: list[str], message: str, tmp_path: Path,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
