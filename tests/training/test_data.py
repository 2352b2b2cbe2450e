"""Training data: what is sampled is what was recorded, at the index that it claims."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dreamloop.models.core.errors import GameError
from dreamloop.models.training.data import LatentClips, Recording
from dreamloop.models.training.recording import Episode, save_episode

LENGTHS = (7, 1, 4)
HEIGHT, WIDTH = 6, 21  # a width that is no multiple of 8: objects are packed in bytes


def episode(number: int, length: int) -> Episode:
    """Frame t of episode n is all (n, t, 0); its action is (n, t), and one object stands at column t."""
    frames = np.zeros((length, HEIGHT, WIDTH, 3), np.uint8)
    frames[..., 0], frames[..., 1] = number, np.arange(length)[:, None, None]
    objects = np.zeros((length, HEIGHT, WIDTH), bool)
    objects[np.arange(length), number, np.arange(length)] = True
    actions = np.stack([np.full(length, number), np.arange(length)], axis=1).astype(np.float32)
    return Episode(number, "none", frames, actions, objects, {"t": np.arange(length, dtype=np.float32)})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train").mkdir()
    for number, length in enumerate(LENGTHS):
        save_episode(tmp_path / "train" / f"{number:010d}.safetensors", "none", episode(number, length))
    return tmp_path


def test_a_recording_reads_back_what_was_saved(folder: Path) -> None:
    data = Recording(folder)
    assert len(data) == sum(LENGTHS) and data.lengths.tolist() == list(LENGTHS)
    for number, length in enumerate(LENGTHS):
        saved = episode(number, length)
        np.testing.assert_array_equal(data.frames(number, 0, length), saved.frames)
        np.testing.assert_array_equal(data.objects(number, 0, length), saved.objects)
        np.testing.assert_array_equal(data.actions[number], saved.actions)
    np.testing.assert_array_equal(data.frames(0, 2, 3)[:, 0, 0, 1], [2, 3, 4])
    np.testing.assert_array_equal(data.frames(0, 5, 64)[:, 0, 0, 1], [5, 6])  # fewer at the end
    assert data.objects(0, 5, 64).shape == (2, HEIGHT, WIDTH)


def test_sampled_moments_hold_together_and_every_frame_comes_up(folder: Path) -> None:
    data = Recording(folder)
    frames, actions, objects = data.sample_moments(np.random.default_rng(0), 400)
    seen = set()
    for triple, led, shown in zip(frames, actions, objects, strict=True):
        number, t = int(triple[2, 0, 0, 0]), int(triple[2, 0, 0, 1])
        seen.add((number, t))
        assert (triple[..., 0] == number).all(), "a frame before is of another episode"
        assert triple[:, 0, 0, 1].tolist() == [max(t - 2, 0), max(t - 1, 0), t]
        assert led.tolist() == [[number, max(t - 1, 0)], [number, t]]
        assert np.argwhere(shown).tolist() == [[number, t]]
    assert seen == {(number, t) for number, length in enumerate(LENGTHS) for t in range(length)}


def test_what_is_not_a_whole_episode_is_not_read(folder: Path) -> None:
    (folder / "train" / "0000000003.partial").write_bytes(b"half an episode")
    assert len(Recording(folder)) == sum(LENGTHS)


def test_a_split_without_episodes_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(GameError, match="no held_out episodes"):
        Recording(folder, "held_out")


def clips(lengths: tuple[int, ...], clip_frames: int) -> LatentClips:
    """Latent and objects of frame t of episode n say (n, t)."""
    latents = [np.stack([np.full((1, 1), number), np.full((1, 1), t)])
               for number, length in enumerate(lengths) for t in range(length)]
    ends = np.cumsum(lengths)[:-1]
    shown = [np.array(z).max(axis=1) % 4 == 1 for z in np.split(np.stack(latents), ends)]
    return LatentClips([part.astype(np.float16) for part in np.split(np.stack(latents), ends)],
                       [episode(number, length).actions for number, length in enumerate(lengths)], shown, clip_frames)


def test_clips_are_runs_of_one_episode_with_the_action_that_led_to_each_frame() -> None:
    data = clips((7, 3, 20, 4), clip_frames=4)
    z, actions, objects = data.sample(np.random.default_rng(0), 600)
    assert z.shape == (600, 5, 2, 1, 1) and z.dtype == np.float32
    assert actions.shape == (600, 4, 2) and actions.dtype == np.float32
    assert objects.shape == (600, 4, 1, 1) and objects.dtype == np.float32
    numbers, times = z[:, :, 0, 0, 0], z[:, :, 1, 0, 0]
    assert (numbers == numbers[:, :1]).all()
    assert (np.diff(times, axis=1) == 1).all()
    np.testing.assert_array_equal(actions[:, :, 0], numbers[:, 1:])
    np.testing.assert_array_equal(actions[:, :, 1], times[:, 1:])
    shown = np.maximum(numbers, times) % 4 == 1
    np.testing.assert_array_equal(objects[:, :, 0, 0], shown[:, 1:] | shown[:, :-1])  # there, or just left


def test_every_clip_of_every_long_enough_episode_comes_up_alike_often() -> None:
    data = clips((7, 3, 20, 4), clip_frames=4)
    z, _, _ = data.sample(np.random.default_rng(1), 4000)
    starts, counts = np.unique(z[:, 0, :, 0, 0], axis=0, return_counts=True)
    # first frames 0 .. length - 5; the episodes of 3 and of 4 frames hold no clip of 1 + 4
    assert {(int(n), int(t)) for n, t in starts} == {(0, t) for t in range(3)} | {(2, t) for t in range(16)}
    assert counts.min() > 0.6 * counts.mean() and counts.max() < 1.5 * counts.mean()


def test_no_episode_longer_than_a_clip_is_refused_with_the_length() -> None:
    with pytest.raises(GameError, match="clip of 20 frames"):
        clips((7, 20), clip_frames=20)
