"""The decoder and the encoder of a world as ONNX graphs (models/networks/autoencoder.py).

    decode   latents (B, C, h, w) float32 -> frames (B, H, W, 3) uint8, crop and rounding inside
    encode   frames (B, H, W, 3) uint8 -> latents (B, C, h, w) float32, edge padding inside

Convolutions run in the base type of the graph's precision, the edges in float32.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from dreamloop.models.core.spec import PIXEL_SHUFFLE
from dreamloop.models.core.world import World
from dreamloop.runtime.engines.onnx_layers import Graph, convolution, residual_block
from dreamloop.runtime.engines.onnx_precision import Precision


def build_decode(world: World, batch: int, precision: Precision) -> Graph:
    """The head's weights hold the step from [-1, 1] to [0, 255]; rounding is half to even, as in torch."""
    spec, weights, prefix = world.spec, world.weights, "autoencoder.decoder"
    widths, blocks = spec.autoencoder.widths, spec.autoencoder.decoder_blocks
    g = Graph("decode", precision)
    mean, std = (weights[f"autoencoder.latent_{name}"][:, None, None] for name in ("mean", "std"))
    x = g.node("Mul", "latents.scaled", g.input("latents", (batch, *spec.latent_shape)), g.constant("latent_std", std))
    x = g.node("Add", "latents.raw", x, g.constant("latent_mean", mean))
    x = convolution(g, f"{prefix}.stem", g.low("latents", x), weights[f"{prefix}.stem.weight"],
                    weights[f"{prefix}.stem.bias"])
    for i in reversed(range(len(widths))):
        stage = f"{prefix}.stages.{i}"
        for j in range(blocks[i]):
            x = residual_block(g, f"{stage}.blocks.{j}", x, weights)
        if i > 0:
            x = convolution(g, f"{stage}.up", x, weights[f"{stage}.up.weight"], weights[f"{stage}.up.bias"])
            x = g.node("DepthToSpace", f"{stage}.shuffle", x, blocksize=2, mode="CRD")
    x = convolution(g, f"{prefix}.head", g.node("Relu", f"{prefix}.head.relu", x),
                    weights[f"{prefix}.head.weight"] * 127.5, (weights[f"{prefix}.head.bias"] + 1.0) * 127.5)
    x = g.node("Round", "levels.rounded", g.full(f"{prefix}.head", x))
    x = g.node("Clip", "levels", x, g.constant("black", 0.0), g.constant("white", 255.0))
    p, height, width = PIXEL_SHUFFLE, spec.padded_height // PIXEL_SHUFFLE, spec.padded_width // PIXEL_SHUFFLE
    x = g.reshape("pixels.split", x, (batch, 3, p, p, height, width))
    x = g.transpose("pixels.order", x, (0, 4, 2, 5, 3, 1))
    x = g.reshape("pixels", x, (batch, spec.padded_height, spec.padded_width, 3))
    if (spec.padded_height, spec.padded_width) != (spec.frame_height, spec.frame_width):
        x = g.slice("cropped", x, [0, 0], [spec.frame_height, spec.frame_width], [1, 2])
    x = g.node("Cast", "bytes", x, to=TensorProto.UINT8)  # last, for TensorRT has uint8 at the edges only
    g.output("frames", x, (batch, spec.frame_height, spec.frame_width, 3), TensorProto.UINT8)
    return g


def build_encode(world: World, batch: int, precision: Precision) -> Graph:
    """The head's weights normalise the latents."""
    spec, weights, prefix = world.spec, world.weights, "autoencoder.encoder"
    widths, blocks = spec.autoencoder.widths, spec.autoencoder.encoder_blocks
    g = Graph("encode", precision)
    frames = g.input("frames", (batch, spec.frame_height, spec.frame_width, 3), TensorProto.UINT8)
    x = g.node("Cast", "levels", frames, to=TensorProto.FLOAT)
    x = g.node("Div", "pixels.scaled", x, g.constant("half_range", 127.5))
    x = g.node("Sub", "pixels", x, g.constant("one", 1.0))
    below, right = spec.padded_height - spec.frame_height, spec.padded_width - spec.frame_width
    if below or right:
        x = g.node("Pad", "padded", x, g.constant("padded.ends", [0, 0, 0, 0, 0, below, right, 0]), mode="edge")
    p, height, width = PIXEL_SHUFFLE, spec.padded_height // PIXEL_SHUFFLE, spec.padded_width // PIXEL_SHUFFLE
    x = g.reshape("patches.split", x, (batch, height, p, width, p, 3))
    x = g.reshape("patches", g.transpose("patches.order", x, (0, 5, 2, 4, 1, 3)), (batch, 3 * p * p, height, width))
    x = convolution(g, f"{prefix}.stem", g.low("patches", x), weights[f"{prefix}.stem.weight"],
                    weights[f"{prefix}.stem.bias"])
    for i in range(len(widths)):
        stage = f"{prefix}.stages.{i}"
        for j in range(blocks[i]):
            x = residual_block(g, f"{stage}.blocks.{j}", x, weights)
        if i + 1 < len(widths):
            x = convolution(g, f"{stage}.down", x, weights[f"{stage}.down.weight"], weights[f"{stage}.down.bias"], 2)
    mean, std = (weights[f"autoencoder.latent_{name}"].astype(np.float64) for name in ("mean", "std"))
    x = convolution(g, f"{prefix}.head", g.node("Relu", f"{prefix}.head.relu", x),
                    weights[f"{prefix}.head.weight"] / std[:, None, None, None],
                    (weights[f"{prefix}.head.bias"] - mean) / std)
    g.output("latents", g.full(f"{prefix}.head", x), (batch, *spec.latent_shape))
    return g
