"""What a pass has to do, how fast this machine could do it, and how near each operation comes.

FLOP are those of one pass of one player over a full memory; a multiplication and an addition are two. The limit of a
precision is measured in the same run, by the native kernels on as many threads, in products that stay in the caches
(csrc/cpu/limit.cpp). In every precision the products of the blocks and of attention run in it, and all else
in float32; an engine whose attention does not is told apart (`float_attention`).

    share of an operation      (FLOP / limit) / the median time it took
    share_of_limit of a pass   (sum over operations of FLOP / limit) / the median time of the pass
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dreamloop.models.core.plan import build_plan
from dreamloop.models.core.spec import WorldSpec
from dreamloop.runtime.engines.base import Engine

FORMATS = ("fp32", "bf16", "int8")  # what products are made in; a precision such as int8-static begins with its format
NARROW = ("qkv", "attention", "out", "up", "down")  # operations in the precision's own format
LATE_FRAME = 1 << 20  # by then every memory is full


def keys_read(spec: WorldSpec) -> int:
    """Keys that all query tokens of a frame read together, one layer and head, over a full memory."""
    plan = build_plan(spec, np.array([LATE_FRAME]))
    if plan.block_kept is not None:
        blocks = plan.block_length.shape[1]
        plan = plan.select(np.zeros((1, 1, spec.blocks_per_frame, blocks)), spec.plan.top_blocks)
    ends = np.minimum((np.arange(spec.blocks_per_frame) + 1) * spec.block_tokens, spec.tokens)
    return int((plan.token_mask()[0, 0].sum(axis=1) * np.diff(ends, prepend=0)).sum())


def skipped_flop(spec: WorldSpec) -> float:
    """FLOP of the linear branch of one layer over a full memory (models/networks/linear.py): products k v^T of every
    key that some row skips, their mean for every row, and two products for every query."""
    plan = build_plan(spec, np.array([LATE_FRAME]))
    skipped = plan.skipped()[0, 0]  # (rows, blocks)
    keys = int(plan.block_length[0][skipped.any(axis=0)].sum())
    square = 2.0 * spec.dynamics.width * spec.dynamics.head_size  # of D x D a head, all heads
    return square * (keys + int(skipped.sum()) + 2 * spec.tokens)


def pass_operations(spec: WorldSpec) -> dict[str, float]:
    """FLOP of the operations of one pass of one player, by the names that the native engine gives them, and `skipped`
    for the linear branch of a plan that has one."""
    d, t = spec.dynamics, spec.tokens
    square = 2.0 * t * d.width * d.width * d.layers
    mlp = 2.0 * t * d.width * d.mlp_width * d.layers
    condition = 2.0 * d.width * (spec.actions.size + spec.condition_size + d.width + 6 * d.width)
    skipped = {"skipped": skipped_flop(spec) * d.layers} if spec.plan.linear else {}
    return {"condition": condition, "input": 2.0 * t * 2 * spec.token_channels * d.width, "qkv": 3 * square,
            "attention": 4.0 * keys_read(spec) * d.width * d.layers, "out": square, "up": mlp, "down": mlp,
            "output": 2.0 * t * spec.token_channels * d.width, **skipped}


def seconds_at_limits(flop: Mapping[str, float], limits: Mapping[str, float], formats: Mapping[str, str],
                      usual: str) -> dict[str, float]:
    """Time that each operation takes at the measured limit of its own format: that of `formats`, `usual` where it is
    not among them."""
    return {name: count / limits[formats.get(name, usual)] for name, count in flop.items()}


def operation_seconds(spec: WorldSpec, limits: dict[str, float], precision: str,
                      float_attention: bool = False) -> dict[str, float]:
    """Time that each operation takes at its measured limit."""
    own = precision.split("-")[0]
    formats = {name: own for name in NARROW if not (float_attention and name == "attention")}
    return seconds_at_limits(pass_operations(spec), limits, formats, "fp32")


def least_seconds(spec: WorldSpec, limits: dict[str, float], precision: str, float_attention: bool = False) -> float:
    """Time that the passes of a frame take where every operation runs at its measured limit."""
    return len(spec.dynamics.sigmas) * sum(operation_seconds(spec, limits, precision, float_attention).values())


def measured_limits(engines: dict[str, Engine]) -> dict[str, float]:
    """Precision -> operations a second that this machine's threads reach together; empty without the kernels."""
    for name, engine in engines.items():
        measure = getattr(engine, "measure_limit", None)
        if name.startswith("native-") and measure:
            return {precision: measure(precision) for precision in FORMATS}
    return {}


def breakdown(spec: WorldSpec, seconds: list[dict[str, float]], limits: dict[str, float],
              precision: str) -> dict[str, dict[str, float]]:
    """Where the milliseconds of a pass go: operation -> `ms` (median), `mflop`, and its `share_of_limit` where it
    has FLOP. seconds: of every operation, one dictionary a frame."""
    flop, least = pass_operations(spec), operation_seconds(spec, limits, precision)
    rows = {}
    for name in seconds[0]:
        median = float(np.median([frame[name] for frame in seconds]))
        rows[name] = {"ms": round(1e3 * median, 4)}
        if name in flop:
            rows[name] |= {"mflop": round(flop[name] / 1e6, 2),
                           "share_of_limit": round(least[name] / median, 3) if median > 0 else 0.0}
    return rows


def breakdown_table(operations: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """The breakdowns of several variants as lines of text."""
    lines = []
    for variant, rows in operations.items():
        lines.append(f"{variant:<24}{'ms':>9}{'MFLOP':>10}{'limit':>7}")
        for name, row in rows.items():
            rest = f"{row['mflop']:10.1f}{row['share_of_limit']:7.2f}" if "mflop" in row else ""
            lines.append(f"  {name:<22}{row['ms']:9.3f}{rest}")
    return lines


def hardware() -> str:
    """Processor and cores, in words."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models: list[Any] = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines()
                             if line.startswith("model name")]
        if models:
            return f"{models[0]}, {len(models)} cores"
    return name
