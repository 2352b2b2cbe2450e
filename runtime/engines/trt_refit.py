"""Refit: an engine takes the weights of another world of the same graph, such as the same one trained on.

What may differ is the values of float weights, nothing else (`onnx_graph.structure`). Engines must be built for it,
which costs them the folding of what they know to be constant, so it is asked for:

    Session(world, TensorRTForRTXEngine(world, refit=True))

Building such an engine needs a GPU even with TensorRT for RTX, so `refitted` has never run: see docs/export.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dreamloop.runtime.engines import cache, trt_build

FLAG = "refit"


def alike(path: Path, wanted: dict[str, str]) -> tuple[bytes, str] | None:
    """A whole engine beside `path`, of another world of the same name, that differs from what is wanted in its weights
    alone, and that world's hash; the newest one, or None."""
    must = {key: value for key, value in wanted.items() if key not in ("world_hash", "graph")}
    found = sorted(path.parent.parent.glob(f"*/{path.name}"), key=lambda other: other.stat().st_mtime, reverse=True)
    for other in found:
        engine, record = cache.read(other), cache.read(other.with_name(other.name + ".json"))
        if other == path or engine is None or record is None:
            continue
        said = json.loads(record)["identity"]
        if {key: said.get(key) for key in must} == must:
            return engine, str(said["world_hash"])
    return None


def refitted(name: str, engine: bytes, model: bytes) -> bytes | None:
    """The engine with the weights of `model`, serialised; None where the library leaves any weight as it was."""
    trt, log = trt_build.library(name), trt_build.log_of(name)
    loaded: Any = trt.Runtime(log).deserialize_cuda_engine(engine)
    if loaded is None or not loaded.refittable:
        return None
    refitter = trt.Refitter(loaded, log)
    if not trt.OnnxParserRefitter(refitter, log).refit_from_bytes(model):
        return None
    if refitter.get_missing_weights() or not refitter.refit_cuda_engine():
        return None
    return bytes(loaded.serialize())
