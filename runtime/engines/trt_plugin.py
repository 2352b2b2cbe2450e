"""Block-sparse attention as a plugin of plain TensorRT, quickly deployable with ahead-of-time PTX.

    dreamloop::sparse_attention(query, keys, values, turned, block_index, block_count, block_length) -> attended

    query, attended   (B, T, H, D) bfloat16
    keys, values      (B, H, S * Tp, D) bfloat16        the ring, this frame written already
    turned            (B, H, rows, D) bfloat16          stands in for the first keys: sinks at their time in this pass
    block_index       (B, lists, Q, K) int32            the plan's lists (core/plan.py)
    block_count       (B, lists, Q) int32
    block_length      (B, key blocks) int32

The kernel is csrc/cuda/attention.cu, compiled by `nvcc -ptx`; an engine carries the PTX, so it runs without Python.
TensorRT hands a kernel its inputs, then 32-bit numbers, then its outputs: `check_ptx` holds the PTX to that. The
numbers come with the graph (attribute `sizes`), so nothing is read from symbolic shapes.

TensorRT for RTX ships no plugin bindings (1.7.1): there form `sparse` is the sparse one. Registering and
building need plain TensorRT and were never run; all else here is tested.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from dreamloop.models.core.errors import EngineError
from dreamloop.models.core.spec import WorldSpec
from dreamloop.runtime.engines.onnx_sparse import list_shape

NAMESPACE, NAME = "dreamloop", "sparse_attention"
INPUTS = ("query", "keys", "values", "turned", "block_index", "block_count", "block_length")
TYPES = "BF16, BF16, BF16, BF16, INT32, INT32, INT32, BF16"  # of the inputs, then of the output
SOURCES = ("attention.cu", "attention.h", "attention_tile.h")
WIDTHS = (32, 64, 128)  # head sizes that kernels are compiled for; a smaller head is padded inside
PROGRAM_QUERIES, PROGRAM_THREADS = 64, 128
NVCC_SECONDS = 300


@dataclass(frozen=True)
class Sizes:
    """The 32-bit numbers of the kernel, in its order. query_blocks: 1 where all rows have one list."""

    tokens: int
    heads: int
    key_heads: int
    head_size: int
    block_tokens: int
    key_blocks: int
    query_blocks: int
    most: int
    list_players: int
    list_heads: int
    length_players: int
    turned_rows: int

    @classmethod
    def of(cls, spec: WorldSpec, batch: int) -> Sizes:
        """Of a world's step graph. Raises `EngineError` where the kernel does not hold its heads."""
        d, lists = spec.dynamics, list_shape(spec)
        if d.head_size > WIDTHS[-1]:
            raise EngineError(f"the sparse plugin takes heads of up to {WIDTHS[-1]}, not {d.head_size}")
        key_blocks = spec.memory.slots * spec.tokens_padded // spec.block_tokens
        return cls(spec.tokens, d.heads, d.heads, d.head_size, spec.block_tokens, key_blocks, lists.rows, lists.places,
                   batch, lists.heads, batch, spec.memory.sink_frames * spec.tokens_padded)

    def numbers(self) -> list[int]:
        return list(astuple(self))

    def shapes(self, players: int) -> dict[str, tuple[int, ...]]:
        """Of every input, by name. Without sinks `turned` is not read, and the keys stand in for it."""
        ring = (players, self.key_heads, self.key_blocks * self.block_tokens, self.head_size)
        turned = (*ring[:2], self.turned_rows, self.head_size) if self.turned_rows else ring
        lists = (self.list_players, self.list_heads, self.query_blocks)
        return {"query": (players, self.tokens, self.heads, self.head_size), "keys": ring, "values": ring,
                "turned": turned, "block_index": (*lists, self.most), "block_count": lists,
                "block_length": (self.length_players, self.key_blocks)}

    def check(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Raise `EngineError` that names the first input whose shape is not the one these sizes mean."""
        players = int(shapes["query"][0])
        for name, expected in self.shapes(players).items():
            if tuple(shapes[name]) != expected:
                raise EngineError(f"{NAME}: {name} has shape {tuple(shapes[name])}, expected is {expected}")


@dataclass(frozen=True)
class Launch:
    """kernel: its name in the PTX; grid: programs along x, y, z; threads of a program."""

    kernel: str
    grid: tuple[int, int, int]
    threads: int


def launch(sizes: Sizes, players: int) -> Launch:
    """How the kernel is started: a program holds 64 queries that share a list, of one head of one player."""
    width = next(w for w in WIDTHS if sizes.head_size <= w)
    rows = sizes.tokens if sizes.query_blocks == 1 else sizes.block_tokens
    return Launch(f"dreamloop_attention_{width}",
                  (sizes.query_blocks * -(-rows // PROGRAM_QUERIES), sizes.heads, players), PROGRAM_THREADS)


# -- the kernel -------------------------------------------------------------------------------------


def source_folder() -> Path:
    """Where the CUDA sources lie in a checkout."""
    return Path(__file__).resolve().parents[2] / "csrc" / "cuda"


@lru_cache(maxsize=8)
def compiled(arch: str, folder: Path | None = None) -> str:
    """The kernels' PTX for an architecture such as sm_89. Raises `EngineError` of one line without nvcc or sources."""
    folder = folder or source_folder()
    nvcc = shutil.which("nvcc")
    if missing := [name for name in SOURCES if not (folder / name).is_file()]:
        raise EngineError(f"the sparse plugin needs the CUDA sources of a checkout; {folder / missing[0]} is not there")
    if nvcc is None:
        raise EngineError("the sparse plugin needs nvcc on the path to compile its kernel; form sparse needs none")
    with tempfile.TemporaryDirectory() as made:
        out = Path(made, "attention.ptx")
        command = [nvcc, "-ptx", f"-arch={arch.replace('sm_', 'compute_')}", "-o", str(out), str(folder / SOURCES[0])]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=NVCC_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise EngineError(f"nvcc took more than {NVCC_SECONDS} s over {SOURCES[0]}") from error
        if done.returncode or not out.is_file():
            said = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
            raise EngineError(f"nvcc cannot compile {SOURCES[0]} for {arch}: {said[0][:200]}")
        ptx = out.read_text()
    for width in WIDTHS:
        check_ptx(ptx, f"dreamloop_attention_{width}")
    return ptx


def check_ptx(ptx: str, kernel: str) -> None:
    """Raise `EngineError` unless the kernel takes pointers, one 32-bit number per field of `Sizes`, and one pointer:
    what TensorRT hands it. Another compiler's hidden parameters would shift all that follow."""
    found = re.search(rf"\.entry\s+{kernel}\s*\((.*?)\)", ptx, re.DOTALL)
    if not found:
        raise EngineError(f"the PTX has no kernel {kernel}")
    said = re.findall(r"\.param\s+\.([a-z]\d+)", found[1])
    expected = ["u64"] * len(INPUTS) + ["u32"] * len(Sizes.__dataclass_fields__) + ["u64"]
    if said != expected:
        raise EngineError(f"{kernel} takes parameters {' '.join(said)}, the plugin hands it {' '.join(expected)}")


def digest(arch: str) -> str:
    """SHA-256 of the PTX: a part of what an engine depends on."""
    return hashlib.sha256(compiled(arch).encode()).hexdigest()


# -- TensorRT ---------------------------------------------------------------------------------------


def bindings(name: str) -> Any:
    """The module `plugin` of a library, or an `EngineError` of one line."""
    module = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}[name]
    try:
        return importlib.import_module(f"{module}.plugin")
    except (ImportError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EngineError(f"{name} has no plugin bindings here ({reason}); form sparse needs none") from error


def implementation(trtp: Any, numbers: Sequence[int], players: int, ptx: str) -> tuple[str, str, Any, Any]:
    """What TensorRT wants of an ahead-of-time plugin: kernel, PTX, launch parameters, numbers."""
    sizes = Sizes(*(int(number) for number in numbers))
    start = launch(sizes, players)
    parameters = trtp.KernelLaunchParams()
    parameters.grid_x, parameters.grid_y, parameters.grid_z = start.grid
    parameters.block_x = start.threads
    extra = trtp.SymIntExprs.from_tuple([trtp.SymInt32(number) for number in sizes.numbers()])
    return start.kernel, ptx, parameters, extra


_registered: set[str] = set()  # TensorRT's registry is one for the process, and takes a plugin once
_ptx: dict[str, str] = {}  # of the architecture that is being built for


def register(name: str, arch: str) -> None:
    """Make the plugin known to TensorRT, with the PTX of an architecture from now on."""
    trtp = bindings(name)
    _ptx[NAME] = compiled(arch)
    if name in _registered:
        return
    numpy_typing, numpy = importlib.import_module("numpy.typing"), importlib.import_module("numpy")
    identifier, tensor = f"{NAMESPACE}::{NAME}", trtp.TensorDesc
    hints = {**dict.fromkeys(INPUTS, tensor), "sizes": numpy_typing.NDArray[numpy.int32], "players": int}

    def describe(query, keys, values, turned, block_index, block_count, block_length, sizes, players):  # type: ignore[no-untyped-def]
        return query.like()

    def types(query, keys, values, turned, block_index, block_count, block_length, outputs):  # type: ignore[no-untyped-def]
        return [trtp.AutoTuneCombination(TYPES)]

    def compile_ahead(query, keys, values, turned, block_index, block_count, block_length, sizes, players, outputs,  # type: ignore[no-untyped-def]
                      tactic):
        return implementation(trtp, sizes, players, _ptx[NAME])

    describe.__annotations__ = {**hints, "return": tensor}  # TensorRT reads the types themselves, not their names
    trtp.register(identifier)(describe)
    trtp.autotune(identifier)(types)
    trtp.aot_impl(identifier)(compile_ahead)
    _registered.add(name)
