"""A world as three ONNX models, built from its spec and weights with `onnx` and numpy alone.

    step     one pass of the dynamics over the ring            (models/networks/dit.py)
    decode   latents -> uint8 frames, crop and rounding inside (models/networks/autoencoder.py)
    encode   uint8 frames -> latents, edge padding inside

Form `portable`: the ring comes in as read-only inputs, one pair per layer, and the fresh keys and
values come out; the host writes them into `slot_of(t)`. Any runtime that reads standard ONNX runs it.

    inputs   previous, x      (B, C, h, w)             z_(t-1), and noise or noise mix
             action (B, A), condition (B, condition_size)
             cos, sin         (B, T, D/2)              rotation of this frame's queries and keys
             mask             (B, 1, T, S * Tp + T)    added to the scores: 0 = read, -1e9 = not
             key_l, value_l   (B, H, S * Tp, D)        ring of layer l
             store_cos, store_sin (B, T, D/2), sink_cos, sink_sin (B, sinks, D/2)   only with sinks
    outputs  z (B, C, h, w), new_key_l, new_value_l (B, H, T, D)

The last T columns of the mask are the fresh keys; the frame's own slot in the ring is masked out,
for what lies there is about to be overwritten. The ring is never copied inside the graph: its scores
and the fresh ones are computed apart and joined (T x keys numbers instead of keys x D), and a sink's
turned keys replace only their columns of the scores. Letters: B batch, L layers, S slots, T tokens,
Tp padded tokens, H heads, D head size, C latent channels.
"""

from __future__ import annotations

from importlib import metadata

import numpy as np
from onnx import ModelProto, TensorProto

from dreamloop.models.core.errors import EngineError
from dreamloop.models.core.spec import PIXEL_SHUFFLE, WorldSpec
from dreamloop.models.core.world import World
from dreamloop.runtime.engines.onnx_layers import (
    Graph,
    convolution,
    linear,
    modulate,
    residual_block,
    rms_norm,
    rotary_factors,
    rotate,
    silu,
)

BUILDER_VERSION = 1  # raise it with every change of what is built: cached graphs are then made anew
FORMS, PRECISIONS = ("portable",), ("fp32",)
MAX_MODEL_BYTES = (1 << 31) - (1 << 24)  # one protobuf message, with room for the nodes


def build(world: World, kind: str, batch: int, form: str = "portable") -> ModelProto:
    """The model `kind` (`step`, `decode` or `encode`) of a world for exactly `batch` players.

    Checked; its metadata say which world, form, precision and batch it is. Raises `EngineError`
    where the weights do not fit one ONNX file.
    """
    assert kind in BUILDERS and form in FORMS and batch >= 1, (kind, form, batch)
    size = sum(value.nbytes for name, value in world.weights.items() if name.startswith(PREFIX[kind]))
    if size > MAX_MODEL_BYTES:
        raise EngineError(f"the {kind} graph of {world.name} has {size} bytes of weights; an ONNX file holds "
                          f"{MAX_MODEL_BYTES}: use another engine")
    return BUILDERS[kind](world, batch).model(identity(world, kind, batch, form) | {"dreamloop": version()})


def identity(world: World, kind: str, batch: int, form: str = "portable", precision: str = "fp32") -> dict[str, str]:
    """What a model must say of itself to be taken for this one."""
    return {"world_hash": world.hash, "world": world.name, "kind": kind, "form": form, "precision": precision,
            "batch": str(batch), "builder": str(BUILDER_VERSION)}


def version() -> str:
    """The installed version of dreamloop, or `unknown` when it runs from a bare folder."""
    try:
        return metadata.version("dreamloop")
    except metadata.PackageNotFoundError:
        return "unknown"


# -- dynamics ---------------------------------------------------------------------------------------


