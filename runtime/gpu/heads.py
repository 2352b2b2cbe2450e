"""Triton kernels around the ring: queries and keys normalised, turned and written; sinks turned; keys in one byte.

    qkv_write     one program a stretch of tokens of one head: a query head writes turned queries, a key head its keys
                  and values into the slot of the frame, and under top_k the mean key of its block behind them
    turn_sinks    one program a stretch of rows of the sink slots: their keys at the time of this pass
    narrow_keys   one program a stretch of rows of the ring: of each written key its largest value, then its codes

A head of D elements is held as two halves, the pairs of the rotation (models/core/conditioning.py).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dreamloop.runtime.gpu.language import coded, narrow
from dreamloop.runtime.gpu.sizes import DevicePlan, Geometry, NarrowKeys, Turns

STRETCH = 16  # tokens that a program holds at a time
NARROWED = 64  # of narrow_keys, which does no more than read and write


@triton.jit
def _turned(x, gain, cos, sin, token, inside, pair, D: tl.constexpr):
    """Rows `token` of one head, RMS-normalised and turned: two halves (tokens, pairs)."""
    half: tl.constexpr = D // 2
    paired = pair < half
    mask = inside[:, None] & paired[None, :]
    first = tl.load(x + pair[None, :], mask=mask, other=0.0).to(tl.float32)
    second = tl.load(x + half + pair[None, :], mask=mask, other=0.0).to(tl.float32)
    mean = (tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)) / D
    norm = 1.0 / tl.sqrt(mean + 1e-6)
    first = first * norm[:, None] * tl.load(gain + pair, mask=paired, other=0.0).to(tl.float32)[None, :]
    second = second * norm[:, None] * tl.load(gain + half + pair, mask=paired, other=0.0).to(tl.float32)[None, :]
    turn = token[:, None] * half + pair[None, :]
    c, s = tl.load(cos + turn, mask=mask, other=0.0), tl.load(sin + turn, mask=mask, other=0.0)
    return first * c - second * s, first * s + second * c


@triton.jit
def qkv_write_kernel(q, k, v, query_gain, key_gain, cos, sin, store_cos, store_sin, query, keys, values, slot,
                     q_player, q_token, q_head, k_player, k_token, k_head, v_player, v_token, v_head,
                     ring_player, ring_head, tokens, heads,
                     D: tl.constexpr, PAIRS: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr,
                     SLOT_ROWS: tl.constexpr, MEANS_AT: tl.constexpr):
    """MEANS_AT: the row of a slot where its mean keys begin, or -1; SPAN: tokens of a program."""
    half: tl.constexpr = D // 2
    part, head, player = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    pair = tl.arange(0, PAIRS)
    paired = pair < half
    turn = player * tokens * half
    ring = player * ring_player + (head - heads) * ring_head + tl.load(slot + player).to(tl.int64) * SLOT_ROWS * D
    sum_first, sum_second = tl.zeros([PAIRS], tl.float32), tl.zeros([PAIRS], tl.float32)
    for start in range(0, SPAN, BLOCK):
        within = start + tl.arange(0, BLOCK)
        token = part * SPAN + within
        inside = (within < SPAN) & (token < tokens)
        mask = inside[:, None] & paired[None, :]
        if head < heads:
            source = q + player * q_player + head * q_head + token[:, None] * q_token
            first, second = _turned(source, query_gain, cos + turn, sin + turn, token, inside, pair, D)
            to = query + ((player * tokens + token[:, None]) * heads + head) * D + pair[None, :]
            tl.store(to, narrow(first, query.dtype.element_ty), mask=mask)
            tl.store(to + half, narrow(second, query.dtype.element_ty), mask=mask)
        else:
            source = k + player * k_player + (head - heads) * k_head + token[:, None] * k_token
            first, second = _turned(source, key_gain, store_cos + turn, store_sin + turn, token, inside, pair, D)
            place = ring + token[:, None] * D + pair[None, :]
            tl.store(keys + place, narrow(first, keys.dtype.element_ty), mask=mask)
            tl.store(keys + place + half, narrow(second, keys.dtype.element_ty), mask=mask)
            value = v + player * v_player + (head - heads) * v_head + token[:, None] * v_token + pair[None, :]
            a, b = tl.load(value, mask=mask, other=0.0), tl.load(value + half, mask=mask, other=0.0)
            tl.store(values + place, narrow(a.to(tl.float32), values.dtype.element_ty), mask=mask)
            tl.store(values + place + half, narrow(b.to(tl.float32), values.dtype.element_ty), mask=mask)
            sum_first += tl.sum(tl.where(mask, first, 0.0), axis=0)
            sum_second += tl.sum(tl.where(mask, second, 0.0), axis=0)
    if MEANS_AT >= 0:
        if head >= heads:
            length = tl.minimum(tokens - part * SPAN, SPAN).to(tl.float32)
            mean = ring + (MEANS_AT + part) * D + pair
            tl.store(keys + mean, narrow(sum_first / length, keys.dtype.element_ty), mask=paired)
            tl.store(keys + mean + half, narrow(sum_second / length, keys.dtype.element_ty), mask=paired)


@triton.jit
def turn_sinks_kernel(keys, cos, sin, out, ring_player, ring_head, out_player, rows, sinks, D: tl.constexpr,
                      PAIRS: tl.constexpr, BLOCK: tl.constexpr, SLOT_ROWS: tl.constexpr):
    half: tl.constexpr = D // 2
    head, player = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    pair = tl.arange(0, PAIRS)
    mask = (row < rows)[:, None] & (pair < half)[None, :]
    turn = (player * sinks + row // SLOT_ROWS)[:, None] * half + pair[None, :]
    c, s = tl.load(cos + turn, mask=mask, other=0.0), tl.load(sin + turn, mask=mask, other=0.0)
    place = row[:, None] * D + pair[None, :]
    source = keys + player * ring_player + head * ring_head + place
    first = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(source + half, mask=mask, other=0.0).to(tl.float32)
    to = out + player * out_player + head * rows * D + place
    tl.store(to, narrow(first * c - second * s, out.dtype.element_ty), mask=mask)
    tl.store(to + half, narrow(first * s + second * c, out.dtype.element_ty), mask=mask)


@triton.jit
def narrow_keys_kernel(keys, turned, length, codes, scales, ring_player, ring_head, turned_player, turned_head,
                       length_player, rows, turned_rows, heads, D: tl.constexpr, COLUMNS: tl.constexpr,
                       BLOCK: tl.constexpr, BLOCK_TOKENS: tl.constexpr, LIMIT: tl.constexpr, TURNED: tl.constexpr):
    head, player = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row, column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, COLUMNS)
    block = row // BLOCK_TOKENS
    lies = tl.load(length + player * length_player + block, mask=row < rows, other=0)
    written = row - block * BLOCK_TOKENS < lies
    mask = written[:, None] & (column < D)[None, :]
    place = row[:, None] * D + column[None, :]
    source = keys + player * ring_player + head * ring_head + place
    if TURNED:
        source = tl.where((row < turned_rows)[:, None], turned + player * turned_player + head * turned_head + place,
                          source)
    value = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value), axis=1), 1e-20) / LIMIT
    first = (player * heads + head) * rows
    tl.store(codes + first * D + place, coded(value / scale[:, None], codes.dtype.element_ty), mask=mask)
    tl.store(scales + first + row, scale, mask=written)


def _pairs(d: int) -> int:
    return max(triton.next_power_of_2(d // 2), 4)


def qkv_write(q: Tensor, k: Tensor, v: Tensor, query_gain: Tensor, key_gain: Tensor, turns: Turns, layer: Tensor,
              slot: Tensor, geometry: Geometry) -> Tensor:
    """Norm and rotation of q and k, keys and values into the ring; see the package."""
    (b, t, h, d), g = q.shape, k.shape[2]
    assert q.stride(3) == k.stride(3) == v.stride(3) == 1 and layer.stride()[3:] == (d, 1) and slot.is_contiguous()
    assert all(a.is_contiguous() for a in (turns.cos, turns.sin, turns.store_cos, turns.store_sin))
    query = torch.empty(b, t, h, d, dtype=layer.dtype, device=q.device)
    span = geometry.block_tokens if geometry.means else STRETCH
    qkv_write_kernel[(triton.cdiv(t, span), h + g, b)](
        q, k, v, query_gain, key_gain, turns.cos, turns.sin, turns.store_cos, turns.store_sin, query, layer[0],
        layer[1], slot, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *layer.stride()[1:3], t, h,
        d, _pairs(d), span, STRETCH, geometry.stride,
        geometry.parts * geometry.block_tokens if geometry.means else -1, num_warps=4)
    return query


def turn_sinks(layer: Tensor, turns: Turns, geometry: Geometry) -> Tensor | None:
    """The sinks' keys at their time in this pass, (B, G, sinks * T_padded, D), or None."""
    if not geometry.sinks:
        return None
    _, b, g, _, d = layer.shape
    rows = geometry.sinks * geometry.stride
    assert turns.sink_cos.is_contiguous() and turns.sink_sin.is_contiguous() and layer.stride()[3:] == (d, 1)
    out = torch.empty(b, g, rows, d, dtype=layer.dtype, device=layer.device)
    turn_sinks_kernel[(triton.cdiv(rows, STRETCH), g, b)](
        layer[0], turns.sink_cos, turns.sink_sin, out, *layer.stride()[1:3], out.stride(0), rows, geometry.sinks,
        d, _pairs(d), STRETCH, geometry.stride, num_warps=4)
    return out


def narrow_keys(layer: Tensor, plan: DevicePlan, geometry: Geometry, dtype: torch.dtype,
                turned: Tensor | None = None) -> NarrowKeys:
    """The written keys in one byte each; what lies in the rows of others is anything."""
    _, b, g, rows, d = layer.shape
    length = plan.length
    assert layer.stride()[3:] == (d, 1) and length.stride(1) == 1 and rows == length.shape[1] * geometry.block_tokens
    codes = torch.empty(b, g, rows, d, dtype=dtype, device=layer.device)
    scale = torch.empty(b, g, rows, dtype=torch.float32, device=layer.device)
    narrow_keys_kernel[(triton.cdiv(rows, NARROWED), g, b)](
        layer[0], layer if turned is None else turned, length, codes, scale, *layer.stride()[1:3],
        *((0, 0) if turned is None else turned.stride()[:2]), length.stride(0) if length.shape[0] > 1 else 0, rows,
        0 if turned is None else turned.shape[2], g, d, triton.next_power_of_2(d), NARROWED, geometry.block_tokens,
        127.0 if dtype == torch.int8 else 448.0, turned is not None, num_warps=4)
    return NarrowKeys(codes, scale)
