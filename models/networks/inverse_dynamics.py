"""The inverse dynamics judge: which buttons were held, read from the frames alone.

A dream that obeys its keys can be read like the game. The judge sees N consecutive frames and gives,
for each of the N - 1 transitions, one logit per button:

    frame t-1, frame t -> shrink by averaging -> [frame ; change ; motion]     one pair
    pair -> strided convolutions -> features -> three convolutions over time -> logits of actions[t]

A pair shows a turn at once. A shot shows some tics after its key (the weapon's own animation), so the
convolutions over time let transition t read the pairs 14 before to 14 after it, as far as the clip
has them. Each frame is looked at once, however many transitions read it.

A judge on disk is a folder of two files, pure data, as strict as a world's:

    inverse_dynamics.safetensors     every tensor of `judge_shapes(spec)`, float16
    judge.json                       the `JudgeSpec`, its figures, the SHA-256 of the tensors' file
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn
from torch.nn import functional

from dreamloop.models.core.errors import WorldError

FORMAT = 1
PAIR_CHANNELS = 8
WEIGHTS_FILE, JUDGE_FILE = "inverse_dynamics.safetensors", "judge.json"
MAX_JUDGE_BYTES = 1 << 20
MAX_PARAMETERS = 1 << 22


@dataclass(frozen=True)
class JudgeSpec:
    """Everything about a judge but its weights. shrink: frames are averaged over shrink x shrink
    pixels first; widths: channels of the strided convolutions; features: per transition;
    dilations: of the convolutions over time, five taps each."""

    game: str
    frame_height: int
    frame_width: int
    buttons: tuple[str, ...]
    shrink: int = 4
    widths: tuple[int, ...] = (16, 32, 32)
    squeezed: int = 8
    features: int = 64
    dilations: tuple[int, ...] = (1, 2, 4)
    format: int = FORMAT

    def __post_init__(self) -> None:
        checks = (
            (self.format == FORMAT, f"format {self.format} is not known here (expected {FORMAT})"),
            (0 < len(self.game) <= 100, "game must be 1..100 characters"),
            (8 <= self.frame_height <= 4096, f"frame_height={self.frame_height} must be 8..4096"),
            (8 <= self.frame_width <= 4096, f"frame_width={self.frame_width} must be 8..4096"),
            (1 <= len(self.buttons) <= 64 and len(set(self.buttons)) == len(self.buttons) and all(self.buttons),
             "buttons must be 1..64 different names"),
            (1 <= self.shrink <= 16, f"shrink={self.shrink} must be 1..16"),
            (1 <= len(self.widths) <= 6 and all(1 <= w <= 512 for w in self.widths), "widths must be 1..6 of 1..512"),
            (1 <= self.squeezed <= 256, f"squeezed={self.squeezed} must be 1..256"),
            (1 <= self.features <= 1024, f"features={self.features} must be 1..1024"),
            (len(self.dilations) <= 6 and all(1 <= d <= 64 for d in self.dilations), "dilations must be 0..6 of 1..64"),
        )
        for ok, message in checks:
            if not ok:
                raise WorldError(message)
        parameters = sum(math.prod(shape) for shape in judge_shapes(self).values())
        if parameters > MAX_PARAMETERS:
            raise WorldError(f"{parameters} parameters are above the cap of {MAX_PARAMETERS}")

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the last convolution's output."""
        height, width = self.frame_height // self.shrink, self.frame_width // self.shrink
        for _ in self.widths:
            height, width = -(-height // 2), -(-width // 2)
        return height, width


def judge_shapes(spec: JudgeSpec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of `InverseDynamics(spec)`."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = shape[:1]

    into = PAIR_CHANNELS
    for i, width in enumerate(spec.widths):
        layer(f"convolutions.{i}", width, into, 5 if i == 0 else 3, 5 if i == 0 else 3)
        into = width
    layer("squeeze", spec.squeezed, into, 1, 1)
    layer("gather", spec.features, spec.squeezed * spec.grid[0] * spec.grid[1])
    for i in range(len(spec.dilations)):
        layer(f"over_time.{i}", spec.features, spec.features, 5)
    layer("logits", len(spec.buttons), spec.features)
    return shapes


class InverseDynamics(nn.Module):
    """See the module's docstring. About 0.1M parameters for 160x120 frames."""

    def __init__(self, spec: JudgeSpec) -> None:
        super().__init__()
        self.spec = spec
        ins = (PAIR_CHANNELS, *spec.widths)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(ins[i], width, 5 if i == 0 else 3, stride=2, padding=2 if i == 0 else 1)
            for i, width in enumerate(spec.widths))
        self.squeeze = nn.Conv2d(spec.widths[-1], spec.squeezed, 1)
        self.gather = nn.Linear(spec.squeezed * spec.grid[0] * spec.grid[1], spec.features)
        self.over_time = nn.ModuleList(
            nn.Conv1d(spec.features, spec.features, 5, dilation=d, padding=2 * d) for d in spec.dilations)
        self.logits = nn.Linear(spec.features, len(spec.buttons))

    def forward(self, frames: Tensor) -> Tensor:
        """(B, N, H, W, 3) uint8, N >= 2 consecutive frames -> (B, N - 1, buttons) logits; entry i is
        of the action that led from frames[:, i] to frames[:, i + 1]."""
        batch, count = frames.shape[:2]
        small = shrunk(frames.flatten(0, 1), self.spec.shrink).unflatten(0, (batch, count))
        x = pair_channels(small[:, 1:].flatten(0, 1), small[:, :-1].flatten(0, 1))
        for convolution in self.convolutions:
            x = functional.relu(convolution(x))
        x = functional.relu(self.gather(functional.relu(self.squeeze(x)).flatten(1)))
        x = x.unflatten(0, (batch, count - 1)).transpose(1, 2)
        for convolution in self.over_time:
            x = x + functional.relu(convolution(x))
        return self.logits(x.transpose(1, 2))


def pair_channels(now: Tensor, before: Tensor) -> Tensor:
    """What the convolutions see of two frames, (N, 3, h, w) each -> (N, PAIR_CHANNELS, h, w): the frame,
    its change dt, and dt dx, dt dy summed over colours, dx and dy being spatial differences. A picture
    that moves by (u, v) has dt = -u dx - v dy (brightness constancy, Lucas and Kanade 1981), so the
    signs of the products are the direction of motion, which convolutions would have to find."""
    change, both = now - before, now + before
    across = functional.pad(both[..., 2:] - both[..., :-2], (1, 1))
    down = functional.pad(both[..., 2:, :] - both[..., :-2, :], (0, 0, 1, 1))
    products = [(change * slope).sum(1, keepdim=True) for slope in (across, down)]
    # changes are small numbers: four times as large they weigh like the picture itself
    return torch.cat([now, 4.0 * change, 4.0 * products[0], 4.0 * products[1]], dim=1)


def shrunk(frames: Tensor, shrink: int) -> Tensor:
    """Means over shrink x shrink pixels: (N, H, W, 3) uint8 -> (N, 3, H // shrink, W // shrink) float32
    in [-1, 1]. Summed as small integers first: the same numbers at a tenth of the time."""
    height, width = frames.shape[1] // shrink * shrink, frames.shape[2] // shrink * shrink
    total = torch.zeros((len(frames), height // shrink, width // shrink, 3), dtype=torch.int32, device=frames.device)
    for row in range(shrink):
        for column in range(shrink):
            total += frames[:, row:height:shrink, column:width:shrink]
    return total.permute(0, 3, 1, 2).to(torch.float32) / (127.5 * shrink * shrink) - 1.0


@dataclass(frozen=True)
class Judge:
    """A judge read from a folder. figures: what its training measured; hash: SHA-256 of judge.json,
    which itself holds the SHA-256 of the weights."""

    net: InverseDynamics
    figures: dict[str, float]
    hash: str

    @property
    def spec(self) -> JudgeSpec:
        return self.net.spec

    @torch.inference_mode()
    def pressed(self, frames: np.ndarray) -> np.ndarray:
        """Which buttons the judge reads in N consecutive frames, (N, H, W, 3) uint8 -> (N - 1, buttons)
        bool; row i is of the action that led from frames[i] to frames[i + 1]."""
        return (self.net(torch.from_numpy(np.ascontiguousarray(frames))[None])[0] > 0).numpy()


def write_judge(folder: str | os.PathLike[str], spec: JudgeSpec, weights: dict[str, Tensor],
                figures: dict[str, float]) -> Judge:
    """Write a judge folder and read it back. Each file is replaced whole, judge.json last: a kill in
    between leaves files that do not match, which `load_judge` refuses."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    stored = {name: weights[name].detach().cpu().half().numpy() for name in judge_shapes(spec)}
    partial = target / f"{WEIGHTS_FILE}.partial"
    save_file(stored, partial)
    text = json.dumps({**dataclasses.asdict(spec), "figures": figures, "sha256": _sha256(partial)}, indent=2) + "\n"
    partial.replace(target / WEIGHTS_FILE)
    partial = target / f"{JUDGE_FILE}.partial"
    partial.write_text(text, "utf-8")
    partial.replace(target / JUDGE_FILE)
    return load_judge(target)


def load_judge(folder: str | os.PathLike[str]) -> Judge:
    """The judge in `folder`. Raises `WorldError` with one line that says why not; nothing in the
    folder is executed, and shapes are checked before memory is taken."""
    path = Path(folder)
    try:
        return _load(path)
    except (OSError, SafetensorError, UnicodeDecodeError) as error:
        raise WorldError(f"judge {path.name}: cannot be read: {error}") from error
    except WorldError as error:
        raise WorldError(f"judge {path.name}: {error}") from error


def _load(folder: Path) -> Judge:
    raw = _read_capped(folder / JUDGE_FILE)
    try:
        data = json.loads(raw.decode("utf-8"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise WorldError(f"{JUDGE_FILE} is not JSON: {error}") from error
    spec, figures, sha256 = _parse(data)
    weights_path = folder / WEIGHTS_FILE
    shapes = judge_shapes(spec)
    most = 2 * sum(math.prod(shape) for shape in shapes.values()) + MAX_JUDGE_BYTES
    if weights_path.stat().st_size > most:
        raise WorldError(f"{WEIGHTS_FILE} is larger than {most} bytes")
    if _sha256(weights_path) != sha256:
        raise WorldError(f"{WEIGHTS_FILE} does not match the SHA-256 in {JUDGE_FILE}")
    net = InverseDynamics(spec)
    net.load_state_dict({name: torch.from_numpy(value) for name, value in _read_weights(weights_path, shapes).items()})
    return Judge(net.eval().requires_grad_(False), figures, hashlib.sha256(raw).hexdigest())


def _read_capped(path: Path) -> bytes:
    if path.stat().st_size > MAX_JUDGE_BYTES:
        raise WorldError(f"{path.name} is larger than {MAX_JUDGE_BYTES} bytes")
    return path.read_bytes()


def _parse(data: Any) -> tuple[JudgeSpec, dict[str, float], str]:
    """judge.json, strict: every key known, present and of its type."""
    fields = {f.name: f for f in dataclasses.fields(JudgeSpec)}
    wanted = {*fields, "figures", "sha256"}
    if not isinstance(data, dict) or set(data) != wanted:
        found = sorted(set(map(str, data)) ^ wanted) if isinstance(data, dict) else [type(data).__name__]
        raise WorldError(f"{JUDGE_FILE}: unknown or missing key: {', '.join(found)[:200]}")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        value = data[name]
        if field.type in ("int", "str"):
            ok = type(value) is (int if field.type == "int" else str)
        else:
            item = str if field.type == "tuple[str, ...]" else int
            ok = isinstance(value, list) and len(value) <= 64 and all(type(v) is item for v in value)
            value = tuple(value) if ok else value
        if not ok:
            raise WorldError(f"{JUDGE_FILE}: {name} is {str(value)[:60]!r}, expected {field.type}")
        values[name] = value
    figures, sha256 = data["figures"], data["sha256"]
    if not isinstance(figures, dict) or not all(type(v) in (int, float) for v in figures.values()):
        raise WorldError(f"{JUDGE_FILE}: figures must map names to numbers")
    if not isinstance(sha256, str):
        raise WorldError(f"{JUDGE_FILE}: sha256 must be a string")
    return JudgeSpec(**values), {name: float(v) for name, v in figures.items()}, sha256


def _read_weights(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    with safe_open(path, framework="np") as file:
        if difference := sorted(set(file.keys()) ^ set(shapes)):
            raise WorldError(f"{path.name}: unknown or missing tensor {difference[0][:200]}")
        for name, shape in shapes.items():
            found = file.get_slice(name)
            if tuple(found.get_shape()) != shape or found.get_dtype() != "F16":
                raise WorldError(f"{path.name}: tensor {name} is {found.get_dtype()} {tuple(found.get_shape())}, "
                                 f"expected F16 {shape}")
        weights = {name: file.get_tensor(name).astype(np.float32) for name in shapes}
    for name, value in weights.items():
        if not np.isfinite(value).all():
            raise WorldError(f"{path.name}: tensor {name} holds a value that is not finite")
    return weights


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
