"""Own dreams, far in, as pasts to find back from.

A dream goes wrong slowly: what it shows after hundreds of frames (a wall that fills the view, colours that burn
out) is in no recording, and in no rollout of a few frames either, so nothing has taught the network what follows it.
Here a few dreams go on beside the training, a stretch every so many steps, under the keys of one clip after the other.
The previous latents of some clips are mixed with a part of such a stretch,

    z' = z + a (dream - z)        a = U(0, 1), one for the clip, from some frame of it on

and the recording stays the answer. Where a is small that is a pull out of the way that dreams take; where it is near 1,
hardly anything of the recording is left, and any frame of the game is better than another one of the dream.

Source: error banks (Stable Video Infinity, Li et al. 2025: a model's own errors, kept and put into clean inputs).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dreamloop.models.training.data import LatentClips
from dreamloop.models.training.dynamics import ClipTrainer


@dataclass(frozen=True)
class ErrorBank:
    """dreams: how many go on; every: steps of training between two stretches of them; frames: of a stretch, no fewer
    than a clip of the stage has; real_frames: of them come before a dream: the recording's, or its own last ones
    where it goes on; kept: chance of a dream to go on, not to begin anew; share: of the clips are mixed with one."""

    dreams: int = 8
    every: int = 25
    frames: int = 32
    real_frames: int = 8
    kept: float = 0.9
    share: float = 0.4


class Dreaming:
    """The dreams of a trainer's network. latents (dreams, frames, C, h, w): the last stretch of each; None before the
    first."""

    def __init__(self, settings: ErrorBank, trainer: ClipTrainer) -> None:
        self.settings, self.trainer = settings, trainer
        self.latents: Tensor | None = None
        self._actions: Tensor | None = None
        self._clips: LatentClips | None = None
        self._steps = 0

    def step(self, clips: LatentClips, rng: np.random.Generator) -> None:
        """Count a step of training, and dream on where it is time."""
        if self._steps % self.settings.every == 0:
            self._go_on(clips, rng)
        self._steps += 1

    def _go_on(self, clips: LatentClips, rng: np.random.Generator) -> None:
        s = self.settings
        if self._clips is None:
            self._clips = LatentClips(clips.latents, clips.actions, clips.objects, s.frames)
        z, action, _ = self.trainer.sample(self._clips, rng, s.dreams)
        if self.latents is not None and self._actions is not None:
            going = torch.from_numpy(rng.random(s.dreams) < s.kept).to(z.device)
            z[going, : s.real_frames] = self.latents[going, -s.real_frames :]
            action[going, : s.real_frames] = self._actions[going, -s.real_frames :]
        seeds = rng.integers(0, 2**63, s.dreams).astype(np.uint64)
        self.latents, self._actions = self.trainer.rollout(z, action, seeds, s.real_frames)[0], action

    def mixed(self, previous: Tensor) -> Tensor:
        """Previous latents (B, F, C, h, w) of clips, some of them mixed with a dream."""
        if self.latents is None:
            return previous
        batch, frames = previous.shape[:2]
        device = previous.device
        first = int(torch.randint(self.settings.frames - frames + 1, ()))
        dream = self.latents[torch.randint(len(self.latents), (batch,), device=device), first : first + frames]
        share = torch.rand(batch, 1, device=device) * (torch.rand(batch, 1, device=device) < self.settings.share)
        begun = torch.arange(frames, device=device) >= torch.randint(frames, (batch, 1), device=device)
        return previous + (share * begun)[..., None, None, None] * (dream - previous)
