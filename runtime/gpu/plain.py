"""The GPU engine's operations in plain torch: the reference of the Triton kernels, and what runs where they cannot.

Signatures and shapes: runtime/gpu/__init__.py. The formulas are those of models/networks/dit.py and ring.py; here they
take the ring's own layout, a plan on the device, and (for float64 inputs) stay in float64. Nothing here waits for
the device.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dreamloop.models.networks.dit import rms_norm, rotate
from dreamloop.models.networks.linear import attend_skipped, in_blocks, in_frames
from dreamloop.models.networks.ring import block_means
from dreamloop.runtime.gpu.plans import slot_and_plan
from dreamloop.runtime.gpu.rotations import rotations
from dreamloop.runtime.gpu.sizes import DevicePlan, Geometry, NarrowKeys, Quantise, Skipped, Turns

CODE_LIMIT = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


def wide(x: Tensor) -> Tensor:
    """x in the precision that sums are made in: float64 as it is, all else float32."""
    return x if x.dtype == torch.float64 else x.float()


def codes(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x, already divided by its scale, clamped and rounded to nearest (int8: halves upwards)."""
    limit = CODE_LIMIT[dtype]
    x = wide(x).clamp(-limit, limit)
    return (torch.floor(x + 0.5) if dtype == torch.int8 else x).to(dtype)


def _finished(y: Tensor, like: Tensor, quantise: Quantise | None) -> Tensor:
    return y.to(like.dtype) if quantise is None else codes(y / quantise.scale, quantise.dtype)


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, quantise: Quantise | None = None) -> Tensor:
    """rms_norm(x) (1 + scale) + shift. x: (B, T, W); shift, scale: (B, W)."""
    y = rms_norm(wide(x)) * (1 + wide(scale)[:, None]) + wide(shift)[:, None]
    return _finished(y, x, quantise)


