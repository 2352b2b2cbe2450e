"""A dream as a Gymnasium environment: Gymnasium's own checker, and what it does not check."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from worlds import tiny_spec, tiny_world

from dreamloop.models.core.spec import ActionSpec, Axis, Button
from dreamloop.models.core.world import World

gymnasium = pytest.importorskip("gymnasium", reason="environments are Gymnasium's")
from gymnasium.utils.env_checker import check_env  # noqa: E402

from dreamloop.demos import agent  # noqa: E402
from dreamloop.demos.environment import DreamEnvironment, action_space, register  # noqa: E402

OPTIONS = {"engine": "onnxruntime", "threads": 1}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return tiny_world(tmp_path_factory.mktemp("worlds") / "tiny")


@pytest.fixture(scope="module")
def identity(world: World, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("registered") / "tiny"
    tiny_world(folder)
    return register("tiny", str(folder))


def test_it_passes_gymnasiums_own_checker(identity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    environment = gymnasium.make(identity, render_mode="rgb_array", **OPTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(environment.unwrapped)
    environment.close()


def test_the_same_seed_and_actions_give_the_same_episode(identity: str) -> None:
    episodes = []
    for _ in range(2):
        environment = gymnasium.make(identity, **OPTIONS)
        environment.action_space.seed(3)
        frames = [environment.reset(seed=5)[0]]
        frames += [environment.step(environment.action_space.sample())[0] for _ in range(6)]
        episodes.append(np.stack(frames))
        environment.close()
    assert (episodes[0] == episodes[1]).all() and (episodes[0][0] != episodes[0][6]).any()


def test_an_episode_is_cut_after_its_steps_and_rewards_are_the_callers(identity: str) -> None:
    environment = gymnasium.make(identity, max_episode_steps=4, reward=agent.change, **OPTIONS)
    before, _ = environment.reset(seed=1, options={"start": 2})
    assert (before == environment.unwrapped.world.starts[2]).all()
    for count in range(1, 5):
        after, reward, terminated, truncated, info = environment.step(np.array([1, 0, 0], np.int8))
        assert reward == pytest.approx(np.abs(after.astype(int) - before).mean())
        assert (terminated, truncated, info["frame"]) == (False, count == 4, count)
        before = after
    environment.close()


def test_a_vector_of_dreams_steps_as_one_and_starts_over_by_itself(identity: str) -> None:
    many = gymnasium.make_vec(identity, num_envs=3, vectorization_mode="vector_entry_point",
                              max_episode_steps=3, **OPTIONS)
    single = gymnasium.make(identity, **OPTIONS)
    frames, _ = many.reset(seed=10)
    alone, _ = single.reset(seed=11)
    assert frames.shape == (3, 32, 48, 3) and (frames[1] == alone).all()
    actions = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0]], np.int8)
    for count in (1, 2, 3):
        frames, rewards, ended, cut, info = many.step(actions)
        alone = single.step(actions[1])[0]
        assert np.abs(frames[1].astype(int) - alone).max() <= 1
        assert info["frame"].tolist() == [count] * 3 and not ended.any() and cut.all() == (count == 3)
        assert rewards.tolist() == [0.0] * 3
    frames, _, _, cut, info = many.step(actions)
    assert info["frame"].tolist() == [0] * 3 and not cut.any()
    starts = single.unwrapped.world.starts
    assert all(any((frame == start).all() for start in starts) for frame in frames)
    assert many.step(actions)[4]["frame"].tolist() == [1] * 3
    many.close()
    single.close()


def test_axes_make_a_box(tmp_path: Path) -> None:
    actions = ActionSpec((Button("fire"),), (Axis("look", limit=0.5),))
    space = action_space(actions)
    assert space.low.tolist() == [0.0, -0.5] and space.high.tolist() == [1.0, 0.5]
    spec = tiny_spec(actions=actions)
    environment = DreamEnvironment(tiny_world(tmp_path, actions=spec.actions), **OPTIONS)
    environment.reset(seed=0)
    assert environment.observation_space.contains(environment.step(space.sample())[0])
    environment.close()


def test_the_agent_lives_in_a_dream(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_world(tmp_path / "lived-in")
    assert agent.main([str(tmp_path / "lived-in"), "--steps", "12"]) == 0
    assert float(capsys.readouterr().out.split(":")[1].split()[0]) > 0
