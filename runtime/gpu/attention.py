"""Block-sparse attention over the ring, in Triton.

    out[b, t, h] = sum_j p_j value[b, j] / sum_j p_j,  p_j = exp(query[b, t, h] . key[b, j] / sqrt D - max over j)
    j            runs over the written tokens of the blocks that t's query block lists

One program holds QUERIES rows of one head of one player, and goes over the list in tiles of KEYS keys with the online
softmax of FlashAttention (Dao et al. 2022). Two ways to walk a list:

    long blocks (KEYS tokens or more)   a tile lies in one block: one address, and rows that are neighbours
    short blocks                        a tile is gathered over as many blocks as it takes: 20 tokens fill it as well

Keys of sinks are read from `turned` (heads.py). With narrow keys the products q k are of eight bits: a query row is
divided by its largest value as it is read, a key was by its own (heads.py); p v stays in the ring's precision
(after SageAttention, Zhang et al. 2024). A row that lists nothing written gives zeros. Reference: plain.py.

Where there are too few programs for the GPU, or too many for one wave and too few for two, the tiles of a list are
split over several programs (flash-decoding, Dao et al. 2023; `splits_of`). Each leaves its own softmax in float32 and
the logarithm of its total, the weight with which `join_kernel` adds it to the others:

    out = sum_s 2^(w_s - max w) out_s / sum_s 2^(w_s - max w),  w_s = max_s + log2 total_s      -inf where s saw nothing
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from dreamloop.runtime.gpu.language import INTERPRETED, coded, narrow, product
from dreamloop.runtime.gpu.sizes import DevicePlan, Geometry, NarrowKeys

LOG2_E = 1.4426950408889634
SPLITS = (1, 2, 4, 8, 16)
PROCESSORS, CAPABILITY = 132, (9, 0)  # of an H100 or H200; asked where there is a GPU
WARPGROUPS = (9, 10)  # major capabilities whose tensor cores read from shared memory; the others' read registers
START, JOIN, SPILLED = 2, 4, 2048  # estimates, see `splits_of`
JOINED = 1024  # values that a program of `join_kernel` holds


@dataclass(frozen=True)
class Tiles:
    """Sizes of a program. packed: tiles are gathered over several blocks."""

    queries: int
    keys: int
    packed: bool
    warps: int
    stages: int


def tiles_of(head_size: int, query_tokens: int, block_tokens: int, dtype: torch.dtype = torch.bfloat16,
             coded: bool = False, major: int = CAPABILITY[0]) -> Tiles:
    """Tiles that fit the shared memory of every architecture from sm_80 on (99 KB on sm_89 and sm_120), and the
    registers of the one with that major capability.

    query_tokens: rows that share a list, a block's or, where all rows have one list, a frame's; dtype: of the ring;
    coded: keys are narrow.
    """
    rows = max(triton.next_power_of_2(query_tokens), 16)
    if dtype == torch.float32:  # no tensor core multiplies it unrounded, and larger tiles spill
        return Tiles(min(rows, 32), 32, block_tokens < 32, 8, 2)
    queries, keys = (min(rows, 128), 64) if head_size <= 128 else (min(rows, 64), 32)
    if major not in WARPGROUPS and head_size > 64 and (coded or queries <= 64):
        keys = 32
    packed = block_tokens < keys
    # what spills on some architecture otherwise: 128 queries on 4 warps, and 64 with gathered keys in 3 stages
    warps = 4 if queries <= 64 and queries * head_size <= 64 * 128 else 8
    return Tiles(queries, keys, packed, warps, 3 if head_size <= 64 and not (packed and queries >= 64) else 2)


def splits_of(programs: int, key_tiles: int, values: int, processors: int = PROCESSORS) -> int:
    """Over how many programs the tiles of a list are split. programs: without a split; values: of a program's result.

    The least time by a model of waves, in units of one key tile (about a microsecond): a program takes START and its
    tiles; one of a split also takes a unit for SPILLED values that it leaves and that are read again, and the second
    kernel takes JOIN. So a list of a few tiles stays whole: a launch costs more than the tiles that it would spare.
    """
    def cost(splits: int) -> float:
        each = -(-key_tiles // splits) + START + (values / SPILLED if splits > 1 else 0)
        return -(-programs * splits // processors) * each + (JOIN if splits > 1 else 0)
    return min(SPLITS, key=cost)


@triton.jit
def attention_kernel(query, keys, values, turned, key_scale, index, count, length, out, weight,
                     query_player, query_token, query_head, key_player, key_head, ring_player, ring_head,
                     turned_player, turned_head,
                     list_player, list_head, list_row, count_player, count_head, count_row, length_player,
                     tokens, heads, ring_rows, turned_rows, scale,
                     D: tl.constexpr, WIDE: tl.constexpr, GROUP: tl.constexpr, BLOCK_TOKENS: tl.constexpr,
                     QUERY_TOKENS: tl.constexpr, MOST: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
                     PACKED: tl.constexpr, TURNED: tl.constexpr, CODED: tl.constexpr, LIMIT: tl.constexpr,
                     SPLITS: tl.constexpr):
    """scale: log2(e) / sqrt D; WIDE: D up to a power of two; QUERY_TOKENS: rows that share a list; MOST: its length,
    which the interpreter alone needs; out: (SPLITS, B, T, H, D), and weight (SPLITS, B, T, H) where they are several.
    """
    query_tiles: tl.constexpr = (QUERY_TOKENS + QUERIES - 1) // QUERIES
    block_tiles: tl.constexpr = (BLOCK_TOKENS + KEYS - 1) // KEYS
    tile, head, player = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    split = 0
    if SPLITS > 1:  # programs that run together read the same keys
        split = tile // (tl.num_programs(0) // SPLITS)
        tile = tile % (tl.num_programs(0) // SPLITS)
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
        row_scale = row_scale * scale
    keys += player * key_player + (head // GROUP) * key_head
    values += player * ring_player + (head // GROUP) * ring_head
    turned += player * turned_player + (head // GROUP) * turned_head
    key_scale += (player * (heads // GROUP) + head // GROUP) * ring_rows
    index += player * list_player + head * list_head + row * list_row
    length += player * length_player
    listed = tl.load(count + player * count_player + head * count_head + row * count_row)
    top = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    sums = tl.zeros([QUERIES, WIDE], tl.float32)
    most: tl.constexpr = (MOST * BLOCK_TOKENS + KEYS - 1) // KEYS if PACKED else MOST * block_tiles
    if PACKED:
        stop = (listed * BLOCK_TOKENS + KEYS - 1) // KEYS
    else:
        stop = listed * block_tiles
    first = 0
    if SPLITS > 1:
        share = (stop + SPLITS - 1) // SPLITS
        first = split * share
        stop = tl.minimum(first + share, stop)
    for turn in range(0, (most + SPLITS - 1) // SPLITS if INTERPRETED else stop - first):
        step = first + turn
        if PACKED:
            place = step * KEYS + tl.arange(0, KEYS)
            entry = place // BLOCK_TOKENS
            within = place - entry * BLOCK_TOKENS
        else:
            entry = step // block_tiles
            within = (step % block_tiles) * KEYS + tl.arange(0, KEYS)
        inside = entry < (tl.where(step < stop, listed, 0) if INTERPRETED else listed)
        block = tl.load(index + entry, mask=inside, other=0)
        seen = within < tl.load(length + block, mask=inside, other=0)
        key_row = block * BLOCK_TOKENS + within
        at = keys + key_row[None, :] * D + d[:, None]
        if TURNED:
            at = tl.where((key_row < turned_rows)[None, :], turned + key_row[None, :] * D + d[:, None], at)
        k = tl.load(at, mask=seen[None, :] & whole[:, None], other=0.0)
        if CODED:
            if keys.dtype.element_ty == tl.int8:
                scores = product(q, k, tl.zeros([QUERIES, KEYS], tl.int32)).to(tl.float32)
            else:
                scores = product(q, k, tl.zeros([QUERIES, KEYS], tl.float32))
            scores = scores * row_scale[:, None] * tl.load(key_scale + key_row, mask=seen, other=0.0)[None, :]
        else:
            scores = product(q, k, tl.zeros([QUERIES, KEYS], tl.float32)) * scale
        scores = tl.where(seen[None, :], scores, float("-inf"))
        above = tl.maximum(top, tl.max(scores, axis=1))
        finite = tl.where(above == float("-inf"), 0.0, above)
        p = tl.exp2(scores - finite[:, None])
        keep = tl.exp2(top - finite)
        total = total * keep + tl.sum(p, axis=1)
        v = tl.load(values + key_row[:, None] * D + d[None, :], mask=seen[:, None] & whole[None, :], other=0.0)
        sums = product(narrow(p, values.dtype.element_ty), v, sums * keep[:, None])
        top = above
    result = sums / tl.where(total == 0.0, 1.0, total)[:, None]
    line = ((split * tl.num_programs(2) + player) * tokens + token) * heads + head
    tl.store(out + line[:, None] * D + d[None, :], narrow(result, out.dtype.element_ty),
             mask=asked[:, None] & whole[None, :])
    if SPLITS > 1:
        tl.store(weight + line, top + tl.log2(tl.where(total == 0.0, 1.0, total)), mask=asked)


@triton.jit
def join_kernel(parts, weight, out, lines, D: tl.constexpr, WIDE: tl.constexpr, LINES: tl.constexpr,
                SPLITS: tl.constexpr):
    """parts: (SPLITS, lines, D) and weight: (SPLITS, lines) -> out: (lines, D). A line is a row of a head."""
    line = tl.program_id(0).to(tl.int64) * LINES + tl.arange(0, LINES)
    inside = line < lines
    d = tl.arange(0, WIDE)
    mask = inside[:, None] & (d < D)[None, :]
    top = tl.full([LINES], float("-inf"), tl.float32)
    for split in tl.static_range(SPLITS):
        top = tl.maximum(top, tl.load(weight + split * lines + line, mask=inside, other=float("-inf")))
    finite = tl.where(top == float("-inf"), 0.0, top)
    total = tl.zeros([LINES], tl.float32)
    sums = tl.zeros([LINES, WIDE], tl.float32)
    for split in tl.static_range(SPLITS):
        share = tl.exp2(tl.load(weight + split * lines + line, mask=inside, other=float("-inf")) - finite)
        place = (split * lines + line)[:, None] * D + d[None, :]
        sums += share[:, None] * tl.load(parts + place, mask=mask, other=0.0)
        total += share
    result = sums / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(out + line[:, None] * D + d[None, :], narrow(result, out.dtype.element_ty), mask=mask)


def sparse_attention(query: Tensor, layer: Tensor, plan: DevicePlan, geometry: Geometry, turned: Tensor | None = None,
                     keys: NarrowKeys | None = None, splits: int | None = None) -> Tensor:
    """softmax(query key / sqrt D) value over what the plan lists. query: (B, T, H, D) -> the same, contiguous.
    splits: one of `SPLITS`; None chooses."""
    b, t, h, d = query.shape
    lists, rows = plan.index, plan.index.shape[2]
    assert query.stride(3) == 1 and layer.stride()[3:] == (d, 1) and h % layer.shape[2] == 0
    assert lists.stride(3) == plan.length.stride(1) == 1 and rows in (1, geometry.parts)
    assert turned is None or (turned.is_contiguous() and keys is None), "narrow keys hold the turned sinks already"
    query_tokens = geometry.block_tokens if rows > 1 else t
    tiles = tiles_of(d, query_tokens, geometry.block_tokens, layer.dtype, keys is not None, _major(query))
    wide = max(triton.next_power_of_2(d), 32)
    programs = rows * triton.cdiv(query_tokens, tiles.queries)
    splits = splits or splits_for(query, plan, geometry, keys is not None)
    out = torch.empty(b, t, h, d, dtype=layer.dtype, device=query.device)
    parts, weight = out, out
    if splits > 1:
        parts = torch.empty(splits, b, t, h, d, dtype=torch.float32, device=query.device)
        weight = torch.empty(splits, b, t, h, dtype=torch.float32, device=query.device)
    source = layer[0] if keys is None else keys.codes
    assert source.stride()[2:] == (d, 1)

    def steps(a: Tensor, axes: int) -> Sequence[int]:
        """Strides of the leading axes; 0 where all share one."""
        return [a.stride(i) if a.shape[i] > 1 else 0 for i in range(axes)]

    attention_kernel[(programs * splits, h, b)](
        query, source, layer[1], layer if turned is None else turned, layer if keys is None else keys.scale,
        lists, plan.count, plan.length, parts, weight, *query.stride()[:3], *source.stride()[:2], *layer.stride()[1:3],
        *((0, 0) if turned is None else turned.stride()[:2]), *steps(lists, 3), *steps(plan.count, 3),
        *steps(plan.length, 1), t, h, layer.shape[3], 0 if turned is None else turned.shape[2],
        LOG2_E * d**-0.5, d, wide, h // layer.shape[2], geometry.block_tokens, query_tokens,
        lists.shape[3] if INTERPRETED.value else 0, tiles.queries, tiles.keys, tiles.packed, turned is not None,
        keys is not None, 127.0 if source.dtype == torch.int8 else 448.0, splits, num_warps=tiles.warps,
        num_stages=tiles.stages)
    if splits > 1:
        lines = max(JOINED // wide, 1)
        join_kernel[(triton.cdiv(b * t * h, lines),)](parts, weight, out, b * t * h, d, wide, lines, splits,
                                                      num_warps=4)
    return out


def _major(query: Tensor) -> int:
    return (torch.cuda.get_device_capability(query.device) if query.is_cuda else CAPABILITY)[0]


def splits_for(query: Tensor, plan: DevicePlan, geometry: Geometry, coded: bool = False) -> int:
    """How many programs share a list, going by its room: how much of it is used is known to the device alone."""
    (b, t, h, d), rows, most = query.shape, *plan.index.shape[2:]
    query_tokens = geometry.block_tokens if rows > 1 else t
    tiles = tiles_of(d, query_tokens, geometry.block_tokens, query.dtype, coded, _major(query))
    key_tiles = (triton.cdiv(most * geometry.block_tokens, tiles.keys) if tiles.packed
                 else most * triton.cdiv(geometry.block_tokens, tiles.keys))
    processors = PROCESSORS
    if query.is_cuda:
        processors = torch.cuda.get_device_properties(query.device).multi_processor_count
    return splits_of(b * h * rows * triton.cdiv(query_tokens, tiles.queries), key_tiles,
                     tiles.queries * triton.next_power_of_2(d), processors)
