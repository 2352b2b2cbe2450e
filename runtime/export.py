"""A world as graphs or engines for another program. The verb `dreamloop export`.

    dreamloop export doom-arena --to onnx out --form sparse --check

    out/step.onnx decode.onnx encode.onnx   the graphs, whatever they are exported for
    out/step.sm_89.engine ...               for tensorrt and tensorrt-rtx, one file per graph and architecture
    out/layout.json                         sizes, actions, memory and plan as plain numbers
    out/start.npy, out/check/*.npy          a first latent, and some frames of a session to compare with
    out/README.md, out/run.py               how to run it, in words and as a program without dreamloop
    out/report.json                         what was built, how large, what was fused, and the result of --check
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dreamloop.models.core.errors import DreamloopError, EngineError
from dreamloop.models.core.world import World
from dreamloop.runtime import export_readme

Progress = Callable[[int, int], None]
TARGETS = ("onnx", "tensorrt", "tensorrt-rtx")
KINDS = ("step", "decode", "encode")
DEFAULTS = {"onnx": ("portable", "fp32"), "tensorrt": ("in_place", "fp16"), "tensorrt-rtx": ("in_place", "fp16")}
CHECK_FRAMES = 40  # frames of `check/`, at most; enough to go round the memory of a small world
REPORT = "report.json"


@dataclass(frozen=True)
class Export:
    """What is asked for. archs: such as sm_89; for TensorRT alone, and never empty there."""

    to: str
    form: str
    precision: str
    archs: tuple[str, ...] = ()


def choose(world: World, to: str, form: str | None, precision: str | None, archs: Sequence[str]) -> Export:
    """The options with their defaults. Raises `DreamloopError` of one line for what cannot be."""
    from dreamloop.runtime.engines import onnx_graph, onnx_precision, trt_build
    if to not in TARGETS:
        raise DreamloopError(f"--to {to[:40]!r} must be one of {', '.join(TARGETS)}")
    usual_form, usual_precision = DEFAULTS[to]
    chosen = Export(to, form or usual_form, precision or usual_precision, tuple(dict.fromkeys(archs)))
    if chosen.form not in onnx_graph.FORMS:
        raise DreamloopError(f"--form {chosen.form[:40]!r} must be one of {', '.join(onnx_graph.FORMS)}")
    kinds = onnx_precision.precision_of(chosen.precision)
    if world.spec.plan.policy == "top_k":
        raise DreamloopError("a plan that chooses blocks while it plays (top_k) cannot be exported")
    if world.spec.plan.linear:
        raise DreamloopError("a plan with a linear branch cannot be exported; torch and triton play it")
    if to == "onnx":
        if archs:
            raise DreamloopError("--arch is for tensorrt and tensorrt-rtx; an ONNX graph has no architecture")
        return chosen
    if kinds.is_float32 and kinds.products != "fp32":  # a GPU computes beside quantised products in 16 bits
        chosen = replace(chosen, precision=f"{kinds.products}-fp16")
    trt_build.library(to)
    if not chosen.archs:
        here = trt_build.device_architecture()
        if not here:
            raise DreamloopError(f"no GPU here to build for: name one, such as --arch {trt_build.ARCHITECTURES[3]}")
        chosen = replace(chosen, archs=(here,))
    for arch in chosen.archs:
        trt_build.check_architecture(to, arch)
    return chosen


def export(world: World, options: Export, out: str | os.PathLike[str],
           progress: Progress | None = None) -> dict[str, Any]:
    """Write the folder `out` and return its report. `out` must be new, empty, or an export: nothing else is ever
    written over. A failure leaves it as it was."""
    target = Path(out)
    _refuse_foreign(target)
    steps = len(KINDS) * (1 + len(options.archs)) + 1
    say = progress or (lambda done, total: None)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
            made = Path(folder) / "export"
            made.mkdir()
            report = _write(world, options, made, lambda done: say(done, steps))
            target.mkdir(exist_ok=True)
            _replace(made, target)
    except OSError as error:
        raise DreamloopError(f"cannot write {out}: {error.strerror or error}") from error
    return report


def _refuse_foreign(target: Path) -> None:
    if target.is_dir() and any(target.iterdir()) and not (target / REPORT).is_file():
        raise DreamloopError(f"{target} is not empty and no export: name a new folder")
    if target.exists() and not target.is_dir():
        raise DreamloopError(f"{target} is a file: name a new folder")


def _replace(made: Path, target: Path) -> None:
    """Move everything in `made` to `target`, in the place of an earlier export's files."""
    for old in (*target.glob("*.engine"), *target.glob("*.engine.json"), target / "run.py", target / "check.json"):
        old.unlink(missing_ok=True)
    for path in sorted(made.rglob("*")):
        if path.is_file():
            (target / path.relative_to(made)).parent.mkdir(exist_ok=True)
            os.replace(path, target / path.relative_to(made))


