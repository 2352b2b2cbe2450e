"""The judge that reads keys from frames: it learns, it is stored strictly, it says how good it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from worlds import tiny_spec

torch = pytest.importorskip("torch")

from dreamloop.models.core.errors import GameError, WorldError  # noqa: E402
from dreamloop.models.networks.inverse_dynamics import (  # noqa: E402
    InverseDynamics,
    JudgeSpec,
    judge_shapes,
    shrunk,
    write_judge,
)
from dreamloop.models.training.data import Recording  # noqa: E402
from dreamloop.models.training.judges import judge_spec, load_judge, measure, save_judge, train_judges  # noqa: E402
from dreamloop.models.training.recording import Episode, save_episode  # noqa: E402
from dreamloop.models.training.run import Run  # noqa: E402

BUTTONS = ("turn_left", "turn_right", "attack")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small wait longer for a second thread than they gain by it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def moving_pattern(seed: int, length: int = 80) -> Episode:
    """A striped wall that turns by two pixels a frame and a lamp that lights when attack is held."""
    rng = np.random.default_rng(seed)
    wall = rng.integers(0, 256, (32, 48, 3)).astype(np.uint8).repeat(4, axis=1)
    actions = np.zeros((length, 3), np.float32)
    frames = np.zeros((length, 32, 48, 3), np.uint8)
    offset, held = 0, np.zeros(3, np.float32)
    for t in range(length):
        if t % 3 == 0:
            held = (rng.random(3) < 0.4).astype(np.float32)
        if t:
            actions[t] = held
            offset += 2 * int(held[1] - held[0])
        frames[t] = np.roll(wall, -offset, axis=1)[:, :48]
        frames[t, 24:, 16:32] = 255 if actions[t, 2] else 0
    return Episode(seed, "pattern", frames, actions, np.zeros((length, 32, 48), bool),
                   {"offset": np.zeros(length, np.float32)})


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    for split, seeds in (("train", range(6)), ("held_out", range(100, 103))):
        (tmp_path / "recording" / split).mkdir(parents=True)
        for seed in seeds:
            save_episode(tmp_path / "recording" / split / f"{seed:03d}.safetensors", "none", moving_pattern(seed))
    return tmp_path / "recording"


@pytest.fixture
def judge_folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    spec = judge_spec(tiny_spec())
    write_judge(tmp_path / "judge", spec, InverseDynamics(spec).state_dict(), {"balanced_accuracy": 0.5})
    return tmp_path / "judge"


def test_the_judge_learns_to_read_a_moving_pattern(recording: Path, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    # a clock that ticks once per step: the budget is 200 steps on any machine
    ticks = count()
    monkeypatch.setattr("dreamloop.models.training.run.time", SimpleNamespace(monotonic=lambda: 0.03 * next(ticks)))
    run = Run(tmp_path / "run", "pattern", "cpu", resume=False)
    data, held_out = Recording(recording, "train"), Recording(recording, "held_out")
    figures = train_judges(run, tiny_spec(), data, held_out, seconds=6.0)
    assert set(figures) == {"balanced_accuracy", *(f"balanced_accuracy_{b}" for b in BUTTONS)}
    assert figures["balanced_accuracy_attack"] > 0.8
    assert figures["balanced_accuracy"] > 0.65
    # the budget is spent: a resumed run only measures again, and the judge that ships is the one measured
    again = train_judges(Run(tmp_path / "run", "pattern", "cpu", resume=True), tiny_spec(), data, held_out, seconds=6.0)
    assert again == figures
    judge = save_judge(run, tmp_path / "zoo" / "judges" / "none")
    assert judge.figures == {name: round(value, 4) for name, value in figures.items()}
    assert load_judge(tmp_path / "zoo" / "judges" / "none").hash == judge.hash


def test_a_judge_comes_back_from_disk_as_it_was(judge_folder: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3)).astype(np.uint8)
    first, second = load_judge(judge_folder), load_judge(judge_folder)
    assert first.spec == judge_spec(tiny_spec()) and first.figures == {"balanced_accuracy": 0.5}
    assert first.hash == second.hash and len(first.hash) == 64
    read = first.pressed(frames)
    assert read.shape == (8, 3) and read.dtype == bool
    np.testing.assert_array_equal(read, second.pressed(frames))
    assert {name: tuple(v.shape) for name, v in first.net.state_dict().items()} == judge_shapes(first.spec)


def test_a_judge_of_a_real_game_stays_small(tmp_path: Path) -> None:
    spec = JudgeSpec("doom-arena", 120, 160, BUTTONS)
    write_judge(tmp_path, spec, InverseDynamics(spec).state_dict(), {})
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 500_000


def test_shrinking_is_the_mean_of_the_pixels() -> None:
    frames = torch.randint(0, 256, (2, 13, 18, 3), dtype=torch.uint8)
    expected = torch.nn.functional.avg_pool2d(frames.permute(0, 3, 1, 2).double() / 127.5 - 1.0, 4)
    assert (shrunk(frames, 4) - expected).abs().max() < 1e-6


@pytest.mark.parametrize(("change", "reason"), [
    ({"extra": 1}, "unknown or missing key: extra"),
    ({"features": 10**9}, "features=1000000000"),
    ({"features": "64"}, "features is '64'"),
    ({"widths": [16, 32]}, "inverse_dynamics.safetensors: "),
    ({"buttons": ["a", "a"]}, "different names"),
    ({"buttons": ["a"]}, "tensor logits"),
    ({"sha256": "0" * 64}, "does not match the SHA-256"),
    ({"figures": [1]}, "figures must map"),
    ({"format": 2}, "format 2"),
])
def test_a_changed_judge_is_refused_by_name(judge_folder: Path, change: dict[str, object], reason: str) -> None:
    path = judge_folder / "judge.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(WorldError, match=reason):
        load_judge(judge_folder)


def test_damaged_files_are_refused(judge_folder: Path) -> None:
    weights = judge_folder / "inverse_dynamics.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), whole + bytes(4 << 20), b""):
        weights.write_bytes(damaged)
        with pytest.raises(WorldError, match=r"inverse_dynamics\.safetensors"):
            load_judge(judge_folder)
    weights.unlink()
    with pytest.raises(WorldError, match="cannot be read"):
        load_judge(judge_folder)


def test_a_button_that_nobody_presses_is_left_out_of_the_mean(tmp_path: Path) -> None:
    folder = tmp_path / "recording" / "held_out"
    folder.mkdir(parents=True)
    spec = judge_spec(tiny_spec())
    judge = write_judge(tmp_path / "judge", spec, InverseDynamics(spec).state_dict(), {})
    for pressed, left in (([0, 1], {"turn_right"}), ([0, 0], set())):
        episode = moving_pattern(1)
        episode.actions[:] = 0
        episode.actions[3:40, 1] = pressed[1]
        save_episode(folder / "1.safetensors", "none", episode)
        data = Recording(tmp_path / "recording", "held_out")
        if left:
            figures = measure(judge, data)
            assert set(figures) == {"balanced_accuracy", "balanced_accuracy_turn_right"}
            assert figures["balanced_accuracy"] == figures["balanced_accuracy_turn_right"]
        else:
            with pytest.raises(GameError, match="no button is both held and released"):
                measure(judge, data)
