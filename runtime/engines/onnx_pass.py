"""One pass of a step graph in ONNX Runtime, with all its buffers bound: the ring is never copied.

Buffers lie where a device says (onnx_device.py). Each layer's keys and values are a contiguous part of the State's ring
and are bound to the graph in place. Forms `portable` and `sparse` give fresh keys and values, which `commit` writes
into each player's own slot; form `in_place` has the same memory bound as ring in and ring out, and writes that slot
itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dreamloop.models.core.conditioning import PassInputs
from dreamloop.models.core.errors import EngineError
from dreamloop.models.core.spec import WorldSpec
from dreamloop.runtime.engines.onnx_device import Host

SINK_INPUTS = ("store_cos", "store_sin", "sink_cos", "sink_sin")
MASKED = -1e9  # added to a score, leaves exactly 0 after the softmax
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(bool)": np.bool_,
         "tensor(int32)": np.int32, "tensor(int64)": np.int64}


def open_session(runtime: Any, model: bytes, threads: int, keep_int8: bool = False, device: Host | None = None) -> Any:
    """An ONNX Runtime session, by default on the CPU. Raises `EngineError` where the runtime has no kernel for what
    the graph asks, or cannot use the device.

    keep_int8: leave quantised activations signed; ONNX Runtime's own change to unsigned is faster, and makes graphs
    of opset 21 and more invalid (seen with 1.32)."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    # threads wait awake within a pass, but not between passes, where another session runs
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if keep_int8:
        options.add_session_config_entry("session.qdqisint8allowed", "1")
    else:
        # a processor without VNNI adds products of unsigned and signed bytes in 16 bits, where they overflow; it can do
        # with unsigned ones alone
        options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 3
    providers = list((device or Host()).providers)
    try:
        session = runtime.InferenceSession(model, options, providers=providers)
    except Exception as error:  # its classes share no base but this one, and differ from version to version
        reason = str(error).splitlines()[0][:300]
        raise EngineError(f"engine onnxruntime cannot run this graph: {reason}") from error
    if (used := session.get_providers()[0]) != providers[0]:  # it goes on without a provider that does not load
        raise EngineError(f"engine onnxruntime could not use {providers[0]} and took {used}; CUDA_VISIBLE_DEVICES= "
                          "(empty) makes it use the CPU from the start")
    return session


class StepPass:
    """The step graph for B players. fresh: (L, 2, B, H, T, D) of the ring's type, keys and values of the last
    call, owned by this object; None for form `in_place`. extra: further outputs by name, such as a calibration's."""

    def __init__(self, session: Any, spec: WorldSpec, batch: int, device: Host | None = None) -> None:
        self.session, self.spec, self.batch, self.device = session, spec, batch, device or Host()
        d = spec.dynamics
        inputs = {i.name: i for i in session.get_inputs()}
        self.dtype = np.dtype(TYPES[inputs["key_0"].type])
        self.in_place = "write_index" in inputs
        self.binding = session.io_binding()
        self.values: dict[str, np.ndarray] = {}
        self._sent: list[tuple[np.ndarray, Any]] = []
        for name, i in inputs.items():
            if not name.startswith(("key_", "value_")):
                buffer = self.device.zeros(i.shape, TYPES[i.type])
                self.values[name] = self.device.written(buffer)
                self._sent.append((self.values[name], buffer))
                self._bind(self.binding.bind_input, name, buffer, TYPES[i.type])
        self.z = self.device.zeros((batch, *spec.latent_shape), np.float32)
        self._bind(self.binding.bind_output, "z", self.z, np.float32)
        self.extra = {o.name: self.device.zeros(o.shape, TYPES[o.type]) for o in session.get_outputs()
                      if o.name != "z" and not o.name.startswith(("new_", "ring_"))}
        for name, value in self.extra.items():
            self._bind(self.binding.bind_output, name, value, np.float32)
        self.fresh: Any = None
        if not self.in_place:
            self.fresh = self.device.zeros((d.layers, 2, batch, d.heads, spec.tokens, d.head_size), self.dtype)
            for layer in range(d.layers):
                for part, name in enumerate(("key", "value")):
                    self._bind(self.binding.bind_output, f"new_{name}_{layer}", self.fresh[layer, part], self.dtype)
        self._ring_address = 0

    def _bind(self, bind: Any, name: str, buffer: Any, dtype: Any) -> None:
        """Bind an input or output to the memory of `buffer`, which must outlive the binding."""
        bind(name, self.device.name, 0, dtype, tuple(buffer.shape), self.device.address(buffer))

    def bind_ring(self, ring: Any) -> None:
        """Read keys and values from this ring, in place, until another one is bound."""
        assert tuple(ring.shape) == self.spec.ring_shape(self.batch), ring.shape
        assert str(ring.dtype).endswith(str(self.dtype)), (ring.dtype, self.dtype)
        address = self.device.address(ring)
        if address == self._ring_address:
            return
        for layer in range(self.spec.dynamics.layers):
            for part, name in enumerate(("key", "value")):
                self._bind(self.binding.bind_input, f"{name}_{layer}", ring[layer, part], self.dtype)
                if self.in_place:
                    self._bind(self.binding.bind_output, f"ring_{name}_{layer}", ring[layer, part], self.dtype)
        self._ring_address = address

    def __call__(self, previous: np.ndarray, x: np.ndarray, inputs: PassInputs) -> np.ndarray:
        """z_t, (B, C, h, w), in a buffer that the next call overwrites; keys and values in `fresh` or the ring."""
        write_inputs(self.spec, previous, x, inputs, self.values)
        self.device.send(self._sent)
        self.session.run_with_iobinding(self.binding)
        return self.device.fetch(self.z)

    def commit(self, ring: Any, slots: np.ndarray) -> None:
        """Write each player's fresh keys and values into that player's slot, where the graph has not."""
        if self.fresh is not None:
            commit(self.spec, ring, slots, self.fresh)


