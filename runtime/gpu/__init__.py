"""Kernels of the GPU engine: one signature each, in Triton (`fused`) and in plain torch (`plain`).

    kernels = kernels_for(device)            # fused where Triton can run on this device, plain elsewhere
    reason = why_plain(device)               # "" or one line that says why it is plain

Both modules have the functions below. They take torch tensors on one device and read nothing back to the host. Memory
comes from torch's allocator alone: their results, and what is split over keys until it is joined. So a CUDA graph can
capture them: it owns that memory, and replaying it allocates nothing. Triton kernels run on CPU tensors too where
TRITON_INTERPRET=1 was set before they are imported: that is how they are tested where there is no GPU.

Letters: B players, T tokens of a frame, W width, H heads, G key heads (H is a multiple of G), D head size, S slots.
`layer` is the ring of one layer, ring[l]: (2, B, G, S * T_padded, D), bf16 or float32, written in place.
Fresh tensors stand as a linear layer leaves them, (B, T, H, D), any strides but that of D, which is 1.

    geometry = Geometry.of(spec)                                             # sizes.py: block sizes of the ring
    slot, plan = slot_and_plan(spec, frames, view_frames=None)               # once a frame, for all layers
        frames (B,) int64 on the device, about to be made; view_frames (B,) int64 or None, as `narrowed` in core/plan.py
        -> slot (B,) int32, DevicePlan
    turns = rotations(spec, frames)                                          # rotations.py, once a frame; torch alone
        -> Turns: cos, sin, store_cos, store_sin (B, T, D/2), sink_cos, sink_sin (B, sinks, D/2), float32

    y = modulated_norm(x (B, T, W), shift (B, W), scale (B, W), quantise=None)       rms_norm(x) (1 + scale) + shift
    x = gate_residual(x (B, T, W), y (B, T, W), gate (B, W))                         x + gate y
    y = gelu(x (B, T, F), quantise=None)                                             tanh form
        quantise: Quantise(scale (1,) float32 on the device, dtype) -> clamp(y / scale) as float8_e4m3fn or int8;
        None keeps the dtype of x; sums are float32 in any case
    query = qkv_write(q (B, T, H, D), k (B, T, G, D), v (B, T, G, D), query_gain (D,), key_gain (D,), turns,
                      layer, slot, geometry)
        RMS-normalises q and k per head, turns them, writes keys and values into the slot (and, under top_k, the mean
        key of each block behind the slot's blocks); returns the turned queries (B, T, H, D), in the ring's dtype
    turned = turn_sinks(layer, turns, geometry) or None without sinks        # after qkv_write
        the sinks' keys at their time in this pass, (B, G, sinks * T_padded, D)
    plan = choose_blocks(query, layer, plan, geometry, top_blocks)           # top_k only, per layer, after qkv_write
    out = sparse_attention(query, layer, plan, geometry, turned=None, keys=None) -> (B, T, H, D) contiguous
        softmax(q k / sqrt D) v over the listed blocks, sums in float32; keys: NarrowKeys, read instead of the ring's
    skipped = skipped_blocks(plan)                                           # linear only, once a frame, for all layers
        -> Skipped: which written blocks no list holds, and what each counts in a mean over them
    out = add_skipped(out, query, layer, skipped, geometry, weights (H, D, D))    # linear only; may write over `out`
        out + what the plan skips, to first order (models/networks/linear.py), sums in float32
    keys = narrow_keys(layer, plan, geometry, dtype, turned=None)            # after turn_sinks, before the attention
        NarrowKeys: the written keys (the sinks' from `turned`) as int8 or float8_e4m3fn, each divided by a scale of its
        own

What differs from docs/design.md section 4: a plan whose rows are all alike (dense, window) may hold ONE list,
(B, 1, 1, most), which every query block reads.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def why_plain(device: torch.device | str) -> str:
    """Why the Triton kernels cannot run on `device`, in one line, or an empty string."""
    try:
        import triton
    except (ImportError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"triton cannot be imported ({reason}); pip install 'dreamloop[gpu]'"
    if str(device).startswith("cuda") or os.environ.get("TRITON_INTERPRET") == "1":
        return ""
    return f"triton {triton.__version__} is here, but runs on a GPU, not on {device}"


def kernels_for(device: torch.device | str) -> ModuleType:
    """The module whose functions run on `device`: `fused` where Triton can, else `plain`."""
    if why_plain(device):
        from dreamloop.runtime.gpu import plain
        return plain
    from dreamloop.runtime.gpu import fused
    return fused
