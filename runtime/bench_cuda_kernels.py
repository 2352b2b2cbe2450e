"""Kernels on the device: first against their plain twins, then sparse attention against what torch has.

A kernel passes where its error against the twin in float64 is at most twice that of the twin in the kernel's own
precision, plus a floor: the rule of all engines.

The sweep reads a ring of W frames of T tokens with random lists of density d, one for each block of queries:

    sdpa     torch's attention over every token of the W frames, which have no padding there: the fastest dense one
    flex     FlexAttention, compiled, over the same lists as the sparse kernel and held to the same formula
    cuda     csrc/cuda over the same lists, where nvcc has built it
    sparse   runtime/gpu, over the lists; a density of 1 is the same kernel over all blocks
    int8     the same with queries and keys in one byte, coding the keys (which a pass does in every layer) included;
    float8   and in the other code

Splits: a list of all blocks, over one and more programs, and how many the kernel would choose by itself.

Rows: what lies between the products of a block, at the sizes of a preset, as a share of the measured copy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dreamloop.models.core import noise as host_noise
from dreamloop.models.core.conditioning import pass_inputs
from dreamloop.models.core.plan import build_plan, narrowed
from dreamloop.models.core.spec import MemorySpec, PlanSpec, WorldSpec
from dreamloop.runtime.engines.triton_engine import FP8_CAPABILITY
from dreamloop.runtime.engines.triton_linear import FP8
from dreamloop.runtime.gpu import cuda, kernels_for, noise, plain
from dreamloop.runtime.gpu.graph import capture
from dreamloop.runtime.gpu.sizes import DevicePlan, Geometry, Quantise

FLOORS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # of the largest value of the twin in float64
TURN_BOUND = 1e-6  # of cosines and sines: the host's are rounded to float32 too
FRAMES = (1, 2, 5, 40, 1000)  # warm-up, wrap-around, long after
OF_PLANS = ("slot_and_plan", "rotations", "qkv_write", "ring", "turn_sinks", "sparse_attention", "choose_blocks",
            "skipped_blocks", "add_skipped")  # kernels that work otherwise under another plan or memory
SAMPLES = 7
Put = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class Sweep:
    """What the sweep runs over: T tokens, H heads, D head size, visible frames, densities, tokens of a block."""

    tokens: int = 1560
    heads: int = 12
    head_size: int = 128
    windows: tuple[int, ...] = (7, 21)
    densities: tuple[float, ...] = (0.1, 0.2, 0.25, 0.3, 0.4, 0.5)
    blocks: tuple[int, ...] = (64, 128)


TOY = Sweep(24, 2, 16, (2, 3), (0.25, 0.5), (8,))
NARROW = {"int8": (torch.int8, 0.05), "float8": (FP8, 0.15)}  # codes, and the error that they may have
FEW_ROWS = Sweep(80, 6, 32, (24,), (), (80,))  # one session of a small world


def timed_ms(work: Callable[[], object], device: torch.device, inner: int = 10, captured: bool = True) -> float:
    """Median milliseconds of one call: `inner` calls in a captured graph on a GPU, so that launching costs nothing;
    captured=False launches each; plain calls on a CPU."""
    with torch.inference_mode():
        work()
        if device.type != "cuda":
            samples = []
            for _ in range(3):
                began = time.perf_counter()
                work()
                samples.append(1e3 * (time.perf_counter() - began))
            return float(np.median(samples))
        for _ in range(3):
            work()
        torch.cuda.synchronize()
        run: Callable[[], object] = work
        if captured:
            run = capture(lambda: [work() for _ in range(inner)]).replay
        calls = 1 if captured else inner
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        samples = []
        for _ in range(SAMPLES + 2):
            begin.record()
            for _ in range(calls):
                run()
            end.record()
            end.synchronize()
            samples.append(begin.elapsed_time(end) / inner)
        return float(np.median(samples[2:]))


# -- limits ------------------------------------------------------------------------------------------------


def has_fp8(device: torch.device) -> bool:
    """Whether products in FP8 run there; a CPU makes them by itself."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= FP8_CAPABILITY


