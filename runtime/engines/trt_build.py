"""Compiling a graph with TensorRT or TensorRT for RTX: one code path, and what the compiler made of the graph.

    tensorrt-rtx   builds for any listed architecture on any machine, with or without a GPU
    tensorrt       builds for the GPU of this machine

Both are imported when they are asked for. Networks are strongly typed: precision is what the graph says. The
report is read from the network (ring buffers that alias) and from the verbose log of the build (the kernels of the
engine): an engine cannot be looked into without a GPU.
"""

from __future__ import annotations

import importlib
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from dreamloop.models.core.errors import EngineError
from dreamloop.runtime.engines import trt_plugin

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
EXTRAS = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")  # that TensorRT for RTX builds for
FLAGS = ("no-tf32",)  # float32 means float32
_logs: dict[str, Any] = {}  # a library keeps the first logger it is given, for the life of the process


@dataclass(frozen=True)
class Built:
    """engine: the serialised plan; report: JSON values, see `_report`; timing_cache: of plain TensorRT, else empty."""

    engine: bytes = field(repr=False)
    report: dict[str, Any]
    timing_cache: bytes = field(default=b"", repr=False)


def library(name: str) -> Any:
    """The imported library of an engine name. Raises `EngineError` of one line where it cannot be imported."""
    try:
        module = importlib.import_module(MODULES[name])
    except (ImportError, OSError) as error:  # OSError: a shared library that does not load
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EngineError(f"{name} cannot be imported ({reason}); pip install 'dreamloop[{EXTRAS[name]}]'") from error
    if not hasattr(module, "Builder"):  # the package of plain TensorRT without its libraries
        raise EngineError(f"{name} is installed without its libraries; pip install 'dreamloop[{EXTRAS[name]}]'")
    return module


def version(name: str) -> str:
    """Such as `tensorrt-rtx 1.7.1.116`: an engine runs on exactly the version that built it."""
    return f"{name} {library(name).__version__}"


def check_architecture(name: str, arch: str) -> None:
    """Refuse an architecture that the library cannot build for. Plain TensorRT knows only the GPU that is there."""
    if name == "tensorrt":
        if (here := device_architecture()) != arch:
            raise EngineError(f"tensorrt builds for the GPU of this machine ({here or 'none'}), not for {arch[:20]!r}")
    elif arch not in ARCHITECTURES or not hasattr(library(name).ComputeCapability, _capability(arch)):
        raise EngineError(f"{name} builds for {', '.join(ARCHITECTURES)}, not for {arch[:20]!r}")


def device_architecture() -> str:
    """`sm_89` and the like of the GPU of this machine; empty where none can be used, or torch cannot see it."""
    try:
        import torch
    except (ImportError, OSError):
        return ""
    if not torch.cuda.is_available():
        return ""
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


def _capability(arch: str) -> str:
    return arch.replace("sm_", "SM")


def build(name: str, model: bytes, arch: str, timing_cache: bytes = b"", plugin: bool = False,
          refit: bool = False) -> Built:
    """Compile one serialised ONNX model for one architecture. plugin: the model asks for the sparse plugin; refit: the
    engine can take other weights later (trt_refit.py). Raises `EngineError` of one line where the library refuses the
    graph or cannot build it."""
    trt, log = library(name), log_of(name)
    check_architecture(name, arch)
    log.lines.clear()
    began = time.monotonic()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    if plugin:
        trt_plugin.register(name, arch)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        error = parser.get_error(0)
        raise EngineError(f"{name} refuses the graph at {error.node_name() or 'its head'}: {_line(error.desc())}")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)
    if refit:
        config.set_flag(trt.BuilderFlag.REFIT)
    if name == "tensorrt":
        config.set_timing_cache(config.create_timing_cache(timing_cache), ignore_mismatch=False)
    else:  # its timing caches do nothing
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, _capability(arch)), 0)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        errors = [text for severity, text in log.lines if severity in ("ERROR", "INTERNAL_ERROR")]
        raise EngineError(f"{name} cannot build the graph for {arch}: {_line((errors or ['no reason given'])[0])}")
    engine = bytes(plan)
    report = {"library": version(name), "arch": arch, "graph_bytes": len(model), "engine_bytes": len(engine),
              "seconds": round(time.monotonic() - began, 2), **_report(network, log.lines)}
    kept = bytes(config.get_timing_cache().serialize()) if name == "tensorrt" else b""
    return Built(engine, report, kept)


def log_of(name: str) -> Any:
    """The logger of a library, which keeps what it is told: lines of (severity, text)."""
    if name not in _logs:
        trt = library(name)

        class Log(trt.ILogger):  # type: ignore[misc, name-defined, unused-ignore]  # a base that is known once it is imported
            def __init__(self) -> None:
                super().__init__()
                self.lines: list[tuple[str, str]] = []

            def log(self, severity: Any, text: str) -> None:
                self.lines.append((severity.name, text))

        _logs[name] = Log()
    return _logs[name]


# -- what became of the graph -----------------------------------------------------------------------


def _report(network: Any, lines: list[tuple[str, str]]) -> dict[str, Any]:
    """layers: of the network, by type; aliased: ring input -> ring output that share their memory; kernels: of the
    engine, by kind; attention: how many layers have attention, and how many of them are one fused kernel (the
    others fell back to products and a softmax); warnings: of the library, each once."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    aliased = {layer.get_input(0).name: layer.get_output(0).name for layer in layers
               if layer.type.name == "KV_CACHE_UPDATE" and layer.get_input(0).is_network_input
               and layer.get_output(0).is_network_output}
    attention = {found[1] for layer in layers if (found := re.match(r"(blocks\.\d+)\.attention", layer.name))}
    kernels = engine_kernels("\n".join(text for _, text in lines))
    fused = sum("mha" in name for name, _ in kernels)
    warnings = dict.fromkeys(_line(text) for severity, text in lines if severity == "WARNING")
    return {"layers": dict(Counter(layer.type.name for layer in layers)), "aliased": aliased,
            "kernels": dict(Counter(kind for _, kind in kernels)),
            "attention": {"layers": len(attention), "fused": fused}, "warnings": list(warnings)[:20]}


def engine_kernels(log: str) -> list[tuple[str, str]]:
    """(name, kind) of every kernel of the engine, as the verbose log lists them once it is built."""
    return re.findall(r"^ *Name: (\S+), LayerType: (\w+),", log, re.MULTILINE)


def _line(text: str) -> str:
    """A message of the library as one line of readable length."""
    return " ".join(text.split())[:300]