def build_step(world: World, batch: int) -> Graph:
    """One pass of the dynamics, form `portable`; inputs and outputs as in the module's docstring."""
    spec, weights, d = world.spec, world.weights, world.spec.dynamics
    g = Graph("step")
    latent = (batch, *spec.latent_shape)
    previous, x = g.input("previous", latent), g.input("x", latent)
    action = g.input("action", (batch, spec.actions.size))
    condition = g.input("condition", (batch, spec.condition_size))
    geometry = Geometry(g, spec, batch)

    h = linear(g, "input", patchify(g, spec, batch, g.node("Concat", "latents", previous, x, axis=1)), weights,
               "dynamics.input")
    pressed = linear(g, "action_embedding", action, weights, "dynamics.action")
    h = g.node("Add", "tokens", h, g.reshape("action_of_tokens", pressed, (batch, 1, d.width)))
    c = linear(g, "condition.first", condition, weights, "dynamics.condition.first")
    c = linear(g, "condition.second", silu(g, "condition.silu", c), weights, "dynamics.condition.second")
    shared = linear(g, "modulation", silu(g, "modulation.silu", c), weights, "dynamics.modulation")
    parts = block_modulation(g, spec, weights, shared, batch)
    fresh = []
    for layer in range(d.layers):
        h, key, value = block(g, geometry, weights, layer, h, parts[6 * layer : 6 * layer + 6])
        fresh.append((key, value))

    table = weights["dynamics.final_table"] + np.array([[0.0], [1.0]])  # (shift, 1 + scale)
    final = g.node("Add", "final.modulation", g.reshape("final.condition", c, (batch, 1, d.width)),
                   g.constant("dynamics.final_table", table))
    shift, scale = g.split("final.parts", final, [1, 1], 1)
    change = linear(g, "output", modulate(g, "final", h, d.width, scale, shift), weights, "dynamics.output")
    g.output("z", g.node("Add", "next_latent", previous, unpatchify(g, spec, batch, change)), latent)
    shape = (batch, d.heads, spec.tokens, d.head_size)
    for layer, (key, value) in enumerate(fresh):
        g.output(f"new_key_{layer}", key, shape)
        g.output(f"new_value_{layer}", value, shape)
    return g


class Geometry:
    """Inputs that all layers share: rotations, mask, and their forms inside the graph."""

    def __init__(self, g: Graph, spec: WorldSpec, batch: int) -> None:
        self.spec, self.batch = spec, batch
        pairs, sinks = spec.dynamics.head_size // 2, spec.memory.sink_frames
        self.ring_tokens = spec.memory.slots * spec.tokens_padded
        self.sink_tokens = sinks * spec.tokens_padded
        cos, sin = (g.input(name, (batch, spec.tokens, pairs)) for name in ("cos", "sin"))
        self.mask = g.input("mask", (batch, 1, spec.tokens, self.ring_tokens + spec.tokens))
        self.turn = rotary_factors(g, "rotation", cos, sin, 1, repeat=2)
        if sinks:
            store = [g.input(name, (batch, spec.tokens, pairs)) for name in ("store_cos", "store_sin")]
            sink = [g.input(name, (batch, sinks, pairs)) for name in ("sink_cos", "sink_sin")]
            self.store = rotary_factors(g, "store_rotation", store[0], store[1], 1)
            cos, sin = rotary_factors(g, "sink_rotation", sink[0], sink[1], 1)
            shape = (batch, 1, sinks, 1, 2 * pairs)
            self.sink = (g.reshape("sink_rotation.cos.frames", cos, shape),
                         g.reshape("sink_rotation.sin.frames", sin, shape))


def block_modulation(g: Graph, spec: WorldSpec, weights: dict[str, np.ndarray], shared: str, batch: int) -> list[str]:
    """shared (B, 6 W) + every block's table -> 6 L tensors (B, 1, W): shift, 1 + scale, gate, twice per block."""
    layers, width = spec.dynamics.layers, spec.dynamics.width
    tables = np.stack([weights[f"dynamics.blocks.{i}.table"] for i in range(layers)])
    tables = tables + np.array([0.0, 1.0, 0.0, 0.0, 1.0, 0.0])[:, None]
    every = g.node("Add", "modulation.blocks", g.reshape("modulation.shared", shared, (batch, 1, 6, width)),
                   g.constant("dynamics.blocks.tables", tables))
    flat = g.reshape("modulation.flat", every, (batch, 6 * layers, width))
    return g.split("modulation.parts", flat, [1] * 6 * layers, 1)


