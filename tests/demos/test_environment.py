"""A dream as a Gymnasium environment: Gymnasium's own checker, and what it does not check."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds import tiny_spec, tiny_world

from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.spec import ActionSpec, Axis, Button
from dreamloop.models.core.world import World
from dreamloop.runtime.engines import engine_status

gymnasium = pytest.importorskip("gymnasium", reason="environments are Gymnasium's")
from gymnasium.utils import performance  # noqa: E402
from gymnasium.utils.env_checker import check_env, data_equivalence  # noqa: E402
from gymnasium.vector import AutoresetMode  # noqa: E402
from gymnasium.wrappers.vector import RecordEpisodeStatistics  # noqa: E402

from dreamloop.demos import agent  # noqa: E402
from dreamloop.demos.environment import DreamEnvironment, action_space, register  # noqa: E402

OPTIONS = {"engine": "onnxruntime", "threads": 1}
EXACT = "native" if engine_status("native").available else ""


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


MODES = [mode.value for mode in AutoresetMode]


def in_one_pass(identity: str, **options: Any) -> Any:
    """Three dreams of three frames each; where it is here, on the engine that gives any batch the same bits."""
    return gymnasium.make_vec(identity, num_envs=3, vectorization_mode="vector_entry_point",
                              **{"max_episode_steps": 3, "engine": EXACT or "onnxruntime", "threads": 1, **options})


def assert_alike(one: Any, other: Any) -> None:
    """What `reset` or `step` returned, bit for bit where the engine promises it, else a level of a pixel apart."""
    if EXACT:
        assert data_equivalence(one, other)
    else:
        assert np.abs(one[0].astype(int) - other[0]).max() <= 1 and data_equivalence(one[2:-1], other[2:-1])
        assert one[-1]["frame"].tolist() == other[-1]["frame"].tolist()


@pytest.mark.parametrize("mode", MODES)
def test_a_vector_of_dreams_is_gymnasiums_own_vector_of_single_ones(identity: str, mode: str) -> None:
    """Frame by frame through several episodes, whose ends are shifted against each other by a reset of one alone."""
    many = in_one_pass(identity, autoreset_mode=mode, reward=agent.change)
    single = gymnasium.make_vec(identity, num_envs=3, vectorization_mode="sync", max_episode_steps=3,
                                vector_kwargs={"autoreset_mode": mode}, reward=agent.change,
                                engine=EXACT or "onnxruntime", threads=1)
    assert many.metadata["autoreset_mode"] is single.metadata["autoreset_mode"] is AutoresetMode(mode)
    assert many.metadata["render_fps"] == single.metadata["render_fps"]
    for space in ("observation_space", "action_space", "single_observation_space", "single_action_space"):
        assert getattr(many, space) == getattr(single, space)
    many.action_space.seed(4)
    ends = []
    for seed in (10, [7, None, 9]):
        assert_alike(many.reset(seed=seed), single.reset(seed=seed))
        for count in range(9):
            if count == 2:
                middle = np.array([False, True, False])
                assert_alike(many.reset(options={"reset_mask": middle}), single.reset(options={"reset_mask": middle}))
            actions = many.action_space.sample()
            made, expected = many.step(actions), single.step(actions)
            assert_alike(made, expected)
            assert many.observation_space.contains(made[0])
            cut = made[3]
            ends.append(cut.tolist())
            assert ("final_obs" in made[4]) == (mode == "SameStep" and cut.any())
            if mode == "Disabled" and cut.any():
                assert_alike(many.reset(options={"reset_mask": cut}), single.reset(options={"reset_mask": cut}))
    assert [True, False, True] in ends and [False, True, False] in ends
    many.close()
    single.close()


@pytest.mark.parametrize("mode", MODES)
def test_gymnasiums_tools_for_vectors_take_it(identity: str, mode: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        many = RecordEpisodeStatistics(in_one_pass(identity, autoreset_mode=mode, render_mode="rgb_array"))
        if hasattr(performance, "benchmark_vector_step"):  # newer ones have it
            assert performance.benchmark_vector_step(many, target_duration=0, seed=1) > 0
        frames, _ = many.reset(seed=1)
        assert all((shown == frame).all() for shown, frame in zip(many.render(), frames, strict=True))
        for _ in range(3):
            infos = many.step(many.action_space.sample())[4]
        assert infos["episode"]["l"].tolist() == [3, 3, 3]
        again = gymnasium.make_vec(many.unwrapped.spec)
        assert again.num_envs == 3 and again.metadata == many.metadata
        again.close()
        many.close()


REFUSED: dict[str, tuple[Any, str]] = {
    "seeds": (lambda many: many.reset(seed=[1, 2]), "seed: 2 numbers for 3 dreams"),
    "mask too short": (lambda many: many.reset(options={"reset_mask": np.ones(2, bool)}), "reset_mask must be 3"),
    "mask of nobody": (lambda many: many.reset(options={"reset_mask": np.zeros(3, bool)}), "reset_mask must be 3"),
    "start": (lambda many: many.reset(options={"start": 99}), "start=99"),
    "actions": (lambda many: many.step(np.zeros((2, 3), np.int8)), "2 actions for 3 dreams"),
    "buttons": (lambda many: many.step(np.zeros((3, 9), np.int8)), "action vector has shape"),
}


def test_what_a_vector_refuses_moves_no_dream(identity: str) -> None:
    many, same = (in_one_pass(identity, autoreset_mode="Disabled") for _ in range(2))
    none = np.zeros((3, 3), np.int8)
    for one in (many, same):
        one.reset(seed=3)
        one.step(none)
    for refused, message in REFUSED.values():
        with pytest.raises(DreamloopError, match=message):
            refused(many)
    for _ in range(2):
        assert data_equivalence(many.step(none), same.step(none))
    with pytest.raises(DreamloopError, match="dream 0 is over; reset it first"):
        many.step(none)
    for options, message in (({"autoreset_mode": "never"}, "NextStep, SameStep, Disabled"),
                             ({"render_mode": "human"}, "must be one of rgb_array"),
                             ({"max_episode_steps": 0}, "max_episode_steps=0 must be 1 or more")):
        with pytest.raises(DreamloopError, match=message):
            in_one_pass(identity, **options)
    many.close()
    same.close()


def test_a_window_shows_every_frame_and_no_screen_is_one_line(identity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pygame = pytest.importorskip("pygame", reason="render mode human draws with pygame")
    environment = gymnasium.make(identity, render_mode="human", **OPTIONS).unwrapped
    for name in ("SDL_VIDEODRIVER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(DreamloopError, match="no display here"):
        environment.reset(seed=2)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    for do in (lambda: environment.reset(seed=2), lambda: environment.step(np.zeros(3, np.int8))):
        frame = do()[0]
        shown = pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1)
        scale = len(shown) // len(frame)
        assert scale > 1 and (shown[::scale, ::scale] == frame).all()
    environment.close()
    assert not pygame.display.get_init()


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
    with pytest.raises(SystemExit) as left:
        agent.main([str(tmp_path / "lived-in"), "--steps", "0"])
    told = capsys.readouterr().err
    assert left.value.code == 2 and "0 must be 1 or more" in told and told.count("\n") == 1


def test_of_two_worlds_of_one_name_the_last_one_counts(tmp_path: Path) -> None:
    worlds = [tiny_world(tmp_path / folder / "twin", fps=fps) for folder, fps in (("a", 20.0), ("b", 30.0))]
    for folder, world in zip("ab", worlds, strict=True):
        environment = gymnasium.make(register("twin", str(tmp_path / folder / "twin")), **OPTIONS)
        assert environment.unwrapped.world.hash == world.hash
        environment.close()


def test_a_name_that_gymnasium_does_not_take_is_one_line() -> None:
    with pytest.raises(DreamloopError, match="'my world' cannot be an environment's name"):
        register("my world")
