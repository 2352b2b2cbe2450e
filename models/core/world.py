"""A world folder: load, check, save. Pure data; nothing in it is ever executed.

    world.json            the specification (core/spec.py), strict
    weights.safetensors   every tensor of `weight_shapes(spec)`, deflated codes (core/quantize.py) or float32
    starts.safetensors    frames that a session may start from: `frames` (N, H, W, 3) uint8, or, where they have no
                          more than 256 colours, `frames` (N, H, W) uint8 into `palette` (K, 3) uint8
    README.md             the model card
    figures.json          what it was measured to do, and whose its pictures are (optional)

A folder is untrusted input. The specification is checked first, then the headers of the two tensor
files against what it implies, under a fixed cap, and only then is memory taken.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dreamloop.models.core import quantize, spec as specs
from dreamloop.models.core.errors import WorldError
from dreamloop.models.core.spec import WorldSpec

ZOO = Path(__file__).resolve().parent.parent / "zoo"
SPEC_FILE, WEIGHTS_FILE, STARTS_FILE, CARD_FILE = "world.json", "weights.safetensors", "starts.safetensors", "README.md"
FIGURES_FILE = "figures.json"
HUB = "hub:"
MAX_SPEC_BYTES = 1 << 20
MAX_WEIGHT_BYTES = 8 << 30  # of float32 weights; a world of two billion parameters
MAX_START_BYTES = 1 << 30
COLOURS = 256  # of a palette, at most


@dataclass(frozen=True)
class World:
    """spec; weights: name -> float32 array; starts: (N, H, W, 3) uint8; hash: SHA-256 over the
    three data files, hexadecimal; card: the text of README.md; figures: the object in figures.json."""

    spec: WorldSpec
    weights: dict[str, np.ndarray] = field(repr=False)
    starts: np.ndarray = field(repr=False)
    hash: str
    card: str = field(default="", repr=False)
    figures: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        return self.spec.name


def zoo_names() -> list[str]:
    """Names of the worlds that came with the package."""
    return sorted(p.parent.name for p in ZOO.glob(f"*/{SPEC_FILE}"))


def world_folder(name: str | os.PathLike[str]) -> Path:
    """Where a world lies: a zoo name, a folder, or `hub:owner/name` (core/hub.py)."""
    if isinstance(name, str) and name.startswith(HUB):
        from dreamloop.models.core.hub import hub_folder
        return hub_folder(name, (SPEC_FILE, WEIGHTS_FILE, STARTS_FILE, CARD_FILE, FIGURES_FILE))
    return ZOO / name if isinstance(name, str) and name in zoo_names() else Path(name)


def load_world(name: str | os.PathLike[str]) -> World:
    """The world of a zoo name, a folder or `hub:owner/name`. Raises `WorldError` with one line that says
    why not."""
    folder = world_folder(name)
    if not os.path.isdir(folder):  # unlike `Path.is_dir`, False for a name that is too long
        known = ", ".join(zoo_names()) or "empty"
        raise WorldError(f"no world {str(name)[:200]!r}: neither a folder nor one of the zoo ({known})")
    try:
        return _load(folder)
    except (OSError, SafetensorError, UnicodeDecodeError) as error:
        raise WorldError(_one_line(f"world {folder.name}: cannot be read: {error}")) from error
    except WorldError as error:
        raise WorldError(_one_line(f"world {folder.name}: {error}")) from error


def _one_line(message: str) -> str:
    """The message without line breaks or terminal escapes: names in a world folder are not to be trusted."""
    return "".join(c if c.isprintable() else "?" for c in message)[:1000]


def _load(folder: Path) -> World:
    for name in (SPEC_FILE, WEIGHTS_FILE, STARTS_FILE):  # a pipe or a device would never end
        if not (folder / name).is_file():
            raise WorldError(f"{name} is missing, or is not a file")
    spec_path = folder / SPEC_FILE
    if spec_path.stat().st_size > MAX_SPEC_BYTES:
        raise WorldError(f"{SPEC_FILE} is larger than {MAX_SPEC_BYTES} bytes")
    try:
        parsed = json.loads(spec_path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:  # ValueError: also a number of more than 4300 digits
        raise WorldError(f"{SPEC_FILE} is not JSON: {error}") from error
    spec = specs.from_json(parsed)
    shapes = specs.weight_shapes(spec)
    size = 4 * sum(int(np.prod(shape, dtype=object)) for shape in shapes.values())
    if size > MAX_WEIGHT_BYTES:
        raise WorldError(f"the specification asks for {size} bytes of weights, above the cap of {MAX_WEIGHT_BYTES}")
    weights = _read_weights(folder / WEIGHTS_FILE, shapes)
    starts = _read_starts(folder / STARTS_FILE, spec)
    card_path = folder / CARD_FILE
    card = ""
    if card_path.is_file():
        with card_path.open("rb") as file:
            card = file.read(MAX_SPEC_BYTES).decode("utf-8", "replace")
    return World(spec, weights, starts, _hash(folder), card, _read_figures(folder / FIGURES_FILE))


def _read_figures(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    if path.stat().st_size > MAX_SPEC_BYTES:
        raise WorldError(f"{path.name} is larger than {MAX_SPEC_BYTES} bytes")
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise WorldError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(found, dict) or not set(found) <= {"assets", "evaluation"}:
        raise WorldError(f"{path.name}: expected an object of assets and evaluation")
    if not isinstance(found.get("assets", ""), str) or not isinstance(found.get("evaluation", {}), dict):
        raise WorldError(f"{path.name}: assets must be a text, evaluation an object")
    return found


def _read_weights(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    with safe_open(path, framework="np") as file:
        names = set(file.keys())
        known = set(shapes) | {name + quantize.SCALE for name in shapes}
        if unknown := sorted(names - known):
            raise WorldError(f"{path.name}: unknown tensor {unknown[0][:200]}")
        if missing := sorted(set(shapes) - names):
            raise WorldError(f"{path.name}: missing tensor {missing[0]}")
        for name, shape in shapes.items():
            scaled = name + quantize.SCALE in names
            if scaled and file.get_slice(name).get_dtype() == "U8":
                _check_deflated(file, path, name, shape)
            else:
                _check(file, path, name, shape, "I8" if scaled else "F32")
            if scaled:
                _check(file, path, name + quantize.SCALE, shape[:1], "F32")
        weights = {}
        for name in shapes:
            value = file.get_tensor(name)
            if name + quantize.SCALE in names:
                if value.dtype == np.uint8:
                    try:
                        value = quantize.inflate(value, shapes[name])
                    except ValueError as error:
                        raise WorldError(f"{path.name}: tensor {name} {error}") from error
                with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
                    value = quantize.dequantize(value, file.get_tensor(name + quantize.SCALE))
            if not np.isfinite(value).all():
                raise WorldError(f"{path.name}: tensor {name} holds a value that is not finite")
            if name == "autoencoder.latent_std" and not (value > 0).all():
                raise WorldError(f"{path.name}: tensor {name} holds a value that is not above 0")
            weights[name] = value
    return weights


def _check(file: safe_open, path: Path, name: str, shape: tuple[int, ...], dtype: str) -> None:
    found = file.get_slice(name)
    if tuple(found.get_shape()) != shape or found.get_dtype() != dtype:
        raise WorldError(f"{path.name}: tensor {name} is {found.get_dtype()} {tuple(found.get_shape())}, "
                         f"expected {dtype} {shape}")


def _check_deflated(file: safe_open, path: Path, name: str, shape: tuple[int, ...]) -> None:
    found, most = tuple(file.get_slice(name).get_shape()), quantize.most_bytes(shape)
    if len(found) != 1 or found[0] > most:
        raise WorldError(f"{path.name}: tensor {name} is U8 {found}, expected no more than {most} deflated codes")


def _read_starts(path: Path, spec: WorldSpec) -> np.ndarray:
    """The start frames, (N, H, W, 3) uint8, from either form."""
    with safe_open(path, framework="np") as file:
        names = set(file.keys())
        if names not in ({"frames"}, {"frames", "palette"}):
            raise WorldError(f"{path.name}: expected `frames`, and `palette` if they are indices, found "
                             f"{', '.join(sorted(names))[:200]}")
        frame = (spec.frame_height, spec.frame_width, *(() if "palette" in names else (3,)))
        shape, dtype = tuple(file.get_slice("frames").get_shape()), file.get_slice("frames").get_dtype()
        if dtype != "U8" or len(shape) != 1 + len(frame) or shape[1:] != frame or shape[0] < 1:
            raise WorldError(f"{path.name}: frames is {dtype} {shape}, expected U8 (N >= 1, "
                             f"{', '.join(map(str, frame))})")
        if shape[0] * spec.frame_height * spec.frame_width * 3 > MAX_START_BYTES:
            raise WorldError(f"{path.name}: frames take more than {MAX_START_BYTES} bytes")
        if "palette" not in names:
            return file.get_tensor("frames")
        colours, dtype = tuple(file.get_slice("palette").get_shape()), file.get_slice("palette").get_dtype()
        if dtype != "U8" or len(colours) != 2 or not 1 <= colours[0] <= COLOURS or colours[1] != 3:
            raise WorldError(f"{path.name}: palette is {dtype} {colours}, expected U8 (1..{COLOURS}, 3)")
        indices = file.get_tensor("frames")
        if indices.max() >= colours[0]:
            raise WorldError(f"{path.name}: frames hold colour {indices.max()}, palette has {colours[0]}")
        return file.get_tensor("palette")[indices]


def _stored_starts(starts: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors of the smaller form of start frames (N, H, W, 3): a third, for games that draw with a palette."""
    frames = np.ascontiguousarray(starts, np.uint8)
    codes = frames.reshape(-1, 3) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    found, indices = np.unique(codes, return_inverse=True)
    if len(found) > COLOURS:
        return {"frames": frames}
    palette = (found[:, None] >> np.array([16, 8, 0], np.uint32)).astype(np.uint8)
    return {"frames": indices.reshape(frames.shape[:-1]).astype(np.uint8), "palette": palette}


