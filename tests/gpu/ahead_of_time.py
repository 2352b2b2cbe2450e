"""Compiles the Triton kernels for an architecture with no GPU: `python ahead_of_time.py 90 [NAME ...]`, JSON last.

The launchers are called with tensors that have sizes and no memory, at the sizes of `wan-1.3b` and of the shipped
worlds; what they would launch is compiled instead, specialised as a launch would be (multiples of 16, ones). ptxas
then says what a kernel takes: registers, shared memory, spills.
"""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from dreamloop.models.core.spec import (
    ActionSpec,
    AutoencoderSpec,
    Button,
    DynamicsSpec,
    MemorySpec,
    PlanSpec,
    WorldSpec,
)
from dreamloop.runtime.gpu import attention, fused, noise_kernel
from dreamloop.runtime.gpu.sizes import DevicePlan, Geometry, NarrowKeys, Quantise, Skipped, Turns

TYPES = {torch.bfloat16: "bf16", torch.float32: "fp32", torch.int32: "i32", torch.int64: "i64", torch.int8: "i8",
         torch.float8_e4m3fn: "fp8e4nv"}
INT8, FP8 = torch.int8, torch.float8_e4m3fn


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def ints(*shape: int) -> Tensor:
    return meta(*shape, dtype=torch.int32)


MEMORY = MemorySpec(20, sink_frames=1, max_age=40)
DILATED = MemorySpec(6, sink_frames=2, dilated_frames=3, dilation=3, max_age=40)


def wan(policy: str = "radial", block_tokens: int = 120, memory: MemorySpec = MEMORY) -> WorldSpec:
    """Sizes of wan-1.3b: 1,560 tokens a frame."""
    return WorldSpec("wan", "none", 480, 832, 30.0, ActionSpec((Button("a"),)),
                     AutoencoderSpec(16, (8, 8), (1, 1), (1, 1)), DynamicsSpec(1536, 30, 12, 8960, patch=2),
                     memory, PlanSpec(policy, 3 if policy in ("radial", "window") else 0, block_tokens,
                                      40 if policy == "top_k" else 0))


