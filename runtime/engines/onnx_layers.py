"""Writing an ONNX graph by hand: a growing list of nodes, and the layers that worlds are made of.

`Graph` adds nodes, constants, inputs and outputs; every tensor is named after the node that makes it,
and every node after its layer (`blocks.3.attention.scores`), so a profile or a build log can be
read. Standard operators only, static shapes. Layers are functions Graph -> tensor name. A graph has a
precision: `low` takes a float32 tensor to its base type and `full` back, and both are the tensor
itself where the base is float32.

Forms were chosen by ONNX Runtime's CPU profile and are exact for every other reader:

    rms_norm   Pow, ReduceMean, Add, Sqrt, Div, Mul     fused to SimplifiedLayerNormalization; from opset 23 on an
                                                        operator, as are rotations
    silu       Sigmoid, Mul                             fused to QuickGelu
    q k^T      Transpose, MatMul                        fused to one product with a transposed factor
    conv, relu                                          blocked layout (NCHWc), relu and sum fused in
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, checker, helper, numpy_helper

from dreamloop.runtime.engines.onnx_precision import (
    INT4_INPUTS,
    LARGEST,
    PRECISIONS,
    SMOOTHED,
    STORED,
    TINY,
    Precision,
    quantized,
    smoothing,
)

OPSET = 20  # the newest that ONNX Runtime 1.20, OpenVINO 2024 and TensorRT 10 all read
IR_VERSIONS = {20: 9, 21: 10, 22: 10, 24: 11}  # the one that came with each opset
NORM_EPSILON = 1e-6
ROTARY_OPSET = 23  # the first with RMSNormalization and RotaryEmbedding


class Graph:
    """Nodes and weights of one model under construction. Methods return names of tensors.

    scales: largest values of the inputs of each calibrated product, (in,), by name of the product's layer; a product
    that is not among them is not quantised. watched: (name, tensor, inputs) of every product that could be.
    """

    def __init__(self, name: str, precision: Precision = PRECISIONS["fp32"],
                 scales: Mapping[str, np.ndarray] | None = None) -> None:
        self.name, self.precision, self.scales = name, precision, scales or {}
        self.opset = {"int4": 21, "bf16": 22}.get(precision.products, OPSET)  # the first with it
        self.watched: list[tuple[str, str, int]] = []
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self.inputs: list[ValueInfoProto] = []
        self.outputs: list[ValueInfoProto] = []
        self.domains: dict[str, int] = {}  # of operators that are not standard, with their versions
        self.infos: list[ValueInfoProto] = []

    def input(self, name: str, shape: Sequence[int], kind: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def output(self, name: str, tensor: str, shape: Sequence[int], kind: int = TensorProto.FLOAT) -> None:
        """Declare `tensor` as the output `name`; the tensor takes that name, so nothing is copied."""
        for node in self.nodes:
            for names in (node.input, node.output):
                for i, used in enumerate(names):
                    if used == tensor:
                        names[i] = name
        self.outputs.append(helper.make_tensor_value_info(name, kind, list(shape)))

    def known(self, tensor: str, shape: Sequence[int], kind: int) -> None:
        """Say what a tensor is, where no standard operator makes it."""
        self.infos.append(helper.make_tensor_value_info(tensor, kind, list(shape)))

    def typed(self, name: str, value: np.ndarray) -> str:
        """A constant of exactly this type: int4, float8, bfloat16 and so on."""
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value).reshape(np.shape(value)), name)
        return name

    def weight(self, name: str, value: np.ndarray) -> str:
        """A constant in the base type."""
        return self.typed(name, value.astype(self.precision.dtype))

    def low(self, name: str, x: str) -> str:
        """A float32 tensor in the base type."""
        return x if self.precision.is_float32 else self.node("Cast", f"{name}.low", x, to=self.precision.tensor_type)

    def full(self, name: str, x: str) -> str:
        """A tensor of the base type in float32."""
        return x if self.precision.is_float32 else self.node("Cast", f"{name}.full", x, to=TensorProto.FLOAT)

    def constant(self, name: str, value: np.ndarray | Sequence[int] | float) -> str:
        """float arrays and numbers become float32; sequences of int become int64 (shapes, axes)."""
        array = np.asarray(value)
        array = np.ascontiguousarray(array, np.int64 if array.dtype.kind == "i" else np.float32)
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(array.reshape(np.shape(value)), name)
        return name

    def node(self, operator: str, name: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output, called `name` like the node itself."""
        return self.split_node(operator, name, inputs, [name], **attributes)[0]

    def split_node(self, operator: str, name: str, inputs: Sequence[str], outputs: list[str],
                   **attributes: Any) -> list[str]:
        """A node with several named outputs."""
        self.nodes.append(helper.make_node(operator, list(inputs), outputs, name=name, **attributes))
        return outputs

    def reshape(self, name: str, x: str, shape: Sequence[int]) -> str:
        return self.node("Reshape", name, x, self.constant(f"shape.{'x'.join(map(str, shape))}", list(shape)))

    def transpose(self, name: str, x: str, order: Sequence[int]) -> str:
        return self.node("Transpose", name, x, perm=list(order))

    def split(self, name: str, x: str, sizes: Sequence[int], axis: int) -> list[str]:
        """Consecutive parts of `x` along `axis`."""
        lengths = self.constant(f"{name}.sizes", list(sizes))
        return self.split_node("Split", name, [x, lengths], [f"{name}.{i}" for i in range(len(sizes))], axis=axis)

    def slice(self, name: str, x: str, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int]) -> str:
        bounds = [self.constant(f"{name}.{part}", list(value))
                  for part, value in (("starts", starts), ("ends", ends), ("axes", axes))]
        return self.node("Slice", name, x, *bounds)

    def model(self, metadata: dict[str, str]) -> ModelProto:
        """The finished, checked model."""
        graph = helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, list(self.constants.values()),
                                  value_info=self.infos)
        model = helper.make_model(graph, producer_name="dreamloop", ir_version=IR_VERSIONS[self.opset],
                                  opset_imports=[helper.make_opsetid(*said) for said in
                                                 {"": self.opset, **self.domains}.items()])
        helper.set_model_props(model, metadata)
        checker.check_model(model, full_check=True)
        return model


