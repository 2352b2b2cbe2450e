"""Probes of motion and sight: what they are taught is what the game says, and they learn it."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toys import toy_recipe

pytest.importorskip("vizdoom", reason="the real games: pip install 'dreamloop[games]'")

from dreamloop.models.core.errors import WorldError
from dreamloop.models.core.world import ZOO, load_world
from dreamloop.models.networks.inverse_dynamics import InverseDynamics, write_judge
from dreamloop.models.networks.probes import MOTION, SIGHT, load_probe, probe_spec, read_motion, read_sight
from dreamloop.models.training import probes
from dreamloop.models.training.data import Recording
from dreamloop.models.training.games import open_game
from dreamloop.models.training.judges import save_judge, train_judges
from dreamloop.models.training.recipes import recipe
from dreamloop.models.training.recording import play_episode, save_episode
from dreamloop.models.training.run import Run


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of the arena: three short training episodes and one that is held out."""
    folder = tmp_path_factory.mktemp("arena")
    with open_game("doom-arena") as game:
        for split, seeds in (("train", (1, 2, 3)), ("held_out", (1_000_000_001,))):
            (folder / split).mkdir()
            for seed in seeds:
                save_episode(folder / split / f"{seed}.safetensors", "doom-arena",
                             play_episode(game, game.players[0], seed, limit_frames=100))
    return folder


def test_episodes_played_again_are_those_that_were_recorded(arena: Path) -> None:
    data = Recording(arena, "train")
    frames, seen = probes.monsters_of("doom-arena", data, 150)
    assert len(frames) == 2, "as many episodes as it takes"
    for episode, pictures in enumerate(frames):
        np.testing.assert_array_equal(pictures, data.frames(episode, 0, int(data.lengths[episode])))
        assert seen[episode].shape == (len(pictures), 2)
    assert seen[0][:, 0].mean() > 0.5 and 0 < seen[0][:, 1].mean() < 1, "the arena is full, the crosshair not always"
    assert not (seen[0][:, 1] & ~seen[0][:, 0]).any()


def test_true_motion_is_what_the_held_key_does() -> None:
    with open_game("doom-maze") as game:
        view = game.reset(6)
        moves = {}
        for name in ("turn_left", "forward", "strafe_left"):
            views = [view] + [game.step(game.actions.vector({name})) for _ in range(8)]
            moves[name] = probes.true_motion({k: np.array([v.variables[k] for v in views]) for k in views[0].variables})
            for _ in range(60):
                view = game.step(game.actions.vector(None))  # until the player stands still
    assert moves["turn_left"].shape == (8, 3)
    assert moves["turn_left"][-1, 2] == pytest.approx(3.5, abs=0.1) and np.abs(moves["turn_left"][:, :2]).max() < 1
    assert moves["forward"][-1, 0] > 3 and np.abs(moves["forward"][:, 1:]).max() < 0.5
    assert moves["strafe_left"][-1, 1] > 3 and np.abs(moves["strafe_left"][:, [0, 2]]).max() < 0.5
    over = probes.true_motion({"heading": np.array([359.0, 1.0]), "x": np.zeros(2), "y": np.zeros(2)})
    assert over[0, 2] == 2.0, "past north is no full turn"


def test_stage_judges_teaches_the_probes_and_puts_them_beside_the_judge(arena: Path, tmp_path: Path,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()  # a clock that ticks once per step: as many steps on any machine
    monkeypatch.setattr("dreamloop.models.training.run.time", SimpleNamespace(monotonic=lambda: 0.1 * next(ticks)))
    torch.set_num_threads(1)
    monkeypatch.setattr(probes, "BATCH_CLIPS", 2)
    monkeypatch.setattr("dreamloop.models.training.judges.BATCH_CLIPS", 1)
    spec = toy_recipe(recipe("doom-arena")).spec
    run = Run(tmp_path / "run", "toy", "cpu", resume=False)
    data, held_out = Recording(arena, "train"), Recording(arena, "held_out")
    figures = train_judges(run, spec, data, held_out, seconds=2.4)
    assert figures.keys() >= {"balanced_accuracy", "motion_turn_35", "sight_crosshair"}
    save_judge(run, tmp_path / "judges")
    motion = load_probe(tmp_path / "judges", MOTION, spec.game, 120, 160)
    sight = load_probe(tmp_path / "judges", SIGHT, spec.game, 120, 160)
    assert motion is not None and sight is not None
    assert motion.figures["turn"] == pytest.approx(figures["motion_turn"], abs=1e-3)
    frames = held_out.frames(0, 0, 80)
    assert read_motion(motion, frames).shape == (79, 3)
    whole, parts = read_sight(sight, frames), read_sight(sight, frames[64:])
    np.testing.assert_array_equal(whole[64:], parts)  # one pair at a time: a clip's length is nothing to it


def test_a_probe_of_something_else_is_refused(tmp_path: Path) -> None:
    assert load_probe(tmp_path, SIGHT, "doom-arena", 120, 160) is None
    spec = probe_spec(SIGHT, "doom-arena", 120, 160)
    write_judge(tmp_path / SIGHT, spec, InverseDynamics(spec).state_dict(), {})
    assert load_probe(tmp_path, SIGHT, "doom-arena", 120, 160) is not None
    with pytest.raises(WorldError, match=r"probe sight is of doom-arena 160x120, expected doom-maze 160x120"):
        load_probe(tmp_path, SIGHT, "doom-maze", 120, 160)
    assert sum(path.stat().st_size for path in (tmp_path / SIGHT).iterdir()) < 300_000


@pytest.mark.parametrize("game", sorted(path.parent.name for path in (ZOO / "judges").glob("*/motion")))
def test_the_probe_that_ships_tells_a_turn_to_the_left_from_one_to_the_right(game: str) -> None:
    world = load_world(game)
    probe = load_probe(ZOO / "judges" / game, MOTION, game, world.spec.frame_height, world.spec.frame_width)
    assert probe is not None
    panned = {side: np.median([read_motion(probe, np.stack([np.roll(start, 4 * step * side, axis=1)
                                                            for step in range(8)]))[:, 2].mean()
                               for start in world.starts]) for side in (-1, 0, 1)}
    # to the left the picture goes to the right; 160 pixels are 90 degrees, 4 are some two
    assert panned[1] - panned[0] > 0.5 and panned[0] - panned[-1] > 0.5, panned
