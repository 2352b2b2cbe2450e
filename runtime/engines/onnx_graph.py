"""A world as three ONNX models, built from its spec and weights with `onnx` and numpy alone.

    step     one pass of the dynamics over the ring            (models/networks/dit.py)
    decode   latents -> uint8 frames, crop and rounding inside (onnx_autoencoder.py)
    encode   uint8 frames -> latents, edge padding inside      (onnx_autoencoder.py)

The step comes in three forms, which differ in how they read and write the ring (onnx_attention.py, onnx_sparse.py):
`portable`, `sparse` and `in_place`. Any runtime that reads standard ONNX runs them.

    inputs   previous, x      (B, C, h, w)             z_(t-1), and noise or noise mix
             action (B, A), condition (B, condition_size)
             cos, sin         (B, T, D/2)              rotation of this frame's queries and keys
             key_l, value_l   (B, H, S * Tp, D)        ring of layer l
             store_cos, store_sin (B, T, D/2), sink_cos, sink_sin (B, sinks, D/2)   only with sinks
    portable mask             (B, 1, T, S * Tp + T)    added to the scores: 0 = read, -1e9 = not. The last T
                                                       columns are the fresh keys; the frame's own slot is masked
    sparse   block_index, block_count, block_length, slot     the plan's lists
    in_place mask             (B, 1, T, S * Tp) bool   True = read, the frame's own slot among them
             write_index      (B,) int64               slot_of(t) * Tp
    outputs  z (B, C, h, w), and new_key_l, new_value_l (B, H, T, D), or for in_place ring_key_l, ring_value_l

Keys, values and products are of the precision's base type (onnx_precision.py); all else is float32. Letters: B
batch, L layers, S slots, T tokens, Tp padded tokens, H heads, D head size, C latent channels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import metadata

import numpy as np
from onnx import ModelProto, TensorProto

from dreamloop.models.core.errors import EngineError
from dreamloop.models.core.spec import WorldSpec
from dreamloop.models.core.world import World
from dreamloop.runtime.engines.onnx_attention import InPlace, Portable
from dreamloop.runtime.engines.onnx_autoencoder import build_decode, build_encode
from dreamloop.runtime.engines.onnx_layers import Graph, block_linear, linear, modulate, rms_norm, rotate, silu
from dreamloop.runtime.engines.onnx_plugin import Plugin
from dreamloop.runtime.engines.onnx_precision import Precision, precision_of
from dreamloop.runtime.engines.onnx_sparse import Sparse

BUILDER_VERSION = 4  # raise it with every change of what is built: cached graphs are then made anew
FORMS: dict[str, type[Portable]] = {"portable": Portable, "sparse": Sparse, "in_place": InPlace}
TENSORRT_FORMS: dict[str, type[Portable]] = {**FORMS, "plugin": Plugin}  # plain TensorRT alone runs the last
KINDS = ("step", "decode", "encode")
PREFIX = {"step": "dynamics.", "decode": "autoencoder.decoder.", "encode": "autoencoder.encoder."}
WEIGHT_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
MAX_MODEL_BYTES = (1 << 31) - (1 << 24)  # one protobuf message, with room for the nodes


def build(world: World, kind: str, batch: int, form: str = "portable", precision: str = "fp32",
          scales: Mapping[str, np.ndarray] | None = None) -> ModelProto:
    """The model `kind` (`step`, `decode` or `encode`) of a world for exactly `batch` players.

    form: of the step; precision: see onnx_precision.py; scales: largest inputs of every product of the
    blocks, which int8 and fp8 need. Checked; its metadata say which world, form, precision and batch it is.
    Raises `EngineError` where the weights do not fit one ONNX file.
    """
    assert kind in KINDS and form in TENSORRT_FORMS and batch >= 1, (kind, form, batch)
    sorts = precision_of(precision)
    assert kind != "step" or not sorts.calibrated or scales, f"{precision} needs a calibration"
    size = sum(value.nbytes for name, value in world.weights.items() if name.startswith(PREFIX[kind]))
    if size > MAX_MODEL_BYTES:
        raise EngineError(f"the {kind} graph of {world.name} has {size} bytes of weights; an ONNX file holds "
                          f"{MAX_MODEL_BYTES}: use another engine")
    if kind == "step":
        graph = build_step(world, batch, form, sorts, scales)
    else:
        graph = (build_decode if kind == "decode" else build_encode)(world, batch, sorts)
    return graph.model(identity(world, kind, batch, form, precision) | {"dreamloop": version()})


def identity(world: World, kind: str, batch: int, form: str = "portable", precision: str = "fp32") -> dict[str, str]:
    """What a model must say of itself to be taken for this one. Decoder and encoder have no form, and the base of
    their precision alone."""
    if kind != "step":
        form, precision = "portable", precision_of(precision).base
    return {"world_hash": world.hash, "world": world.name, "kind": kind, "form": form, "precision": precision,
            "batch": str(batch), "builder": str(BUILDER_VERSION)}


def version() -> str:
    """The installed version of dreamloop, or `unknown` when it runs from a bare folder."""
    try:
        return metadata.version("dreamloop")
    except metadata.PackageNotFoundError:
        return "unknown"


def build_step(world: World, batch: int, form: str, precision: Precision,
               scales: Mapping[str, np.ndarray] | None = None) -> Graph:
    """One pass of the dynamics; inputs and outputs as in the module's docstring."""
    spec, weights, d = world.spec, world.weights, world.spec.dynamics
    g = Graph("step", precision, scales)
    latent = (batch, *spec.latent_shape)
    previous, x = g.input("previous", latent), g.input("x", latent)
    action = g.input("action", (batch, spec.actions.size))
    condition = g.input("condition", (batch, spec.condition_size))
    ring = TENSORRT_FORMS[form](g, spec, batch)

    h = linear(g, "input", patchify(g, spec, batch, g.node("Concat", "latents", previous, x, axis=1)), weights,
               "dynamics.input")
    pressed = linear(g, "action_embedding", action, weights, "dynamics.action")
    h = g.node("Add", "tokens", h, g.reshape("action_of_tokens", pressed, in_rows(batch, 1, d.width)))
    c = linear(g, "condition.first", condition, weights, "dynamics.condition.first")
    c = linear(g, "condition.second", silu(g, "condition.silu", c), weights, "dynamics.condition.second")
    shared = linear(g, "modulation", silu(g, "modulation.silu", c), weights, "dynamics.modulation")
    parts = block_modulation(g, spec, weights, shared, batch)
    for layer in range(d.layers):
        h = block(g, ring, weights, layer, h, parts[6 * layer : 6 * layer + 6])

    table = weights["dynamics.final_table"] + np.array([[0.0], [1.0]])  # (shift, 1 + scale)
    final = g.node("Add", "final.modulation", g.reshape("final.condition", c, in_rows(batch, 1, d.width)),
                   g.constant("dynamics.final_table", table))
    shift, scale = g.split("final.parts", final, [1, 1], -2)
    change = linear(g, "output", modulate(g, "final", h, d.width, scale, shift), weights, "dynamics.output")
    g.output("z", g.node("Add", "next_latent", previous, unpatchify(g, spec, batch, change)), latent)
    ring.outputs()
    return g


