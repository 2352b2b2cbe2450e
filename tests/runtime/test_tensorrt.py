"""TensorRT for RTX builds engines on a machine without a GPU: what it builds, how large, what was fused, what aliases.

Running an engine needs a GPU, and plain TensorRT needs one to build: neither is tested here (docs/export.md).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from worlds import tiny_world

from dreamloop.demos.cli import main
from dreamloop.models.core.errors import EngineError
from dreamloop.models.core.world import World, load_world
from dreamloop.runtime.engines import (
    cache,
    engine_status,
    onnx_cache,
    onnx_graph,
    open_engine,
    trt_build,
    trt_cache,
    trt_refit,
)

RTX = "tensorrt-rtx"
SECONDS = 120  # of one build, on an idle machine
GRID = [("portable", "fp32"), ("portable", "bf16"), ("sparse", "fp16"), ("in_place", "bf16"), ("in_place", "int8-fp16"),
        ("in_place", "fp8-fp16"), ("in_place", "int4-fp16")]


@pytest.fixture
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed: pip install 'dreamloop[rtx]'")


@pytest.fixture(scope="session")
def shipped() -> World:
    return load_world("doom-arena")


def built(world: World, kind: str, form: str, precision: str, arch: str = "sm_89") -> dict[str, Any]:
    model = onnx_cache.load_or_build(world, kind, 1, form, precision)
    return trt_build.build(RTX, model, arch).report


def check_size(world: World, kind: str, report: dict[str, Any]) -> None:
    """An fp16 engine is under twice its weights."""
    count = sum(w.size for name, w in world.weights.items() if name.startswith(onnx_graph.PREFIX[kind]))
    assert 0.5 * 2 * count < report["engine_bytes"] < 2 * 2 * count


# -- the shipped world ------------------------------------------------------------------------------


def test_the_step_of_the_shipped_world_writes_its_ring_in_place_with_fused_attention(rtx: Any, shipped: World) -> None:
    report = built(shipped, "step", "in_place", "fp16")
    layers = shipped.spec.dynamics.layers
    assert report["aliased"] == {f"{part}_{i}": f"ring_{part}_{i}" for part in ("key", "value") for i in range(layers)}
    assert report["layers"]["KV_CACHE_UPDATE"] == 2 * layers
    assert report["attention"] == {"layers": layers, "fused": layers}
    nodes = sum(count for kind, count in report["layers"].items() if kind != "CONSTANT")
    assert sum(report["kernels"].values()) < nodes / 3
    assert report["library"].startswith(RTX) and report["arch"] == "sm_89"
    check_size(shipped, "step", report)


def test_the_decoder_of_the_shipped_world_is_fused(rtx: Any, shipped: World) -> None:
    report = built(shipped, "decode", "portable", "fp16")
    assert report["aliased"] == {} and report["attention"] == {"layers": 0, "fused": 0}
    assert report["kernels"]["correlation"] == 14  # its convolutions, with bias, residual and activation inside
    assert sum(report["kernels"].values()) < sum(report["layers"].values()) / 3
    check_size(shipped, "decode", report)


@pytest.mark.long
@pytest.mark.parametrize("arch", trt_build.ARCHITECTURES)
@pytest.mark.parametrize(("form", "precision"), [("in_place", "fp16"), ("portable", "fp16"), *GRID])
def test_every_form_and_precision_builds_for_every_architecture(rtx: Any, shipped: World, form: str, precision: str,
                                                                arch: str) -> None:
    """As far as the architecture has the precision: what it has not is refused in one line."""
    lacking = {"sm_75": ("fp32", "bf16", "fp8-fp16", "int4-fp16"), "sm_80": ("fp8-fp16",),
               "sm_86": ("fp8-fp16",)}.get(arch, ())
    if precision in lacking:
        with pytest.raises(EngineError, match=arch) as caught:
            built(shipped, "step", form, precision, arch)
        assert "\n" not in str(caught.value)
        return
    report = built(shipped, "step", form, precision, arch)
    assert report["seconds"] < SECONDS and len(report["aliased"]) == (12 if form == "in_place" else 0)


# -- small worlds -----------------------------------------------------------------------------------


def test_a_ring_with_sinks_aliases_too(rtx: Any, tmp_path: Path) -> None:
    report = built(tiny_world(tmp_path), "step", "in_place", "fp16")
    assert set(report["aliased"]) == {"key_0", "key_1", "value_0", "value_1"}


@pytest.mark.parametrize(("form", "precision"), [("sparse", "fp16"), ("portable", "int4-fp16")])
def test_the_other_forms_build(rtx: Any, tmp_path: Path, form: str, precision: str) -> None:
    report = built(tiny_world(tmp_path), "step", form, precision)
    assert report["engine_bytes"] > 1000 and report["aliased"] == {}


def test_what_the_parser_refuses_is_one_line_that_names_the_node(rtx: Any, tmp_path: Path) -> None:
    model = onnx_graph.build(tiny_world(tmp_path), "step", 1, "in_place", "fp16")
    for node in model.graph.node:
        if node.op_type == "TensorScatter":
            next(a for a in node.attribute if a.name == "mode").s = b"circular"
    with pytest.raises(EngineError, match=r"refuses the graph at blocks\.0\.attention") as caught:
        trt_build.build(RTX, model.SerializeToString(), "sm_89")
    assert "\n" not in str(caught.value)


# -- files ------------------------------------------------------------------------------------------


def load(world: World, arch: str = "sm_89") -> tuple[bytes, dict[str, Any]]:
    return trt_cache.load_or_build(RTX, world, "decode", 1, "portable", "fp16", arch)


def path_of(world: World) -> Path:
    path = trt_cache.engine_path(RTX, world, "decode", 1, "portable", "fp16", "sm_89")
    assert path is not None
    return path


def test_an_engine_is_built_once(rtx: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = tiny_world(tmp_path)
    engine, report = load(world)

    def unwanted(*args: Any) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr(trt_build, "build", unwanted)
    assert load(world) == (engine, report) and "rebuilt_because" not in report


@pytest.mark.parametrize("damage", ["engine", "record", "other world", "other architecture", "other version"])
def test_an_engine_that_is_not_what_is_wanted_is_built_anew_and_said_so(rtx: Any, tmp_path: Path, damage: str) -> None:
    world = tiny_world(tmp_path / "a")
    load(world)
    path = path_of(world)
    record = trt_cache.record_path(path)
    said = json.loads(record.read_text())
    if damage == "engine":
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    elif damage == "record":
        record.write_text("{")
    elif damage == "other world":
        other = tiny_world(tmp_path / "b", seed=5)
        load(other)
        for ours, theirs in ((path, path_of(other)), (record, trt_cache.record_path(path_of(other)))):
            ours.write_bytes(theirs.read_bytes())
    else:
        key, value = ("arch", "sm_120") if damage == "other architecture" else ("library", f"{RTX} 0.1")
        record.write_text(json.dumps(said | {"identity": said["identity"] | {key: value}}))
    with pytest.raises(EngineError, match=r"engine decode\S+ ") as caught:
        trt_cache.read(path, said["identity"])
    assert "\n" not in str(caught.value)
    engine, report = load(world)
    assert report["rebuilt_because"] == str(caught.value)
    assert load(world) == (engine, {k: v for k, v in report.items() if k != "rebuilt_because"})  # whole again


# -- refit ------------------------------------------------------------------------------------------


def structure(world: World, form: str = "in_place", precision: str = "fp16") -> str:
    return onnx_graph.structure(onnx_graph.build(world, "step", 1, form, precision).SerializeToString())


def test_a_graph_keeps_its_structure_whatever_the_weights_and_loses_it_with_anything_else(tmp_path: Path) -> None:
    one, other = tiny_world(tmp_path / "a"), tiny_world(tmp_path / "b", seed=5)
    memory = dataclasses.replace(one.spec.memory, window_frames=one.spec.memory.window_frames + 1)
    longer = dataclasses.replace(one, spec=dataclasses.replace(one.spec, memory=memory))
    assert structure(one) == structure(other)
    assert len({structure(one), structure(longer), structure(one, "portable"), structure(one, precision="bf16")}) == 4
    with pytest.raises(EngineError, match="quantised products cannot be refitted"):
        structure(one, precision="int4-fp16")


def test_the_engine_to_refit_is_whole_and_differs_in_its_weights_alone(rtx: Any, tmp_path: Path) -> None:
    def kept(seed: int, arch: str = "sm_89") -> tuple[Path, dict[str, str]]:
        world = tiny_world(tmp_path / str(seed), seed=seed)
        model = onnx_cache.load_or_build(world, "step", 1, "in_place", "fp16")
        path = trt_cache.engine_path(RTX, world, "step", 1, "in_place", "fp16", "sm_89", refit=True)
        assert path is not None
        return path, trt_cache.identity(RTX, world, model, arch, "in_place", refit=True)

    def write(path: Path, said: dict[str, str], engine: bytes) -> None:
        cache.write(path, engine)
        cache.write(trt_cache.record_path(path), json.dumps({"identity": said}).encode())

    (first, of_first), (second, of_second), (third, wanted) = kept(1), kept(2), kept(3)
    assert of_first["structure"] == wanted["structure"] and of_first["graph"] != wanted["graph"]
    assert trt_refit.alike(third, wanted) is None
    write(first, of_first, b"first")
    write(third, wanted, b"itself, damaged or it would not be sought")
    assert trt_refit.alike(third, wanted) == (b"first", of_first["world_hash"])
    write(second, kept(2, "sm_120")[1], b"for another GPU")
    assert trt_refit.alike(third, wanted) == (b"first", of_first["world_hash"])
    write(second, of_second, b"newer")
    assert trt_refit.alike(third, wanted) == (b"newer", of_second["world_hash"])
    second.write_bytes(b"damaged")
    assert trt_refit.alike(third, wanted) == (b"first", of_first["world_hash"])


def test_an_engine_that_can_be_refitted_is_built_on_a_gpu_or_refused_in_one_line(rtx: Any, tmp_path: Path) -> None:
    if trt_build.device_architecture():
        pytest.skip("there is a GPU here")
    with pytest.raises(EngineError, match="cannot build the graph for sm_89") as caught:
        trt_cache.load_or_build(RTX, tiny_world(tmp_path), "decode", 1, "portable", "fp16", "sm_89", refit=True)
    assert "\n" not in str(caught.value)


# -- the verb and the engine ------------------------------------------------------------------------


def test_the_verb_writes_engines_beside_their_graphs(rtx: Any, tmp_path: Path,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    world, out = tiny_world(tmp_path / "world"), tmp_path / "out"
    assert main(["export", str(tmp_path / "world"), "--to", RTX, str(out), "--arch", "sm_89,sm_120", "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["precision"] == "fp16" and report["form"] == "in_place"
    for name in ("step", "decode", "encode"):
        model = (out / f"{name}.onnx").read_bytes()
        for arch in ("sm_89", "sm_120"):
            engine, said = trt_cache.read(out / f"{name}.{arch}.engine", trt_cache.identity(RTX, world, model, arch))
            assert len(engine) == said["engine_bytes"] == report["engines"][f"{name}.{arch}"]["engine_bytes"]
    assert "step.sm_120.engine" in (out / "README.md").read_text()
    with pytest.raises(EngineError, match="sm_89, wanted is sm_120"):
        trt_cache.read(out / "step.sm_89.engine", trt_cache.identity(RTX, world, model, "sm_120"))


@pytest.mark.parametrize(("options", "message"), [
    (["--arch", "sm_90"], "not for 'sm_90'"), (["--arch", "sm_89", "--check"], "--check cannot run tensorrt-rtx here"),
    ([], "--arch sm_89")])
def test_what_cannot_be_built_or_run_here_is_one_line(rtx: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                      options: list[str], message: str) -> None:
    if trt_build.device_architecture():
        pytest.skip("there is a GPU here")
    tiny_world(tmp_path / "world")
    assert main(["export", str(tmp_path / "world"), "--to", RTX, str(tmp_path / "out"), *options]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


@pytest.mark.parametrize("name", trt_build.MODULES)
def test_without_the_library_or_a_gpu_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                        name: str) -> None:
    if trt_build.device_architecture():
        pytest.skip("there is a GPU here")
    world = tiny_world(tmp_path)
    if engine_status("torch").available and importlib.util.find_spec(trt_build.MODULES[name]):
        with pytest.raises(EngineError, match="no NVIDIA GPU") as caught:
            open_engine(world, name)
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, trt_build.MODULES[name], None)  # makes its import fail, as when not installed
    with pytest.raises(EngineError, match=r"pip install 'dreamloop\[") as caught:
        open_engine(world, name)
    assert "\n" not in str(caught.value)
    assert main(["export", str(tmp_path), "--to", name, str(tmp_path / "out"), "--arch", "sm_89"]) == 2
