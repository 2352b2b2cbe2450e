"""The graphs of a world: standard, named, told apart; forms and precisions against each other and the oracle."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import oracle
import pytest
from worlds import tiny_world

from dreamloop.models.core.conditioning import pass_inputs
from dreamloop.models.core.plan import Plan
from dreamloop.models.core.spec import DynamicsSpec, MemorySpec, PlanSpec
from dreamloop.models.core.world import World
from dreamloop.runtime.engines import onnx_cache, onnx_calibrate, onnx_graph, onnx_sparse
from dreamloop.runtime.engines.onnx_engine import OnnxEngine
from dreamloop.runtime.engines.onnx_pass import StepPass, open_session
from dreamloop.runtime.engines.onnx_precision import INT4_INPUTS, PRECISIONS, quantized

OPSETS = {"portable": (20, 9), "sparse": (20, 9), "in_place": (24, 11)}
PARTS = [("step", form) for form in onnx_graph.FORMS] + [("decode", "portable"), ("encode", "portable")]
# largest error of a step's latents, keys and values, which are of size 1 to 4; measured are half of each
BOUNDS = {"fp16": 0.004, "int8": 0.2, "fp8": 0.5, "int4": 1.2, "int8-fp16": 0.2, "fp8-fp16": 0.5, "int4-fp16": 1.2}


def scales_of(world: World, precision: str) -> dict[str, np.ndarray] | None:
    return onnx_cache.calibration(world) if PRECISIONS[precision].calibrated else None


@pytest.mark.parametrize(("kind", "form"), PARTS)
@pytest.mark.parametrize("batch", [1, 3])
def test_graphs_are_standard_named_and_say_what_they_are(tmp_path: Path, kind: str, form: str, batch: int) -> None:
    world = tiny_world(tmp_path, frame_height=30)
    model = onnx_graph.build(world, kind, batch, form)
    onnx.checker.check_model(model, full_check=True)
    opset, ir = OPSETS[form]
    assert [(o.domain, o.version) for o in model.opset_import] == [("", opset)] and model.ir_version == ir
    assert all(node.domain == "" for node in model.graph.node)
    names = [node.name for node in model.graph.node]
    assert all(names) and len(set(names)) == len(names)
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert said["world_hash"] == world.hash and said["form"] == form and said["precision"] == "fp32"
    assert said["batch"] == str(batch) and said["dreamloop"]
    for value in (*model.graph.input, *model.graph.output):
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        assert shape[0] == batch and all(d > 0 for d in shape)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_is_checker_clean_in_every_form(tmp_path: Path, precision: str) -> None:
    """And the ring, the products and the quantised weights have the types that its name says."""
    world, kinds = tiny_world(tmp_path), PRECISIONS[precision]
    for kind, form in PARTS:
        model = onnx_graph.build(world, kind, 1, form, precision, scales_of(world, precision))
        onnx.checker.check_model(model, full_check=True)
        stored = Counter(weight.data_type for weight in model.graph.initializer)
        if kind == "step":
            ring = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}["key_0"]
            assert ring == kinds.tensor_type
            low = {"int8": onnx.TensorProto.INT8, "fp8": onnx.TensorProto.FLOAT8E4M3FN, "int4": onnx.TensorProto.INT4}
            if kinds.products in low:
                assert stored[low[kinds.products]] >= 4 * world.spec.dynamics.layers - 2
        assert stored[kinds.tensor_type] > 0


def test_each_form_has_the_inputs_and_outputs_that_it_says(tmp_path: Path) -> None:
    def edges(form: str, **overrides: Any) -> tuple[set[str], set[str]]:
        model = onnx_graph.build(tiny_world(tmp_path / f"{form}{len(overrides)}", **overrides), "step", 1, form)
        return {value.name for value in model.graph.input}, {value.name for value in model.graph.output}

    own = {"portable": {"mask"}, "sparse": {"block_index", "block_count", "block_length", "slot"},
           "in_place": {"mask", "write_index"}}
    for form, names in own.items():
        plain, outputs = edges(form, **oracle.SCENARIOS["window_only"])
        ring = {f"{part}_{layer}" for part in ("key", "value") for layer in (0, 1)}
        assert plain == {"previous", "x", "action", "condition", "cos", "sin", *ring, *names}
        assert outputs == {"z"} | {f"{'ring' if form == 'in_place' else 'new'}_{name}" for name in ring}
        assert edges(form)[0] - plain == {"store_cos", "store_sin", "sink_cos", "sink_sin"}


# -- sparse --------------------------------------------------------------------------------------------


def test_the_sparse_graph_gathers_no_more_than_the_plan_lists(tmp_path: Path) -> None:
    """A window of 12 frames of which the plan reads 3 and this one: the gathered keys are a third of the ring."""
    world = tiny_world(tmp_path, memory=MemorySpec(window_frames=12),
                       plan=PlanSpec("window", window_frames=3, block_tokens=4))
    spec = world.spec
    assert onnx_sparse.list_shape(spec).places == 4 * spec.blocks_per_frame
    model = onnx_graph.build(world, "step", 1, "sparse")
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
              for v in onnx.shape_inference.infer_shapes(model, data_prop=True).graph.value_info}
    gathered = shapes["blocks.0.attention.keys.listed"]
    assert gathered[3] * 3 == spec.memory.slots * spec.tokens_padded
    products = [node for node in model.graph.node if node.op_type == "MatMul" and "attention.scores" in node.name]
    assert {node.name for node in products} == {f"blocks.{layer}.attention.scores.{part}" for layer in (0, 1)
                                               for part in ("listed", "fresh")}


def test_lists_that_differ_by_row_head_and_player_are_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans that no policy makes: any blocks, the fresh and the sinks' among them, against attention under
    the plan's own mask. One layer, so that its values can be told from what goes in."""
    world = tiny_world(tmp_path, dynamics=DynamicsSpec(width=32, layers=1, heads=2, mlp_width=48))
    spec, batch = world.spec, 2
    shape = onnx_sparse.ListShape(heads=2, rows=spec.blocks_per_frame, places=9)
    generator = np.random.default_rng(0)
    ring = generator.standard_normal(spec.ring_shape(batch)).astype(np.float32)
    latent = generator.standard_normal((batch, *spec.latent_shape)).astype(np.float32)
    inputs = pass_inputs(spec, np.array([31, 2]), np.array([1, 2], np.uint64),
                         oracle.random_actions(world, batch, 0))
    key_blocks = spec.memory.slots * spec.blocks_per_frame
    index = np.zeros((batch, 2, shape.rows, key_blocks), np.int32)
    count = generator.integers(1, shape.places + 1, index.shape[:3]).astype(np.int32)
    for place in np.ndindex(*index.shape[:3]):
        index[place] = generator.permutation(key_blocks)
    inputs = dataclasses.replace(inputs, plan=Plan(index, count, inputs.plan.block_length, spec.block_tokens))

    monkeypatch.setattr(onnx_sparse, "list_shape", lambda spec: shape)
    sparse = onnx_graph.build(world, "step", batch, "sparse").SerializeToString()
    dense = onnx_graph.build(world, "step", batch)
    for value in dense.graph.input:  # one mask per head, where the plans of worlds have one for all
        if value.name == "mask":
            value.type.tensor_type.shape.dim[1].dim_value = 2
    found = []
    for model in (sparse, dense.SerializeToString()):
        run = StepPass(open_session(onnxruntime, model, 1), spec, batch)
        run.bind_ring(ring)
        found.append(run(latent, inputs.noise, inputs).copy())
    assert np.max(np.abs(found[0] - found[1])) <= 1e-5
    assert np.max(np.abs(found[0] - latent)) > 0.05


