"""What happens in Doom, told from the picture alone: the muzzle flash, in the game or in a dream.

The flash is a white and orange flame above the pistol's barrel, at one place of the picture. `FLAME` is what
it adds to that place, in cells of 3x3 pixels (the median over some hundred shots of the game); a frame
shows it where its cells correlate with those. An explosion or a monster that happens to be there has
another shape. The tests hold this to the weapon's own clockwork on real frames.
"""

from __future__ import annotations

import numpy as np

FLASH_CORRELATION = 0.6
APART_FRAMES = 10  # flashes of a trigger that is held are 14 apart, and last 7
ROWS, COLUMNS, CELL = slice(49, 67), slice(70, 91), 3  # of a picture of 160x120
FLAME = np.array([[5, 5, 6, 0, 7, 6, 5], [5, 3, 36, 97, 15, 3, 6], [7, 28, 151, 183, 139, 12, 7],
                  [0, 125, 179, 144, 175, 93, 7], [4, 112, 96, 4, 130, 78, 8], [8, 24, 34, 18, 21, 15, 7]], np.float32)


def flash_correlation(frames: np.ndarray) -> np.ndarray:
    """How much the flame's place looks like the flame, -1 to 1: (F, 120, 160, 3) uint8 -> (F,) float32."""
    grey = frames[:, ROWS, COLUMNS].astype(np.float32).mean(axis=3)
    cells = grey.reshape(len(frames), FLAME.shape[0], CELL, FLAME.shape[1], CELL).mean(axis=(2, 4))
    cells -= cells.mean(axis=(1, 2), keepdims=True)
    flame = FLAME - FLAME.mean()
    size = np.sqrt(np.square(cells).sum(axis=(1, 2)) * np.square(flame).sum())
    return np.asarray((cells * flame).sum(axis=(1, 2)) / np.maximum(size, 1e-3))


def flashes(frames: np.ndarray) -> np.ndarray:
    """Where a flash begins: (F, 120, 160, 3) uint8 consecutive frames -> ascending indices, all above 0: of a
    flash in the first frame nobody knows when it began."""
    lit = flash_correlation(frames) > FLASH_CORRELATION
    begun: list[int] = []
    for t in np.flatnonzero(lit[1:] & ~lit[:-1]) + 1:
        if not begun or t - begun[-1] >= APART_FRAMES:  # else it is the same flash, half hidden in between
            begun.append(int(t))
    return np.array(begun, np.int64)
