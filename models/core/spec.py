"""What a world is, in numbers: sizes, actions, memory, plan. Pure data, strict JSON.

A `WorldSpec` fixes every tensor of the world: `weight_shapes(spec)` lists their names and
shapes, so a loader can check a weights file before it takes any memory, and every engine can
build its buffers before it sees a weight. Unknown keys, missing keys and impossible values are
refused by name (`WorldError`).

Letters: B batch, L layers, S slots, T tokens of a frame, H heads, D head size, C channels.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dreamloop.models.core.errors import ActionError, WorldError

FORMAT = 1
PIXEL_SHUFFLE = 4  # the autoencoder never convolves above a quarter of the frame's resolution
LEVEL_FEATURES = 8  # sines and cosines that describe one level in [0, 1]; see core/conditioning.py
MAX_RING_BYTES = 64 << 30  # of float32 keys and values, for one player
MAX_PLAN_BYTES = 256 << 20  # of block lists, for one player
MAX_MOMENT_BYTES = 4 << 30  # of one layer's float32 sums for the linear branch of a plan, for one player
PLAN_POLICIES = ("dense", "window", "radial", "top_k")
SKIPPING = ("window", "radial")  # policies that skip blocks by their age
LEVELS = ("noise_level", "step_size", "history_noise")
LATER = {"later": True}  # of a field that older worlds lack: it is written only where it is not its default


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise WorldError(message)


@dataclass(frozen=True)
class Button:
    """One key of the game. keys: W3C `KeyboardEvent.code` names; gamepad: W3C standard-layout
    names (`button0` .. `button16`); mouse: `left`, `middle`, `right`."""

    name: str
    keys: tuple[str, ...] = ()
    gamepad: tuple[str, ...] = ()
    mouse: tuple[str, ...] = ()


@dataclass(frozen=True)
class Axis:
    """One continuous control in [-limit, limit]. mouse: `x` or `y`; gamepad: `axis0` .. `axis3`."""

    name: str
    limit: float = 1.0
    mouse: str = ""
    gamepad: str = ""


@dataclass(frozen=True)
class ActionSpec:
    """The controls of a world, in the order of the action vector: buttons first, then axes."""

    buttons: tuple[Button, ...]
    axes: tuple[Axis, ...] = ()

    def __post_init__(self) -> None:
        names = self.names
        _require(len(names) > 0, "actions: a world needs at least one button or axis")
        _require(all(names), "actions: every button and axis needs a name")
        _require(all(name.isprintable() and len(name) <= 100 for name in names),
                 "actions: a name must be printable, at most 100 characters")
        _require(len(set(names)) == len(names), f"actions: a name stands twice in {', '.join(names)}")
        _require(all(axis.limit > 0 for axis in self.axes), "actions: an axis limit must be above 0")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(b.name for b in self.buttons) + tuple(a.name for a in self.axes)

    @property
    def size(self) -> int:
        """Length of the action vector."""
        return len(self.buttons) + len(self.axes)

    def vector(self, action: Iterable[str] | Mapping[str, float] | np.ndarray | None) -> np.ndarray:
        """The action as a vector, (size,) float32: 0 or 1 for buttons, [-limit, limit] for axes.

        action: names of held buttons, a mapping name -> value, a vector, or None for no input.
        Raises `ActionError` for an unknown name (the message lists the known ones), a wrong
        length, or a value that is not finite; a value beyond its range is clipped to it.
        """
        limits = np.array([1.0] * len(self.buttons) + [a.limit for a in self.axes])
        lowest = np.array([0.0] * len(self.buttons) + [-a.limit for a in self.axes])
        if isinstance(action, np.ndarray):
            if action.shape != (self.size,):
                raise ActionError(f"action vector has shape {action.shape}, expected ({self.size},) "
                                  f"for {', '.join(self.names)}")
            if action.dtype.kind not in "biuf":
                raise ActionError(f"action vector holds {action.dtype}, expected numbers")
            values = action.astype(np.float64)
        else:
            if isinstance(action, str):
                action = (action,)
            try:
                given = action if isinstance(action, Mapping) else dict.fromkeys(() if action is None else action, 1.0)
            except TypeError as error:
                raise ActionError(f"action {str(action)[:100]!r}: expected a set of names, a mapping "
                                  "of names to values, or a numpy vector") from error
            unknown = sorted(str(name) for name in given if name not in self.names)
            if unknown:
                raise ActionError(f"unknown action {', '.join(unknown)}; this world knows: {', '.join(self.names)}")
            try:
                values = np.array([float(given.get(name, 0.0)) for name in self.names])
            except (TypeError, ValueError, OverflowError) as error:
                raise ActionError(f"action values must be numbers: {error}") from error
        if not np.isfinite(values).all():
            raise ActionError("action values must be finite")
        return np.clip(values, lowest, limits).astype(np.float32)


@dataclass(frozen=True)
class AutoencoderSpec:
    """Convolutional autoencoder. widths: channels per stage, finest first; the finest stage works
    at 1/4 of the frame, each further one halves it: three stages make 16x down."""

    latent_channels: int
    widths: tuple[int, ...]
    encoder_blocks: tuple[int, ...]
    decoder_blocks: tuple[int, ...]

    def __post_init__(self) -> None:
        _require(1 <= self.latent_channels <= 256,
                 f"autoencoder: latent_channels={self.latent_channels} must be 1..256")
        _require(1 <= len(self.widths) <= 5, "autoencoder: widths needs 1 to 5 stages")
        _require(all(1 <= w <= 2048 for w in self.widths), "autoencoder: a width must be 1..2048")
        for name in ("encoder_blocks", "decoder_blocks"):
            blocks = getattr(self, name)
            _require(len(blocks) == len(self.widths), f"autoencoder: {name} needs one count per width")
            _require(all(0 <= n <= 16 for n in blocks), f"autoencoder: {name} must be 0..16 each")

    @property
    def downsample(self) -> int:
        return PIXEL_SHUFFLE * 2 ** (len(self.widths) - 1)


@dataclass(frozen=True)
class DynamicsSpec:
    """The block-causal diffusion transformer. patch: latents per token side; sigmas: noise level
    of each pass of a frame, the first 1.0; a one-step world lists exactly [1.0]."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    patch: int = 1
    sigmas: tuple[float, ...] = (1.0,)
    rope_base: float = 100.0

    def __post_init__(self) -> None:
        _require(1 <= self.layers <= 128, f"dynamics: layers={self.layers} must be 1..128")
        _require(8 <= self.width <= 16384, f"dynamics: width={self.width} must be 8..16384")
        _require(1 <= self.heads <= 256 and self.width % self.heads == 0,
                 f"dynamics: heads={self.heads} must divide width={self.width}")
        _require(self.head_size % 8 == 0, f"dynamics: head size {self.head_size} must be a multiple of 8")
        _require(1 <= self.mlp_width <= 65536, f"dynamics: mlp_width={self.mlp_width} must be 1..65536")
        _require(1 <= self.patch <= 8, f"dynamics: patch={self.patch} must be 1..8")
        _require(1 <= len(self.sigmas) <= 64 and self.sigmas[0] == 1.0,
                 "dynamics: sigmas must start with 1.0")
        _require(all(a > b > 0 for a, b in zip(self.sigmas, self.sigmas[1:], strict=False)),
                 "dynamics: sigmas must fall and stay above 0")
        _require(self.rope_base > 1.0, "dynamics: rope_base must be above 1")

    @property
    def head_size(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class MemorySpec:
    """The ring: which past frames stay. See core/memory.py. max_age: the largest age, in frames,
    that a sink's key is ever given (the largest that training saw)."""

    window_frames: int
    sink_frames: int = 0
    dilated_frames: int = 0
    dilation: int = 0
    max_age: int = 0

    def __post_init__(self) -> None:
        _require(1 <= self.window_frames <= 4096, f"memory: window_frames={self.window_frames} must be 1..4096")
        _require(0 <= self.sink_frames <= 64, f"memory: sink_frames={self.sink_frames} must be 0..64")
        _require(0 <= self.dilated_frames <= 1024, f"memory: dilated_frames={self.dilated_frames} must be 0..1024")
        _require((self.dilated_frames == 0) == (self.dilation == 0),
                 "memory: dilated_frames and dilation are both zero or both set")
        _require(self.dilation == 0 or 2 <= self.dilation <= 1024,
                 f"memory: dilation={self.dilation} must be 0 or 2..1024")
        _require(self.sink_frames == 0 or 1 <= self.max_age <= 1_000_000,
                 f"memory: sink_frames={self.sink_frames} needs max_age in 1..1000000, not {self.max_age}")

    @property
    def slots(self) -> int:
        return self.sink_frames + self.dilated_frames + self.window_frames


@dataclass(frozen=True)
class PlanSpec:
    """Which of the visible blocks a query block reads: core/plan.py says what each policy is.
    window_frames: for `window` the largest age read, for `radial` the largest age read whole.
    block_tokens: tokens of a key block; 0 means the whole frame is one block.
    top_blocks: for `top_k`, how many blocks are read besides those that always are.
    linear: whether what `window` or `radial` skips is read to first order (models/networks/linear.py)."""

    policy: str = "dense"
    window_frames: int = 0
    block_tokens: int = 0
    top_blocks: int = 0
    linear: bool = field(default=False, metadata=LATER)

    def __post_init__(self) -> None:
        _require(self.policy in PLAN_POLICIES, f"plan: policy {self.policy!r} must be {' or '.join(PLAN_POLICIES)}")
        _require(0 <= self.block_tokens <= 4096, f"plan: block_tokens={self.block_tokens} must be 0..4096")
        _require((self.policy in SKIPPING) == (self.window_frames > 0),
                 f"plan: window_frames={self.window_frames} must be above 0 for policies window and radial, "
                 "and 0 for the others")
        _require(self.policy != "radial" or self.window_frames <= 4096,
                 f"plan: window_frames={self.window_frames} of policy radial must be 1..4096")
        _require(0 <= self.top_blocks <= 65536 and (self.policy == "top_k") == (self.top_blocks > 0),
                 f"plan: top_blocks={self.top_blocks} must be 1..65536 for policy top_k, and 0 for the others")
        _require(not self.linear or self.policy in SKIPPING,
                 f"plan: linear is for policies {' and '.join(SKIPPING)}, which skip blocks by their age, "
                 f"not for {self.policy}")


@dataclass(frozen=True)
class WorldSpec:
    """Everything about a world but its weights."""

    name: str
    game: str
    frame_height: int
    frame_width: int
    fps: float
    actions: ActionSpec
    autoencoder: AutoencoderSpec
    dynamics: DynamicsSpec
    memory: MemorySpec
    plan: PlanSpec = field(default_factory=PlanSpec)
    format: int = FORMAT

    def __post_init__(self) -> None:
        _require(self.format == FORMAT, f"format {self.format} is not known here (expected {FORMAT})")
        for key in ("name", "game"):  # both become parts of messages, file names and window titles
            text = getattr(self, key)
            _require(0 < len(text) <= 100 and text.isprintable() and not set(text) & set("/\\"),
                     f"{key}={text[:100]!r} must be 1..100 printable characters without slashes")
        for key in ("frame_height", "frame_width"):
            _require(8 <= getattr(self, key) <= 4096, f"{key}={getattr(self, key)} must be 8..4096")
        _require(0 < self.fps <= 1000, f"fps={self.fps} must be above 0, at most 1000")
        _require(self.plan.block_tokens <= self.tokens,
                 f"plan: block_tokens={self.plan.block_tokens} is above the {self.tokens} tokens of a frame")
        ring = 4 * math.prod(self.ring_shape(1))
        _require(ring <= MAX_RING_BYTES, f"memory: a ring of {ring} bytes is above the cap of {MAX_RING_BYTES}")
        lists = 4 * self.blocks_per_frame**2 * self.memory.slots
        _require(lists <= MAX_PLAN_BYTES, f"plan: block lists of {lists} bytes are above the cap of {MAX_PLAN_BYTES}")
        moments = 4 * self.blocks_per_frame * self.memory.slots * self.dynamics.width * self.dynamics.head_size
        _require(not self.plan.linear or moments <= MAX_MOMENT_BYTES,
                 f"plan: the linear branch keeps {moments} bytes of sums a layer, above the cap of {MAX_MOMENT_BYTES}; "
                 "use a larger block_tokens")

    @property
    def token_pixels(self) -> int:
        """Pixels a side that one token stands for."""
        return self.autoencoder.downsample * self.dynamics.patch

    @property
    def padded_height(self) -> int:
        """Frame height padded up to whole tokens."""
        return -(-self.frame_height // self.token_pixels) * self.token_pixels

    @property
    def padded_width(self) -> int:
        return -(-self.frame_width // self.token_pixels) * self.token_pixels

    @property
    def latent_height(self) -> int:
        return self.padded_height // self.autoencoder.downsample

    @property
    def latent_width(self) -> int:
        return self.padded_width // self.autoencoder.downsample

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, latent height, latent width)."""
        return self.autoencoder.latent_channels, self.latent_height, self.latent_width

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens of a frame as (rows, columns)."""
        return self.latent_height // self.dynamics.patch, self.latent_width // self.dynamics.patch

    @property
    def tokens(self) -> int:
        """T, tokens of a frame."""
        return self.grid[0] * self.grid[1]

    @property
    def block_tokens(self) -> int:
        return self.plan.block_tokens or self.tokens

    @property
    def blocks_per_frame(self) -> int:
        return -(-self.tokens // self.block_tokens)

    @property
    def slot_blocks(self) -> int:
        """Blocks of a slot: those of its frame, then, with `top_k`, room for one mean key of each."""
        pools = -(-self.blocks_per_frame // self.block_tokens) if self.plan.policy == "top_k" else 0
        return self.blocks_per_frame + pools

    @property
    def tokens_padded(self) -> int:
        """T padded up to whole blocks, and with `top_k` the mean keys behind them: the stride of a slot in the ring."""
        return self.slot_blocks * self.block_tokens

    @property
    def token_channels(self) -> int:
        """Latent values that one token stands for."""
        return self.autoencoder.latent_channels * self.dynamics.patch**2

    @property
    def condition_size(self) -> int:
        """Length of the condition of a frame: action, then the features of each level."""
        return self.actions.size + LEVEL_FEATURES * len(LEVELS)

    def ring_shape(self, batch: int) -> tuple[int, int, int, int, int, int]:
        """(L, 2, B, H, S * T_padded, D)."""
        d = self.dynamics
        return d.layers, 2, batch, d.heads, self.memory.slots * self.tokens_padded, d.head_size


def weight_shapes(spec: WorldSpec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a world, in a fixed order. The networks' `state_dict` has
    exactly these names."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, out: int, into: int, kernel: int) -> None:
        shapes[f"{name}.weight"] = (out, into, kernel, kernel)
        shapes[f"{name}.bias"] = (out,)

    def linear(name: str, out: int, into: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (out, into)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    a = spec.autoencoder
    pixels = 3 * PIXEL_SHUFFLE**2
    conv("autoencoder.encoder.stem", a.widths[0], pixels, 3)
    for i, width in enumerate(a.widths):
        for j in range(a.encoder_blocks[i]):
            conv(f"autoencoder.encoder.stages.{i}.blocks.{j}.first", width, width, 3)
            conv(f"autoencoder.encoder.stages.{i}.blocks.{j}.second", width, width, 3)
        if i + 1 < len(a.widths):
            conv(f"autoencoder.encoder.stages.{i}.down", a.widths[i + 1], width, 3)
    conv("autoencoder.encoder.head", a.latent_channels, a.widths[-1], 1)
    shapes["autoencoder.latent_mean"] = (a.latent_channels,)
    shapes["autoencoder.latent_std"] = (a.latent_channels,)
    conv("autoencoder.decoder.stem", a.widths[-1], a.latent_channels, 3)
    for i in reversed(range(len(a.widths))):
        for j in range(a.decoder_blocks[i]):
            conv(f"autoencoder.decoder.stages.{i}.blocks.{j}.first", a.widths[i], a.widths[i], 3)
            conv(f"autoencoder.decoder.stages.{i}.blocks.{j}.second", a.widths[i], a.widths[i], 3)
        if i > 0:
            conv(f"autoencoder.decoder.stages.{i}.up", 4 * a.widths[i - 1], a.widths[i], 1)
    conv("autoencoder.decoder.head", pixels, a.widths[0], 3)

    d, width = spec.dynamics, spec.dynamics.width
    linear("dynamics.input", width, 2 * spec.token_channels)
    linear("dynamics.action", width, spec.actions.size, bias=False)
    linear("dynamics.condition.first", width, spec.condition_size)
    linear("dynamics.condition.second", width, width)
    linear("dynamics.modulation", 6 * width, width)
    for i in range(d.layers):
        block = f"dynamics.blocks.{i}"
        shapes[f"{block}.table"] = (6, width)
        linear(f"{block}.qkv", 3 * width, width, bias=False)
        shapes[f"{block}.query_norm"] = (d.head_size,)
        shapes[f"{block}.key_norm"] = (d.head_size,)
        linear(f"{block}.out", width, width, bias=False)
        if spec.plan.linear:
            shapes[f"{block}.skipped"] = (d.heads, d.head_size, d.head_size)
        linear(f"{block}.up", d.mlp_width, width)
        linear(f"{block}.down", width, d.mlp_width)
    shapes["dynamics.final_table"] = (2, width)
    linear("dynamics.output", spec.token_channels, width)
    return shapes


def to_json(value: Any) -> Any:
    """A spec as plain JSON values; `from_json` is its inverse. A field that older worlds lack (`LATER`) stays out at
    its default, so those worlds keep their text and their hash."""
    if dataclasses.is_dataclass(value):
        items = ((f, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {f.name: to_json(item) for f, item in items if not (f.metadata.get("later") and item == f.default)}
    return [to_json(item) for item in value] if isinstance(value, tuple) else value


def from_json(data: Any) -> WorldSpec:
    """A checked `WorldSpec` from parsed JSON. Raises `WorldError` naming the key at fault."""
    return typing.cast(WorldSpec, _parse(WorldSpec, data, "world"))


def _parse(kind: Any, data: Any, where: str) -> Any:
    """`data` as a value of the annotated type `kind`; strict: no unknown key, no coercion of types."""
    if dataclasses.is_dataclass(kind):
        _require(isinstance(data, dict), f"{where}: expected an object, found {type(data).__name__}")
        hints = typing.get_type_hints(kind)
        unknown = sorted(str(key) for key in data if key not in hints)
        _require(not unknown, f"{where}: unknown key {', '.join(unknown)[:200]}; known: {', '.join(hints)}")
        missing = [f.name for f in dataclasses.fields(kind) if f.name not in data
                   and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
        _require(not missing, f"{where}: missing key {', '.join(missing)}")
        return typing.cast(Any, kind)(**{key: _parse(hints[key], item, f"{where}.{key}") for key, item in data.items()})
    origin = typing.get_origin(kind)
    if origin is tuple:
        _require(isinstance(data, list), f"{where}: expected a list, found {type(data).__name__}")
        _require(len(data) <= 1024, f"{where}: {len(data)} entries are above the limit of 1024")
        item = typing.get_args(kind)[0]
        return tuple(_parse(item, value, f"{where}[{i}]") for i, value in enumerate(data))
    assert not isinstance(origin, types.UnionType), f"no union in a spec: {kind}"
    if kind is float:
        ok = isinstance(data, int | float) and not isinstance(data, bool) and abs(data) < 1e9
        _require(ok, f"{where}: expected a finite number, found {str(data)[:40]!r}")
        return float(data)
    _require(type(data) is kind, f"{where}: expected {kind.__name__}, found {str(data)[:40]!r}")
    return data