def _write(world: World, options: Export, folder: Path, done: Callable[[int], None]) -> dict[str, Any]:
    from dreamloop.runtime.engines import onnx_cache, onnx_graph, trt_cache
    graphs: dict[str, Any] = {}
    engines: dict[str, Any] = {}
    count = 0
    for kind in KINDS:
        model = onnx_cache.load_or_build(world, kind, 1, options.form, options.precision)
        (folder / f"{kind}.onnx").write_bytes(model)
        graphs[kind] = {"bytes": len(model), **fused_by_onnxruntime(model)}
        done(count := count + 1)
        for arch in options.archs:
            built = trt_cache.build(options.to, model, arch)
            trt_cache.save(folder / f"{kind}.{arch}.engine", built, trt_cache.identity(options.to, world, model, arch))
            engines[f"{kind}.{arch}"] = built.report
            done(count := count + 1)
    weights = {kind: sum(w.nbytes for name, w in world.weights.items() if name.startswith(onnx_graph.PREFIX[kind]))
               for kind in KINDS}
    compared = _record_check(world, options, folder)
    done(count + 1)
    export_readme.write(world, options.form, options.precision, folder, engines)
    report = {"world": world.name, "world_hash": world.hash, "to": options.to, "form": options.form,
              "precision": options.precision, "archs": list(options.archs), "fp32_weight_bytes": weights,
              "graphs": graphs, "engines": engines, "check_frames_made_by": compared,
              "files": {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}}
    (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    return report


def lines(report: dict[str, Any]) -> list[str]:
    """The report for a reader: sizes, what was fused, what fell back."""
    said = []
    for kind, row in report["graphs"].items():
        fused = ", ".join(f"{count} {name}" for name, count in row.get("fused", {}).items()) or "nothing"
        runs = (f"ONNX Runtime makes {row['nodes_after_fusion']} of them, fused: {fused}" if row["runs"]
                else f"this ONNX Runtime cannot run it: {row['reason']}")
        said.append(f"{kind}.onnx: {row['bytes'] / 1e6:.2f} MB, {row['nodes']} nodes; {runs}")
    for name, row in report["engines"].items():
        attention = row["attention"]
        fused = (f"; attention fused in {attention['fused']} of {attention['layers']} layers"
                 if attention["layers"] else "")
        aliased = f"; {len(row['aliased'])} ring buffers written in place" if row["aliased"] else ""
        said.append(f"{name}.engine: {row['engine_bytes'] / 1e6:.2f} MB in {row['seconds']} s, "
                    f"{sum(row['kernels'].values())} kernels{fused}{aliased}")
    return said


def fused_by_onnxruntime(model: bytes) -> dict[str, Any]:
    """nodes: of the graph; fused: node types that ONNX Runtime put in their place, and how many;
    runs: false, with a reason, where this ONNX Runtime has no kernel for something in the graph."""
    import onnx

    from dreamloop.runtime.engines.base import import_package
    onnxruntime = import_package("onnxruntime")
    graph = onnx.load_model_from_string(model).graph
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "optimised.onnx")
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.qdqisint8allowed", "1")
        try:
            onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # as in onnx_pass.open_session
            return {"nodes": len(graph.node), "runs": False, "reason": str(error).splitlines()[0][:200]}
        after = onnx.load_model(path).graph
    known = {node.op_type for node in graph.node}
    fused = Counter(node.op_type for node in after.node if node.domain or node.op_type not in known)
    return {"nodes": len(graph.node), "runs": True, "nodes_after_fusion": len(after.node), "fused": dict(fused)}


def _record_check(world: World, options: Export, folder: Path) -> str:
    """A session of some frames, by ONNX Runtime on this very form where it can, and in float32 where it cannot."""
    from dreamloop.runtime.engines.onnx_engine import OnnxEngine
    precision = options.precision
    try:
        engine = OnnxEngine(world, precision, form=options.form)
        engine.step(engine.new_state(1), np.zeros((1, world.spec.actions.size), np.float32))
    except EngineError:
        precision = "fp32"
        engine = OnnxEngine(world, precision, form=options.form)
    from dreamloop.models.core import noise
    spec, state = world.spec, engine.new_state(1)
    state.latent = engine.encode(world.starts[:1])
    frames = min(CHECK_FRAMES, 2 * spec.memory.slots + 4)
    np.save(folder / "start.npy", state.latent)
    drawn = np.random.default_rng(0).integers(0, 2, (frames // 6 + 1, spec.actions.size)).astype(np.float32)
    size, passes = int(np.prod(spec.latent_shape)), len(spec.dynamics.sigmas)
    actions, noises, latents = [], [], []
    for frame in range(1, frames + 1):
        actions.append(drawn[frame // 6])
        noises.append(np.stack([noise.normal(0, frame, size, k).reshape(spec.latent_shape) for k in range(passes)]))
        engine.step(state, actions[-1][None])
        latents.append(state.latent[0].copy())
    (folder / "check").mkdir()
    for name, values in (("actions", actions), ("noise", noises), ("latents", latents)):
        np.save(folder / "check" / f"{name}.npy", np.stack(values).astype(np.float32))
    return f"onnxruntime {precision}"
