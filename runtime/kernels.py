"""The compiled kernels (csrc/), checked and described; without them ONNX Runtime plays.

`DREAMLOOP_ISA=portable|avx2|avx512|avx512vnni` forces an instruction tier; without it the fastest that this
processor runs is taken. Tiers differ in the last bits, so a replay is bit-exact within a tier.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import operator
import os
from pathlib import Path
from types import ModuleType

import numpy as np

from dreamloop.models.core.errors import EngineError
from dreamloop.models.core.plan import Plan

ISA_VARIABLE = "DREAMLOOP_ISA"
SOURCES = Path(__file__).resolve().parents[1] / "csrc"  # there in the project's folder, not where a wheel is installed
SOURCE_SUFFIXES = (".cpp", ".h", ".cu", ".cuh")
NEEDED = ("sources", "usable_tiers", "block_sparse_attention",
          *(f"World.{name}" for name in ("describe", "ring_row_bytes", "operations", "measure_limit", "step", "decode",
                                         "encode")))


def _module() -> ModuleType:
    return importlib.import_module("dreamloop.runtime._kernels")  # compiled, and absent without a compiler


def available() -> str | None:
    """Why the compiled kernels cannot be used here, in one line; None when they can. Kernels that were built from
    other sources than those beside this package, or lack what it calls, cannot."""
    try:
        why = _stale(_module())
    except ImportError as error:
        return (f"the compiled kernels are missing ({error}); with GCC or Clang installed, "
                "`pip install -e .` in the project's folder builds them")
    return f"the compiled kernels are stale: {why}; `pip install -e .` in the project's folder builds them anew" \
        if why else None


def _stale(module: ModuleType) -> str:
    """What is wrong with a module that could be imported, or an empty string."""
    for name in NEEDED:
        try:
            operator.attrgetter(name)(module)
        except AttributeError:
            return f"they lack {name}"
    built_from, there = str(module.sources), sources_hash(SOURCES)
    return f"built from sources {built_from[:12]}, csrc/ is {there[:12]}" if there not in ("", built_from) else ""


@functools.cache
def sources_hash(folder: Path) -> str:
    """SHA-256 of the lines `SHA-256 path` of all sources below a folder, sorted by path, as CMakeLists.txt makes it;
    an empty string where there are none. Read once: a module that is loaded stays what it is."""
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in SOURCE_SUFFIXES)
    lines = (f"{hashlib.sha256((folder / path).read_bytes()).hexdigest()} {path}\n" for path in paths)
    return hashlib.sha256("".join(lines).encode()).hexdigest() if paths else ""


def instruction_tiers() -> tuple[str, ...]:
    """The tiers that this build and this processor can run, slowest first. Raises `EngineError`
    when the kernels are not built."""
    if reason := available():
        raise EngineError(reason)
    return tuple(_module().usable_tiers())


def instruction_tier() -> str:
    """The tier that calls use: DREAMLOOP_ISA where it is set, else the fastest. Raises
    `EngineError` for a tier that is unknown or cannot run here."""
    tiers = instruction_tiers()
    wanted = os.environ.get(ISA_VARIABLE, "")
    if wanted and wanted not in tiers:
        raise EngineError(f"{ISA_VARIABLE}={wanted!r} cannot run here; usable: {', '.join(tiers)}")
    return wanted or tiers[-1]


def block_sparse_attention(query: np.ndarray, ring_keys: np.ndarray, ring_values: np.ndarray, plan: Plan,
                           scale: float, out: np.ndarray | None = None, isa: str | None = None,
                           precision: str = "fp32") -> np.ndarray:
    """Attention of the current frame over the blocks of the ring that the plan lists.

        out[b, h, t] = sum_j softmax_j(scale * query[b, h, t] . ring_keys[b, h, j]) ring_values[b, h, j]

    where j runs over the written tokens of the blocks listed for query block t // block_tokens:

        ring  |slot 0 |slot 1 |slot 2 |slot 3 |      blocks of one slot each, slot 3 not yet written,
        plan   xxxxx.. ....... xxxxx.. .......       two listed, the tail of each padded

    query        (B, H, T, D) float32; D a multiple of 8
    ring_keys    (B, H, S * T_padded, D) float32: one layer of the ring, the frame's own keys included
    ring_values  as ring_keys
    plan         for these B players; its arrays may have 1 in place of B and of H
    out          (B, H, T, D) float32 to write to, else a fresh array; overlaps no input
    isa          instruction tier; by default `instruction_tier()`. An engine asks once and passes it on.
    precision    of both products: "fp32", "bf16", or "int8", for which keys and values are first brought into the
                 form of an int8 ring: D int8 and the scale of the row

    The last axis must be contiguous, the others may be strided. Single-threaded; releases the
    interpreter's lock. Returns `out`. Raises `EngineError` when the kernels are not built or the
    tier cannot run, `ValueError` for arrays or lists that do not fit, before anything is written.
    """
    isa = instruction_tier() if isa is None else isa
    out = np.empty(query.shape, np.float32) if out is None else out
    _module().block_sparse_attention(query, ring_keys, ring_values, plan.block_index, plan.block_count,
                                     plan.block_length, plan.block_tokens, scale, out, isa, precision)
    return out


def reference_attention(query: np.ndarray, ring_keys: np.ndarray, ring_values: np.ndarray, plan: Plan,
                        scale: float) -> np.ndarray:
    """`block_sparse_attention` by its formula in float64, list by list; returns (B, H, T, D) float64."""
    batch, heads, tokens, _ = query.shape
    out = np.empty(query.shape, np.float64)
    for b, h, t in np.ndindex(batch, heads, tokens):
        lists = b % plan.block_index.shape[0], h % plan.block_index.shape[1], t // plan.block_tokens
        length = plan.block_length[b % plan.block_length.shape[0]]
        read = np.concatenate([block * plan.block_tokens + np.arange(length[block])
                               for block in plan.block_index[lists][: plan.block_count[lists]]])
        scores = scale * (ring_keys[b, h, read].astype(np.float64) @ query[b, h, t].astype(np.float64))
        weights = np.exp(scores - scores.max())
        out[b, h, t] = (weights / weights.sum()) @ ring_values[b, h, read].astype(np.float64)
    return out
