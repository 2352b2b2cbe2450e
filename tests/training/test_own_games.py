"""Any game that a user has: Gymnasium environments as games, their actions as buttons, recordings as games."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium", reason="environments: pip install 'dreamloop[games]'")
av = pytest.importorskip("av", reason="videos are read with PyAV")

from dreamloop.models.core.errors import GameError  # noqa: E402
from dreamloop.models.training import recording  # noqa: E402
from dreamloop.models.training.games import NoMoreEpisodes, Player, PlayerLeft, View, open_game  # noqa: E402
from dreamloop.models.training.games.controls import controls  # noqa: E402
from dreamloop.models.training.games.folder import FolderGame  # noqa: E402
from dreamloop.models.training.games.players import find_player  # noqa: E402
from dreamloop.models.training.games.sizes import downsample_of, frame_size, moving, resized  # noqa: E402
from dreamloop.models.training.recipes.own import recipe_for, world_name  # noqa: E402
from dreamloop.models.training.recording import load_episode, play_episode  # noqa: E402
from dreamloop.runtime.evaluate import play_game, play_turns  # noqa: E402

CAR = "gymnasium:MountainCar-v0"
STICKY = find_player("sticky")


class Toy(gymnasium.Env):  # type: ignore[misc]
    """A lamp on a grey wall: each action lights its own column; an episode is `length` frames."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None, space: Any = None, meanings: Any = None, fps: Any = 20,
                 modes: tuple[str, ...] = ("rgb_array",), length: int = 5, picture: Any = None) -> None:
        self.render_mode = render_mode
        self.action_space = space or gymnasium.spaces.Discrete(3)
        self.observation_space = gymnasium.spaces.Box(0, 1, (2,))
        self.metadata = {"render_modes": list(modes), **({} if fps is None else {"render_fps": fps})}
        self.length, self.taken, self.time, self.begun = length, None, 0, 0
        self.picture = picture
        if meanings:
            self.get_action_meanings = lambda: meanings

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.taken, self.time, self.begun = None, 0, self.begun + 1
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.taken, self.time = action, self.time + 1
        return np.array([0.5, 0.25], np.float32), 1.0, self.time >= self.length, False, {}

    def render(self) -> Any:
        if self.picture is not None:
            return self.picture
        frame = np.full((48, 64, 3), 60, np.uint8)
        if self.taken is not None:
            frame[:, 16 * int(np.ravel(self.taken)[0]) : 16 * int(np.ravel(self.taken)[0]) + 4] = 250
        return frame


@pytest.fixture(autouse=True)
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    gymnasium.register("Toy-v0", entry_point=Toy)
    yield
    del gymnasium.registry["Toy-v0"]


# -- sizes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(400, 600), (210, 160), (64, 64), (96, 96), (84, 84), (8, 8), (500, 500), (480, 640),
                                  (32, 64), (256, 240), (1080, 1920), (20, 31), (144, 160)])
