"""Random plans of the format, and rings in which whatever they do not list is poison."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dreamloop.runtime.gpu import plain
from dreamloop.runtime.gpu.sizes import DevicePlan, Geometry


def random_plan(generator: np.random.Generator, lead: tuple[int, int, int], players: int, key_blocks: int,
                block_tokens: int) -> DevicePlan:
    """Lists of any length in any order; blocks behind them that must not be read; one block may be empty."""
    index = np.stack([generator.permutation(key_blocks) for _ in range(int(np.prod(lead)))]).reshape(*lead, key_blocks)
    count = generator.integers(1, key_blocks + 1, lead)
    count.flat[0] = 1
    length = generator.integers(1, block_tokens + 1, (players, key_blocks))
    length[:, int(index.flat[1])] = 0  # never the only block of a row: the first of no list, and lists are longer
    count = np.where(index[..., 0] == index.flat[1], np.maximum(count, 2), count)
    index, count, length = (torch.from_numpy(a.astype(np.int32)) for a in (index, count, length))
    return DevicePlan(index, count, length)


def poisoned(layer: Tensor, plan: DevicePlan, geometry: Geometry) -> Tensor:
    """NaN in every key and value that no row may read."""
    unread = ~plain.token_mask(plan, geometry).any(dim=(1, 2))
    layer = layer.clone()
    layer.transpose(2, 3)[:, unread.expand(layer.shape[1], -1)] = torch.nan
    return layer


CASES = [  # B, T, block_tokens, slots, H, G, D, players, heads and rows of the lists
    (1, 1, 1, 3, 1, 1, 16, (1, 1, 1)), (3, 17, 5, 3, 2, 1, 24, (3, 2, 4)), (2, 6, 4, 4, 4, 2, 8, (2, 1, 2)),
    (2, 20, 20, 3, 2, 2, 32, (2, 1, 1)), (1, 70, 70, 2, 1, 1, 16, (1, 1, 1)), (1, 130, 66, 2, 1, 1, 64, (1, 1, 2)),
    (2, 9, 3, 5, 2, 2, 16, (1, 2, 1))]
