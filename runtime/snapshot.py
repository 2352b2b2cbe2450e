"""A bookmark of a session, and its file.

    session.snapshot().save("before-the-boss.safetensors")
    session.restore(Snapshot.load("before-the-boss.safetensors"))

The file is safetensors: `latent` (C, latent height, latent width) float32, `slots` (n,) int64 with
`parts` (n, L, 2, H, T_padded, D) for the n slots that hold a frame, and `given` (H, W, 3) uint8 where
the picture was given. Its metadata say which world and which engine it belongs to. A file is
untrusted input: what does not fit is refused in one line. It holds one moment, no history.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from dreamloop.models.core.errors import DreamloopError
from dreamloop.runtime.history import Mark, Moment, Timeline
from dreamloop.runtime.slots import plain

STATE_FORMAT = 1
MAX_STATE_BYTES = 4 << 30
MAX_SLOTS = 1 << 16
MAX_INDEX = 1 << 53  # beyond it float64, which times are made in, skips frames


class StateError(DreamloopError):
    """A state file that was refused; nothing was loaded."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Everything that the next frames of a session follow from, and the past it can rewind into;
    immutable, restored any number of times. world_hash and engine: what it belongs to."""

    world_hash: str
    engine: Mapping[str, Any] = field(repr=False)
    moment: Moment = field(repr=False)
    timeline: Timeline = field(repr=False)

    @property
    def index(self) -> int:
        """Index of the frame that it shows."""
        return self.moment.index

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the moment to a file, whole or not at all; the history stays behind."""
        from safetensors.numpy import save
        moment, target = self.moment, Path(path)
        slots = [i for i, part in enumerate(moment.parts) if part is not None]
        tensors = {"latent": moment.latent, "slots": np.array(slots, np.int64)}
        if slots:
            tensors["parts"] = np.stack([plain(moment.parts[i]) for i in slots])
        if moment.given is not None:
            tensors["given"] = moment.given
        said = {"state": STATE_FORMAT, "world_hash": self.world_hash, "engine": dict(self.engine),
                "index": moment.index, "seed": moment.seed, "slot_count": len(moment.parts)}
        data = save({name: np.ascontiguousarray(value) for name, value in tensors.items()},
                    {"dreamloop": json.dumps(said)})
        part_file = target.parent / f"{target.name}.part"
        try:
            part_file.write_bytes(data)
            os.replace(part_file, target)
        except OSError as error:
            with contextlib.suppress(OSError):
                part_file.unlink()
            raise DreamloopError(f"cannot write {target}: {error.strerror}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file that `save` wrote. Raises `StateError`; `Session.restore` checks the rest."""
        from safetensors import SafetensorError, safe_open
        source = Path(path)
        try:
            size = source.stat().st_size
            if size > MAX_STATE_BYTES:
                raise StateError(f"{source.name}: {size} bytes are above the cap of {MAX_STATE_BYTES}")
            with safe_open(source, framework="np") as file:
                said = _said(source.name, (file.metadata() or {}).get("dreamloop", ""))
                _check_tensors(source.name, file, said["slot_count"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        except OSError as error:
            raise StateError(f"cannot read {source}: {error.strerror or error}") from error
        except (SafetensorError, UnicodeDecodeError, ValueError, OverflowError) as error:
            raise StateError(f"{source.name} is not a state file: {str(error)[:200]}") from error
        return cls._of(source.name, said, tensors)

    @classmethod
    def _of(cls, name: str, said: dict[str, Any], tensors: dict[str, np.ndarray]) -> Self:
        parts: list[np.ndarray | None] = [None] * said["slot_count"]
        for value in tensors.values():
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise StateError(f"{name} holds a value that is not finite")
            value.setflags(write=False)
        for slot, part in zip(tensors["slots"], tensors.get("parts", ()), strict=True):
            if not 0 <= slot < len(parts) or parts[slot] is not None:
                raise StateError(f"{name}: slot {slot} is not one of {len(parts)}, or stands twice")
            parts[int(slot)] = part
        moment = Moment(said["index"], said["seed"], tensors["latent"], tensors.get("given"), tuple(parts))
        return cls(said["world_hash"], said["engine"], moment, Timeline((Mark(moment),), moment.bytes_after(None)))


def _said(name: str, text: str) -> dict[str, Any]:
    """The metadata of a state file, every value of the type and range that it must have."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict) or said.get("state") != STATE_FORMAT:
        raise StateError(f"{name} is not a state file of this version of dreamloop")
    ranges = {"index": MAX_INDEX, "seed": 1 << 64, "slot_count": MAX_SLOTS}
    good = all(type(said.get(key)) is int and 0 <= said[key] < top for key, top in ranges.items())
    if not good or not isinstance(said.get("world_hash"), str) or not isinstance(said.get("engine"), dict):
        raise StateError(f"{name}: its metadata are not those of a state")
    return said


def _check_tensors(name: str, file: Any, slot_count: int) -> None:
    """Names, numbers of dimensions and types, before any memory is taken."""
    wanted = {"latent": (3, ("F32",)), "slots": (1, ("I64",)), "given": (3, ("U8",)),
              "parts": (6, ("F32", "F64", "F16", "I16", "U16", "I8", "U8"))}
    found = set(file.keys())
    if unknown := sorted(found - set(wanted)):
        raise StateError(f"{name}: unknown tensor {unknown[0][:100]!r}")
    if missing := sorted({"latent", "slots"} - found):
        raise StateError(f"{name}: missing tensor {missing[0]}")
    for key in found:
        shape, kind = file.get_slice(key).get_shape(), file.get_slice(key).get_dtype()
        dimensions, kinds = wanted[key]
        if len(shape) != dimensions or kind not in kinds:
            raise StateError(f"{name}: tensor {key} is {kind} {tuple(shape)}, expected {dimensions} dimensions "
                             f"of {' or '.join(kinds)}")
    slots = file.get_slice("slots").get_shape()[0]
    parts = file.get_slice("parts").get_shape()[0] if "parts" in found else 0
    if slots != parts or slots > slot_count:
        raise StateError(f"{name}: {parts} parts for {slots} slots of {slot_count}")