def limits(device: torch.device, toy: bool) -> dict[str, float]:
    """What this device reaches: products of `bf16` and `fp8` in TFLOP/s, a copy in GB/s (read and written)."""
    n, copied = (256, 1 << 20) if toy else (8192, 1 << 30)
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16)
    b = torch.randn(n, n, device=device, dtype=torch.bfloat16)
    found = {"bf16": 2e-9 * n**3 / timed_ms(lambda: a @ b, device)}
    if has_fp8(device):
        one, a8, b8 = torch.ones(1, device=device), a.to(FP8), b.to(FP8)
        found["fp8"] = 2e-9 * n**3 / timed_ms(
            lambda: torch._scaled_mm(a8, b8.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=a8.is_cuda), device)
    source, target = (torch.zeros(copied, dtype=torch.uint8, device=device) for _ in range(2))
    found["copy"] = 2e-6 * copied / timed_ms(lambda: target.copy_(source), device)
    return {name: float(f"{value:.4g}") for name, value in found.items()}


# -- verifying ---------------------------------------------------------------------------------------------


class _Rows(dict[str, dict[str, Any]]):
    """Kernel -> row; the first one of a kernel stays, and is handed on at once."""

    def __init__(self, put: Put) -> None:
        super().__init__()
        self._put = put

    def note(self, name: str, row: dict[str, Any]) -> None:
        if name not in self:
            self[name] = row
            self._put(name, row)

    def same(self, name: str, same: bool) -> None:
        self.note(name, {"error": 0.0 if same else 1.0, "bound": 0.0, "passed": same})


class _Tried:
    """Kernels, each by its twin where it fails; what it dies of stands in `rows`."""

    def __init__(self, kernels: ModuleType, rows: _Rows) -> None:
        self._kernels, self._rows = kernels, rows

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            try:
                return getattr(self._kernels, name)(*given)
            except Exception as error:  # a compiler of many kinds of failure
                row = f"{name}_fp8" if isinstance(given[-1], Quantise) else name
                self._rows.note(row, {"passed": False, "failed": one_line(error)})
                return getattr(plain, name)(*given)
        return call


