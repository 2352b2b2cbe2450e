"""Capturing a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def capture(work: Callable[[], object], pool: Any = None, stream: Any = None) -> torch.cuda.CUDAGraph:
    """What `work` launches as a graph, not run yet. `work` has run before, in this thread: compiling a kernel or
    opening a library in between would spoil it. pool: memory of another graph to share; stream: to capture on (default:
    torch's own). Where capturing fails, the stream that was current is so again: torch (2.13) leaves its own in place
    when it is the end of a capture that raises."""
    before = torch.cuda.current_stream()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            work()
    except BaseException:
        torch.cuda.set_stream(before)
        raise
    return graph
