"""Graphs and calibrations of a world, built once and kept in the user's cache folder (cache.py).

A graph is taken from there only when it is intact and its metadata name this very world, form, precision,
batch and builder; anything else is built anew and written over.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from dreamloop.models.core.world import World
from dreamloop.runtime.engines import cache, onnx_calibrate, onnx_graph
from dreamloop.runtime.engines.onnx_precision import precision_of


def cache_path(world: World, kind: str, batch: int, form: str = "portable", precision: str = "fp32") -> Path:
    """The file of one graph; its name holds everything that the graph depends on."""
    said = onnx_graph.identity(world, kind, batch, form, precision)
    name = (f"{kind}-{said['form']}-{said['precision']}-b{batch}-v{onnx_graph.BUILDER_VERSION}"
            f"-onnx{onnx.__version__}.onnx")
    return cache.world_folder("onnx", world) / name


def load_or_build(world: World, kind: str, batch: int, form: str = "portable", precision: str = "fp32") -> bytes:
    """The serialised model `kind` of a world, from the cache where it holds an intact one."""
    said = onnx_graph.identity(world, kind, batch, form, precision)
    path = _found(lambda: cache_path(world, kind, batch, form, precision))
    found = cache.read(path) if path else None
    if found and _is(found, said):
        return found
    scales = calibration(world) if kind == "step" and precision_of(precision).calibrated else None
    data = onnx_graph.build(world, kind, batch, said["form"], said["precision"], scales).SerializeToString()
    if path:
        cache.write(path, data)
    return data


def calibration(world: World) -> dict[str, np.ndarray]:
    """Largest value of each input of every product of the blocks, (in,) float32, measured once per world."""
    path = _found(lambda: cache.world_folder("onnx", world) / f"calibration-v{onnx_graph.BUILDER_VERSION}.json")
    found = cache.read(path) if path else None
    if found:
        return {str(name): np.asarray(value, np.float32) for name, value in json.loads(found).items()}
    scales = onnx_calibrate.measure(world)
    if path:
        cache.write(path, json.dumps({name: value.tolist() for name, value in scales.items()}).encode())
    return scales


def _found(path: Callable[[], Path]) -> Path | None:
    """The path, or None where there is no home folder to keep things in."""
    try:
        return path()
    except RuntimeError:
        return None


def _is(data: bytes, identity: dict[str, str]) -> bool:
    """Whether a serialised model says that it is what was asked for."""
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError:
        return False
    said = {entry.key: entry.value for entry in model.metadata_props}
    return all(said.get(key) == value for key, value in identity.items())