def verify(spec: WorldSpec, device: torch.device, kernels: ModuleType | None = None,
           dtype: torch.dtype = torch.bfloat16, put: Put = lambda *_: None) -> dict[str, dict[str, Any]]:
    """Kernel -> error, bound, passed, over B players at different times, on the sizes of a world; `failed` in their
    stead, and passed False, where it cannot run. put(kernel, row): takes each as it is found."""
    rows = _Rows(put)
    k: Any = _Tried(kernels or kernels_for(device), rows)
    d, g = spec.dynamics, Geometry.of(spec)
    frames = torch.tensor(FRAMES, device=device)
    b, generator = len(FRAMES), torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    def held(name: str, found: Tensor, usual: Tensor, exact: Tensor) -> None:
        error, its = (float((x.double() - exact).abs().max()) for x in (found, usual))
        bound = 2 * its + FLOORS[dtype] * float(exact.abs().max())
        rows.note(name, {"error": error, "bound": bound, "passed": error <= bound})

    def both(name: str, call: Callable[..., Tensor], *tensors: Tensor, twin: Callable[..., Tensor]) -> None:
        held(name, call(*tensors), twin(*tensors), twin(*(t.double() for t in tensors)))
    x, y = random(b, spec.tokens, d.width), random(b, spec.tokens, d.width)
    shift, scale = random(b, d.width), random(b, d.width)
    both("modulated_norm", k.modulated_norm, x, shift, scale, twin=plain.modulated_norm)
    both("gate_residual", k.gate_residual, x, y, scale, twin=plain.gate_residual)
    both("gelu", k.gelu, x, twin=plain.gelu)
    if has_fp8(device):
        narrow = Quantise(torch.full((1,), 0.02, device=device), FP8)
        own, its = (module.modulated_norm(x, shift, scale, narrow).double() * 0.02 for module in (k, plain))
        held("modulated_norm_fp8", own, its, plain.modulated_norm(x.double(), shift.double(), scale.double()))
    slot, plan = k.slot_and_plan(spec, frames)
    inputs = pass_inputs(spec, np.array(FRAMES), np.arange(b, dtype=np.uint64), np.zeros((b, spec.actions.size)))
    expected_slot, expected = plain.slot_and_plan(spec, frames)
    same = (np.array_equal(slot.cpu().numpy(), inputs.slot) and torch.equal(plain.token_mask(plan, g),
                                                                            plain.token_mask(expected, g))
            and torch.equal(slot, expected_slot))
    rows.same("slot_and_plan", same)
    turns = k.rotations(spec, frames)
    names = [field.name for field in fields(turns) if getattr(inputs, field.name).size]
    error = max(float(np.abs(getattr(turns, name).cpu().numpy() - getattr(inputs, name)).max()) for name in names)
    rows.note("rotations", {"error": error, "bound": TURN_BOUND, "passed": error <= TURN_BOUND})
    ring = random(2, b, d.heads, spec.memory.slots * g.stride, d.head_size)
    q, key, value = (random(b, spec.tokens, d.heads, d.head_size) for _ in range(3))
    gain = 1 + 0.1 * random(d.head_size)
    rings = [ring.clone(), ring.clone(), ring.double()]
    queries = [module.qkv_write(*(t.to(r.dtype) for t in (q, key, value, gain, gain)), turns, r, slot, g)
               for module, r in zip((k, plain, plain), rings, strict=True)]
    held("qkv_write", *queries)
    held("ring", *rings)
    if g.sinks:
        held("turn_sinks", *(m.turn_sinks(r, turns, g) for m, r in zip((k, plain, plain), rings, strict=True)))
    turned = plain.turn_sinks(rings[1], turns, g)
    exact = plain.sparse_attention(queries[1].double(), rings[1].double(), expected, g,
                                   None if turned is None else turned.double())
    own, its = (module.sparse_attention(queries[1], rings[1], plan, g, turned) for module in (k, plain))
    held("sparse_attention", own, its, exact)
    if plan.kept is not None:  # by the scores of the twin, and the choice of the host
        scores = plain.mean_scores(queries[1], rings[1], g).cpu().numpy()
        listed = plain.listed(k.choose_blocks(queries[1], rings[1], plan, g, spec.plan.top_blocks)).cpu().numpy()
        rows.same("choose_blocks", np.array_equal(listed, build_plan(spec, np.array(FRAMES)).select(
            scores, spec.plan.top_blocks).listed()))
    _, near = k.slot_and_plan(spec, frames, torch.full_like(frames, 2))  # a view of two frames: the others are skipped
    skipped, weights = k.skipped_blocks(near), random(d.heads, d.head_size, d.head_size) / d.head_size**0.5
    host_near = narrowed(build_plan(spec, np.array(FRAMES)), spec, np.array(FRAMES), 2)
    of_host = host_near.skipped()  # a list for every row, where the device has one for all
    rows.same("skipped_blocks", bool(np.all((skipped.share > 0).cpu().numpy() == of_host)))
    added = [module.add_skipped(its.to(r.dtype, copy=True), queries[1].to(r.dtype), rings[1].to(r.dtype), skipped, g,
                                weights.to(r.dtype)) for module, r in zip((k, plain, plain), rings, strict=True)]
    held("add_skipped", *added)
    host = np.stack([host_noise.normal(i, f, 257) for i, f in enumerate(FRAMES)])
    try:
        drawn = _noise_of(device)(torch.arange(b, device=device), frames, 257)
        error = float(np.abs(drawn.cpu().numpy() - host).max())
        rows.note("noise", {"error": error, "bound": 5e-7, "passed": error <= 5e-7})
    except Exception as error:
        rows.note("noise", {"passed": False, "failed": one_line(error)})
    return dict(rows)