def in_rows(batch: int, count: int, width: int) -> tuple[int, ...]:
    """The shape of `count` rows of each player. One player's have no axis for players: products and their biases are
    then one node in every runtime."""
    return (count, width) if batch == 1 else (batch, count, width)


def block_modulation(g: Graph, spec: WorldSpec, weights: dict[str, np.ndarray], shared: str, batch: int) -> list[str]:
    """shared (B, 6 W) + every block's table -> 6 L tensors (B, 1, W): shift, 1 + scale, gate, twice per block."""
    layers, width = spec.dynamics.layers, spec.dynamics.width
    tables = np.stack([weights[f"dynamics.blocks.{i}.table"] for i in range(layers)])
    tables = tables + np.array([0.0, 1.0, 0.0, 0.0, 1.0, 0.0])[:, None]
    every = g.node("Add", "modulation.blocks", g.reshape("modulation.shared", shared, (batch, 1, 6, width)),
                   g.constant("dynamics.blocks.tables", tables))
    flat = g.reshape("modulation.flat", every, in_rows(batch, 6 * layers, width))
    return g.split("modulation.parts", flat, [1] * 6 * layers, -2)


def block(g: Graph, ring: Portable, weights: dict[str, np.ndarray], layer: int, h: str, modulation: list[str]) -> str:
    """One layer: tokens (B, T, W) -> tokens; the ring takes the keys and values it made."""
    name, tensor, spec = f"blocks.{layer}", f"dynamics.blocks.{layer}", ring.spec
    width = spec.dynamics.width
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation
    x = modulate(g, f"{name}.attention.modulated", h, width, scale1, shift1)
    x = ring.attend(layer, *queries_keys_values(g, ring, weights, layer, x))
    x = g.reshape(f"{name}.attention.joined", g.transpose(f"{name}.attention.order", x, (0, 2, 1, 3)),
                  in_rows(ring.batch, spec.tokens, width))
    out = block_linear(g, f"{name}.attention.out", x, weights, f"{tensor}.out")
    h = g.node("Add", f"{name}.attention", h, g.node("Mul", f"{name}.attention.gated", out, gate1))
    x = modulate(g, f"{name}.mlp.modulated", h, width, scale2, shift2)
    x = block_linear(g, f"{name}.mlp.up", x, weights, f"{tensor}.up")
    x = g.node("Gelu", f"{name}.mlp.gelu", x, approximate="tanh")
    x = block_linear(g, f"{name}.mlp.down", x, weights, f"{tensor}.down")
    return g.node("Add", f"{name}.mlp", h, g.node("Mul", f"{name}.mlp.gated", x, gate2))