def test_every_size_becomes_one_that_the_networks_take(size: tuple[int, int]) -> None:
    height, width = frame_size(*size)
    cell = downsample_of(height, width)
    assert (-(-height // cell)) % 2 == 0 == (-(-width // cell)) % 2
    assert max(height, width) <= 160 and min(height, width) >= 16
    scale = max(height, width) / max(size)
    assert abs(height - size[0] * scale) <= 0.51 and abs(width - size[1] * scale) <= 0.51, "proportions are kept"
    if min(height, width) >= 32:
        assert frame_size(height, width) == (height, width), "a size that fits is left alone"


@pytest.mark.parametrize("size", [(4, 900), (0, 10)])
def test_a_picture_of_no_use_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(GameError, match=f"{size[1]}x{size[0]}"):
        frame_size(*size)


def test_shrinking_takes_means_over_areas() -> None:
    checks = np.indices((40, 60)).sum(0) % 2 * 200
    small = resized(np.repeat(checks[..., None], 3, 2).astype(np.uint8), 20, 30)
    assert small.shape == (20, 30, 3) and np.abs(small.astype(int) - 100).max() <= 2


def test_what_moves_is_what_matters_unless_all_of_it_does() -> None:
    before = np.full((20, 20, 3), 90, np.uint8)
    now = before.copy()
    now[3:5, 4:6, 1] = 200
    assert np.array_equal(moving(now, before), (now != before).any(2))
    assert not moving(before + 100, before).any()


# -- actions -------------------------------------------------------------------------------------------


def taken(env: Any, names: set[str]) -> Any:
    made = controls(env)
    return made.action(made.spec.vector(names) > 0.5)


def test_named_actions_become_buttons_and_their_combinations() -> None:
    env = Toy(space=gymnasium.spaces.Discrete(6), meanings=["NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE"])
    made = controls(env)
    assert set(made.spec.names) == {"fire", "right", "left"}
    chosen = [taken(env, names) for names in (set(), {"fire"}, {"right"}, {"left"}, {"right", "fire"},
                                              {"left", "fire"})]
    assert chosen == [0, 1, 2, 3, 4, 5]
    assert taken(env, {"left", "right"}) in (2, 3), "one of them"
    assert {b.name: b.keys[0] for b in made.spec.buttons} == {
        "fire": "Space", "right": "ArrowRight", "left": "ArrowLeft"}


def test_actions_without_names_are_named_by_their_keys() -> None:
    """MountainCar tells keys only, in the numbers of the first SDL."""
    with gymnasium.make("MountainCar-v0", render_mode="rgb_array") as env:
        assert controls(env).spec.names == ("left", "right")
        assert [taken(env, names) for names in (set(), {"left"}, {"right"}, {"left", "right"})] == [1, 0, 2, 0]


def test_actions_that_nothing_names_get_numbers_and_keys() -> None:
    made = controls(Toy(space=gymnasium.spaces.Discrete(2, start=4)))
    assert [(b.name, b.keys) for b in made.spec.buttons] == [("action_0", ("ArrowLeft",)),
                                                             ("action_1", ("ArrowRight",))]
    assert [made.action(np.array(p)) for p in ([False, False], [True, False], [False, True])] == [4, 4, 5]


def test_many_buttons_have_different_keys_none_of_them_the_windows() -> None:
    made = controls(Toy(space=gymnasium.spaces.MultiBinary(20)))
    used = [key for b in made.spec.buttons for key in b.keys]
    assert len(used) == len(set(used)) == 20
    assert not set(used) & {"KeyR", "KeyP", "KeyN", "KeyB", "KeyH", "Backspace", "Escape"}


def test_switches_and_dials() -> None:
    switches = controls(Toy(space=gymnasium.spaces.MultiBinary(3)))
    np.testing.assert_array_equal(switches.action(np.array([True, False, True])), [1, 0, 1])
    env = Toy(space=gymnasium.spaces.MultiBinary(3))
    env.buttons = ["B", None, "LEFT"]
    named = controls(env)
    assert named.spec.names == ("b", "left")
    np.testing.assert_array_equal(named.action(np.array([False, True])), [0, 0, 1])
    dials = controls(Toy(space=gymnasium.spaces.MultiDiscrete([3, 2])))
    assert dials.spec.names == ("action_0_1", "action_0_2", "action_1")
    np.testing.assert_array_equal(dials.action(np.array([False, True, True])), [2, 1])
    np.testing.assert_array_equal(dials.action(np.array([True, True, False])), [1, 0])


# -- environments --------------------------------------------------------------------------------------


REFUSED = {
    "gymnasium:NoSuch-v0": "NoSuch",
    "gymnasium:": "expected gymnasium:ENV_ID",
    "gymnasium:Pendulum-v1": "Discrete, MultiBinary or MultiDiscrete",
    "gymnasium:Toy-v0?modes=('human',)": "cannot render to rgb_array, only to human",
    "gymnasium:Toy-v0?fps=None": "no render_fps",
    "gymnasium:Toy-v0?picture='text'": "render() gives str",
    "gymnasium:Toy-v0?nonsense=3": "unexpected keyword",
    "folder:none": "no folder none",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_game_that_cannot_be_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(GameError) as refused:
        open_game(name)
    assert REFUSED[name] in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["gymnasium:os:Toy-v0", "gymnasium:os%3AToy-v0", "gymnasium:Toy-v0?length=3",
                                  "folder:/tmp"])
def test_a_world_may_not_name_modules_or_files_of_the_machine(name: str) -> None:
    with pytest.raises(GameError, match="--game"):
        open_game(name, trusted=False)


def test_an_environment_is_a_game_with_its_own_speed_and_repeats_itself() -> None:
    with open_game(CAR) as game:
        assert (game.fps, game.frame_height, game.frame_width) == (30, 85, 128)
        assert game.actions.names == ("left", "right")
        first = play_episode(game, STICKY, 4, 80)
        assert first.frames.shape == (80, 85, 128, 3) and len(np.unique(first.frames[0])) > 5
        assert list(first.variables) == ["reward", "observation_0", "observation_1"]
        play_episode(game, STICKY, 5, 30)
        again = play_episode(game, STICKY, 4, 80)
    np.testing.assert_array_equal(first.frames, again.frames)
    np.testing.assert_array_equal(first.actions, again.actions)
    assert first.objects[1:].any() and first.objects.mean() < 0.1, "the car moves, and is small"


def test_a_frame_shows_the_action_that_came_with_it() -> None:
    with open_game("gymnasium:Toy-v0?length=100") as game:
        episode = play_episode(game, STICKY, 1, 60)
    names = [f"action_{i}" for i in range(3)]
    for t in range(1, 60):
        lit = int(episode.frames[t, 0, :, 0].argmax()) // 16
        held = [name for name, down in zip(names, episode.actions[t], strict=True) if down]
        assert names[lit] in held or (not held and lit == 0)


def test_when_an_environment_is_over_its_next_episode_begins() -> None:
    with open_game("gymnasium:Toy-v0") as game:
        view, lit = game.reset(3), []
        for _ in range(14):
            view = game.step(game.actions.vector({"action_1"}))
            lit.append(bool((view.frame > 200).any()))
            assert not view.done
    assert lit == [True] * 5 + [False] + [True] * 5 + [False] + [True] * 2


def test_the_name_of_a_game_in_a_world_opens_it_again() -> None:
    gymnasium.register("space/Toy-v0", entry_point=Toy)
    try:
        with open_game("gymnasium:space/Toy-v0") as game:
            assert game.name == "gymnasium:space%2FToy-v0"
        with open_game(game.name, trusted=False) as again:
            assert again.name == game.name
        assert world_name(game.name) == "space-toy-v0"
    finally:
        del gymnasium.registry["space/Toy-v0"]


def test_a_recipe_follows_from_the_game() -> None:
    large, small = recipe_for(CAR), recipe_for("gymnasium:Toy-v0")
    assert (large.spec.autoencoder.downsample, small.spec.autoencoder.downsample) == (16, 8)
    assert (large.spec.name, large.spec.game, large.game_name, large.spec.fps) == ("mountaincar-v0", CAR, CAR, 30)
    assert small.spec.dynamics.width < large.spec.dynamics.width
    assert recipe_for("doom-arena") is recipe_for("doom-arena"), "a recipe of the repository is taken as it is"


# -- players -------------------------------------------------------------------------------------------


def test_a_scripted_player_is_a_function_of_the_users_own(tmp_path: Path) -> None:
    Path("my_player.py").write_text("def rock(view, rng):\n"
                                    "    return {'right'} if view.variables['observation_1'] > 0 else {'left'}\n"
                                    "def wrong(view, rng):\n    return {'jump'}\nvalue = 3\n")
    report = recording.record(CAR, "out", 130, player=find_player("my_player:rock"))
    assert report["frames"] >= 130 and report["held_left"] > 0.2 and report["held_right"] > 0.2
    episode = load_episode(next(Path("out/train").iterdir()))
    assert episode.policy == "my_player:rock"
    assert episode.variables["observation_0"].max() > 0.5, "it has reached the flag, where keys at random do not"
    with open_game(CAR) as game, pytest.raises(GameError, match="my_player:wrong: unknown action jump"):
        play_episode(game, find_player("my_player:wrong"), 1, 5)
    for text, message in (("my_player:none", "no attribute"), ("nowhere:f", "nowhere"),
                          ("fast", "idle, random, sticky"), ("my_player:value", "is a int")):
        with pytest.raises(GameError, match=message):
            find_player(text)


def test_random_keys_press_everything_and_nothing() -> None:
    with open_game("gymnasium:Toy-v0?length=1000") as game:
        actions = play_episode(game, find_player("random"), 2, 200).actions[1:]
    assert (actions.sum(0) > 20).all() and (actions.sum(1) == 0).any() and (actions.sum(1) > 1).any()


def test_a_human_who_leaves_keeps_what_was_played() -> None:
    def make(actions: Any, rng: Any) -> Any:
        def act(view: View) -> np.ndarray:
            nonlocal shown
            shown += 1
            if shown > 12:
                raise PlayerLeft
            return np.asarray(actions.vector({"action_2"}))
        return act

    shown = 0
    report = recording.record("gymnasium:Toy-v0", "out", 100, player=Player("human", 1.0, make))
    assert report["frames"] == 13 and report["episodes"] == 1


# -- recordings made elsewhere -------------------------------------------------------------------------

BUTTONS = ("left", "fire")


def write_episode(folder: Path, name: str, frames: int, fps: int = 25, size: tuple[int, int] = (48, 64),
                  lines: list[Any] | None = None) -> None:
    """Frame t is bright where action t has `fire`."""
    actions = [["fire"] if t % 3 == 1 else ["left"] if t % 3 == 2 else [] for t in range(1, frames)]
    with av.open(str(folder / f"{name}.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "10"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for t in range(frames):
            picture = np.full((*size, 3), 220 if t and "fire" in actions[t - 1] else 30, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    told = lines if lines is not None else [{"frame": t, "action": a} for t, a in enumerate(actions, 1)]
    (folder / f"{name}.ndjson").write_text("".join(json.dumps(line) + "\n" for line in told))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "takes"
    made.mkdir()
    (made / "game.json").write_text(json.dumps({"fps": 25, "buttons": ["left", {"name": "fire", "keys": ["KeyX"]}]}))
    for name, frames in (("a", 20), ("b", 24), ("c", 22)):
        write_episode(made, name, frames)
    return made


def test_a_folder_of_videos_is_a_game_that_shows_them(folder: Path) -> None:
    name = f"folder:{folder}"
    with open_game(name) as game:
        assert (game.name, game.fps, game.frame_height, game.frame_width) == ("folder:takes", 25, 48, 64)
        assert [(b.name, b.keys) for b in game.actions.buttons] == [("left", ("ArrowLeft", "KeyA")),
                                                                    ("fire", ("KeyX",))]
        with pytest.raises(NoMoreEpisodes):
            game.reset(2)
        game.reset(0)
        with pytest.raises(GameError, match="is a recording"):
            game.step(np.ones(2, np.float32))
    report = recording.record(name, "out", 10_000)
    assert (report["episodes"], report["frames"]) == (2, 19 + 23), "two of three, but for the last frame of each"
    held_out = recording.record(name, "out", 10_000, split="held_out")
    assert (held_out["episodes"], held_out["frames"]) == (1, 21)
    episode = load_episode(sorted(Path("out/train").iterdir())[0])
    bright = episode.frames.mean((1, 2, 3)) > 120
    np.testing.assert_array_equal(bright, episode.actions[:, 1] > 0.5)


def test_what_play_writes_is_an_episode(folder: Path) -> None:
    write_episode(folder, "d", 4, lines=[
        {"log": 1, "world": "w", "actions": list(BUTTONS), "hash": ""},
        *({"frame": t, "input": t, "action": [0.0, float(t == 1)], "hash": "", "late": False} for t in (1, 2, 3))])
    game = FolderGame(f"folder:{folder}")
    assert game.reset(1_500_000_000).recorded is not None
    np.testing.assert_array_equal(game._actions, [[0, 0], [0, 1], [0, 0], [0, 0]])


def test_a_recording_with_turn_keys_is_not_told_to_turn(folder: Path) -> None:
    (folder / "game.json").write_text(json.dumps({"fps": 25, "buttons": ["turn_left", "turn_right"]}))
    for name in "abcd":
        write_episode(folder, name, 30, lines=[{"frame": t, "action": []} for t in range(1, 30)])
    with open_game(f"folder:{folder}") as game:
        assert play_turns(game, 1, 4) == []
        assert len(play_game(game, game.players[-1], 1, 4)) == 1


BAD_LOGS = {
    "unknown action jump": [{"frame": 1, "action": ["jump"]}],
    "line 2: frame 3, expected 2": [{"frame": 1, "action": []}, {"frame": 3, "action": []}],
    "expected frame and action": [{"frame": 1, "keys": []}],
    "leads to frame 0": [{"frame": 0, "action": ["fire"]}],
    "expected names of buttons, or 0 or 1": [{"frame": 1, "action": [0.5, 0]}],
    "tells of no action": [],
    "has 4 frames, d.ndjson tells of 6": [{"frame": t, "action": []} for t in range(1, 6)],
    "more frames than the 2": [{"frame": 1, "action": []}],
    "its buttons are": [{"log": 1, "actions": ["jump"]}],
}


@pytest.mark.parametrize("message", BAD_LOGS)
def test_a_log_that_does_not_fit_is_refused_by_name(folder: Path, message: str) -> None:
    write_episode(folder, "d", 4, lines=BAD_LOGS[message])
    with pytest.raises(GameError, match=message), open_game(f"folder:{folder}") as game:
        play_episode(game, game.players[-1], 1_000_000_000)


def test_a_video_that_does_not_fit_is_refused_by_name(folder: Path) -> None:
    write_episode(folder, "d", 4, fps=50)
    with pytest.raises(GameError, match=r"d.mp4 runs at 50"), open_game(f"folder:{folder}") as game:
        game.reset(1_000_000_000)
    write_episode(folder, "d", 4, size=(32, 64))
    with pytest.raises(GameError, match=r"d.mp4 is 64x32, the first video is 64x48"), \
            open_game(f"folder:{folder}") as game:
        game.reset(1_000_000_000)
    (folder / "d.mp4").write_bytes(b"no video at all")
    with pytest.raises(GameError, match=r"d.mp4: not a video"), open_game(f"folder:{folder}") as game:
        game.reset(1_000_000_000)
    for name in "bcd":
        (folder / f"{name}.mp4").unlink()
    with pytest.raises(GameError, match="holds 1 videos"):
        open_game(f"folder:{folder}")


@pytest.mark.parametrize(("text", "message"), [
    ("{", "not JSON"), ("[]", "expected an object"), ('{"fps": 30}', "expected fps and buttons"),
    ('{"fps": -1, "buttons": ["a"]}', "fps=-1"), ('{"fps": NaN, "buttons": ["a"]}', "fps=nan"),
    ('{"fps": 30, "buttons": [3]}', "list of names"), ('{"fps": 30, "buttons": ["a", "a"]}', "stands twice"),
    ('{"fps": 30, "buttons": []}', "0 buttons"), ('{"fps": 30, "buttons": [""]}', "needs a name")])
def test_a_game_file_is_read_strictly(folder: Path, text: str, message: str) -> None:
    (folder / "game.json").write_text(text)
    with pytest.raises(GameError, match=message):
        open_game(f"folder:{folder}")