def _hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in (SPEC_FILE, WEIGHTS_FILE, STARTS_FILE):
        with (folder / name).open("rb") as file:
            digest.update(name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def save_world(folder: str | os.PathLike[str], spec: WorldSpec, weights: dict[str, np.ndarray],
               starts: np.ndarray, card: str) -> World:
    """Write a world folder, large tensors as deflated codes, and read it back: what is returned
    has exactly the weights that a player of the folder will get.

    weights: float32, the names and shapes of `weight_shapes(spec)`; starts: (N, H, W, 3) uint8.
    """
    target = Path(folder)
    stored: dict[str, np.ndarray] = {}
    for name, shape in specs.weight_shapes(spec).items():
        value = np.ascontiguousarray(weights[name], np.float32)
        if value.shape != shape:
            raise WorldError(f"tensor {name} has shape {value.shape}, expected {shape}")
        if not np.isfinite(value).all():  # codes have no NaN: it would be stored as a channel of zeros
            raise WorldError(f"tensor {name} holds a value that is not finite")
        if quantize.is_quantized(shape):
            codes, stored[name + quantize.SCALE] = quantize.quantize(value)
            stored[name] = quantize.deflate(codes)
        else:
            stored[name] = value
    target.mkdir(parents=True, exist_ok=True)
    save_file(stored, target / WEIGHTS_FILE)
    save_file(_stored_starts(starts), target / STARTS_FILE)
    (target / SPEC_FILE).write_text(json.dumps(specs.to_json(spec), indent=2) + "\n", "utf-8")
    (target / CARD_FILE).write_text(card, "utf-8")
    return load_world(target)