def queries_keys_values(g: Graph, ring: Portable, weights: dict[str, np.ndarray], layer: int,
                        x: str) -> tuple[str, str, str, str]:
    """(B, T, W) -> query, key, key as stored, value, each (B, H, T, D) of the base type. Queries and keys go through
    norm and rotation as one tensor; the query's weight holds the 1 / sqrt(D) of the scores."""
    name, tensor = f"blocks.{layer}.attention", f"dynamics.blocks.{layer}"
    spec, batch, d = ring.spec, ring.batch, ring.spec.dynamics
    qkv = block_linear(g, f"{name}.qkv", x, weights, f"{tensor}.qkv")
    qkv = g.reshape(f"{name}.qkv.heads", qkv, (batch, spec.tokens, 3, d.heads, d.head_size))
    qkv = g.reshape(f"{name}.qkv.rows", g.transpose(f"{name}.qkv.order", qkv, (2, 0, 3, 1, 4)),
                    (3 * batch, d.heads, spec.tokens, d.head_size))
    both, value = g.split(f"{name}.qkv.parts", qkv, [2 * batch, batch], 0)
    scale = d.head_size**-0.5 if ring.scaled else 1.0
    gains = np.stack([weights[f"{tensor}.query_norm"] * scale, weights[f"{tensor}.key_norm"]])
    gain = g.constant(f"{tensor}.norms", gains.repeat(batch, axis=0)[:, None, None])
    both = g.node("Mul", f"{name}.normed", rms_norm(g, f"{name}.norm", both, d.head_size), gain)
    turned = g.low(f"{name}.rotated", rotate(g, f"{name}.rotated", both, d.head_size, ring.turn))
    query, key = g.split(f"{name}.query_key", turned, [batch, batch], 0)
    value = g.low(f"{name}.value", value)
    if not ring.sinks:
        return query, key, key, value
    _, plain = g.split(f"{name}.query_key_plain", both, [batch, batch], 0)
    stored = rotate(g, f"{name}.stored", plain, d.head_size, ring.store)
    return query, key, g.low(f"{name}.stored", stored), value


def patchify(g: Graph, spec: WorldSpec, batch: int, latents: str) -> str:
    """(B, 2 C, h, w) -> (B, T, 2 C patch^2), channel-major within a token."""
    p, (rows, columns), c = spec.dynamics.patch, spec.grid, 2 * spec.autoencoder.latent_channels
    split = g.reshape("patches.split", latents, (batch, c, rows, p, columns, p))
    return g.reshape("patches", g.transpose("patches.order", split, (0, 2, 4, 1, 3, 5)),
                     in_rows(batch, spec.tokens, c * p * p))


def unpatchify(g: Graph, spec: WorldSpec, batch: int, tokens: str) -> str:
    """(B, T, C patch^2) -> (B, C, h, w)."""
    p, (rows, columns), c = spec.dynamics.patch, spec.grid, spec.autoencoder.latent_channels
    split = g.reshape("unpatch.split", tokens, (batch, rows, columns, c, p, p))
    return g.reshape("unpatch", g.transpose("unpatch.order", split, (0, 3, 1, 4, 2, 5)), (batch, *spec.latent_shape))


def structure(model: bytes) -> str:
    """SHA-256 of a graph without the values of its float weights and without its metadata. Raises `EngineError` for
    one with Q/DQ: its scales are constants of the kernels."""
    graph = ModelProto.FromString(model)
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in graph.graph.node):
        raise EngineError("a graph with quantised products cannot be refitted: build it without refit")
    for tensor in graph.graph.initializer:
        if tensor.data_type in WEIGHT_TYPES:
            for values in ("raw_data", "float_data", "int32_data"):
                tensor.ClearField(values)
    graph.ClearField("metadata_props")
    return hashlib.sha256(graph.SerializeToString(deterministic=True)).hexdigest()
