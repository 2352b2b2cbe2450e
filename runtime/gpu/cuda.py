"""Block-sparse attention in CUDA C++ (csrc/cuda), called through pointers: no torch is linked to it.

CMake builds `runtime/_cuda.so` where it finds nvcc, and `_cuda.ptx` beside it. The same source built by g++
(csrc/cuda/host.cpp) takes tensors of the host: that is how its arithmetic is tested.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from dreamloop.models.core.errors import EngineError
from dreamloop.runtime import kernels
from dreamloop.runtime.gpu.sizes import DevicePlan, Geometry

LIBRARY = Path(__file__).resolve().parents[1] / "_cuda.so"
MOST_HEAD_SIZE = 128


@lru_cache(maxsize=4)
def load(path: Path = LIBRARY) -> ctypes.CDLL:
    """The library with its one function declared. Raises `EngineError` where it was not built, or from other sources
    than those beside this package: CMake builds it together with the CPU's kernels, which know theirs."""
    if not path.is_file():
        raise EngineError(f"the CUDA kernels are missing ({path.name}); with nvcc on the path, `pip install -e .` "
                          "in the project's folder builds them")
    if path == LIBRARY and (why := kernels.available()):
        raise EngineError(f"the CUDA kernels may be as old as those beside them: {why}")
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise EngineError(f"the CUDA kernels do not load: {error}") from error
    pointer = ctypes.c_void_p
    library.dreamloop_cuda_attention.argtypes = [*[pointer] * 7, ctypes.POINTER(ctypes.c_int32), ctypes.c_int32,
                                                 pointer, pointer]
    library.dreamloop_cuda_attention.restype = ctypes.c_int
    return library


def sparse_attention(query: Tensor, layer: Tensor, plan: DevicePlan, geometry: Geometry, turned: Tensor | None = None,
                     library: ctypes.CDLL | None = None) -> Tensor:
    """As in plain.py, for bf16 and head sizes that are a multiple of 8, 128 at most; on torch's current stream."""
    b, t, h, d = query.shape
    lists, count, length = plan.index, plan.count, plan.length
    key_blocks, rows = length.shape[1], lists.shape[2]
    assert query.dtype == layer.dtype == torch.bfloat16 and d % 8 == 0 and d <= MOST_HEAD_SIZE
    assert all(a.is_contiguous() for a in (query, layer[0], layer[1], lists, count, length))
    assert layer.shape[3] == key_blocks * geometry.block_tokens and rows in (1, geometry.parts)
    assert turned is None or (turned.is_contiguous() and turned.dtype == layer.dtype)
    out = torch.empty_like(query)
    sizes = (t, h, layer.shape[2], d, geometry.block_tokens, key_blocks, rows, lists.shape[3], lists.shape[0],
             lists.shape[1], length.shape[0], 0 if turned is None else turned.shape[2])
    stream = torch.cuda.current_stream(query.device).cuda_stream if query.is_cuda else None
    status = (library or load()).dreamloop_cuda_attention(
        query.data_ptr(), layer[0].data_ptr(), layer[1].data_ptr(), None if turned is None else turned.data_ptr(),
        lists.data_ptr(), count.data_ptr(), length.data_ptr(), (ctypes.c_int32 * 12)(*sizes), b, out.data_ptr(), stream)
    if status:
        raise EngineError(f"the CUDA attention could not be launched: CUDA error {status}")
    return out