def attend(t: int, block: int, h: int, g: int, d: int, slots: int = 21, shared: bool = False, turned: bool = False,
           narrow: torch.dtype | None = None, splits: int = 1, dtype: torch.dtype = torch.bfloat16) -> None:
    geometry = Geometry(t, block, -(-t // block), 1 if turned else 0)
    blocks, rows = slots * geometry.parts, 1 if shared else geometry.parts
    layer = meta(2, 1, g, slots * geometry.stride, d, dtype=dtype)
    keys = NarrowKeys(meta(1, g, slots * geometry.stride, d, dtype=narrow),
                      meta(1, g, slots * geometry.stride, dtype=torch.float32)) if narrow else None
    fused.sparse_attention(meta(1, t, h, d, dtype=dtype), layer,
                           DevicePlan(ints(1, 1, rows, blocks), ints(1, 1, rows), ints(1, blocks)), geometry,
                           meta(1, g, geometry.stride, d, dtype=dtype) if turned else None, keys, splits)


def heads(policy: str) -> None:
    spec, f = wan(policy), torch.float32
    geometry, layer = Geometry.of(spec), meta(2, 1, 12, 21 * spec.tokens_padded, 128)
    angles = meta(1, 1560, 64, dtype=f)
    turns = Turns(angles, angles, angles, angles, meta(1, 1, 64, dtype=f), meta(1, 1, 64, dtype=f))
    qkv = meta(1, 1560, 3, 12, 128)
    fused.qkv_write(*qkv.unbind(2), meta(128), meta(128), turns, layer, ints(1), geometry)
    if policy == "dense":
        fused.turn_sinks(layer, turns, geometry)


def narrowed(dtype: torch.dtype) -> None:
    spec = wan()
    geometry, layer = Geometry.of(spec), meta(2, 1, 12, 21 * spec.tokens_padded, 128)
    plan = DevicePlan(ints(1, 1, 13, 273), ints(1, 1, 13), ints(1, 273))
    fused.narrow_keys(layer, plan, geometry, dtype, meta(1, 12, geometry.stride, 128))


def rows(dtype: torch.dtype | None = None) -> None:
    quantise = Quantise(meta(1, dtype=torch.float32), dtype) if dtype else None
    x, modulation = meta(1, 1560, 1536), meta(1, 6, 1536)
    fused.modulated_norm(x, modulation[:, 0], modulation[:, 1], quantise)
    fused.gelu(meta(1, 1560, 8960), quantise)
    if not dtype:
        fused.gate_residual(x, x, modulation[:, 2])


def linear(t: int, block: int, h: int, g: int, d: int, dtype: torch.dtype = torch.bfloat16, slots: int = 21) -> None:
    geometry = Geometry(t, block, -(-t // block))
    blocks, f = slots * geometry.parts, torch.float32
    skipped = Skipped(meta(1, 1, geometry.parts, blocks, dtype=f), ints(1, blocks))
    fused.add_skipped(meta(1, t, h, d, dtype=dtype), meta(1, t, h, d, dtype=dtype),
                      meta(2, 1, g, slots * geometry.stride, d, dtype=dtype), skipped, geometry, meta(h, d, d))


def schedule(policy: str, memory: MemorySpec = MEMORY) -> None:
    fused.slot_and_plan(wan(policy, memory=memory), meta(1, dtype=torch.int64), meta(1, dtype=torch.int64))


def noise(players: int) -> None:
    noise_kernel.normal(meta(players, dtype=torch.int64), meta(players, dtype=torch.int64), 1280)


CALLS: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {
    "attention_wan": (attend, {"t": 1560, "block": 120, "h": 12, "g": 12, "d": 128}),
    "attention_wan_fp8": (attend, {"t": 1560, "block": 120, "h": 12, "g": 12, "d": 128, "narrow": FP8}),
    "attention_arena": (attend, {"t": 80, "block": 20, "h": 6, "g": 6, "d": 32, "turned": True, "splits": 4}),
    "heads_top_k": (heads, {"policy": "top_k"}),
    "rows": (rows, {}),
    "linear_wan": (linear, {"t": 1560, "block": 120, "h": 12, "g": 12, "d": 128}),
    "schedule_radial": (schedule, {"policy": "radial"}),
    "schedule_dilated": (schedule, {"policy": "window", "memory": DILATED}),
    "noise": (noise, {"players": 64}),
    "attention_arena_fp32": (attend, {"t": 80, "block": 80, "h": 4, "g": 4, "d": 64, "slots": 16, "shared": True,
                                      "dtype": torch.float32}),
    # the sweep of `dreamloop bench --device cuda`: a list for every row of blocks
    **{f"attention_sweep_{block}{kind}": (attend, {"t": 1560, "block": block, "h": 12, "g": 12, "d": 128,
                                                   "narrow": codes})
       for block in (64, 128) for kind, codes in (("", None), ("_int8", INT8), ("_fp8", FP8))},
    "attention_wan_one_list": (attend, {"t": 1560, "block": 1560, "h": 12, "g": 12, "d": 128, "shared": True,
                                        "turned": True}),
    "attention_wan_split": (attend, {"t": 1560, "block": 128, "h": 12, "g": 12, "d": 128, "shared": True,
                                     "splits": 2}),
    "attention_wan_int8_split": (attend, {"t": 1560, "block": 128, "h": 12, "g": 12, "d": 128, "shared": True,
                                          "narrow": INT8, "splits": 4}),
    "attention_wan_int8": (attend, {"t": 1560, "block": 120, "h": 12, "g": 12, "d": 128, "narrow": INT8}),
    "linear_wan_fp32": (linear, {"t": 1560, "block": 120, "h": 12, "g": 12, "d": 128, "dtype": torch.float32}),
    "linear_arena": (linear, {"t": 80, "block": 20, "h": 4, "g": 4, "d": 64}),
    "linear_waypoint": (linear, {"t": 512, "block": 64, "h": 32, "g": 16, "d": 64}),
    "attention_waypoint": (attend, {"t": 512, "block": 128, "h": 32, "g": 16, "d": 64, "slots": 16, "shared": True}),
    "attention_waypoint_int8": (attend, {"t": 512, "block": 128, "h": 32, "g": 16, "d": 64, "slots": 16, "shared": True,
                                         "narrow": INT8}),
    "attention_text": (attend, {"t": 1560, "block": 64, "h": 12, "g": 12, "d": 128, "slots": 8, "shared": True}),
    "attention_waypoint_blocks": (attend, {"t": 512, "block": 64, "h": 32, "g": 16, "d": 64}),
    "attention_shipped": (attend, {"t": 20, "block": 20, "h": 4, "g": 4, "d": 64, "slots": 16, "shared": True}),
    "attention_shipped_int8": (attend, {"t": 20, "block": 20, "h": 4, "g": 4, "d": 64, "slots": 16, "shared": True,
                                        "narrow": INT8}),
    "attention_pong": (attend, {"t": 35, "block": 35, "h": 4, "g": 4, "d": 48, "slots": 36, "shared": True}),
    "attention_pong_int8": (attend, {"t": 35, "block": 35, "h": 4, "g": 4, "d": 48, "slots": 36, "shared": True,
                                     "narrow": INT8}),
    "attention_80_tokens": (attend, {"t": 80, "block": 80, "h": 4, "g": 4, "d": 64, "slots": 16, "shared": True}),
    "heads": (heads, {"policy": "dense"}),
    "rows_fp8": (rows, {"dtype": FP8}), "rows_int8": (rows, {"dtype": INT8}),
    "narrow_int8": (narrowed, {"dtype": INT8}), "narrow_fp8": (narrowed, {"dtype": FP8}),
    "schedule_top_k": (schedule, {"policy": "top_k"})}


def ptxas(arch: int) -> str:
    """The assembler that Triton itself takes: it has two, and its version says which one is for which architecture."""
    return str(get_ptxas(arch).path)


def compiled(kernel: Any, arguments: dict[str, Any], options: dict[str, Any], arch: int) -> dict[str, Any]:
    """One kernel as a launch would specialise it, and what it takes."""
    signature, constants, attributes = {}, {}, {}
    for place, (name, parameter) in enumerate(inspect.signature(kernel.fn).parameters.items()):
        value = arguments[name]
        if "constexpr" in str(parameter.annotation) or (isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
            continue
        signature[name] = "fp32" if isinstance(value, float) else "i32" if isinstance(value, int) else (
            "*" + TYPES[value.dtype])
        if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(place,)] = [["tt.divisibility", 16]]
    made = triton.compile(ASTSource(kernel, signature, constants, attributes), target=GPUTarget("cuda", arch, 32),
                          options=options)
    report = {"shared": made.metadata.shared, "scratch": made.metadata.global_scratch_size}
    target = re.search(r"\.target (sm_\w+)", made.asm["ptx"])
    assert target
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(made.asm["ptx"])
        file.flush()
        done = subprocess.run([ptxas(arch), "-v", f"-arch={target[1]}", file.name, "-o", "/dev/null"], check=True,
                              capture_output=True, text=True)
    report["spilled"] = sum(map(int, re.findall(r"(\d+) bytes spill", done.stderr)))
    report["registers"] = int(re.findall(r"Used (\d+) registers", done.stderr)[0])
    return report


def main(arch: int, names: list[str]) -> dict[str, Any]:
    launched: list[tuple[Any, dict[str, Any], dict[str, Any]]] = []

    def record(kernel: Any, grid: Any) -> Callable[..., None]:
        def launch(*values: Any, **options: Any) -> None:
            launched.append((kernel, dict(zip(kernel.arg_names, values, strict=True)), options))
        return launch

    attention.CAPABILITY = (arch // 10, arch % 10)
    type(fused.gelu.__globals__["gelu_kernel"]).__getitem__ = record
    reports = {}
    for name in names or CALLS:
        call, options = CALLS[name]
        if arch < 89 and FP8 in options.values():
            continue  # float8 came with sm_89
        launched.clear()
        call(**options)
        for kernel, arguments, launch_options in launched:
            reports[f"{name}: {kernel.__name__}"] = compiled(kernel, arguments, launch_options, arch)
    return reports


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), sys.argv[2:])))
