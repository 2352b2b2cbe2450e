"""The one step: a block-causal diffusion transformer, the definition of the mathematics.

    tokens_t = W_in [ z_(t-1) ; x_t ] + W_a a_t           x_t = noise at play; (1-s) z_t + s n_t in training
    c_t      = MLP(condition_t)                           condition: action, noise level, step size, history noise
    m_t      = W_m silu(c_t)                              6 x width, shared by all blocks; block i adds table_i
    h        = h + gate1 Attention(norm(h) (1 + scale1) + shift1)      full in a frame, causal across frames
    h        = h + gate2 MLP(norm(h) (1 + scale2) + shift2)            MLP = W_down gelu_tanh(W_up h)
    z_t      = z_(t-1) + W_out (norm(h) (1 + scale) + shift)           (shift, scale) = final_table + c_t

norm is RMS over the width without weight; queries and keys are RMS-normalised per head with a
weight, then rotated (core/conditioning.py). Where the plan says `linear`, attention adds what the plan leaves
out, to first order (linear.py). The same pass that makes frame t yields its keys and values, so a frame costs ONE
evaluation (the recycling idea of AAPT, Seaweed-APT2, 2025; x-prediction with noise levels after Diffusion
Forcing, Chen et al. 2024; shared AdaLN with per-block tables after PixArt, Chen et al. 2023).

Two ways through the same blocks: `sequence` (a clip at once under a frame mask; training, and the
uncached reference) and `step` (one frame against the ring; play). Letters: B batch, F frames,
T tokens of a frame, W width, H heads, D head size, C latent channels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dreamloop.models.core import conditioning
from dreamloop.models.core.plan import frame_mask, shares
from dreamloop.models.core.spec import PlanSpec, WorldSpec
from dreamloop.models.networks.linear import attend_skipped, in_blocks, in_frames

NORM_EPSILON = 1e-6
STRETCH_FRAMES = 12  # at most so many frames' queries share one attention call over a clip
Attend = Callable[[int, Tensor, Tensor, Tensor, Tensor | None], Tensor]


def rms_norm(x: Tensor) -> Tensor:
    """x / sqrt(mean x^2 + 1e-6) over the last axis."""
    return functional.rms_norm(x, (x.shape[-1],), eps=NORM_EPSILON)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position: pairs (i, i + D/2) of the last axis; cos, sin broadcast to (..., D/2)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class Block(nn.Module):
    """Attention and MLP of one layer. Tokens h: (B, F, T, W); modulation: (B, F, 6, W)."""

    def __init__(self, spec: WorldSpec) -> None:
        super().__init__()
        d = spec.dynamics
        self.heads, self.head_size = d.heads, d.head_size
        self.table = nn.Parameter(torch.zeros(6, d.width))
        self.qkv = nn.Linear(d.width, 3 * d.width, bias=False)
        self.query_norm = nn.Parameter(torch.ones(d.head_size))
        self.key_norm = nn.Parameter(torch.ones(d.head_size))
        self.out = nn.Linear(d.width, d.width, bias=False)
        self.skipped = nn.Parameter(torch.zeros(d.heads, d.head_size, d.head_size)) if spec.plan.linear else None
        self.up = nn.Linear(d.width, d.mlp_width)
        self.down = nn.Linear(d.mlp_width, d.width)

    def forward(self, h: Tensor, modulation: Tensor,
                attend: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]) -> Tensor:
        """attend: queries, keys, values (B, H, F, T, D), normalised, not rotated, and the weights (H, D, D) of what the
        plan skips, if it has a linear branch -> (B, H, F, T, D)."""
        b, f, t, w = h.shape
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation + self.table)[:, :, :, None].unbind(2)
        qkv = self.qkv(rms_norm(h) * (1 + scale1) + shift1)
        q, k, v = qkv.view(b, f, t, 3, self.heads, self.head_size).permute(3, 0, 4, 1, 2, 5).unbind(0)
        attended = attend(rms_norm(q) * self.query_norm, rms_norm(k) * self.key_norm, v, self.skipped)
        h = h + gate1 * self.out(attended.permute(0, 2, 3, 1, 4).reshape(b, f, t, w))
        return h + gate2 * self.down(functional.gelu(self.up(rms_norm(h) * (1 + scale2) + shift2), approximate="tanh"))


class Condition(nn.Module):
    """Condition of a frame (..., condition_size) -> (..., W)."""

    def __init__(self, spec: WorldSpec) -> None:
        super().__init__()
        self.first = nn.Linear(spec.condition_size, spec.dynamics.width)
        self.second = nn.Linear(spec.dynamics.width, spec.dynamics.width)

    def forward(self, condition: Tensor) -> Tensor:
        return self.second(functional.silu(self.first(condition)))


class Dynamics(nn.Module):
    """z_(t-1), x_t, action and levels of every frame -> z_t, and keys and values per layer."""

    def __init__(self, spec: WorldSpec) -> None:
        super().__init__()
        self.spec = spec
        d = spec.dynamics
        self.input = nn.Linear(2 * spec.token_channels, d.width)
        self.action = nn.Linear(spec.actions.size, d.width, bias=False)
        self.condition = Condition(spec)
        self.modulation = nn.Linear(d.width, 6 * d.width)
        self.blocks = nn.ModuleList(Block(spec) for _ in range(d.layers))
        self.final_table = nn.Parameter(torch.zeros(2, d.width))
        self.output = nn.Linear(d.width, spec.token_channels)
        self._initialise()

    def _initialise(self) -> None:
        """At the start every gate is open, the modulation is the table alone, and z_t = z_(t-1)."""
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        nn.init.zeros_(self.condition.second.weight)
        nn.init.zeros_(self.condition.second.bias)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        for block in self.blocks:
            assert isinstance(block, Block)
            block.table.data[[2, 5]] = 1.0
            nn.init.normal_(block.out.weight, std=0.02)
            nn.init.normal_(block.down.weight, std=0.02)

    def patchify(self, latents: Tensor) -> Tensor:
        """(..., C, h, w) -> (..., T, C * patch^2), channel-major within a token."""
        *lead, c, height, width = latents.shape
        p = self.spec.dynamics.patch
        x = latents.reshape(*lead, c, height // p, p, width // p, p)
        n = len(lead)
        x = x.permute(*range(n), n + 1, n + 3, n, n + 2, n + 4)
        return x.reshape(*lead, (height // p) * (width // p), c * p * p)

    def unpatchify(self, tokens: Tensor) -> Tensor:
        """Inverse of `patchify`."""
        *lead, _, _ = tokens.shape
        p, (rows, columns), c = self.spec.dynamics.patch, self.spec.grid, self.spec.autoencoder.latent_channels
        n = len(lead)
        x = tokens.reshape(*lead, rows, columns, c, p, p).permute(*range(n), n + 2, n, n + 3, n + 1, n + 4)
        return x.reshape(*lead, c, rows * p, columns * p)

    def forward(self, previous: Tensor, x: Tensor, action: Tensor, condition: Tensor, attend: Attend) -> Tensor:
        """previous (z_(t-1)), x: (B, F, C, h, w); action: (B, F, A); condition: (B, F, condition_size);
        attend(layer, q, k, v, skipped): see `Block`. Returns z_t, (B, F, C, h, w)."""
        h = self.input(torch.cat([self.patchify(previous), self.patchify(x)], dim=-1))
        h = h + self.action(action)[:, :, None]
        c = self.condition(condition)
        modulation = self.modulation(functional.silu(c)).unflatten(-1, (6, -1))
        for layer, block in enumerate(self.blocks):
            h = block(h, modulation, lambda *given, layer=layer: attend(layer, *given))
        shift, scale = (self.final_table + c[:, :, None])[:, :, :, None].unbind(2)
        return previous + self.unpatchify(self.output(rms_norm(h) * (1 + scale) + shift))

    def sequence(self, previous: Tensor, x: Tensor, action: Tensor, condition: Tensor, first: int = 1) -> Tensor:
        """A clip of frames first .. first + F - 1 at once, from an empty past, under the frame mask
        of the world's memory and plan: what `step` computes one frame at a time."""
        geometry = sequence_geometry(self.spec, first, x.shape[1], x.device, x.dtype)
        return self.in_clip(previous, x, action, condition, geometry)

    def in_clip(self, previous: Tensor, x: Tensor, action: Tensor, condition: Tensor,
                geometry: SequenceGeometry) -> Tensor:
        """`sequence` with the clip's geometry at hand: tensors only, so it can be compiled."""
        return self(previous, x, action, condition, lambda layer, *given: attend_sequence(geometry, *given))