def gate_residual(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x + gate y. x, y: (B, T, W); gate: (B, W)."""
    return (wide(x) + wide(gate)[:, None] * wide(y)).to(x.dtype)


def gelu(x: Tensor, quantise: Quantise | None = None) -> Tensor:
    """GELU in its tanh form."""
    return _finished(functional.gelu(wide(x), approximate="tanh"), x, quantise)


def _slots(keys: Tensor, geometry: Geometry) -> Tensor:
    """(B, G, S * T_padded, D) seen as (B, S, G, T_padded, D)."""
    return keys.unflatten(2, (-1, geometry.stride)).transpose(1, 2)


def qkv_write(q: Tensor, k: Tensor, v: Tensor, query_gain: Tensor, key_gain: Tensor, turns: Turns, layer: Tensor,
              slot: Tensor, geometry: Geometry) -> Tensor:
    """Norm and rotation of q and k, keys and values into the ring; see the package."""
    def turned(x: Tensor, gain: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return rotate(rms_norm(wide(x)) * wide(gain), cos[:, :, None], sin[:, :, None])

    stored = turned(k, key_gain, turns.store_cos, turns.store_sin)
    player = torch.arange(len(slot), device=slot.device)
    keys, values = (_slots(part, geometry) for part in layer)
    t, first = geometry.tokens, geometry.parts * geometry.block_tokens
    written = keys[player, slot.long()]  # advanced indexing copies; what is put back is the whole slot
    written[:, :, :t] = stored.transpose(1, 2).to(layer.dtype)
    if geometry.means:
        means = block_means(stored.transpose(1, 2), geometry.block_tokens)
        written[:, :, first : first + geometry.parts] = means.to(layer.dtype)
    keys[player, slot.long()] = written
    written = values[player, slot.long()]
    written[:, :, :t] = v.transpose(1, 2).to(layer.dtype)
    values[player, slot.long()] = written
    return turned(q, query_gain, turns.cos, turns.sin).to(layer.dtype)


def turn_sinks(layer: Tensor, turns: Turns, geometry: Geometry) -> Tensor | None:
    """The sinks' keys at their time in this pass, (B, G, sinks * T_padded, D), or None."""
    if not geometry.sinks:
        return None
    old = layer[0][:, :, : geometry.sinks * geometry.stride].unflatten(2, (geometry.sinks, -1))
    turn = [a[:, None, :, None] for a in (turns.sink_cos, turns.sink_sin)]
    return rotate(wide(old), *turn).flatten(2, 3).to(layer.dtype)


def mean_scores(query: Tensor, layer: Tensor, geometry: Geometry) -> Tensor:
    """Mean query of each block of the frame against the mean key of each block of the ring,
    (B, H, query_blocks, key_blocks); what is no block of tokens scores 0."""
    parts, first = geometry.parts, geometry.parts * geometry.block_tokens
    asked = block_means(wide(query).transpose(1, 2), geometry.block_tokens)
    pooled = wide(_slots(layer[0], geometry)[:, :, :, first : first + parts]).transpose(1, 2)  # (B, G, S, parts, D)
    pooled = pooled.repeat_interleave(asked.shape[1] // pooled.shape[1], dim=1)
    scores = torch.einsum("bhqd,bhskd->bhqsk", asked, pooled)
    return functional.pad(scores, (0, geometry.slot_blocks - parts)).flatten(3)


def choose_blocks(query: Tensor, layer: Tensor, plan: DevicePlan, geometry: Geometry, top_blocks: int) -> DevicePlan:
    """Of the candidates of every list the `top_blocks` that score highest, as `Plan.select` in core/plan.py: between
    equals the one that stands first, what is not a number last; lists for every player and head."""
    assert plan.kept is not None
    return selected(mean_scores(query, layer, geometry), plan, top_blocks)


def selected(scores: Tensor, plan: DevicePlan, top_blocks: int) -> DevicePlan:
    """`choose_blocks` for scores (B, H, query_blocks, key_blocks)."""
    assert plan.kept is not None
    most = plan.index.shape[-1]
    index = plan.index.expand(*scores.shape[:3], most)
    kept, count = (a.expand(scores.shape[:3])[..., None] for a in (plan.kept, plan.count))
    place = torch.arange(most, device=index.device)
    candidate = (place >= kept) & (place < count)
    score = torch.gather(scores, 3, index.long())
    score = torch.where(candidate & ~score.isnan(), score, -torch.inf)
    # always-read first, then candidates by score, then what lies behind the list; stable, so equals keep their order
    rank = torch.where(place < kept, 0, torch.where(candidate, 1, 2))
    order = score.argsort(dim=-1, descending=True, stable=True)
    order = order.gather(-1, rank.gather(-1, order).argsort(dim=-1, stable=True))
    chosen = torch.zeros_like(candidate).scatter(-1, order, place < torch.minimum(kept + top_blocks, count))
    listed = torch.where(chosen, place, most + place).argsort(dim=-1)  # the chosen in the order of the plan
    return DevicePlan(torch.gather(index, -1, listed).contiguous(),
                      torch.minimum(count, kept + top_blocks)[..., 0].int().contiguous(), plan.length)


def listed(plan: DevicePlan) -> Tensor:
    """Which blocks a row lists, (B or 1, H or 1, query_blocks or 1, key_blocks) bool; as `Plan.listed`."""
    most, key_blocks = plan.index.shape[-1], plan.length.shape[1]
    used = torch.arange(most, device=plan.index.device) < plan.count[..., None]
    index = torch.where(used, plan.index, key_blocks).long()
    chosen = torch.zeros(*index.shape[:3], key_blocks + 1, dtype=torch.bool, device=index.device)
    return chosen.scatter_(-1, index, True)[..., :key_blocks]


def token_mask(plan: DevicePlan, geometry: Geometry) -> Tensor:
    """The plan as a mask, (B or 1, H or 1, T, S * T_padded) bool; as `Plan.token_mask`, on the device."""
    written = torch.arange(geometry.block_tokens, device=plan.length.device) < plan.length[..., None]
    mask = (listed(plan)[..., None] & written[:, None, None]).flatten(3)
    rows = torch.arange(geometry.tokens, device=mask.device) // geometry.block_tokens
    return mask[:, :, rows] if mask.shape[2] > 1 else mask.expand(-1, -1, geometry.tokens, -1)


def sparse_attention(query: Tensor, layer: Tensor, plan: DevicePlan, geometry: Geometry, turned: Tensor | None = None,
                     keys: NarrowKeys | None = None) -> Tensor:
    """softmax(query key / sqrt D) value over what the plan lists. query: (B, T, H, D) -> the same, contiguous."""
    if keys is None:
        k = wide(layer[0])
        if turned is not None:
            k = torch.cat([wide(turned), k[:, :, turned.shape[2] :]], dim=2)
    else:
        k = wide(keys.codes) * keys.scale[..., None]
    q, v = wide(query).transpose(1, 2), wide(layer[1])
    if keys is not None:  # a query row has a scale of its own, found as it is read
        row = q.abs().amax(-1, keepdim=True).clamp_min(1e-20) / CODE_LIMIT[keys.codes.dtype]
        q = wide(codes(q / row, keys.codes.dtype)) * row
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    mask = token_mask(plan, geometry)
    weights = torch.where(mask, scores, -torch.inf).softmax(-1)
    seen = mask.any(dim=2, keepdim=True).transpose(-1, -2)  # a row that nobody reads may hold anything
    return (weights @ torch.where(seen, v, 0.0)).to(layer.dtype).transpose(1, 2).contiguous()


def skipped_blocks(plan: DevicePlan) -> Skipped:
    """The written blocks that no list holds; as `Plan.skipped` and `shares` of core/plan.py, on the device."""
    chosen = ~listed(plan) & (plan.length > 0)[:, None, None]
    count = (chosen * plan.length[:, None, None]).sum(-1, keepdim=True).clamp_min(1)
    return Skipped(chosen / count, torch.where(chosen.any(2).any(1), plan.length, 0))


def add_skipped(out: Tensor, query: Tensor, layer: Tensor, skipped: Skipped, geometry: Geometry,
                weights: Tensor) -> Tensor:
    """out + what the plan skips, times the weights (H, D, D); out, query: (B, T, H, D)."""
    (_, t, h, _), rows = query.shape, skipped.share.shape[2]
    asked = wide(query).transpose(1, 2)[:, :, None]
    asked = in_blocks(asked, geometry.block_tokens if rows > 1 else t)
    keys, values = (part.unflatten(2, (-1, geometry.block_tokens)).repeat_interleave(h // layer.shape[2], dim=1)
                    for part in layer)
    written = torch.arange(geometry.block_tokens, device=query.device) < skipped.length[..., None]
    found = attend_skipped(asked, keys, values, written[:, None], skipped.share, weights)
    return (wide(out) + in_frames(found, 1, t)[:, :, 0].transpose(1, 2)).to(out.dtype)


def narrow_keys(layer: Tensor, plan: DevicePlan, geometry: Geometry, dtype: torch.dtype,
                turned: Tensor | None = None) -> NarrowKeys:
    """The written keys in one byte each; the rows of others are 0."""
    k = wide(layer[0])
    if turned is not None:
        k = torch.cat([wide(turned), k[:, :, turned.shape[2] :]], dim=2)
    token = torch.arange(geometry.block_tokens, device=k.device)
    written = (token < plan.length[..., None]).flatten(1)  # (B or 1, rows)
    k = torch.where(written[:, None, :, None], k, 0.0)
    scale = (k.abs().amax(-1).clamp_min(1e-20) / CODE_LIMIT[dtype]).float()
    return NarrowKeys(codes(k / scale[..., None], dtype), scale)


__all__ = ["add_skipped", "choose_blocks", "gate_residual", "gelu", "modulated_norm", "narrow_keys", "qkv_write",
           "rotations", "skipped_blocks", "slot_and_plan", "sparse_attention", "turn_sinks"]
