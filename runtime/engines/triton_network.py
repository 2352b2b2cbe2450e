"""The one step on the GPU kernels: models/networks/dit.py in eleven launches a block, nothing read back to the host.

    norm + modulate (+ quantise) | qkv | QK-norm + rotate + ring write | sparse attention | out | gate + residual
    (one launch more, before attention, turns the sinks, where there are any; with narrow keys one codes all written
    keys in one byte, afresh in every pass; behind attention one joins lists that were split)
    norm + modulate (+ quantise) | up | gelu (+ quantise) | down | gate + residual

Where the plan has a linear branch, what the lists leave out is added behind the attention (runtime/gpu/linear.py).

A block may have more queries than keys (grouped queries) and read the keys of a text besides the ring (cross
attention): no world of the zoo has either, the presets of `dreamloop bench --device cuda` have. Letters: B players,
L layers, T tokens of a frame, W width, H heads, G key heads, D head size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional

from dreamloop.models.core.conditioning import play_levels
from dreamloop.models.core.spec import WorldSpec
from dreamloop.models.networks.dit import NORM_EPSILON, rms_norm
from dreamloop.runtime.engines.triton_linear import NARROW, Linear, NarrowLinear, Watch
from dreamloop.runtime.gpu.sizes import DevicePlan, Geometry, Skipped, Turns

TEXT_BLOCK = 64  # text keys are read in blocks of so many


@dataclass(frozen=True)
class Text:
    """Keys and values of a text, the same for every frame and player. ring: (L, 2, 1, G, keys, D); plan: all of it."""

    ring: Tensor
    plan: DevicePlan
    geometry: Geometry

    @classmethod
    def of(cls, ring: Tensor, tokens: int) -> Text:
        keys = ring.shape[4]
        block = min(TEXT_BLOCK, keys)
        assert keys % block == 0, keys

        def whole(values: list[int], *shape: int) -> Tensor:
            return torch.tensor(values, dtype=torch.int32, device=ring.device).reshape(shape)
        blocks = keys // block
        plan = DevicePlan(whole(list(range(blocks)), 1, 1, 1, -1), whole([blocks], 1, 1, 1),
                          whole([block] * blocks, 1, -1))
        return cls(ring, plan, Geometry(tokens, block, blocks))


@dataclass(frozen=True)
class Cross:
    """Products of the cross attention of one block."""

    query: Linear
    gain: Tensor
    out: Linear


@dataclass(frozen=True)
class Layer:
    """Weights of one block."""

    qkv: Linear
    query_gain: Tensor
    key_gain: Tensor
    out: Linear
    up: Linear
    down: Linear
    cross: Cross | None
    skipped: Tensor | None  # (H, D, D), where the plan has a linear branch


@dataclass(frozen=True)
class FrameInputs:
    """What is the same for all layers of one pass: where the frame goes, how it is turned, what it reads."""

    slot: Tensor
    turns: Turns
    plan: DevicePlan
    skipped: Skipped | None


class Network:
    """weights: the names of `weight_shapes` without `dynamics.`, on the device in the precision of the engine;
    key_heads: G; largest: of the inputs of the products in FP8, None for none; narrow: what the keys of the ring (not
    of a text) and their queries are multiplied in, None for that of the ring."""

    def __init__(self, spec: WorldSpec, weights: Mapping[str, Tensor], kernels: ModuleType,
                 key_heads: int | None = None, text: Text | None = None,
                 largest: Mapping[tuple[int, str], float] | None = None, narrow: torch.dtype | None = None) -> None:
        d = spec.dynamics
        self.spec, self.kernels, self.text, self.narrow = spec, kernels, text, narrow
        self.heads, self.key_heads, self.head_size = d.heads, key_heads or d.heads, d.head_size
        self.geometry = Geometry.of(spec)
        self.watch: Watch | None = None

        def linear(name: str, place: tuple[int, str] | None = None) -> Linear:
            weight, bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")
            if largest is not None and place is not None and place[1] in NARROW:
                return NarrowLinear(weight, bias, largest[place])
            return Linear(weight, bias)

        def block(i: int) -> Layer:
            name = f"blocks.{i}"
            cross = Cross(linear(f"{name}.cross.query"), weights[f"{name}.cross.query_norm"],
                          linear(f"{name}.cross.out")) if text is not None else None
            qkv, out, up, down = (linear(f"{name}.{part}", (i, part)) for part in ("qkv", "out", "up", "down"))
            return Layer(qkv, weights[f"{name}.query_norm"], weights[f"{name}.key_norm"], out, up, down, cross,
                         weights.get(f"{name}.skipped"))
        self.layers = [block(i) for i in range(d.layers)]
        self.input, self.output, self.action = linear("input"), linear("output"), linear("action")
        self.first, self.second = linear("condition.first"), linear("condition.second")
        self.modulation = linear("modulation")
        self.tables = torch.stack([weights[f"blocks.{i}.table"] for i in range(d.layers)])  # (L, 6, W)
        self.final_table = weights["final_table"]
        self.dtype, device = self.final_table.dtype, self.final_table.device
        self.levels = [torch.from_numpy(play_levels(sigma)).to(device) for sigma in d.sigmas]  # of each pass

    def inputs(self, frames: Tensor, view_frames: Tensor | None = None) -> FrameInputs:
        """frames: (B,) int64 about to be made; view_frames: (B,) int64, see `narrowed` in core/plan.py."""
        slot, plan = self.kernels.slot_and_plan(self.spec, frames, view_frames)
        skipped = self.kernels.skipped_blocks(plan) if self.spec.plan.linear else None
        return FrameInputs(slot, self.kernels.rotations(self.spec, frames), plan, skipped)

    def __call__(self, previous: Tensor, x: Tensor, action: Tensor, index: int, inputs: FrameInputs,
                 ring: Tensor) -> Tensor:
        """One pass. previous, x: (B, C, h, w) float32; action: (B, A) float32; index: which pass of the frame; ring:
        (L, 2, B, G, S * T_padded, D), written in place. Returns z, (B, C, h, w) float32."""
        k, players = self.kernels, len(x)
        h = self.input(torch.cat([self._patches(previous), self._patches(x)], dim=-1).to(self.dtype))
        h = h + self.action(action.to(self.dtype))[:, None]
        levels = self.levels[index].expand(players, -1)
        c = self.second(functional.silu(self.first(torch.cat([action, levels], dim=-1).to(self.dtype))))
        shared = self.modulation(functional.silu(c)).unflatten(-1, (1, 6, -1))
        modulation = shared + self.tables  # (B, L, 6, W)
        for i in range(len(self.layers)):
            h = self._block(i, h, modulation[:, i], inputs, ring[i])
        final = self.final_table + c[:, None]
        h = k.modulated_norm(h, final[:, 0], final[:, 1])
        return previous + self._latents(self.output(h).float())

    def _block(self, i: int, h: Tensor, modulation: Tensor, inputs: FrameInputs, ring: Tensor) -> Tensor:
        """h: (B, T, W); modulation: (B, 6, W); ring: of this layer."""
        k, layer, shape = self.kernels, self.layers[i], self.geometry
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.unbind(1)
        y = self._normed(i, "qkv", h, shift1, scale1)
        qkv = layer.qkv(y).unflatten(-1, (-1, self.head_size))
        q, fresh_k, fresh_v = qkv.split((self.heads, self.key_heads, self.key_heads), dim=2)
        query = k.qkv_write(q, fresh_k, fresh_v, layer.query_gain, layer.key_gain, inputs.turns, ring, inputs.slot,
                            shape)
        turned = k.turn_sinks(ring, inputs.turns, shape)
        plan = inputs.plan
        if plan.kept is not None:
            plan = k.choose_blocks(query, ring, plan, shape, self.spec.plan.top_blocks)
        keys = None
        if self.narrow is not None:
            keys, turned = k.narrow_keys(ring, plan, shape, self.narrow, turned), None
        attended = k.sparse_attention(query, ring, plan, shape, turned, keys)
        if layer.skipped is not None:
            attended = k.add_skipped(attended, query, ring, inputs.skipped, shape, layer.skipped)
        h = k.gate_residual(h, layer.out(attended.flatten(2).to(self.dtype)), gate1)
        if layer.cross is not None:
            h = h + self._cross(i, layer.cross, h)
        y = layer.up(self._normed(i, "up", h, shift2, scale2))
        if self.watch is not None:
            self.watch.note(i, "down", k.gelu(y))
        return k.gate_residual(h, layer.down(k.gelu(y, layer.down.accepts)), gate2)

    def _normed(self, i: int, name: str, h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """What goes into product `name` of layer i."""
        if self.watch is not None:
            self.watch.note(i, name, self.kernels.modulated_norm(h, shift, scale))
        accepts = self.layers[i].qkv.accepts if name == "qkv" else self.layers[i].up.accepts
        return self.kernels.modulated_norm(h, shift, scale, accepts)

    def _cross(self, i: int, cross: Cross, h: Tensor) -> Tensor:
        assert self.text is not None
        q = cross.query(rms_norm(h)).unflatten(-1, (self.heads, self.head_size))
        q = functional.rms_norm(q, (self.head_size,), cross.gain, NORM_EPSILON)
        text = self.text.ring[i].expand(-1, len(h), -1, -1, -1)
        return cross.out(self.kernels.sparse_attention(q, text, self.text.plan, self.text.geometry).flatten(2))

    def _patches(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, T, C * patch^2), as `Dynamics.patchify`."""
        p = self.spec.dynamics.patch
        return functional.pixel_unshuffle(latents, p).flatten(2).transpose(1, 2)

    def _latents(self, tokens: Tensor) -> Tensor:
        """Inverse of `_patches`."""
        x = tokens.transpose(1, 2).unflatten(2, self.spec.grid)
        return functional.pixel_shuffle(x, self.spec.dynamics.patch)
