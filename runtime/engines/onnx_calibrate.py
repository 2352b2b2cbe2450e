"""How large activations become: measured while a world dreams, for graphs with quantised activations.

A session of its own, on the float32 graph, plays from several starts under random actions; the graph has one more
output for each product of the blocks, the largest absolute values of what goes into it. Frames deep in a dream
count like the first ones, for errors of a rollout make activations grow.
"""

from __future__ import annotations

import numpy as np

from dreamloop.models.core.conditioning import pass_inputs
from dreamloop.models.core.world import World
from dreamloop.runtime.engines import onnx_graph
from dreamloop.runtime.engines.base import import_package
from dreamloop.runtime.engines.onnx_pass import StepPass, open_session
from dreamloop.runtime.engines.onnx_precision import precision_of

STARTS, FRAMES, HELD_FRAMES = 4, 64, 6
LARGEST = "largest."


def measure(world: World) -> dict[str, np.ndarray]:
    """Layer of each product of the blocks -> largest absolute value of each of its inputs, (in,) float32, over a few
    self-rollouts."""
    spec, fp32, onnxruntime = world.spec, precision_of("fp32"), import_package("onnxruntime")
    g = onnx_graph.build_step(world, 1, "portable", fp32)
    for name, tensor, inputs in g.watched:
        sizes = g.node("Abs", f"{name}.sizes", tensor)
        size = g.node("ReduceMax", f"{LARGEST}{name}", g.reshape(f"{name}.in_rows", sizes, (-1, inputs)),
                      g.constant(f"{name}.over", [0]), keepdims=0)
        g.output(size, size, (inputs,))
    model = g.model(onnx_graph.identity(world, "step", 1)).SerializeToString()
    run = StepPass(open_session(onnxruntime, model, 1), spec, 1)
    encoder = open_session(onnxruntime, onnx_graph.build(world, "encode", 1).SerializeToString(), 1)
    largest = {name: np.zeros(value.shape, np.float32) for name, value in run.extra.items()}
    for start in range(min(STARTS, len(world.starts))):
        ring = np.zeros(spec.ring_shape(1), np.float32)
        run.bind_ring(ring)
        latent = encoder.run(None, {"frames": world.starts[start : start + 1]})[0]
        drawn = np.random.default_rng(start).integers(0, 2, (FRAMES // HELD_FRAMES + 1, 1, spec.actions.size))
        for frame in range(1, FRAMES + 1):
            z: np.ndarray | None = None
            for index, sigma in enumerate(spec.dynamics.sigmas):
                given = pass_inputs(spec, np.array([frame]), np.array([start], np.uint64),
                                    drawn[frame // HELD_FRAMES].astype(np.float32), index)
                x = given.noise if z is None else np.float32(1 - sigma) * z + np.float32(sigma) * given.noise
                z = run(latent, x, given).copy()
                for name, value in run.extra.items():
                    np.maximum(largest[name], value, out=largest[name])
            assert z is not None
            run.commit(ring, given.slot)
            latent = z
    return {name.removeprefix(LARGEST): value for name, value in largest.items()}
