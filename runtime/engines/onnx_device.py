"""Where the buffers of a step in ONNX Runtime lie: in this machine's memory, or on an NVIDIA GPU.

    Host    numpy arrays; an input is written where the graph reads it
    Torch   torch tensors on `cuda`, with a numpy array beside each input that goes there before the pass

The pass (onnx_pass.py) is one code path over both: buffers are bound by address, so the ring never leaves where it is.
The GPU is taken where ONNX Runtime has its CUDA provider and torch can use a GPU; `CUDA_VISIBLE_DEVICES=` (empty)
forbids it. No GPU has run this yet: the tests run `Torch` over torch tensors of the CPU.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

CUDA = "CUDAExecutionProvider"


class Host:
    """Buffers as numpy arrays."""

    name = "cpu"
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    note = ""  # why it is not a GPU, where that is not plain

    def zeros(self, shape: Sequence[int], dtype: Any) -> Any:
        return np.zeros(shape, dtype)

    def written(self, buffer: Any) -> np.ndarray:
        """The numpy array that is written for an input: its content is what `send` brings to `buffer`."""
        return np.asarray(buffer)

    def send(self, inputs: Iterable[tuple[np.ndarray, Any]]) -> None:
        """Bring what was written to the buffers, and wait for all that writes to them or to the ring."""

    def fetch(self, buffer: Any) -> np.ndarray:
        """An output as numpy, which the next pass may overwrite."""
        return np.asarray(buffer)

    def address(self, buffer: Any) -> int:
        assert buffer.flags.c_contiguous
        return int(buffer.__array_interface__["data"][0])


class Torch(Host):
    """Buffers as torch tensors of `name`: `cuda`, or `cpu` where this path is tested."""

    def __init__(self, torch: Any, name: str = "cuda") -> None:
        self._torch, self.name = torch, name
        self.providers = (CUDA, *Host.providers) if name == "cuda" else Host.providers

    def zeros(self, shape: Sequence[int], dtype: Any) -> Any:
        kind = getattr(self._torch, {"bool_": "bool"}.get(np.dtype(dtype).type.__name__, np.dtype(dtype).name))
        return self._torch.zeros(tuple(shape), dtype=kind, device=self.name)

    def written(self, buffer: Any) -> np.ndarray:
        kept = self._torch.zeros(tuple(buffer.shape), dtype=buffer.dtype, pin_memory=self.name == "cuda")
        return np.asarray(kept.numpy())

    def send(self, inputs: Iterable[tuple[np.ndarray, Any]]) -> None:
        for host, buffer in inputs:
            buffer.copy_(self._torch.from_numpy(host), non_blocking=True)
        if self.name == "cuda":
            self._torch.cuda.current_stream().synchronize()  # ONNX Runtime has a stream of its own

    def fetch(self, buffer: Any) -> np.ndarray:
        return np.asarray(buffer.cpu().numpy())

    def address(self, buffer: Any) -> int:
        assert buffer.is_contiguous() and buffer.device.type == self.name, buffer.device
        return int(buffer.data_ptr())


def best(runtime: Any) -> Host:
    """The GPU where ONNX Runtime and torch both can use one, else the host, with a note where only torch is missing."""
    host = Host()
    if CUDA not in runtime.get_available_providers():
        return host
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        host.note = f"{CUDA} is here, torch is not: {str(error).splitlines()[0]}"
        return host
    if not torch.cuda.is_available():
        host.note = f"{CUDA} is here, but no NVIDIA GPU that torch can use"
        return host
    return Torch(torch)
