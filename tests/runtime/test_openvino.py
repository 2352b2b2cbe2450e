"""Graphs of standard operators in another runtime than ONNX Runtime: OpenVINO loads them and makes the same frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
from worlds import random_frames, tiny_world

from dreamloop.models.core.conditioning import pass_inputs
from dreamloop.models.core.world import World
from dreamloop.runtime.engines import onnx_graph
from dreamloop.runtime.engines.onnx_engine import OnnxEngine
from dreamloop.runtime.engines.onnx_pass import write_inputs

FRAMES = 24  # past every wrap-around of the tiny world


def compiled(world: World, kind: str, form: str = "portable") -> Any:
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install openvino")
    model = openvino.Core().read_model(onnx_graph.build(world, kind, 1, form).SerializeToString())
    return openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


@pytest.mark.parametrize("form", ["portable", "sparse"])
@pytest.mark.parametrize("scenario", ["sinks_dilated_window_and_block_tail", "window_plan"])
def test_a_session_in_openvino_is_that_of_the_engine(tmp_path: Path, form: str, scenario: str) -> None:
    world = tiny_world(tmp_path, **oracle.SCENARIOS[scenario])
    spec, model, engine = world.spec, compiled(world, "step", form), OnnxEngine(world)
    state = oracle.start(engine, seed=3)
    mine = state.copy()
    feeds = {port.get_any_name(): np.zeros(port.shape, port.element_type.to_dtype()) for port in model.inputs}
    for frame in range(1, FRAMES + 1):
        actions = oracle.random_actions(world, 1, frame)
        inputs = pass_inputs(spec, np.array([frame]), mine.seed, actions)
        for layer in range(spec.dynamics.layers):
            feeds[f"key_{layer}"], feeds[f"value_{layer}"] = mine.ring[layer]
        write_inputs(spec, mine.latent, inputs.noise, inputs, feeds)
        found = {port.get_any_name(): value for port, value in model(feeds).to_dict().items()}
        first = int(inputs.slot[0]) * spec.tokens_padded
        for layer in range(spec.dynamics.layers):
            for part, name in enumerate(("key", "value")):
                mine.ring[layer, part][:, :, first : first + spec.tokens] = found[f"new_{name}_{layer}"]
        mine.latent = found["z"] * np.float32(oracle.DAMPING)
        engine.step(state, actions)
        state.latent = state.latent * np.float32(oracle.DAMPING)
        assert oracle.max_difference(state, mine) <= 1e-4


def test_the_decoder_and_the_encoder_agree_in_openvino(tmp_path: Path) -> None:
    world = tiny_world(tmp_path, frame_height=30)
    engine, frames = OnnxEngine(world), random_frames(world.spec, 1)
    latents = compiled(world, "encode")([frames])[0]
    assert np.max(np.abs(latents - engine.encode(frames))) <= 1e-4
    difference = np.abs(compiled(world, "decode")([latents])[0].astype(int) - engine.decode(latents))
    assert difference.max() <= 1
