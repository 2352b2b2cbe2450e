"""Which size a world's frames get, and how a game's pictures are brought to it.

The rule: a picture keeps its proportions. One whose longer side is above `LARGEST` is shrunk to that,
one whose shorter side is below `SMALLEST` is enlarged by a whole factor. Then it is shrunk, a pixel
at a time, until the latents (a cell of 16x16 pixels each, or 8x8 where the longer side is at most
`SMALL`) make a grid of even height and width, for a token stands for 2x2 of them. What is missing to
whole cells is padded inside the network by repeating the border, and cut off again.
"""

from __future__ import annotations

import av
import numpy as np

from dreamloop.models.core.errors import GameError

LARGEST, SMALLEST, SMALL = 160, 32, 80
PATCH = 2


def downsample_of(height: int, width: int) -> int:
    """Pixels to the side of a latent cell."""
    return 8 if max(height, width) <= SMALL else 16


def frame_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) of a world's frames for pictures of this size. Raises `GameError` for pictures
    so long and thin that there is none."""
    if min(height, width) < 1:
        raise GameError(f"pictures of {width}x{height} pixels have nothing to show")
    scale = -(-SMALLEST // min(height, width)) if min(height, width) < SMALLEST else 1
    longest = min(LARGEST, scale * max(height, width))
    for longer in range(longest, longest // 2, -1):
        fitted = tuple(round(side * longer / max(height, width)) for side in (height, width))
        cell = downsample_of(*fitted)
        if min(fitted) >= 8 and all(-(-side // cell) % PATCH == 0 for side in fitted):
            return fitted[0], fitted[1]
    raise GameError(f"pictures of {width}x{height} pixels are too long and thin for a world")


def resized(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 at another size: means over areas where it shrinks, whole pixels where it grows."""
    if picture.shape[:2] == (height, width):
        return picture
    how = "AREA" if height <= picture.shape[0] else "POINT"
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    return frame.reformat(width, height, interpolation=how).to_ndarray(format="rgb24")


def moving(now: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Small things that matter, where the game does not tell: what changed by more than `0.1` of full
    scale since the frame before, unless that is a tenth of the picture or more (then all of it moves,
    and all of it matters alike). Frames (H, W, 3) uint8 -> (H, W) bool."""
    changed = np.abs(now.astype(np.int16) - before).max(axis=2) > 25
    return changed if changed.mean() < 0.1 else np.zeros_like(changed)
