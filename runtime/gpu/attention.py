"""Block-sparse attention over the ring, in Triton.

    out[b, t, h] = sum_j p_j value[b, j] / sum_j p_j,  p_j = exp(query[b, t, h] . key[b, j] / sqrt D - max over j)
    j            runs over the written tokens of the blocks that t's query block lists

One program holds QUERIES rows of one head of one player, and goes over the list in tiles of KEYS keys with the online
softmax of FlashAttention (Dao et al. 2022). Two ways to walk a list:

    long blocks (KEYS tokens or more)   a tile lies in one block: one address, and rows that are neighbours
    short blocks                        a tile is gathered over as many blocks as it takes: 20 tokens fill it as well

Keys of sinks are read from `turned` (heads.py). With narrow keys the products q k are of eight bits: a query row is
divided by its largest value as it is read, a key by the scale of its block; p v stays in the ring's precision
(after SageAttention, Zhang et al. 2024). A row that lists nothing written gives zeros. Reference: plain.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from dreamloop.runtime.gpu.language import INTERPRETED, coded, narrow, product
from dreamloop.runtime.gpu.sizes import DevicePlan, Geometry, NarrowKeys

LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class Tiles:
    """Sizes of a program. packed: tiles are gathered over several blocks."""

    queries: int
    keys: int
    packed: bool
    warps: int
    stages: int


def tiles_of(head_size: int, query_tokens: int, block_tokens: int) -> Tiles:
    """Tiles that fit the shared memory of every architecture from sm_80 on (99 KB on sm_89 and sm_120).

    query_tokens: rows that share a list, a block's or, where all rows have one list, a frame's.
    """
    queries = min(max(triton.next_power_of_2(query_tokens), 16), 128 if head_size <= 128 else 64)
    keys = 64 if head_size <= 128 else 32
    return Tiles(queries, keys, block_tokens < keys, 4 if queries * head_size <= 64 * 128 else 8,
                 3 if head_size <= 64 else 2)


@triton.jit
def attention_kernel(query, keys, values, turned, key_scale, index, count, length, out,
                     query_player, query_token, query_head, ring_player, ring_head, turned_player, turned_head,
                     list_player, list_head, list_row, count_player, count_head, count_row, length_player,
                     tokens, heads, key_blocks, turned_rows, scale,
                     D: tl.constexpr, WIDE: tl.constexpr, GROUP: tl.constexpr, BLOCK_TOKENS: tl.constexpr,
                     QUERY_TOKENS: tl.constexpr, MOST: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
                     PACKED: tl.constexpr, TURNED: tl.constexpr, CODED: tl.constexpr, LIMIT: tl.constexpr):
    """scale: log2(e) / sqrt D; WIDE: D up to a power of two; QUERY_TOKENS: rows that share a list; MOST: its length."""
    query_tiles: tl.constexpr = (QUERY_TOKENS + QUERIES - 1) // QUERIES
    block_tiles: tl.constexpr = (BLOCK_TOKENS + KEYS - 1) // KEYS
    tile, head, player = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    row = tile // query_tiles
    token = row * QUERY_TOKENS + (tile % query_tiles) * QUERIES + tl.arange(0, QUERIES)
    asked = (token < tokens) & (token < (row + 1) * QUERY_TOKENS)
    d = tl.arange(0, WIDE)
    whole = d < D
    q = tl.load(query + player * query_player + head * query_head + token[:, None] * query_token + d[None, :],
                mask=asked[:, None] & whole[None, :], other=0.0)
    if CODED:
        wide_q = q.to(tl.float32)
        row_scale = tl.maximum(tl.max(tl.abs(wide_q), axis=1), 1e-20) / LIMIT
        q = coded(wide_q / row_scale[:, None], keys.dtype.element_ty)
    ring = player * ring_player + (head // GROUP) * ring_head
    keys += ring
    values += ring
    turned += player * turned_player + (head // GROUP) * turned_head
    key_scale += (player * (heads // GROUP) + head // GROUP) * key_blocks
    index += player * list_player + head * list_head + row * list_row
    length += player * length_player
    listed = tl.load(count + player * count_player + head * count_head + row * count_row)
    top = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    sums = tl.zeros([QUERIES, WIDE], tl.float32)
    most: tl.constexpr = (MOST * BLOCK_TOKENS + KEYS - 1) // KEYS if PACKED else MOST * block_tiles
    if PACKED:
        last = (listed * BLOCK_TOKENS + KEYS - 1) // KEYS
    else:
        last = listed * block_tiles
    for step in range(0, most if INTERPRETED else last):
        if PACKED:
            place = step * KEYS + tl.arange(0, KEYS)
            entry = place // BLOCK_TOKENS
            within = place - entry * BLOCK_TOKENS
        else:
            entry = step // block_tiles
            within = (step % block_tiles) * KEYS + tl.arange(0, KEYS)
        block = tl.load(index + entry, mask=entry < listed, other=0)
        seen = within < tl.load(length + block, mask=entry < listed, other=0)
        key_row = block * BLOCK_TOKENS + within
        at = keys + key_row[None, :] * D + d[:, None]
        if TURNED:
            at = tl.where((key_row < turned_rows)[None, :], turned + key_row[None, :] * D + d[:, None], at)
        k = tl.load(at, mask=seen[None, :] & whole[:, None], other=0.0)
        if CODED:
            wide_k = tl.load(key_scale + block, mask=entry < listed, other=0.0)
            if keys.dtype.element_ty == tl.int8:
                scores = product(q, k, tl.zeros([QUERIES, KEYS], tl.int32)).to(tl.float32)
            else:
                scores = product(q, k, tl.zeros([QUERIES, KEYS], tl.float32))
            if PACKED:
                scores = scores * wide_k[None, :] * row_scale[:, None]
            else:
                scores = scores * wide_k * row_scale[:, None]
        else:
            scores = product(q, k, tl.zeros([QUERIES, KEYS], tl.float32))
        scores = tl.where(seen[None, :], scores * scale, float("-inf"))
        above = tl.maximum(top, tl.max(scores, axis=1))
        finite = tl.where(above == float("-inf"), 0.0, above)
        p = tl.exp2(scores - finite[:, None])
        keep = tl.exp2(top - finite)
        total = total * keep + tl.sum(p, axis=1)
        v = tl.load(values + key_row[:, None] * D + d[None, :], mask=seen[:, None] & whole[None, :], other=0.0)
        sums = product(narrow(p, values.dtype.element_ty), v, sums * keep[:, None])
        top = above
    result = sums / tl.where(total == 0.0, 1.0, total)[:, None]
    to = out + ((player * tokens + token[:, None]) * heads + head) * D + d[None, :]
    tl.store(to, narrow(result, out.dtype.element_ty), mask=asked[:, None] & whole[None, :])


def sparse_attention(query: Tensor, layer: Tensor, plan: DevicePlan, geometry: Geometry, turned: Tensor | None = None,
                     keys: NarrowKeys | None = None) -> Tensor:
    """softmax(query key / sqrt D) value over what the plan lists. query: (B, T, H, D) -> the same, contiguous."""
    b, t, h, d = query.shape
    out = torch.empty(b, t, h, d, dtype=layer.dtype, device=query.device)
    lists, rows = plan.index, plan.index.shape[2]
    assert query.stride(3) == 1 and layer.stride()[3:] == (d, 1) and h % layer.shape[2] == 0
    assert lists.stride(3) == plan.length.stride(1) == 1 and rows in (1, geometry.parts)
    assert turned is None or (turned.is_contiguous() and keys is None), "narrow keys hold the turned sinks already"
    query_tokens = geometry.block_tokens if rows > 1 else t
    tiles = tiles_of(d, query_tokens, geometry.block_tokens)
    source = layer[0] if keys is None else keys.codes
    assert source.stride() == layer.stride()[1:]

    def steps(a: Tensor, axes: int) -> list[int]:
        """Strides of the leading axes; 0 where all share one."""
        return [a.stride(i) if a.shape[i] > 1 else 0 for i in range(axes)]

    attention_kernel[(rows * triton.cdiv(query_tokens, tiles.queries), h, b)](
        query, source, layer[1], layer if turned is None else turned, layer if keys is None else keys.scale,
        lists, plan.count, plan.length, out, *query.stride()[:3], *layer.stride()[1:3],
        *((0, 0) if turned is None else turned.stride()[:2]), *steps(lists, 3), *steps(plan.count, 3),
        *steps(plan.length, 1), t, h, plan.length.shape[1], 0 if turned is None else turned.shape[2],
        LOG2_E * d**-0.5, d, max(triton.next_power_of_2(d), 32), h // layer.shape[2], geometry.block_tokens,
        query_tokens, lists.shape[3], tiles.queries, tiles.keys, tiles.packed, turned is not None, keys is not None,
        127.0 if source.dtype == torch.int8 else 448.0, num_warps=tiles.warps, num_stages=tiles.stages)
    return out
