"""The sparse plugin of TensorRT: its graph, sizes and kernel. Registering and building need plain TensorRT: not run."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import oracle
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from worlds import tiny_world

from dreamloop.models.core.conditioning import pass_inputs
from dreamloop.models.core.errors import EngineError
from dreamloop.models.core.plan import Plan
from dreamloop.models.core.spec import DynamicsSpec, MemorySpec, PlanSpec
from dreamloop.runtime.engines import onnx_graph, trt_plugin
from dreamloop.runtime.engines.onnx_engine import OnnxEngine
from dreamloop.runtime.engines.onnx_pass import write_inputs
from dreamloop.runtime.engines.onnx_plugin import Plugin
from dreamloop.runtime.engines.trt_plugin import Sizes, check_ptx, launch

POINTERS, NUMBERS = 7, 12


class SparseAttention(OpRun):
    """The plugin as its docstring has it, in numpy: softmax(query key / sqrt D) value over the listed tokens."""

    op_domain = trt_plugin.NAMESPACE

    def _run(self, query: Any, keys: Any, values: Any, turned: Any, block_index: Any, block_count: Any,  # type: ignore[override]
             block_length: Any, sizes: Any = None, players: int = 0, **attributes: Any) -> tuple[np.ndarray]:
        said = Sizes(*sizes)
        said.check({name: value.shape for name, value in zip(
            trt_plugin.INPUTS, (query, keys, values, turned, block_index, block_count, block_length), strict=True)})
        assert len(query) == players
        keys = keys.copy()
        keys[:, :, : said.turned_rows] = turned[:, :, : said.turned_rows]
        mask = Plan(block_index, block_count, block_length, said.block_tokens).token_mask()
        rows = said.tokens if said.query_blocks == 1 else said.block_tokens
        mask = mask.repeat(rows, axis=2)[:, :, : said.tokens]
        scores = np.einsum("bthd,bhjd->bhtj", query, keys) * said.head_size**-0.5
        shares = np.exp(np.where(mask, scores - scores.max(axis=-1, keepdims=True), -np.inf))
        shares /= shares.sum(axis=-1, keepdims=True)
        return (np.einsum("bhtj,bhjd->bthd", shares, values).astype(query.dtype),)


SparseAttention.__name__ = trt_plugin.NAME  # operators are found by their class's name


@pytest.mark.parametrize("overrides", [oracle.SCENARIOS["window_only"], {},
                                       {"memory": MemorySpec(window_frames=6),
                                        "plan": PlanSpec("window", window_frames=2, block_tokens=4)}],
                         ids=["window", "sinks and dilated slots", "lists of blocks"])
def test_the_graph_with_the_plugin_makes_the_step_of_the_in_place_form(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: dict[str, Any]) -> None:
    """In float32, with the plugin's formula in place of its kernel: lists, sinks, scale and layouts are right."""
    monkeypatch.setattr(Plugin, "base", "fp32")
    world = tiny_world(tmp_path, **overrides)
    engine = OnnxEngine(world, form="in_place", threads=1)
    spec, state = world.spec, oracle.start(engine, seed=3)
    oracle.play(engine, state, 11)
    model = onnx_graph.build(world, "step", 1, "plugin")
    feeds = {value.name: np.zeros([d.dim_value for d in value.type.tensor_type.shape.dim],
                                  onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
             for value in model.graph.input}
    for layer in range(spec.dynamics.layers):
        feeds[f"key_{layer}"], feeds[f"value_{layer}"] = (part.copy() for part in state.ring[layer])
    actions = oracle.random_actions(world, 1, 0)
    inputs = pass_inputs(spec, state.frame + 1, state.seed, actions)
    write_inputs(spec, state.latent, inputs.noise, inputs, feeds)
    made = dict(zip((value.name for value in model.graph.output), ReferenceEvaluator(
        model, new_ops=[SparseAttention]).run(None, feeds), strict=True))
    engine.step(state, actions)
    assert np.max(np.abs(made["z"] - state.latent)) <= 1e-4
    for layer in range(spec.dynamics.layers):
        assert np.max(np.abs(made[f"ring_key_{layer}"] - state.ring[layer, 0])) <= 1e-4
        assert np.max(np.abs(made[f"ring_value_{layer}"] - state.ring[layer, 1])) <= 1e-4


@pytest.mark.parametrize("batch", [1, 3])
def test_the_graph_says_what_tensorrt_asks_of_a_plugin(tmp_path: Path, batch: int) -> None:
    world = tiny_world(tmp_path)
    model = onnx_graph.build(world, "step", batch, "plugin", "bf16")
    nodes = [node for node in model.graph.node if node.domain == trt_plugin.NAMESPACE]
    assert [node.op_type for node in nodes] == [trt_plugin.NAME] * world.spec.dynamics.layers
    said = {a.name: onnx.helper.get_attribute_value(a) for a in nodes[0].attribute}
    assert said["plugin_namespace"] == b"dreamloop" and said["aot"] == 1 and said["players"] == batch
    assert said["sizes"] == Sizes.of(world.spec, batch).numbers() and len(said["sizes"]) == NUMBERS
    assert {node.domain for node in model.graph.node} == {"", trt_plugin.NAMESPACE}
    with pytest.raises(EngineError, match="bf16"):
        onnx_graph.build(world, "step", batch, "plugin", "fp16")


def test_a_shape_that_the_sizes_do_not_mean_is_named(tmp_path: Path) -> None:
    sizes = Sizes.of(tiny_world(tmp_path).spec, 2)
    shapes = sizes.shapes(2)
    sizes.check(shapes)
    for name in trt_plugin.INPUTS[1:]:
        with pytest.raises(EngineError, match=name) as caught:
            sizes.check({**shapes, name: (*shapes[name][:-1], shapes[name][-1] + 1)})
        assert "\n" not in str(caught.value)


def test_heads_that_the_kernel_does_not_hold_are_refused(tmp_path: Path) -> None:
    world = tiny_world(tmp_path)
    wide = DynamicsSpec(width=2 * 136, layers=1, heads=2, mlp_width=48)
    with pytest.raises(EngineError, match="not 136"):
        Sizes.of(replace(world.spec, dynamics=wide), 1)


@pytest.mark.parametrize(("changes", "expected"), [
    ({"tokens": 20, "query_blocks": 1, "head_size": 64}, ("dreamloop_attention_64", (1, 4, 2))),
    ({"tokens": 65, "query_blocks": 1, "head_size": 8}, ("dreamloop_attention_32", (2, 4, 2))),
    ({"tokens": 80, "query_blocks": 5, "block_tokens": 16, "head_size": 72}, ("dreamloop_attention_128", (5, 4, 2))),
    ({"tokens": 400, "query_blocks": 4, "block_tokens": 100, "head_size": 32}, ("dreamloop_attention_32", (8, 4, 2)))])
def test_every_query_has_a_program(changes: dict[str, int], expected: tuple[str, tuple[int, int, int]]) -> None:
    sizes = replace(Sizes(20, 4, 4, 64, 20, 16, 1, 16, 2, 1, 2, 0), **changes)
    start = launch(sizes, players=2)
    assert (start.kernel, start.grid) == expected
    rows = sizes.tokens if sizes.query_blocks == 1 else sizes.block_tokens
    assert start.grid[0] // sizes.query_blocks * trt_plugin.PROGRAM_QUERIES >= rows


def entry(kinds: list[str]) -> str:
    parameters = ",\n".join(f"\t.param .{kind} k_param_{i}" for i, kind in enumerate(kinds))
    return f".visible .entry k(\n{parameters}\n)\n{{"


def test_a_kernel_with_other_parameters_is_refused() -> None:
    """Such as the two hidden ones that Triton adds."""
    right = ["u64"] * POINTERS + ["u32"] * NUMBERS + ["u64"]
    check_ptx(entry(right), "k")
    for wrong in ([*right, "u64", "u64"], right[:-1], ["u64", *right], [*right[:8], "f32", *right[9:]]):
        with pytest.raises(EngineError, match="takes parameters"):
            check_ptx(entry(wrong), "k")
    with pytest.raises(EngineError, match="no kernel"):
        check_ptx(entry(right), "other")


def test_the_kernels_compile_ahead_of_time_with_the_parameters_of_the_plugin() -> None:
    if not (trt_plugin.source_folder() / trt_plugin.SOURCES[0]).is_file() or shutil.which("nvcc") is None:
        pytest.skip("needs nvcc and csrc/cuda/attention.cu")
    assert trt_plugin.compiled("sm_89").count(".entry dreamloop_attention_") == len(trt_plugin.WIDTHS)


def test_without_nvcc_or_sources_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match=r"attention\.cu is not there"):
        trt_plugin.compiled("sm_89", tmp_path)
    for name in trt_plugin.SOURCES:
        (tmp_path / name).write_text("this is not CUDA\n")
    if shutil.which("nvcc"):
        with pytest.raises(EngineError, match=r"nvcc cannot compile attention\.cu for sm_89") as caught:
            trt_plugin.compiled("sm_89", tmp_path)
        assert "\n" not in str(caught.value)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="needs nvcc"):
        trt_plugin.compiled("sm_80", tmp_path)


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_a_library_without_plugin_bindings_is_one_line(name: str) -> None:
    if name == "tensorrt" and importlib.util.find_spec("tensorrt"):
        pytest.skip("TensorRT is here, with its bindings")
    with pytest.raises(EngineError, match=f"{name} has no plugin bindings") as caught:
        trt_plugin.bindings(name)
    assert "\n" not in str(caught.value)
