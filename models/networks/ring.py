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
from dreamloop.models.core.spec import WorldSpec
from dreamloop.models.networks.dit import rotate


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
        rows = inputs.plan.token_mask().repeat(spec.block_tokens, axis=2)[:, :, : spec.tokens]
        self.mask = torch.from_numpy(rows).to(device)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v: (B, H, 1, T, D), normalised, not rotated -> (B, H, 1, T, D)."""
        keys, values = self.ring[layer]
        stored = rotate(k, self.store_cos, self.store_sin)[:, :, 0]
        for player, rows in enumerate(self.rows):
            keys[player, :, rows] = stored[player]
            values[player, :, rows] = v[player, :, 0]
        sinks = self.spec.memory.sink_frames * self.spec.tokens_padded
        if sinks:
            old = keys[:, :, :sinks].unflatten(2, (self.spec.memory.sink_frames, -1))
            turned = rotate(old, self.sink_cos, self.sink_sin).flatten(2, 3).to(keys.dtype)
            keys = torch.cat([turned, keys[:, :, sinks:]], dim=2)
        query = rotate(q, self.cos, self.sin)[:, :, 0].to(keys.dtype)
        return functional.scaled_dot_product_attention(query, keys, values, attn_mask=self.mask)[:, :, None]