class SequenceGeometry:
    """Rotations and masks of a clip, built once per clip and shared by all layers.

    cos, sin: (F, T, D/2); mask: (F * T, F * T) bool over the keys of all frames; stretches: rows and the range of keys
    that any of them sees in any phase, those of sinks apart. With sinks, sink
    frames' keys are seen by frame t at a turned-back time, which depends on t: those scores are
    computed apart, with `sink_cos`, `sink_sin`: (F, sinks in the clip, T, D/2). Where the plan has a linear branch,
    written: (1, 1, F * parts, block_tokens) bool and share: (1, 1, F * parts, F * parts) are what it reads.
    """

    def __init__(self, spec: WorldSpec, first: int, frames: int, device: torch.device, dtype: torch.dtype) -> None:
        def tensors(angles: np.ndarray) -> tuple[Tensor, Tensor]:
            cos, sin = (torch.from_numpy(turn(angles)).to(device, dtype) for turn in (np.cos, np.sin))
            return cos, sin

        times = np.arange(first, first + frames)
        space = conditioning.space_angles(spec)
        self.cos, self.sin = tensors(conditioning.time_angles(spec, times)[:, None] + space)
        parts = spec.blocks_per_frame
        seen = frame_mask(spec.memory, spec.plan, first, frames, parts)
        self.sinks = max(min(spec.memory.sink_frames - first + 1, frames), 0)
        self.sink_offset = first - 1
        block = (np.arange(frames)[:, None] * parts + np.arange(spec.tokens) // spec.block_tokens).reshape(-1)
        self.mask = torch.from_numpy(seen[block][:, block]).to(device)
        # of any phase of the dilated ring: so all phases are one graph where they are compiled
        phases = [seen, *(frame_mask(spec.memory, spec.plan, phase, frames, parts)
                          for phase in range(1, 1 + spec.memory.dilation) if not self.sinks)]
        reach = np.logical_or.reduce(phases)[block][:, block]
        reach[:, : self.sinks * spec.tokens] = False
        self.stretches = []
        stretch = min(STRETCH_FRAMES, spec.memory.slots) * spec.tokens  # more rows than a row sees keys: mostly masked
        for row in range(0, len(reach), stretch):
            rows = slice(row, min(row + stretch, len(reach)))
            keys = reach[rows].any(axis=0)  # none, where a plan shows these rows no more than the sinks
            self.stretches.append((rows, slice(int(keys.argmax()) if keys.any() else rows.stop, rows.stop)))
        self.block_tokens, self.written, self.share = spec.block_tokens, None, None
        if spec.plan.linear:
            written = np.arange(parts * spec.block_tokens).reshape(parts, -1) < spec.tokens
            skipped = frame_mask(spec.memory, PlanSpec(), first, frames, parts) & ~seen
            share = shares(skipped, np.tile(written.sum(axis=1), frames))
            self.written = torch.from_numpy(np.tile(written, (frames, 1)))[None, None].to(device)
            self.share = torch.from_numpy(share)[None, None].to(device, dtype)
        if self.sinks:
            turned = np.stack([conditioning.sink_times(spec, int(time)) for time in times])
            turned = turned[:, self.sink_offset : self.sink_offset + self.sinks]
            self.sink_cos, self.sink_sin = tensors(conditioning.time_angles(spec, turned)[:, :, None] + space)


@lru_cache(maxsize=64)
def sequence_geometry(spec: WorldSpec, first: int, frames: int, device: torch.device,
                      dtype: torch.dtype) -> SequenceGeometry:
    """The geometry of a clip, kept for the next clip of the same phase and length."""
    with torch.inference_mode(False):  # one made in inference mode could not serve training afterwards
        return SequenceGeometry(spec, first, frames, device, dtype)


def attend_sequence(geometry: SequenceGeometry, q: Tensor, k: Tensor, v: Tensor,
                    skipped: Tensor | None = None) -> Tensor:
    """Masked attention over a clip, and what the plan skips where the world has weights for it (`skipped`, see
    `Block`); q, k, v: (B, H, F, T, D), not rotated."""
    turned_q = rotate(q, geometry.cos, geometry.sin).to(v.dtype)
    turned_k = rotate(k, geometry.cos, geometry.sin).to(v.dtype)
    attended = _attend_listed(geometry, turned_q, turned_k, k, v)
    if skipped is None:
        return attended
    assert geometry.written is not None and geometry.share is not None
    rows, keys, values = (in_blocks(x, geometry.block_tokens) for x in (turned_q, turned_k, v))
    found = attend_skipped(rows, keys, values, geometry.written, geometry.share, skipped)
    return attended + in_frames(found, *q.shape[2:4])


def _attend_listed(geometry: SequenceGeometry, turned_q: Tensor, turned_k: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention under the mask; turned_q, turned_k: rotated; all (B, H, F, T, D)."""
    b, heads, f, t, d = turned_q.shape
    flat_q, flat_k, flat_v = (x.flatten(2, 3) for x in (turned_q, turned_k, v))
    if not geometry.sinks:
        return torch.cat([attend_masked(flat_q[:, :, rows], flat_k[:, :, keys], flat_v[:, :, keys],
                                          geometry.mask[rows, keys]) for rows, keys in geometry.stretches],
                         dim=2).view(b, heads, f, t, d)
    n = geometry.sinks
    # the keys of sink frames are turned for the frame that sees them, so their scores are computed apart
    sink_k = rotate(k[:, :, None, :n], geometry.sink_cos, geometry.sink_sin).to(v.dtype)
    sink_scores = torch.einsum("bhftd,bhfnsd->bhftns", turned_q, sink_k).reshape(b, heads, f * t, n * t)
    parts = []
    for rows, keys in geometry.stretches:
        scores = torch.cat([sink_scores[:, :, rows], flat_q[:, :, rows] @ flat_k[:, :, keys].transpose(-1, -2)], dim=-1)
        seen = torch.cat([geometry.mask[rows, : n * t], geometry.mask[rows, keys]], dim=-1)
        weights = (scores * d**-0.5).masked_fill(~seen, -torch.inf).softmax(-1)
        parts.append(weights @ torch.cat([flat_v[:, :, : n * t], flat_v[:, :, keys]], dim=2))
    return torch.cat(parts, dim=2).view(b, heads, f, t, d)


def attend_masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Softmax attention of rows (B, H, N, D) on keys (B, H, M, D) under a mask (..., N, M). On a CPU torch's own, fused
    with a mask, is slower forward and back than the three products it fuses."""
    if q.device.type != "cpu":
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    bias = torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, -torch.inf)
    (b, h, n, d), m = q.shape, k.shape[2]
    bias = bias.expand(b, h, n, m).reshape(b * h, n, m)
    scores = torch.baddbmm(bias, q.reshape(b * h, n, d), k.reshape(b * h, m, d).transpose(1, 2), alpha=d**-0.5)
    return (scores.softmax(-1).to(v.dtype) @ v.reshape(b * h, m, d)).view(b, h, n, d)
