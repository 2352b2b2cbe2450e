"""Recorded episodes as training data: frames at random, clips of latents at random.

Frames stay on disk and are read through the page cache; latents of a whole recording (5 KB a
frame) fit in memory.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from dreamloop.models.core.errors import GameError

BACKGROUND_FRAMES = 2000  # of a recording, that tell what stands still


class Recording:
    """All episodes of one split of a recording folder, read lazily."""

    def __init__(self, folder: Path | str, split: str = "train") -> None:
        self.paths = sorted((Path(folder) / split).glob("*.safetensors"))
        if not self.paths:
            raise GameError(f"no {split} episodes in {Path(folder).name}: record some first")
        self._files: list[Any] = [safe_open(path, framework="np").__enter__() for path in self.paths]
        self.lengths = np.array([file.get_slice("frames").get_shape()[0] for file in self._files])
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self.actions = [file.get_tensor("actions") for file in self._files]
        self.width = int(self._files[0].metadata()["width"])

    def __len__(self) -> int:
        """Frames in all."""
        return int(self.starts[-1])

    def frames(self, episode: int, first: int, count: int) -> np.ndarray:
        """(count, H, W, 3) uint8; fewer at the episode's end."""
        return self._files[episode].get_slice("frames")[first : min(first + count, int(self.lengths[episode]))]

    def objects(self, episode: int, first: int, count: int) -> np.ndarray:
        """(count, H, W) bool: small things that matter; fewer at the episode's end."""
        packed = self._files[episode].get_slice("objects")[first : min(first + count, int(self.lengths[episode]))]
        return np.unpackbits(packed, axis=2, count=self.width).astype(bool)

    def seed(self, episode: int) -> int:
        """What the game and its player were seeded with."""
        return int(self._files[episode].metadata()["seed"])

    def variables(self, episode: int) -> dict[str, np.ndarray]:
        """The game's own numbers by name, (N,) float32 each."""
        names = json.loads(self._files[episode].metadata()["variables"])
        values = self._files[episode].get_tensor("variables")
        return {name: values[:, i] for i, name in enumerate(names)}

    def sample_moments(self, rng: np.random.Generator,
                       count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`count` random moments: the two frames before and the frame itself, (count, 3, H, W, 3) uint8
        (an episode's first frame stands for those before it); the actions that led to the last two
        of them, (count, 2, A) float32; the last frame's objects, (count, H, W) bool."""
        frames, actions, objects = [], [], []
        for index in rng.integers(0, len(self), count):
            episode = int(np.searchsorted(self.starts, index, side="right") - 1)
            t = int(index - self.starts[episode])
            first = max(t - 2, 0)
            missing = 2 - (t - first)
            found = self.frames(episode, first, t - first + 1)
            frames.append(np.concatenate([found[:1].repeat(missing, 0), found]))
            actions.append(self.actions[episode][[max(t - 1, 0), t]])
            objects.append(self.objects(episode, t, 1)[0])
        return np.stack(frames), np.stack(actions), np.stack(objects)


class LatentClips:
    """Latents and actions of a recording, for training the dynamics.

    Per episode: latents (N, C, h, w) float16; actions (N, A) float32; objects (N, h, w) bool, True
    where a latent's cell shows a small thing that matters. episodes: which of the recording's are in, those that are
    long enough.
    """

    def __init__(self, latents: list[np.ndarray], actions: list[np.ndarray], objects: list[np.ndarray],
                 clip_frames: int) -> None:
        usable = [i for i, z in enumerate(latents) if len(z) > clip_frames]
        if not usable:
            raise GameError(f"no episode is longer than a clip of {clip_frames} frames: record longer ones")
        self.latents, self.actions, self.objects = (
            [arrays[i] for i in usable] for arrays in (latents, actions, objects))
        self.clip_frames, self.episodes = clip_frames, usable
        self._starts = np.array([len(z) - clip_frames for z in self.latents])

    @cached_property
    def background(self) -> np.ndarray:
        """(C, h, w) float32: the median latent of every cell, what stands there most of the time."""
        every = max(sum(map(len, self.latents)) // BACKGROUND_FRAMES, 1)
        return np.median(np.concatenate([z[::every] for z in self.latents]).astype(np.float32), axis=0)

    def sample(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`count` clips: latents (count, clip_frames + 1, C, h, w) float32, whose first entry is the
        frame before the clip; the actions that led to the others (count, clip_frames, A), and the
        others' objects (count, clip_frames, h, w) float32: where a thing is or has just been, for one that is
        left behind where it was is as wrong as one that is missing where it went."""
        return self.cut(self.places(rng, count))

    def places(self, rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
        """Where `count` clips begin: the place of the episode in `episodes`, and the frame."""
        chosen = rng.choice(len(self._starts), count, p=self._starts / self._starts.sum())
        return [(int(episode), int(rng.integers(0, self._starts[episode]))) for episode in chosen]

    def cut(self, places: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What `sample` returns, of clips at these places."""
        z, a, o = [], [], []
        for episode, first in places:
            z.append(self.latents[episode][first : first + self.clip_frames + 1])
            after = slice(first + 1, first + self.clip_frames + 1)
            a.append(self.actions[episode][after])
            of = self.objects[episode][first : first + self.clip_frames + 1]
            o.append(of[1:] | of[:-1])
        return np.stack(z).astype(np.float32), np.stack(a), np.stack(o).astype(np.float32)
