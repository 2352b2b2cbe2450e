"""The linear branch of a plan in Triton: what the lists leave out, to first order in the scores.

    out[b, t, h] += (mean v + query / sqrt D . (mean k v^T - mean k mean v^T)) P_h       means over the skipped keys

Four steps a layer (formula and source: models/networks/linear.py):

    moments      one program a block and stretch of columns: k^T v, and the sums of k and of v, in float32
    means        torch's product with the shares of the blocks, (rows, blocks) x (blocks, D^2): every sum is read once
    folding      torch's products with P_h: a matrix (D, D) and a bias (D,) for each row of blocks and head
    combination  one program a tile of queries: query x matrix + bias, added to what the softmax made

A block that no row skips counts as empty: its keys are not read. Sums and means stay in float32; the matrix is rounded
to the ring's precision, as the query is. Reference: plain.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dreamloop.runtime.gpu.language import INTERPRETED, narrow, product
from dreamloop.runtime.gpu.sizes import Geometry, Skipped

COLUMNS = 64  # of a value that one program holds; a matrix of 128 x 64 sums leaves room for the tiles
KEYS = 64


@triton.jit
def moments_kernel(keys, values, length, products, sums, ring_player, ring_head, length_player, heads, key_blocks,
                   D: tl.constexpr, WIDE: tl.constexpr, COLUMNS: tl.constexpr, KEYS: tl.constexpr,
                   BLOCK_TOKENS: tl.constexpr):
    """products: (B, G, key_blocks, D, D); sums: (B, G, key_blocks, 2, D), of keys and of values; WIDE: D up to a power
    of two."""
    stretches: tl.constexpr = (D + COLUMNS - 1) // COLUMNS
    program, head, player = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    block, stretch = program // stretches, program % stretches
    d, column = tl.arange(0, WIDE), stretch * COLUMNS + tl.arange(0, COLUMNS)
    first = player * ring_player + head * ring_head + block * BLOCK_TOKENS * D
    held = tl.load(length + player * length_player + block)
    squares = tl.zeros([WIDE, COLUMNS], tl.float32)
    of_keys = tl.zeros([WIDE], tl.float32)
    of_values = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, BLOCK_TOKENS if INTERPRETED else held, KEYS):
        row = start + tl.arange(0, KEYS)
        seen = row < held
        k = tl.load(keys + first + row[None, :] * D + d[:, None], mask=seen[None, :] & (d < D)[:, None], other=0.0)
        v = tl.load(values + first + row[:, None] * D + column[None, :],
                    mask=seen[:, None] & (column < D)[None, :], other=0.0)
        squares = product(k, v, squares)
        of_keys += tl.sum(k.to(tl.float32), axis=1)
        of_values += tl.sum(v.to(tl.float32), axis=0)
    at = (player * heads + head) * key_blocks + block
    tl.store(products + (at * D + d[:, None]) * D + column[None, :], squares,
             mask=(d < D)[:, None] & (column < D)[None, :])
    tl.store(sums + at * 2 * D + d, of_keys, mask=d < tl.where(stretch == 0, D, 0))
    tl.store(sums + (at * 2 + 1) * D + column, of_values, mask=column < D)


@triton.jit
def combination_kernel(query, matrix, bias, out, query_player, query_token, query_head, tokens, heads, rows,
                       D: tl.constexpr, WIDE: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
                       QUERY_TOKENS: tl.constexpr, QUERIES: tl.constexpr):
    """matrix: (B, H, rows, D, D) in the ring's precision; bias: (B, H, rows, D) float32; QUERY_TOKENS: tokens of a row;
    DEPTH: of D at a time; out: (B, T, H, D), added to in place."""
    query_tiles: tl.constexpr = (QUERY_TOKENS + QUERIES - 1) // QUERIES
    stretches: tl.constexpr = (D + COLUMNS - 1) // COLUMNS
    program, head, player = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    tile, stretch = program // stretches, program % stretches
    row = tile // query_tiles
    token = row * QUERY_TOKENS + (tile % query_tiles) * QUERIES + tl.arange(0, QUERIES)
    asked = (token < tokens) & (token < (row + 1) * QUERY_TOKENS)
    column = stretch * COLUMNS + tl.arange(0, COLUMNS)
    at = (player * heads + head) * rows + row
    asks = query + player * query_player + head * query_head + token[:, None] * query_token
    found = tl.zeros([QUERIES, COLUMNS], tl.float32)
    for start in range(0, WIDE, DEPTH):
        d = start + tl.arange(0, DEPTH)
        q = tl.load(asks + d[None, :], mask=asked[:, None] & (d < D)[None, :], other=0.0)
        m = tl.load(matrix + (at * D + d[:, None]) * D + column[None, :], mask=(d < D)[:, None] & (column < D)[None, :],
                    other=0.0)
        found = product(q, m, found)
    found += tl.load(bias + at * D + column, mask=column < D, other=0.0)[None, :]
    mask = asked[:, None] & (column < D)[None, :]
    to = out + ((player * tokens + token[:, None]) * heads + head) * D + column[None, :]
    found += tl.load(to, mask=mask, other=0.0).to(tl.float32)
    tl.store(to, narrow(found, out.dtype.element_ty), mask=mask)


def moments(layer: Tensor, skipped: Skipped, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """k^T v of every block that some row skips, (B, G, key_blocks, D, D), and its sums of k and v,
    (B, G, key_blocks, 2, D); float32, zeros for other blocks."""
    _, b, g, rows, d = layer.shape
    blocks, length = rows // geometry.block_tokens, skipped.length
    products = torch.empty(b, g, blocks, d, d, dtype=torch.float32, device=layer.device)
    sums = torch.empty(b, g, blocks, 2, d, dtype=torch.float32, device=layer.device)
    assert layer.stride()[3:] == (d, 1) and length.shape[1] == blocks and length.stride(1) == 1
    whole = max(triton.next_power_of_2(d), 16)
    columns = min(whole, COLUMNS)
    keys, warps = (KEYS // 2, 4) if layer.dtype == torch.float32 else (KEYS, 4 if whole < 128 else 8)  # or it spills
    moments_kernel[(blocks * triton.cdiv(d, columns), g, b)](
        layer[0], layer[1], length, products, sums, *layer.stride()[1:3], length.stride(0) if len(length) > 1 else 0, g,
        blocks, d, whole, columns,
        min(max(triton.next_power_of_2(geometry.block_tokens), 16), keys), geometry.block_tokens,
        num_warps=warps, num_stages=2)
    return products, sums


def folded(products: Tensor, sums: Tensor, share: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """What a row adds to a query: a matrix (B, H, R, D, D) and a bias (B, H, R, D), both float32."""
    g, d, h = products.shape[1], products.shape[4], len(weights)
    mean_k, mean_v = (share @ sums.flatten(3)).unflatten(3, (2, d)).unbind(3)
    around = (share @ products.flatten(3)).unflatten(3, (d, d)) - mean_k[..., :, None] * mean_v[..., None, :]
    by_head = weights.float().view(g, h // g, 1, d, d)
    matrix = (around * d**-0.5)[:, :, None] @ by_head  # (B, G, H / G, R, D, D)
    bias = mean_v[:, :, None] @ by_head[:, :, 0]
    return matrix.flatten(1, 2), bias.flatten(1, 2)


def add_skipped(out: Tensor, query: Tensor, layer: Tensor, skipped: Skipped, geometry: Geometry,
                weights: Tensor) -> Tensor:
    """out + what the plan skips, times the weights (H, D, D); out, query: (B, T, H, D). Written over `out`."""
    b, t, h, d = query.shape
    matrix, bias = folded(*moments(layer, skipped, geometry), skipped.share, weights)
    rows = matrix.shape[2]
    matrix, bias = matrix.to(layer.dtype).contiguous(), bias.contiguous()
    assert out.is_contiguous() and query.stride(3) == 1 and rows in (1, geometry.parts)
    tokens = geometry.block_tokens if rows > 1 else t
    queries = min(max(triton.next_power_of_2(tokens), 16), 64)
    whole = max(triton.next_power_of_2(d), 16)
    columns = min(whole, COLUMNS)
    combination_kernel[(rows * triton.cdiv(tokens, queries) * triton.cdiv(d, columns), h, b)](
        query, matrix, bias, out, *query.stride()[:3], t, h, rows, d, whole, columns,
        min(whole, 32 if layer.dtype == torch.float32 else 64), tokens, queries, num_warps=4)
    return out
