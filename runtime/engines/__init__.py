"""One file per backend behind one protocol (`base.py`); this file finds and opens them.

    engine = open_engine(world)                    # "auto": the first that can run, and says which
    engine = open_engine(world, "onnxruntime")     # this one, or an EngineError with the reason
    choice_of(engine)                              # "native, the first of native, onnxruntime, torch"

Backends are imported when they are asked for, so playing needs neither torch nor anything else
that it does not use.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import cast

from dreamloop.models.core.errors import EngineError
from dreamloop.models.core.world import World
from dreamloop.runtime import kernels
from dreamloop.runtime.engines.base import Engine, State, checked_threads, import_package


@dataclass(frozen=True)
class Backend:
    """Where an engine lives. needs: importable packages it cannot do without; extra: what to install.
    `native` needs the compiled kernels instead, and runtime/kernels.py knows whether they are there."""

    name: str
    module: str
    class_name: str
    needs: tuple[str, ...]
    extra: str


@dataclass(frozen=True)
class EngineStatus:
    """Whether an engine can run here, and the reason in one line."""

    name: str
    available: bool
    reason: str


BACKENDS = {b.name: b for b in (
    Backend("native", "dreamloop.runtime.engines.native_engine", "NativeEngine", (), ""),
    Backend("onnxruntime", "dreamloop.runtime.engines.onnx_engine", "OnnxEngine", ("onnx", "onnxruntime"), "onnx"),
    Backend("tensorrt", "dreamloop.runtime.engines.trt_engine", "TensorRTEngine", ("tensorrt", "onnx", "torch"),
            "tensorrt"),
    Backend("tensorrt-rtx", "dreamloop.runtime.engines.trt_engine", "TensorRTForRTXEngine",
            ("tensorrt_rtx", "onnx", "torch"), "rtx"),
    Backend("torch", "dreamloop.runtime.engines.torch_engine", "TorchEngine", ("torch",), "train"),
    Backend("triton", "dreamloop.runtime.engines.triton_engine", "TritonEngine", ("torch", "triton"), "gpu"),
)}
ON_GPU = ("tensorrt", "tensorrt-rtx", "triton")
AUTO_ORDER = ("native", "onnxruntime", "torch")
CHOOSING = ("native", "torch", "triton")  # engines that run the plan top_k
WITH_FORMS = ("onnxruntime", "tensorrt", "tensorrt-rtx")
ENGINE_NAMES = ("native", "triton", "torch", "onnxruntime", "tensorrt", "tensorrt-rtx")


def _missing(backend: Backend) -> str:
    """Why this backend cannot be imported, or an empty string."""
    for package in backend.needs:
        try:
            import_package(package)
        except (ImportError, OSError) as error:  # OSError: a shared library that does not load
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            return f"{package} cannot be imported ({reason}); pip install 'dreamloop[{backend.extra}]'"
    return ""


def engine_status(name: str) -> EngineStatus:
    """Whether the engine `name` can run on this machine."""
    if name not in BACKENDS:
        return EngineStatus(name, False, f"not in this version, which has {', '.join(BACKENDS)}")
    if name == "native":
        return _native_status()
    reason = _missing(BACKENDS[name])
    if reason:
        return EngineStatus(name, False, reason)
    if name in ON_GPU and (reason := _gpu_missing(name)):
        return EngineStatus(name, False, reason)
    versions = [f"{package} {getattr(import_package(package), '__version__', '?')}"
                for package in BACKENDS[name].needs]
    known = ""
    if name == "triton":
        kinds = importlib.import_module("dreamloop.runtime.engines.triton_engine").KINDS
        known = f"; precision {', '.join(kinds)}"
    return EngineStatus(name, True, ", ".join(versions) + known)


def _gpu_missing(name: str) -> str:
    """Why a GPU engine whose library is there cannot run, or an empty string."""
    if name == "triton":
        return str(importlib.import_module("dreamloop.runtime.engines.triton_engine").why_missing())
    trt_build = importlib.import_module("dreamloop.runtime.engines.trt_build")
    try:
        version = trt_build.version(name)
    except EngineError as error:
        return str(error)
    if trt_build.device_architecture():
        return ""
    builds = "; it builds engines without one: dreamloop export" if name == "tensorrt-rtx" else ""
    return f"{version} is here, but no NVIDIA GPU that torch can use{builds}"


def _native_status() -> EngineStatus:
    if reason := kernels.available():
        return EngineStatus("native", False, reason)
    from dreamloop.runtime.engines.native_engine import PRECISIONS
    try:
        return EngineStatus("native", True, f"compiled kernels, instruction tier {kernels.instruction_tier()} of "
                                            f"{', '.join(kernels.instruction_tiers())}; precision "
                                            f"{', '.join(PRECISIONS)}")
    except EngineError as error:  # DREAMLOOP_ISA names a tier that cannot run here
        return EngineStatus("native", False, str(error))


def _open(world: World, name: str, precision: str | None, threads: int | None, form: str | None = None) -> Engine:
    status = engine_status(name)
    if not status.available:
        raise EngineError(f"engine {name} is not available: {status.reason}")
    if world.spec.plan.policy == "top_k" and name not in CHOOSING:
        raise EngineError(f"engine {name} cannot choose blocks while it plays, as the plan top_k of world {world.name} "
                          f"asks; {', '.join(CHOOSING)} can")
    backend = BACKENDS[name]
    kind = getattr(importlib.import_module(backend.module), backend.class_name)
    options = {key: value for key, value in (("precision", precision), ("form", form)) if value is not None}
    if form is not None and name not in WITH_FORMS:
        raise EngineError(f"engine {name} has no forms; {', '.join(WITH_FORMS)} have")
    return cast(Engine, kind(world, threads=threads, **options))


def open_engine(world: World, engine: str = "auto", precision: str | None = None,
                threads: int | None = None, form: str | None = None) -> Engine:
    """The engine `engine` with the weights of `world`, ready to step.

    engine: one of `ENGINE_NAMES`, or `auto`, which takes the first of `AUTO_ORDER` that can run;
    precision: None is the engine's own default; threads: 1 to 64 (`checked_threads`), None leaves it to the backend;
    form: of the graphs of the engines that have them (`WITH_FORMS`), see onnx_graph.py.
    Raises `EngineError`: an engine asked for by name never falls back to another one.
    """
    checked_threads(threads)
    if engine != "auto":
        if engine not in ENGINE_NAMES:
            raise EngineError(f"no engine {engine[:100]!r}; known: auto, {', '.join(ENGINE_NAMES)}")
        return _chosen(_open(world, engine, precision, threads, form), f"{engine}, as asked")
    reasons = []
    for name in AUTO_ORDER:
        try:
            opened = _open(world, name, precision, threads, form)
        except EngineError as error:
            reasons.append(f"{name}: {error}")
            continue
        why = f"{name}, because {'; '.join(reasons)}" if reasons else f"{name}, the first of {', '.join(AUTO_ORDER)}"
        return _chosen(opened, why)
    raise EngineError(f"no engine can run here: {'; '.join(reasons)}")


def _chosen(engine: Engine, why: str) -> Engine:
    setattr(engine, "choice", why)  # noqa: B010  not part of the protocol, only carried with it
    return engine


def choice_of(engine: Engine) -> str:
    """What `open_engine` picked and why, in one line."""
    return str(getattr(engine, "choice", f"{engine.name}, given by the caller"))


__all__ = ["AUTO_ORDER", "ENGINE_NAMES", "Engine", "EngineStatus", "State", "choice_of", "engine_status",
           "open_engine"]