def block(g: Graph, geometry: Geometry, weights: dict[str, np.ndarray], layer: int, h: str,
          modulation: list[str]) -> tuple[str, str, str]:
    """One layer: tokens (B, T, W) -> tokens, and the keys (as they are to be stored) and values it made."""
    name, tensor, d = f"blocks.{layer}", f"dynamics.blocks.{layer}", geometry.spec.dynamics
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation
    x = modulate(g, f"{name}.attention.modulated", h, d.width, scale1, shift1)
    query, key, stored, value = queries_keys_values(g, geometry, weights, layer, x)
    attended = attend(g, geometry, layer, query, key, value)
    out = linear(g, f"{name}.attention.out", attended, weights, f"{tensor}.out")
    h = g.node("Add", f"{name}.attention", h, g.node("Mul", f"{name}.attention.gated", out, gate1))
    x = modulate(g, f"{name}.mlp.modulated", h, d.width, scale2, shift2)
    x = g.node("Gelu", f"{name}.mlp.gelu", linear(g, f"{name}.mlp.up", x, weights, f"{tensor}.up"), approximate="tanh")
    x = linear(g, f"{name}.mlp.down", x, weights, f"{tensor}.down")
    return g.node("Add", f"{name}.mlp", h, g.node("Mul", f"{name}.mlp.gated", x, gate2)), stored, value


def queries_keys_values(g: Graph, geometry: Geometry, weights: dict[str, np.ndarray], layer: int,
                        x: str) -> tuple[str, str, str, str]:
    """(B, T, W) -> query, key, key as stored, value, each (B, H, T, D). Queries and keys go through norm
    and rotation as one tensor; the query's weight holds the 1 / sqrt(D) of the scores."""
    name, tensor = f"blocks.{layer}.attention", f"dynamics.blocks.{layer}"
    spec, batch, d = geometry.spec, geometry.batch, geometry.spec.dynamics
    qkv = linear(g, f"{name}.qkv", x, weights, f"{tensor}.qkv")
    qkv = g.reshape(f"{name}.qkv.heads", qkv, (batch, spec.tokens, 3, d.heads, d.head_size))
    qkv = g.reshape(f"{name}.qkv.rows", g.transpose(f"{name}.qkv.order", qkv, (2, 0, 3, 1, 4)),
                    (3 * batch, d.heads, spec.tokens, d.head_size))
    both, value = g.split(f"{name}.qkv.parts", qkv, [2 * batch, batch], 0)
    gains = np.stack([weights[f"{tensor}.query_norm"] * d.head_size**-0.5, weights[f"{tensor}.key_norm"]])
    gain = g.constant(f"{tensor}.norms", gains.repeat(batch, axis=0)[:, None, None])
    both = g.node("Mul", f"{name}.normed", rms_norm(g, f"{name}.norm", both, d.head_size), gain)
    turned = rotate(g, f"{name}.rotated", both, d.head_size, geometry.turn)
    query, key = g.split(f"{name}.query_key", turned, [batch, batch], 0)
    if not geometry.sink_tokens:
        return query, key, key, value
    _, plain = g.split(f"{name}.query_key_plain", both, [batch, batch], 0)
    return query, key, rotate(g, f"{name}.stored", plain, d.head_size, geometry.store), value


def attend(g: Graph, geometry: Geometry, layer: int, query: str, key: str, value: str) -> str:
    """Masked attention of (B, H, T, D) over the ring and the fresh keys -> (B, T, W)."""
    name, spec, batch = f"blocks.{layer}.attention", geometry.spec, geometry.batch
    d, ring = spec.dynamics, (batch, spec.dynamics.heads, geometry.ring_tokens, spec.dynamics.head_size)
    ring_key, ring_value = g.input(f"key_{layer}", ring), g.input(f"value_{layer}", ring)
    parts = [scores(g, f"{name}.scores.ring", query, ring_key)]
    sinks = geometry.sink_tokens
    if sinks:
        shape = (batch, d.heads, spec.memory.sink_frames, spec.tokens_padded, d.head_size)
        old = g.reshape(f"{name}.sinks.frames", g.slice(f"{name}.sinks", ring_key, [0], [sinks], [2]), shape)
        turned = g.reshape(f"{name}.sinks.keys", rotate(g, f"{name}.sinks.rotated", old, d.head_size, geometry.sink),
                           (batch, d.heads, sinks, d.head_size))
        rest = g.slice(f"{name}.scores.past", parts[0], [sinks], [geometry.ring_tokens], [3])
        parts = [scores(g, f"{name}.scores.sinks", query, turned), rest]
    parts.append(scores(g, f"{name}.scores.fresh", query, key))
    joined = g.node("Concat", f"{name}.scores", *parts, axis=-1)
    share = g.node("Softmax", f"{name}.softmax", g.node("Add", f"{name}.masked", joined, geometry.mask), axis=-1)
    past, own = g.split(f"{name}.shares", share, [geometry.ring_tokens, spec.tokens], -1)
    mixed = g.node("Add", f"{name}.mixed", g.node("MatMul", f"{name}.mixed.ring", past, ring_value),
                   g.node("MatMul", f"{name}.mixed.fresh", own, value))
    return g.reshape(f"{name}.joined", g.transpose(f"{name}.order", mixed, (0, 2, 1, 3)), (batch, spec.tokens, d.width))


