"""The products of a block in the precision of the engine, and the scales of FP8.

    fp32, bf16   y = x W^T + b by torch (cuBLAS)
    fp8          y = s_x s_w (x8 W8^T) + b by `torch._scaled_mm`: e4m3 factors, sums in float32, result in bf16

A weight has one scale, its largest value over 448; so has each input, found once over self-rollouts (`calibrate`),
for the noise level of a pass is always the same. Inputs come quantised from the kernel before (`Quantise`): the norm
before `qkv` and `up`, the activation before `down`. What attention returns has no such kernel, so `out` stays in bf16.
CPUs have `torch._scaled_mm` too, so the arithmetic is tested without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dreamloop.runtime.gpu.sizes import Quantise

FP8 = torch.float8_e4m3fn
LARGEST = 448.0  # of e4m3
NARROW = ("qkv", "up", "down")  # products that run in FP8
STARTS, FRAMES, HELD_FRAMES = 4, 48, 6  # of the self-rollouts


class Linear:
    """A linear layer. weight: (out, in); bias: (out,) or None; accepts: how its input has to be quantised."""

    accepts: Quantise | None = None

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return functional.linear(x, self.weight, self.bias)


class NarrowLinear(Linear):
    """The same in FP8. largest: of the absolute values that its input has had."""

    def __init__(self, weight: Tensor, bias: Tensor | None, largest: float) -> None:
        largest_weight = weight.abs().amax().float().clamp(min=1e-12)
        super().__init__((weight.float() * (LARGEST / largest_weight)).clamp(-LARGEST, LARGEST).to(FP8),
                         None if bias is None else bias.to(torch.bfloat16))
        self.weight_scale = (largest_weight / LARGEST).reshape(1)
        scale = torch.full((1,), max(largest, 1e-12) / LARGEST, dtype=torch.float32, device=weight.device)
        self.accepts = Quantise(scale, FP8)

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) e4m3, as `accepts` says -> (..., out) bf16."""
        assert self.accepts is not None and x.dtype == FP8, x.dtype
        flat = torch._scaled_mm(x.flatten(0, -2), self.weight.t(), self.accepts.scale, self.weight_scale,
                                bias=self.bias, out_dtype=torch.bfloat16, use_fast_accum=x.is_cuda)
        return flat.unflatten(0, x.shape[:-1])


class Watch:
    """Largest absolute input of each product seen so far, by (layer, product); read by the host at the end."""

    def __init__(self) -> None:
        self.seen: dict[tuple[int, str], Tensor] = {}

    def note(self, layer: int, name: str, x: Tensor) -> None:
        size = x.detach().abs().amax().float()
        known = self.seen.get((layer, name))
        self.seen[layer, name] = size if known is None else torch.maximum(known, size)

    def largest(self) -> dict[tuple[int, str], float]:
        return {place: float(value) for place, value in self.seen.items()}


def rollouts(play: Callable[[int, list[np.ndarray]], None], starts: int, action_size: int,
             frames: int = FRAMES) -> None:
    """Play by oneself from up to four starts under random keys, each held for some frames. play(start, actions):
    actions of each frame, (1, A) float32. Frames deep in a dream count like the first ones."""
    for start in range(min(STARTS, starts)):
        drawn = np.random.default_rng(start).integers(0, 2, (frames // HELD_FRAMES + 1, 1, action_size))
        play(start, [drawn[frame // HELD_FRAMES].astype(np.float32) for frame in range(frames)])