def commit(spec: WorldSpec, ring: Any, slots: np.ndarray, fresh: Any) -> None:
    """Write each player's fresh keys and values, (L, 2, B, H, T, D), into that player's slot."""
    for player, slot in enumerate(slots):
        first = int(slot) * spec.tokens_padded
        ring[:, :, player, :, first : first + spec.tokens] = fresh[:, :, player]


def write_inputs(spec: WorldSpec, previous: np.ndarray, x: np.ndarray, inputs: PassInputs,
                 values: dict[str, np.ndarray]) -> None:
    """All inputs of a pass but the ring, into the arrays `values` by name, whatever the form."""
    values["previous"][...], values["x"][...] = previous, x
    for name in ("action", "condition", "cos", "sin", *(SINK_INPUTS if spec.memory.sink_frames else ())):
        values[name][...] = getattr(inputs, name)
    if "block_index" in values:
        _, _, rows, places = values["block_index"].shape
        plan = inputs.plan
        if int(plan.block_count.max()) > places:
            raise EngineError(f"the plan lists {int(plan.block_count.max())} blocks; the graph holds {places}")
        values["block_index"][...] = plan.block_index[:, :, :rows, :places]
        values["block_count"][...] = plan.block_count[:, :, :rows]
        values["block_length"][...] = plan.block_length
    if "slot" in values:
        values["slot"][...] = inputs.slot
    if "write_index" in values:
        values["write_index"][...] = inputs.slot * spec.tokens_padded
    if "mask" in values and "write_index" in values:
        values["mask"][...] = read_tokens(spec, inputs)
    elif "mask" in values:
        write_mask(spec, inputs, values["mask"])


def read_tokens(spec: WorldSpec, inputs: PassInputs) -> np.ndarray:
    """The plan as a mask over the ring, the frame's own slot included, (1 or B, 1 or H, T, S * Tp) bool."""
    return inputs.plan.token_mask().repeat(spec.block_tokens, axis=2)[:, :, : spec.tokens]


def write_mask(spec: WorldSpec, inputs: PassInputs, out: np.ndarray) -> None:
    """The plan as numbers to add to the scores, out: (B, 1, T, S * Tp + T).

    The plan counts the fresh keys as lying in the frame's own slot; here they are the last T
    columns, and the slot itself, which still holds what is about to be overwritten, is not read.
    """
    reads = read_tokens(spec, inputs)
    ring_tokens = reads.shape[-1]
    out[..., :ring_tokens] = np.where(reads, np.float32(0), np.float32(MASKED))
    for player, slot in enumerate(inputs.slot):
        own = int(slot) * spec.tokens_padded
        out[player, ..., ring_tokens:] = out[player, ..., own : own + spec.tokens]
        out[player, ..., own : own + spec.tokens_padded] = MASKED