def scores(g: Graph, name: str, query: str, key: str) -> str:
    """query (B, H, T, D) times key (B, H, n, D) transposed -> (B, H, T, n)."""
    return g.node("MatMul", name, query, g.transpose(f"{name}.keys", key, (0, 1, 3, 2)))


def patchify(g: Graph, spec: WorldSpec, batch: int, latents: str) -> str:
    """(B, 2 C, h, w) -> (B, T, 2 C patch^2), channel-major within a token."""
    p, (rows, columns), c = spec.dynamics.patch, spec.grid, 2 * spec.autoencoder.latent_channels
    split = g.reshape("patches.split", latents, (batch, c, rows, p, columns, p))
    return g.reshape("patches", g.transpose("patches.order", split, (0, 2, 4, 1, 3, 5)),
                     (batch, spec.tokens, c * p * p))


def unpatchify(g: Graph, spec: WorldSpec, batch: int, tokens: str) -> str:
    """(B, T, C patch^2) -> (B, C, h, w)."""
    p, (rows, columns), c = spec.dynamics.patch, spec.grid, spec.autoencoder.latent_channels
    split = g.reshape("unpatch.split", tokens, (batch, rows, columns, c, p, p))
    return g.reshape("unpatch", g.transpose("unpatch.order", split, (0, 3, 1, 4, 2, 5)), (batch, *spec.latent_shape))


# -- autoencoder ------------------------------------------------------------------------------------


def build_decode(world: World, batch: int) -> Graph:
    """latents (B, C, h, w), normalised -> frames (B, H, W, 3) uint8. The head's weights hold the
    step from [-1, 1] to [0, 255]; rounding is half to even, as in torch."""
    spec, weights, prefix = world.spec, world.weights, "autoencoder.decoder"
    widths, blocks = spec.autoencoder.widths, spec.autoencoder.decoder_blocks
    g = Graph("decode")
    mean, std = (weights[f"autoencoder.latent_{name}"][:, None, None] for name in ("mean", "std"))
    x = g.node("Mul", "latents.scaled", g.input("latents", (batch, *spec.latent_shape)), g.constant("latent_std", std))
    x = g.node("Add", "latents.raw", x, g.constant("latent_mean", mean))
    x = convolution(g, f"{prefix}.stem", x, weights[f"{prefix}.stem.weight"], weights[f"{prefix}.stem.bias"])
    for i in reversed(range(len(widths))):
        stage = f"{prefix}.stages.{i}"
        for j in range(blocks[i]):
            x = residual_block(g, f"{stage}.blocks.{j}", x, weights)
        if i > 0:
            x = convolution(g, f"{stage}.up", x, weights[f"{stage}.up.weight"], weights[f"{stage}.up.bias"])
            x = g.node("DepthToSpace", f"{stage}.shuffle", x, blocksize=2, mode="CRD")
    x = convolution(g, f"{prefix}.head", g.node("Relu", f"{prefix}.head.relu", x),
                    weights[f"{prefix}.head.weight"] * 127.5, (weights[f"{prefix}.head.bias"] + 1.0) * 127.5)
    x = g.node("Round", "levels.rounded", x)
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


def build_encode(world: World, batch: int) -> Graph:
    """frames (B, H, W, 3) uint8 -> latents (B, C, h, w), normalised by the weights of the head."""
    spec, weights, prefix = world.spec, world.weights, "autoencoder.encoder"
    widths, blocks = spec.autoencoder.widths, spec.autoencoder.encoder_blocks
    g = Graph("encode")
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
    x = convolution(g, f"{prefix}.stem", x, weights[f"{prefix}.stem.weight"], weights[f"{prefix}.stem.bias"])
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
    g.output("latents", x, (batch, *spec.latent_shape))
    return g


BUILDERS = {"step": build_step, "decode": build_decode, "encode": build_encode}
PREFIX = {"step": "dynamics.", "decode": "autoencoder.decoder.", "encode": "autoencoder.encoder."}
