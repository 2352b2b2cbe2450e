"""One pass of a step graph in ONNX Runtime, with all its buffers bound: the ring is never copied.

Each layer's keys and values are a contiguous part of the State's ring and are bound to the graph in place. Forms
`portable` and `sparse` give fresh keys and values, which `commit` writes into each player's own slot; form
`in_place` has the same memory bound as ring in and ring out, and writes that slot itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dreamloop.models.core.conditioning import PassInputs
from dreamloop.models.core.errors import EngineError
from dreamloop.models.core.spec import WorldSpec

SINK_INPUTS = ("store_cos", "store_sin", "sink_cos", "sink_sin")
PROVIDERS = ["CPUExecutionProvider"]
MASKED = -1e9  # added to a score, leaves exactly 0 after the softmax
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(bool)": np.bool_,
         "tensor(int32)": np.int32, "tensor(int64)": np.int64}


def open_session(runtime: Any, model: bytes, threads: int, keep_int8: bool = False) -> Any:
    """An ONNX Runtime session. Raises `EngineError` where the runtime has no kernel for what the graph asks.

    keep_int8: leave quantised activations signed; ONNX Runtime's own change to unsigned is faster, and makes graphs
    of opset 21 and more invalid (seen with 1.32)."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    # threads wait awake within a pass, but not between passes, where another session runs
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if keep_int8:
        options.add_session_config_entry("session.qdqisint8allowed", "1")
    options.log_severity_level = 3
    try:
        return runtime.InferenceSession(model, options, providers=PROVIDERS)
    except Exception as error:  # its classes share no base but this one, and differ from version to version
        reason = str(error).splitlines()[0][:300]
        raise EngineError(f"engine onnxruntime cannot run this graph: {reason}") from error


class StepPass:
    """The step graph for B players. fresh: (L, 2, B, H, T, D) of the ring's type, keys and values of the last
    call, owned by this object; None for form `in_place`. extra: further outputs by name, such as a calibration's."""

    def __init__(self, session: Any, spec: WorldSpec, batch: int, runtime: Any) -> None:
        self.session, self.spec, self.batch, self._runtime = session, spec, batch, runtime
        d = spec.dynamics
        inputs = {i.name: i for i in session.get_inputs()}
        self.dtype = np.dtype(TYPES[inputs["key_0"].type])
        self.in_place = "write_index" in inputs
        self.values = {name: np.zeros(i.shape, TYPES[i.type]) for name, i in inputs.items()
                       if not name.startswith(("key_", "value_"))}
        self.z = np.zeros((batch, *spec.latent_shape), np.float32)
        self.extra = {o.name: np.zeros(o.shape, TYPES[o.type]) for o in session.get_outputs()
                      if o.name != "z" and not o.name.startswith(("new_", "ring_"))}
        self.binding = session.io_binding()
        for name, value in self.values.items():
            self.binding.bind_ortvalue_input(name, self._value(value))
        for name, value in {"z": self.z, **self.extra}.items():
            self.binding.bind_ortvalue_output(name, self._value(value))
        self.fresh: np.ndarray | None = None
        if not self.in_place:
            self.fresh = np.zeros((d.layers, 2, batch, d.heads, spec.tokens, d.head_size), self.dtype)
            for layer in range(d.layers):
                for part, name in enumerate(("key", "value")):
                    self.binding.bind_ortvalue_output(f"new_{name}_{layer}", self._value(self.fresh[layer, part]))
        self._ring_address = 0

    def _value(self, array: np.ndarray) -> Any:
        """`array` as an OrtValue over the same memory."""
        assert array.flags.c_contiguous
        return self._runtime.OrtValue.ortvalue_from_numpy(array)

    def bind_ring(self, ring: np.ndarray) -> None:
        """Read keys and values from this ring, in place, until another one is bound."""
        assert ring.shape == self.spec.ring_shape(self.batch) and ring.dtype == self.dtype, (ring.shape, ring.dtype)
        address = ring.__array_interface__["data"][0]
        if address == self._ring_address:
            return
        for layer in range(self.spec.dynamics.layers):
            for part, name in enumerate(("key", "value")):
                value = self._value(ring[layer, part])
                self.binding.bind_ortvalue_input(f"{name}_{layer}", value)
                if self.in_place:
                    self.binding.bind_ortvalue_output(f"ring_{name}_{layer}", value)
        self._ring_address = address

    def __call__(self, previous: np.ndarray, x: np.ndarray, inputs: PassInputs) -> np.ndarray:
        """z_t, (B, C, h, w), in a buffer that the next call overwrites; keys and values in `fresh` or the ring."""
        write_inputs(self.spec, previous, x, inputs, self.values)
        self.session.run_with_iobinding(self.binding)
        return self.z

    def commit(self, ring: np.ndarray, slots: np.ndarray) -> None:
        """Write each player's fresh keys and values into that player's slot, where the graph has not."""
        if self.fresh is not None:
            commit(self.spec, ring, slots, self.fresh)


def commit(spec: WorldSpec, ring: np.ndarray, slots: np.ndarray, fresh: np.ndarray) -> None:
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
        values["block_length"][...], values["slot"][...] = plan.block_length, inputs.slot
    elif "write_index" in values:
        values["write_index"][...] = inputs.slot * spec.tokens_padded
        values["mask"][...] = read_tokens(spec, inputs)
    else:
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