def verify_policies(spec: WorldSpec, device: torch.device, put: Put = lambda *_: None) -> dict[str, dict[str, Any]]:
    """What `verify` finds on the same sizes under the plans and memories that a world need not have."""
    memory = MemorySpec(6, sink_frames=2, dilated_frames=3, dilation=3, max_age=40)
    block = -(-spec.tokens // 3)
    policies = {"window": PlanSpec("window", 3, block), "radial": PlanSpec("radial", 3, block),
                "top_k": PlanSpec("top_k", 0, block, 6)}
    rows = _Rows(put)
    for name, plan in policies.items():
        def note(kernel: str, row: dict[str, Any], name: str = name) -> None:
            if kernel in OF_PLANS:
                rows.note(f"{kernel}, {name}", row)
        verify(replace(spec, memory=memory, plan=plan), device, put=note)
    return dict(rows)


def _noise_of(device: torch.device) -> Callable[..., Tensor]:
    if kernels_for(device) is plain:
        return noise.normal
    from dreamloop.runtime.gpu import noise_kernel
    return noise_kernel.normal


# -- the sweep ---------------------------------------------------------------------------------------------


def random_plan(sweep: Sweep, block: int, window: int, density: float,
                device: torch.device) -> tuple[DevicePlan, Geometry]:
    """Lists of random blocks, one for each block of queries, of `density` of all; the last block of a frame has its
    tail."""
    parts = -(-sweep.tokens // block)
    geometry = Geometry(sweep.tokens, block, parts)
    total = parts * window
    count = max(1, round(density * total))
    generator = np.random.default_rng(0)
    index = np.stack([np.sort(generator.permutation(total)[:count]) for _ in range(parts)]).astype(np.int32)
    length = np.full((window, parts), block, np.int32)
    length[:, -1] = sweep.tokens - (parts - 1) * block

    def put(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)
    return DevicePlan(put(index[None, None]), put(np.full((1, 1, parts), count, np.int32)),
                      put(length.reshape(1, -1))), geometry


def sweep_rows(sweep: Sweep, device: torch.device, dtype: torch.dtype, flex: bool, left: Callable[[], float],
               limits: Mapping[str, float] | None = None) -> Iterator[dict[str, Any]]:
    """One row for each window, block size and density, as it is measured, as far as there is time `left` (seconds).
    limits: what `limits` has found; `share_of_limit` is that of the sparse kernel in bf16."""
    k = kernels_for(device)
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)
    for window in sweep.windows:
        q, keys, values = (random(1, sweep.heads, n, sweep.head_size)
                           for n in (sweep.tokens, window * sweep.tokens, window * sweep.tokens))
        sdpa_ms = timed_ms(partial(functional.scaled_dot_product_attention, q, keys, values), device)
        query = q.transpose(1, 2).contiguous()
        for block in sweep.blocks:
            for density in (*sweep.densities, 1.0):
                if left() <= 0:
                    return
                plan, g = random_plan(sweep, block, window, density, device)
                layer = random(2, 1, sweep.heads, window * g.stride, sweep.head_size)
                row: dict[str, Any] = {"window": window, "block": block, "density": density, "sdpa_ms": sdpa_ms}
                try:
                    exact = plain.sparse_attention(query.float(), layer.float(), plan, g)
                except RuntimeError as error:  # more memory than there is
                    yield row | {"sparse_unavailable": one_line(error)}
                    continue
                row |= checked(partial(partial, k.sparse_attention, query, layer, plan, g), exact, FLOORS[dtype],
                               device, "sparse")
                if "sparse_ms" in row:
                    row["speedup"] = sdpa_ms / row["sparse_ms"]
                    row["wanted"] = (0.8 if density >= 0.25 else 0.6) / density if density < 1 else None
                    flop = 4.0 * sweep.heads * sweep.head_size * float(plain.token_mask(plan, g).sum())
                    row["tflops"] = 1e-9 * flop / row["sparse_ms"]
                    if limits and dtype == torch.bfloat16:
                        row["share_of_limit"] = row["tflops"] / limits["bf16"]
                for name, (codes, floor) in NARROW.items():
                    row |= checked(partial(partial, _narrowed, k, query, layer, plan, g, codes), exact, floor, device,
                                   name)
                if flex:
                    row |= checked(partial(flex_call, q, layer, plan, g), exact, FLOORS[dtype], device, "flex")
                if device.type == "cuda":
                    row |= checked(partial(partial, cuda.sparse_attention, query, layer, plan, g), exact,
                                   FLOORS[dtype], device, "cuda")
                yield row


def _narrowed(k: ModuleType, query: Tensor, layer: Tensor, plan: DevicePlan, g: Geometry,
              codes: torch.dtype) -> Tensor:
    out: Tensor = k.sparse_attention(query, layer, plan, g, keys=k.narrow_keys(layer, plan, g, codes))
    return out


def split_rows(device: torch.device, dtype: torch.dtype, left: Callable[[], float]) -> Iterator[
        tuple[str, dict[str, Any]]]:
    """Shape, and milliseconds by number of splits, each held to the formula first, and the number that is chosen; as
    far as there is time `left`."""
    from dreamloop.runtime.gpu.attention import SPLITS, sparse_attention, splits_for
    generator = torch.Generator(device).manual_seed(0)
    for sweep in (FEW_ROWS, Sweep(windows=(7,), blocks=(128,))):
        if left() <= 0:
            return
        plan, g = random_plan(sweep, sweep.blocks[0], sweep.windows[0], 1.0, device)
        plan = DevicePlan(plan.index[:, :, :1].contiguous(), plan.count[:, :, :1].contiguous(), plan.length)
        layer = torch.randn(2, 1, sweep.heads, sweep.windows[0] * g.stride, sweep.head_size, generator=generator,
                            device=device, dtype=dtype)
        query = torch.randn(1, sweep.tokens, sweep.heads, sweep.head_size, generator=generator, device=device,
                            dtype=dtype)
        exact = plain.sparse_attention(query.float(), layer.float(), plan, g)
        row: dict[str, Any] = {"chosen": splits_for(query, plan, g)}
        for splits in SPLITS:
            row |= checked(partial(partial, sparse_attention, query, layer, plan, g, splits=splits), exact,
                           FLOORS[dtype], device, str(splits))
        yield f"{sweep.tokens} tokens, {sweep.heads} heads, {sweep.windows[0]} frames", row


def row_kernels(spec: WorldSpec, device: torch.device, dtype: torch.dtype, limits: Mapping[str, float],
                key_heads: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Kernel of one launch between two products, and its milliseconds, the megabytes that it has to read and write, and
    the share of the measured copy that this is, at the sizes of `spec` for one player. `verify` holds them to their
    twins."""
    k, d, g = kernels_for(device), spec.dynamics, Geometry.of(spec)
    generator, frames = torch.Generator(device).manual_seed(0), torch.tensor([1000], device=device)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)
    x, y, wide = random(1, spec.tokens, d.width), random(1, spec.tokens, d.width), random(1, spec.tokens, d.mlp_width)
    shift, scale, gain = random(1, d.width), random(1, d.width), random(d.head_size)
    qkv = random(1, spec.tokens, d.heads + 2 * key_heads, d.head_size).split((d.heads, key_heads, key_heads), dim=2)
    layer = torch.zeros(2, 1, key_heads, spec.memory.slots * g.stride, d.head_size, device=device, dtype=dtype)
    turns, (slot, plan) = k.rotations(spec, frames), k.slot_and_plan(spec, frames)
    stored = int(plan.length.sum()) * key_heads * d.head_size  # keys that are written
    narrow = Quantise(torch.full((1,), 0.02, device=device), FP8)
    bytes_each = x.element_size()
    calls: dict[str, tuple[Callable[[], object], int]] = {
        "modulated_norm": (partial(k.modulated_norm, x, shift, scale), 2 * x.nbytes),
        "gate_residual": (partial(k.gate_residual, x, y, scale), 3 * x.nbytes),
        "gelu": (partial(k.gelu, wide), 2 * wide.nbytes),
        "qkv_write": (partial(k.qkv_write, *qkv, gain, gain, turns, layer, slot, g),
                      2 * sum(part.nbytes for part in qkv)),
        "narrow_keys int8": (partial(k.narrow_keys, layer, plan, g, torch.int8), stored * (bytes_each + 1))}
    if has_fp8(device):
        calls |= {"modulated_norm fp8": (partial(k.modulated_norm, x, shift, scale, narrow),
                                         x.nbytes + x.numel()),
                  "gelu fp8": (partial(k.gelu, wide, narrow), wide.nbytes + wide.numel())}
    for name, (call, moved) in calls.items():
        try:
            ms = timed_ms(call, device)
        except Exception as error:  # a compiler of many kinds of failure
            yield name, {"unavailable": one_line(error)}
            continue
        row = {"ms": ms, "mb": moved / 1e6}
        if limits.get("copy"):
            row["share_of_copy_limit"] = moved / 1e6 / ms / limits["copy"]
        yield name, {column: float(f"{value:.4g}") for column, value in row.items()}


def checked(make: Callable[[], Callable[[], Tensor]], exact: Tensor, floor: float, device: torch.device,
            name: str) -> dict[str, Any]:
    """`NAME_error` of the call that `make` gives, as a share of the largest value of `exact`, and its `NAME_ms`; where
    the error is above `floor`, or the call fails, no time but `NAME_unavailable`, the reason."""
    row: dict[str, Any] = {}
    try:
        call = make()
        with torch.inference_mode():
            row[f"{name}_error"] = error = float((call().float() - exact).abs().max() / exact.abs().max())
        if not error <= floor:
            raise RuntimeError(f"error {error:.3g} is above {floor}")
        row[f"{name}_ms"] = timed_ms(call, device)
    except Exception as error:  # a compiler of many kinds of failure; the row says which
        row[f"{name}_unavailable"] = one_line(error)
    return row


def one_line(error: BaseException) -> str:
    """What an error says, its kind first where it is none of ours."""
    said = (str(error).strip().splitlines() or [""])[0][:300]
    return said if said and not isinstance(error, KeyError) else f"{type(error).__name__}: {said}"


def flex_call(q: Tensor, layer: Tensor, plan: DevicePlan, g: Geometry) -> Callable[[], Tensor]:
    """FlexAttention over the same lists, whole blocks apart from tails. q: (1, H, T, D); returns a call that gives
    (1, T, H, D)."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention
    index, tail = plan.index[0, 0], g.parts * g.block_tokens > g.tokens
    is_tail = (index % g.slot_blocks == g.parts - 1) & tail

    def lists(wanted: Tensor) -> tuple[Tensor, Tensor]:
        order = (~wanted).int().argsort(dim=-1, stable=True)
        padded = torch.zeros(len(index), plan.length.shape[1], dtype=torch.int32, device=index.device)
        padded[:, : index.shape[1]] = index.gather(-1, order)
        return wanted.sum(-1, dtype=torch.int32)[None, None], padded[None, None]

    stride, tokens = g.stride, g.tokens

    def written(b: Tensor, h: Tensor, row: Tensor, key: Tensor) -> Tensor:
        return key % stride < tokens
    mask = BlockMask.from_kv_blocks(*lists(is_tail), *lists(~is_tail), BLOCK_SIZE=(g.block_tokens, g.block_tokens),
                                    mask_mod=written, seq_lengths=(q.shape[2], layer.shape[3]))
    compiled = torch.compile(flex_attention, dynamic=False)
    # its own tiles are of 128 queries, and it refuses blocks that those do not divide
    tiles: Any = {} if g.block_tokens % 128 == 0 else {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4}
    return lambda: compiled(q, layer[0], layer[1], block_mask=mask, kernel_options=tiles).transpose(1, 2)