def linear(g: Graph, name: str, x: str, weights: dict[str, np.ndarray], tensor: str) -> str:
    """x W^T (+ b): (..., in) -> (..., out), float32, with `tensor`.weight (out, in) and, if there is one,
    `tensor`.bias. The product is in the base type."""
    factor = g.weight(f"{tensor}.weight", weights[f"{tensor}.weight"].T)
    return _product(g, name, g.low(name, x), factor, weights, tensor)


def block_linear(g: Graph, name: str, x: str, weights: dict[str, np.ndarray], tensor: str) -> str:
    """`linear` of a block: quantised where the graph's precision says so."""
    weight, products = weights[f"{tensor}.weight"].T, g.precision.products
    g.watched.append((name, x, len(weight)))
    largest = g.scales.get(name) if g.precision.calibrated else None
    if largest is not None and name.endswith(SMOOTHED):
        divisor = smoothing(largest, weight)
        x = g.node("Mul", f"{name}.smoothed", x, g.constant(f"{name}.smoothing", 1.0 / divisor))
        weight, largest = weight * divisor[:, None], largest / divisor
    stored = quantized(weight, products) if products in STORED else None
    if stored is None or (g.precision.calibrated and largest is None):
        return linear(g, name, x, weights, tensor)
    low, (values, scales) = g.low(name, x), stored
    if largest is not None:
        scale = np.asarray(max(largest.max(), TINY) / LARGEST[products], g.precision.dtype)
        pair = g.typed(f"{name}.scale", scale), g.typed(f"{name}.zero", np.zeros((), STORED[products]))
        low = g.node("DequantizeLinear", f"{name}.dequantized",
                     g.node("QuantizeLinear", f"{name}.quantized", low, *pair), *pair)
    blocks = {"block_size": INT4_INPUTS} if products == "int4" else {}
    factor = g.node("DequantizeLinear", f"{name}.weight", g.typed(f"{tensor}.weight.{products}", values),
                    g.typed(f"{tensor}.weight.scale", scales.astype(g.precision.dtype)),
                    g.typed(f"{tensor}.weight.zero", np.zeros(scales.shape, STORED[products])),
                    axis=0 if blocks else 1, **blocks)
    return _product(g, name, low, factor, weights, tensor)


def _product(g: Graph, name: str, low: str, factor: str, weights: dict[str, np.ndarray], tensor: str) -> str:
    product = g.full(f"{name}.product", g.node("MatMul", f"{name}.product", low, factor))
    if f"{tensor}.bias" not in weights:
        return product
    return g.node("Add", name, product, g.constant(f"{tensor}.bias", weights[f"{tensor}.bias"]))


def silu(g: Graph, name: str, x: str) -> str:
    return g.node("Mul", name, x, g.node("Sigmoid", f"{name}.sigmoid", x))


