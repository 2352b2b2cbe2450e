"""Small things that matter, one by one: a ball of three pixels counts as much as a paddle of forty."""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torch.nn import functional

MARGIN = 2  # pixels around a thing that stand for what is behind it


def thing_weights(objects: Tensor, size: int) -> Tensor:
    """(B, 1, H, W): 1 on and beside a thing, more where it is smaller than `size` pixels, so that it weighs as much
    as one of that size; 0 elsewhere. objects: (B, H, W) float, 1 where a thing is shown; size 0: 1 for all."""
    near = functional.max_pool2d(objects[:, None], 3, stride=1, padding=1)
    if not size:
        return near
    reach = int(np.ceil(np.sqrt(size)))  # a window of twice the side of such a thing
    area = functional.avg_pool2d(near, 2 * reach + 1, stride=1, padding=reach) * (2 * reach + 1) ** 2
    return near * (size / area.clamp(min=1.0)).clamp(min=1.0)


def things_kept(shown: np.ndarray, game: np.ndarray, objects: np.ndarray) -> tuple[int, int]:
    """How many things of one frame are kept, and how many there are. A thing is what hangs together in `objects`;
    it is kept where its squared error is less than half of what painting it over, in the mean colour of its
    surroundings, would make.

    shown, game: (H, W, 3) uint8, a picture of the frame and the frame; objects: (H, W) bool."""
    from skimage.measure import label, regionprops
    kept = there = 0
    parts = label(objects)
    for thing in regionprops(parts):
        top, left, bottom, right = thing.bbox
        window = (slice(max(top - MARGIN, 0), bottom + MARGIN), slice(max(left - MARGIN, 0), right + MARGIN))
        on, real, made = objects[window], game[window].astype(np.float64), shown[window].astype(np.float64)
        if on.all():
            continue  # nothing behind it can be seen
        of_thing = parts[window] == thing.label
        contrast = np.square(real[of_thing] - real[~on].mean(axis=0)).sum()
        there += 1
        kept += int(np.square(real[of_thing] - made[of_thing]).sum() < contrast / 2)
    return kept, there
