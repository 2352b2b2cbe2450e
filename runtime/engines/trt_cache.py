"""Engines of TensorRT as files: never loaded unless they are whole and exactly what is wanted.

    step-in_place-fp16-b1-sm_89-tensorrt-rtx-1.7.1.116.engine          the plan, as the library serialised it
    step-in_place-fp16-b1-sm_89-tensorrt-rtx-1.7.1.116.engine.json     what it is, its checksum, the report of its build

What an engine is: library and version, architecture, SHA-256 of the graph, flags, world. In the user's cache folder
an engine that is not what is wanted is built anew, and the report says why; an engine that the caller names is
refused in one line.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from dreamloop.models.core.errors import EngineError
from dreamloop.models.core.world import World
from dreamloop.runtime.engines import cache, onnx_cache, onnx_graph, trt_build, trt_plugin, trt_refit


def identity(name: str, world: World, model: bytes, arch: str, form: str = "", refit: bool = False) -> dict[str, str]:
    """All that an engine depends on, as it is written beside it."""
    plugin = {"plugin": trt_plugin.digest(arch)} if form == "plugin" else {}
    structure = {"structure": onnx_graph.structure(model)} if refit else {}
    flags = (*trt_build.FLAGS, trt_refit.FLAG) if refit else trt_build.FLAGS
    return {**plugin, **structure, "library": trt_build.version(name), "arch": arch, "world_hash": world.hash,
            "graph": hashlib.sha256(model).hexdigest(), "flags": " ".join(flags)}


def save(path: Path, built: trt_build.Built, said: dict[str, str]) -> None:
    """The engine and what it is, beside each other. Raises `OSError`."""
    path.write_bytes(built.engine)
    record_path(path).write_text(json.dumps(_record(built, said), indent=2) + "\n", "utf-8")


def read(path: Path, wanted: dict[str, str]) -> tuple[bytes, dict[str, Any]]:
    """The engine and the report of its build. Raises `EngineError` of one line where it is damaged, or for another
    world, architecture or version."""
    try:
        engine, record = path.read_bytes(), json.loads(record_path(path).read_text("utf-8"))
        said, digest, report = record["identity"], record["sha256"], record["report"]
        differing = [key for key, value in wanted.items() if said.get(key) != value]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(f"engine {path.name} cannot be read: {type(error).__name__}") from error
    if differing:
        first = differing[0]
        raise EngineError(f"engine {path.name} has {first} {str(said.get(first))[:40]}, wanted is {wanted[first][:40]}")
    if hashlib.sha256(engine).hexdigest() != digest:
        raise EngineError(f"engine {path.name} is damaged: its checksum does not hold")
    return engine, report


def load_or_build(name: str, world: World, kind: str, batch: int, form: str, precision: str,
                  arch: str, refit: bool = False) -> tuple[bytes, dict[str, Any]]:
    """The engine of a graph, from the cache where it holds one that is whole, and the report of its build, with
    `rebuilt_because` where one was there that could not be used. refit: one that was built for it; where the cache
    has such an engine of the same graph with other weights, it takes those of this world, and the report says
    `refitted_from`."""
    model = onnx_cache.load_or_build(world, kind, batch, form, precision)
    wanted = identity(name, world, model, arch, form if kind == "step" else "", refit)
    path = engine_path(name, world, kind, batch, form, precision, arch, refit)
    reason = ""
    if path is not None and path.exists():
        try:
            return read(path, wanted)
        except EngineError as error:
            reason = str(error)
    built = None
    if refit and path is not None and (other := trt_refit.alike(path, wanted)) is not None:
        engine = trt_refit.refitted(name, other[0], model)
        if engine is not None:
            built = trt_build.Built(engine, {"library": wanted["library"], "arch": arch, "graph_bytes": len(model),
                                             "engine_bytes": len(engine), "refitted_from": other[1]})
    built = built or build(name, model, arch, "plugin" in wanted, refit)
    if path is not None:
        cache.write(path, built.engine)
        cache.write(record_path(path), json.dumps(_record(built, wanted)).encode())
    return built.engine, built.report | ({"rebuilt_because": reason} if reason else {})


def build(name: str, model: bytes, arch: str, plugin: bool = False, refit: bool = False) -> trt_build.Built:
    """`trt_build.build` with the timing cache that plain TensorRT keeps between builds."""
    path = None
    if name == "tensorrt":
        try:
            file = f"{trt_build.version(name).replace(' ', '-')}-{arch}.cache"
            path = cache.cache_folder("tensorrt") / "timing" / file
        except RuntimeError:  # no home folder to be found
            path = None
    built = trt_build.build(name, model, arch, (cache.read(path) if path else None) or b"", plugin, refit)
    if path is not None and built.timing_cache:
        cache.write(path, built.timing_cache)
    return built


def engine_path(name: str, world: World, kind: str, batch: int, form: str, precision: str, arch: str,
                refit: bool = False) -> Path | None:
    """Where the cache keeps an engine, or None where there is no home folder."""
    said = onnx_graph.identity(world, kind, batch, form, precision)
    file = (f"{kind}-{said['form']}-{said['precision']}-b{batch}-{arch}-{'refit-' if refit else ''}"
            f"{trt_build.version(name).replace(' ', '-')}.engine")
    try:
        return cache.world_folder("tensorrt", world) / file
    except RuntimeError:
        return None


def record_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _record(built: trt_build.Built, said: dict[str, str]) -> dict[str, Any]:
    return {"identity": said, "sha256": hashlib.sha256(built.engine).hexdigest(), "report": built.report}