def rms_norm(g: Graph, name: str, x: str, size: int) -> str:
    """x / sqrt(mean x^2 + 1e-6) over the last axis, whose length is `size`."""
    if g.opset >= ROTARY_OPSET:
        return g.node("RMSNormalization", name, x, g.constant(f"ones.{size}", np.ones(size)), epsilon=NORM_EPSILON)
    square = g.node("Pow", f"{name}.square", x, g.constant("two", 2.0))
    mean = g.node("ReduceMean", f"{name}.mean", square, g.constant("axes.last", [-1]), keepdims=1)
    above = g.node("Add", f"{name}.above_zero", mean, g.constant("norm_epsilon", NORM_EPSILON))
    unit = g.node("Div", f"{name}.unit", x, g.node("Sqrt", f"{name}.root", above))
    return g.node("Mul", name, unit, g.constant(f"ones.{size}", np.ones(size)))


def modulate(g: Graph, name: str, x: str, size: int, scale: str, shift: str) -> str:
    """norm(x) scale + shift; `scale` holds the 1 of (1 + scale) already."""
    return g.node("Add", name, g.node("Mul", f"{name}.scaled", rms_norm(g, f"{name}.norm", x, size), scale), shift)


def rotary_factors(g: Graph, name: str, cos: str, sin: str, repeat: int = 1) -> tuple[str, str]:
    """cos, sin (B, n, D/2) -> factors for `rotate`, the whole `repeat` times along the batch axis: queries and keys
    turn as one tensor."""
    if g.opset >= ROTARY_OPSET:
        parts = {"cos": cos, "sin": sin}
    else:
        parts = dict(zip(("cos", "sin"), whole_factors(g, name, cos, sin), strict=True))
    if repeat > 1:
        parts = {part: g.node("Concat", f"{name}.{part}.repeated", *[factor] * repeat, axis=0)
                 for part, factor in parts.items()}
    return parts["cos"], parts["sin"]


def whole_factors(g: Graph, name: str, cos: str, sin: str) -> tuple[str, str]:
    """cos, sin (B, n, D/2) -> factors [cos, cos] and [-sin, sin], (B, 1, n, D), for `rotate_by_hand`."""
    minus, axis = g.node("Neg", f"{name}.minus_sin", sin), g.constant("axes.1", [1])
    whole = [g.node("Concat", f"{name}.{part}.whole", *halves, axis=-1)
             for part, halves in (("cos", [cos, cos]), ("sin", [minus, sin]))]
    return (g.node("Unsqueeze", f"{name}.cos", whole[0], axis), g.node("Unsqueeze", f"{name}.sin", whole[1], axis))


def rotate(g: Graph, name: str, x: str, size: int, factors: tuple[str, str]) -> str:
    """Rotary position of x (B, H, n, D), pairs (i, i + D/2) of the last axis."""
    if g.opset >= ROTARY_OPSET:
        return g.node("RotaryEmbedding", name, x, *factors)
    return rotate_by_hand(g, name, x, size, factors)


def rotate_by_hand(g: Graph, name: str, x: str, size: int, factors: tuple[str, str]) -> str:
    """x [cos, cos] + [x2, x1] [-sin, sin], whatever the axes before the last."""
    first, second = g.split(f"{name}.halves", x, [size // 2, size // 2], -1)
    swapped = g.node("Concat", f"{name}.swapped", second, first, axis=-1)
    return g.node("Add", name, g.node("Mul", f"{name}.straight", x, factors[0]),
                  g.node("Mul", f"{name}.crossed", swapped, factors[1]))


def convolution(g: Graph, name: str, x: str, weight: np.ndarray, bias: np.ndarray, stride: int = 1) -> str:
    """(B, in, h, w) -> (B, out, h / stride, w / stride), in the base type, padded with zeros; weight (out, in, k, k),
    k odd."""
    kernel = weight.shape[-1]
    return g.node("Conv", name, x, g.weight(f"{name}.weight", weight), g.weight(f"{name}.bias", bias),
                  kernel_shape=[kernel, kernel], strides=[stride, stride], pads=[kernel // 2] * 4)


def residual_block(g: Graph, name: str, x: str, weights: dict[str, np.ndarray]) -> str:
    """x + conv(relu(conv(relu(x))))."""
    h = g.node("Relu", f"{name}.first.relu", x)
    h = convolution(g, f"{name}.first", h, weights[f"{name}.first.weight"], weights[f"{name}.first.bias"])
    h = g.node("Relu", f"{name}.second.relu", h)
    h = convolution(g, f"{name}.second", h, weights[f"{name}.second.weight"], weights[f"{name}.second.bias"])
    return g.node("Add", name, x, h)
