"""One pass against the ring, in torch: what the torch engine plays with and self-rollout trains on.

Fresh keys and values go into the frame's own slot first; then every query reads what the plan lists.
Letters: L layers, B batch, H heads, S slots, T tokens of a frame, D head size.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dreamloop.models.core.conditioning import PassInputs
from dreamloop.models.core.plan import Plan, shares
from dreamloop.models.core.spec import WorldSpec
from dreamloop.models.networks.dit import attend_masked, rotate
from dreamloop.models.networks.linear import attend_skipped, in_blocks, in_frames


class RingPass:
    """The `attend` of every layer for one pass. ring: (L, 2, B, H, S * T_padded, D), written in place."""

    def __init__(self, spec: WorldSpec, ring: Tensor, inputs: PassInputs) -> None:
        self.spec, self.ring = spec, ring
        device = ring.device
        angles = torch.float64 if ring.dtype == torch.float64 else torch.float32  # bf16 cannot hold an angle

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device, angles)

        # (B, 1, 1, T, D/2): all heads, one frame
        self.cos, self.sin, self.store_cos, self.store_sin = (
            tensor(a)[:, None, None] for a in (inputs.cos, inputs.sin, inputs.store_cos, inputs.store_sin))
        self.sink_cos, self.sink_sin = (tensor(a)[:, None, :, None] for a in (inputs.sink_cos, inputs.sink_sin))
        stride = spec.tokens_padded
        self.rows = [slice(int(s) * stride, int(s) * stride + spec.tokens) for s in inputs.slot]
        self.plan = inputs.plan
        self.mask = self._mask(inputs.plan)
        self.seen: Tensor | None = None  # columns of the ring that are read, where they are gathered first
        if device.type == "cpu" and ring.dtype == torch.bfloat16 and inputs.plan.block_kept is None:
            # a rollout in training: products beat torch's fused attention there, and most of an early ring is empty
            self.seen = self.mask.any(2).any(1).any(0).nonzero()[:, 0]
            self.mask = self.mask[..., self.seen]
        self.written = self.share = None
        if spec.plan.linear:
            share = shares(self.plan.skipped(), self.plan.block_length[:, None, None])
            self.written = torch.from_numpy(self.plan.written())[:, None].to(device)
            self.share = torch.from_numpy(share).to(device, angles)

    def _mask(self, plan: Plan) -> Tensor:
        """The plan over tokens, (B, 1 or H, T, S * T_padded) bool."""
        rows = plan.token_mask().repeat(self.spec.block_tokens, axis=2)[:, :, : self.spec.tokens]
        return torch.from_numpy(rows).to(self.ring.device)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, skipped: Tensor | None = None) -> Tensor:
        """q, k, v: (B, H, 1, T, D), normalised, not rotated; skipped: weights (H, D, D) of what the plan skips, where
        the world has them -> (B, H, 1, T, D)."""
        keys, values = self.ring[layer]
        stored = rotate(k, self.store_cos, self.store_sin)[:, :, 0]
        for player, rows in enumerate(self.rows):
            keys[player, :, rows] = stored[player]
            values[player, :, rows] = v[player, :, 0]
        query = rotate(q, self.cos, self.sin)[:, :, 0].to(keys.dtype)
        mask = self.mask if self.plan.block_kept is None else self._mask(self._chosen(keys, stored, query))
        sinks = self.spec.memory.sink_frames * self.spec.tokens_padded
        if sinks:
            old = keys[:, :, :sinks].unflatten(2, (self.spec.memory.sink_frames, -1))
            turned = rotate(old, self.sink_cos, self.sink_sin).flatten(2, 3).to(keys.dtype)
            keys = torch.cat([turned, keys[:, :, sinks:]], dim=2)
        if self.seen is None:
            attended = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)[:, :, None]
        else:
            read, given = (x.index_select(2, self.seen) for x in (keys, values))
            attended = attend_masked(query, read, given, mask)[:, :, None]
        if skipped is None:
            return attended
        assert self.written is not None and self.share is not None
        asked = in_blocks(query[:, :, None], self.spec.block_tokens)
        key_blocks, value_blocks = (x.unflatten(2, (-1, self.spec.block_tokens)) for x in (keys, values))
        found = attend_skipped(asked, key_blocks, value_blocks, self.written, self.share, skipped)
        return attended + in_frames(found, 1, self.spec.tokens)

    def _chosen(self, keys: Tensor, stored: Tensor, query: Tensor) -> Plan:
        """top_k: the mean keys of this frame into its slot, then what the mean queries choose of all of them.

        keys: (B, H, S * T_padded, D) of the ring; stored, query: (B, H, T, D) of this frame, rotated.
        """
        spec, parts = self.spec, self.spec.blocks_per_frame
        means = block_means(stored, spec.block_tokens)
        for player, rows in enumerate(self.rows):
            first = rows.start + parts * spec.block_tokens
            keys[player, :, first : first + parts] = means[player].to(keys.dtype)
        slots = keys.unflatten(2, (spec.memory.slots, -1))
        pooled = slots[:, :, :, parts * spec.block_tokens :][:, :, :, :parts].to(stored.dtype)
        scores = torch.einsum("bhqd,bhskd->bhqsk", block_means(query.to(stored.dtype), spec.block_tokens), pooled)
        scores = functional.pad(scores, (0, spec.slot_blocks - parts)).flatten(3)
        return self.plan.select(scores.detach().double().cpu().numpy(), spec.plan.top_blocks)


def block_means(x: Tensor, block_tokens: int) -> Tensor:
    """Means over the blocks of a frame, the last one over its tail: (B, H, T, D) -> (B, H, blocks, D)."""
    return torch.stack([block.mean(dim=2) for block in x.split(block_tokens, dim=2)], dim=2)
