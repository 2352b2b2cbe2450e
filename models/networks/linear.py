"""The linear branch of a plan: what the softmax does not read enters to first order in the scores.

    O     = O_sparse + O_skipped P_h                                   for each head h, P_h (D, D) learnt, zero at first
    O_skipped = mean v + q / sqrt D . (mean k v^T - mean k mean v^T)   means over the written keys of the skipped blocks

This is softmax attention over those keys with its weights exp(s_j) / sum exp(s) taken to first order,
(1 + s_j - mean s) / n: exact where all scores are alike, and no divisor can vanish. Sums of k v^T, k and v over a block
do not depend on who asks, so a key costs D^2 once and not D for each query. A row that skips nothing gets nothing.

Sources: blocks that a sparse plan leaves out read by linear attention, added through a learnt projection: SLA (Zhang et
al. 2025), where the features are a softmax of q and of k over D and some blocks are dropped; sums in place of keys:
Katharopoulos et al. 2020. The first-order weights are ours in place of their features.

Letters: B batch, H heads, R rows (query blocks), t queries of a row, N key blocks, n keys of a block, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def in_blocks(x: Tensor, block_tokens: int) -> Tensor:
    """Tokens of frames, (B, H, F, T, D), by block: (B, H, F * blocks of a frame, block_tokens, D); tails hold zeros."""
    tail = -x.shape[3] % block_tokens
    return functional.pad(x, (0, 0, 0, tail)).unflatten(3, (-1, block_tokens)).flatten(2, 3)


def in_frames(x: Tensor, frames: int, tokens: int) -> Tensor:
    """Inverse of `in_blocks`: (B, H, F, T, D)."""
    return x.unflatten(2, (frames, -1)).flatten(3, 4)[:, :, :, :tokens]


def attend_skipped(query: Tensor, keys: Tensor, values: Tensor, written: Tensor, share: Tensor,
                   projection: Tensor) -> Tensor:
    """O_skipped P_h of every query, (B, H, R, t, D) in the precision of the queries.

    query: (B, H, R, t, D), rotated, of any row that shares a list; keys, values: (B, H, N, n, D), rotated; written:
    (B or 1, 1, N, n) bool, rows that hold no token may hold anything; share: (B or 1, 1, R, N), see `shares` in
    core/plan.py; projection: (H, D, D). Sums are made in float32, or in float64 where the keys are.
    """
    with torch.autocast(query.device.type, enabled=False):
        wide = torch.float64 if keys.dtype == torch.float64 else torch.float32
        k, v = (torch.where(written[..., None], x.to(wide), 0.0) for x in (keys, values))
        share = share.to(wide)
        mean_k, mean_v = share @ k.sum(3), share @ v.sum(3)
        products = (share @ (k.transpose(-1, -2) @ v).flatten(3)).unflatten(3, (k.shape[4], -1))
        around = products - mean_k[..., :, None] * mean_v[..., None, :]
        found = mean_v[..., None, :] + query.to(wide) * query.shape[-1] ** -0.5 @ around
        return (found @ projection.to(wide)[:, None]).to(query.dtype)
