"""Probes: small judges that read the game's state from pictures, real or dreamed.

They are the network of networks/inverse_dynamics.py with other outputs, stored in the same strict form, each
in a folder of its name inside the judge's:

    motion   how the player moved from one frame to the next: ahead and left in the game's units, turn in degrees
    sight    whether a living monster is in view, and whether one is in the crosshair; one pair of frames, no
             more, so that a monster that comes and goes is not smoothed over

And `ClipReader`, which tells dreamed clips from the game's; it is trained anew on every world it judges.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dreamloop.models.core.errors import WorldError
from dreamloop.models.networks.inverse_dynamics import Judge, JudgeSpec, load_judge, shrunk

MOTION, SIGHT = "motion", "sight"
OUTPUTS = {MOTION: ("ahead", "left", "turn"), SIGHT: ("monster", "crosshair")}
MOTION_SCALES = (8.0, 8.0, 3.5)  # about what a held key does in a frame of Doom: units, units, degrees
READ_FRAMES = 64  # at once


def probe_spec(kind: str, game: str, frame_height: int, frame_width: int) -> JudgeSpec:
    """The probe of that kind for frames of that size."""
    longer = max(frame_height, frame_width)
    if kind == MOTION:
        return JudgeSpec(game, frame_height, frame_width, OUTPUTS[MOTION], shrink=max(longer // 80, 1),
                         widths=(24, 32, 48), features=96)
    return JudgeSpec(game, frame_height, frame_width, OUTPUTS[SIGHT], shrink=max(longer // 80, 1),
                     widths=(16, 32, 32), squeezed=16, dilations=())


def load_probe(folder: str | os.PathLike[str], kind: str, game: str, frame_height: int,
               frame_width: int) -> Judge | None:
    """The probe of that kind beside the judge in `folder`, None where there is none. Raises `WorldError` for
    one that is damaged or of something else."""
    path = Path(folder) / kind
    if not path.is_dir():
        return None
    probe = load_judge(path)
    expected, found = (game, frame_height, frame_width, OUTPUTS[kind]), probe.spec
    if (found.game, found.frame_height, found.frame_width, found.buttons) != expected:
        raise WorldError(f"probe {kind} is of {found.game} {found.frame_width}x{found.frame_height}, expected {game} "
                         f"{frame_width}x{frame_height}")
    return probe


@torch.inference_mode()
def read_motion(probe: Judge, frames: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) uint8 consecutive frames -> (N - 1, 3) float64: ahead, left, turn of each transition."""
    out = probe.net(torch.from_numpy(np.ascontiguousarray(frames))[None])[0]
    return out.double().numpy() * MOTION_SCALES


@torch.inference_mode()
def read_sight(probe: Judge, frames: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) uint8 consecutive frames -> (N - 1, 2) bool: monster and crosshair of frames[1:]."""
    parts = [probe.net(torch.from_numpy(np.ascontiguousarray(frames[first : first + READ_FRAMES + 1]))[None])[0] > 0
             for first in range(0, len(frames) - 1, READ_FRAMES)]
    return torch.cat(parts).numpy()


class ClipReader(nn.Module):
    """Dream or game? Frames, averaged over shrink x shrink pixels, and their changes go through three strided
    convolutions, each to a mean and a peak; two convolutions over time follow, and the clip's mean."""

    def __init__(self, shrink: int, width: int = 24) -> None:
        super().__init__()
        self.shrink = shrink
        self.convolutions = nn.ModuleList([
            nn.Conv2d(6, width, 5, stride=2, padding=2), nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1)])
        self.over_time = nn.ModuleList([nn.Conv1d(4 * width, 4 * width, 5, padding=2) for _ in range(2)])
        self.verdict = nn.Linear(4 * width, 1)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, F, H, W, 3) uint8 -> (B,) logits, above 0 where it takes the clip for a dream."""
        batch, count = frames.shape[:2]
        small = shrunk(frames.flatten(0, 1), self.shrink).unflatten(0, (batch, count))
        x = torch.cat([small[:, 1:], 4.0 * small.diff(dim=1)], dim=2).flatten(0, 1)
        for convolution in self.convolutions:
            x = functional.leaky_relu(convolution(x), 0.2)
        x = torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1).unflatten(0, (batch, count - 1)).transpose(1, 2)
        for convolution in self.over_time:
            x = x + functional.leaky_relu(convolution(x), 0.2)
        return self.verdict(x.mean(2))[:, 0]