# -- precision -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("products", ["int8", "fp8", "int4"])
def test_quantised_weights_are_near_the_weights(products: str) -> None:
    weight = np.random.default_rng(0).standard_normal((96, 40)).astype(np.float32)
    weight[:, 7] = 0
    found = quantized(weight, products)
    assert found is not None
    stored, scale = found
    spread = scale.repeat(INT4_INPUTS, axis=0) if products == "int4" else scale
    error = np.abs(stored.astype(np.float32) * spread - weight)
    assert (error <= (np.abs(weight) / 16 + spread / 512 if products == "fp8" else 0.5001 * spread)).all()
    assert stored.shape == weight.shape and error.max() > 0


def test_int4_leaves_a_product_alone_whose_inputs_it_does_not_divide() -> None:
    assert quantized(np.ones((INT4_INPUTS + 1, 4), np.float32), "int4") is None


def test_a_calibration_bounds_what_it_saw_and_grows_with_the_weights(tmp_path: Path) -> None:
    world = tiny_world(tmp_path)
    scales = onnx_calibrate.measure(world)
    blocks = {f"blocks.{layer}.{part}" for layer in (0, 1) for part in
              ("attention.qkv", "attention.out", "mlp.up", "mlp.down")}
    assert set(scales) == blocks and all(0 <= value.min() <= value.max() < 1e3 for value in scales.values())
    assert all(np.array_equal(value, scales[name]) for name, value in onnx_calibrate.measure(world).items())
    weights = dict(world.weights)
    weights["dynamics.blocks.0.up.weight"] = 4 * weights["dynamics.blocks.0.up.weight"]
    larger = onnx_calibrate.measure(World(world.spec, weights, world.starts, world.hash))
    assert larger["blocks.0.mlp.down"].max() > 2 * scales["blocks.0.mlp.down"].max()


@pytest.mark.parametrize("form", onnx_graph.FORMS)
@pytest.mark.parametrize("precision", BOUNDS)
def test_a_step_in_low_precision_errs_within_its_bound(tmp_path: Path, precision: str, form: str) -> None:
    """And by more than float32 would: that the name is true."""
    error, of_torch = oracle.step_errors(OnnxEngine(tiny_world(tmp_path), precision, form=form), frames=12)
    assert 20 * of_torch < error <= BOUNDS[precision]
