"""A world as one file: `NAME.dreamworld`, a zip whose entries are stored as they are.

    pack.json             {"format": 1, "name": ..., "hash": ..., "files": {FILE: {"bytes": ..., "sha256": ...}}}
    world.json, weights.safetensors, starts.safetensors, README.md, figures.json      the folder's files

Equal worlds give equal files, byte for byte. A pack is untrusted input: only these names, once each,
stored and not compressed, no larger than a world's files may be; every file is compared with its hash
while it is written to a folder of its own, which takes its place when the world in it loads.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import struct
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from dreamloop.models.core.errors import WorldError
from dreamloop.models.core.world import (
    CARD_FILE,
    FIGURES_FILE,
    MAX_SPEC_BYTES,
    MAX_START_BYTES,
    MAX_WEIGHT_BYTES,
    SPEC_FILE,
    STARTS_FILE,
    WEIGHTS_FILE,
    World,
    load_world,
    world_folder,
)

FORMAT = 1
SUFFIX = ".dreamworld"
PACK_FILE = "pack.json"
HEADER_BYTES = 1 << 20  # what a tensor file has besides its tensors
LIMITS = {SPEC_FILE: MAX_SPEC_BYTES, WEIGHTS_FILE: MAX_WEIGHT_BYTES + HEADER_BYTES,
          STARTS_FILE: MAX_START_BYTES + HEADER_BYTES, CARD_FILE: MAX_SPEC_BYTES, FIGURES_FILE: MAX_SPEC_BYTES}
NEEDED = (SPEC_FILE, WEIGHTS_FILE, STARTS_FILE)
CHUNK_BYTES = 1 << 20
# what zipfile raises for a file that is not what it says
DAMAGED = (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, OverflowError, struct.error)


@dataclass(frozen=True)
class _Entry:
    bytes: int
    sha256: str


def pack(name: str | os.PathLike[str], file: str | os.PathLike[str] | None = None) -> tuple[Path, str]:
    """Write a world of the zoo or a folder to `file` (default: NAME.dreamworld here); returns the path and
    the SHA-256 of the file. Raises `WorldError` for a world that does not load, or a file that is there."""
    world, folder = load_world(name), world_folder(name)
    path = Path(file) if file is not None else Path(f"{world.name}{SUFFIX}")
    if path.exists():
        raise WorldError(f"{path} is there already, and is not overwritten")
    names = [n for n in LIMITS if (folder / n).is_file()]
    entries = {n: dataclasses.asdict(_entry(folder / n)) for n in names}
    manifest = {"format": FORMAT, "name": world.name, "hash": world.hash, "files": entries}
    partial = path.with_name(path.name + ".partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as packed:
            packed.writestr(_information(PACK_FILE), json.dumps(manifest, indent=2) + "\n")
            for n in names:
                with (folder / n).open("rb") as source, packed.open(_information(n), "w", force_zip64=True) as target:
                    shutil.copyfileobj(source, target, CHUNK_BYTES)
        digest = _sha256(partial)
        partial.replace(path)
    except OSError as error:
        raise WorldError(f"cannot write {path}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    return path, digest


def unpack(file: str | os.PathLike[str], out: str | os.PathLike[str] | None = None, sha256: str | None = None) -> World:
    """Write the world of a pack to the folder `out` (default: its name, here) and load it. sha256: what the
    whole file must have. Raises `WorldError` with the entry at fault; then nothing is left behind."""
    path = Path(file)
    try:
        if sha256 is not None and (found := _sha256(path)) != sha256.lower():
            raise WorldError(f"SHA-256 is {found}, expected {sha256[:80]}")
        with zipfile.ZipFile(path) as packed:
            return _unpack(packed, Path(out) if out is not None else None)
    except DAMAGED as error:
        raise WorldError(f"{path.name}: not a pack that can be read: {_line(error)}") from error
    except OSError as error:
        raise WorldError(f"{path.name}: {error.strerror or _line(error)}") from error
    except WorldError as error:
        raise WorldError(f"{path.name}: {error}") from error


def _unpack(packed: zipfile.ZipFile, out: Path | None) -> World:
    infos = packed.infolist()
    for info in infos:
        limit = {**LIMITS, PACK_FILE: MAX_SPEC_BYTES}.get(info.filename)
        if limit is None:
            raise WorldError(f"unknown entry {info.filename[:100]!r}; a pack holds {', '.join((PACK_FILE, *LIMITS))}")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise WorldError(f"{info.filename} is compressed or encrypted; a pack's entries are stored as they are")
        if max(info.file_size, info.compress_size) > limit:
            raise WorldError(f"{info.filename} has {info.file_size} bytes, above the cap of {limit}")
    if len({info.filename for info in infos}) < len(infos):
        raise WorldError("an entry stands twice")
    if PACK_FILE not in packed.namelist():
        raise WorldError(f"{PACK_FILE} is missing")
    name, world_hash, entries = _manifest(packed.read(PACK_FILE))
    if difference := sorted(set(entries) ^ {info.filename for info in infos if info.filename != PACK_FILE}):
        raise WorldError(f"{difference[0]} is in {PACK_FILE} or in the pack, not in both")
    target = out if out is not None else Path(name)
    if os.path.lexists(target):
        raise WorldError(f"{target} is there already, and is not overwritten")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=target.parent) as partial:
        folder = Path(partial) / "world"
        folder.mkdir()
        for n, expected in entries.items():
            _extract(packed, n, expected, folder / n)
        world = load_world(folder)
        if (world.name, world.hash) != (name, world_hash):
            raise WorldError(f"the world is {world.name} {world.hash[:16]}, {PACK_FILE} says "
                             f"{name} {world_hash[:16]}")
        folder.rename(target)
    return world


def _extract(packed: zipfile.ZipFile, name: str, expected: _Entry, target: Path) -> None:
    digest, count = hashlib.sha256(), 0
    with packed.open(name) as source, target.open("wb") as file:
        while chunk := source.read(CHUNK_BYTES):
            count += len(chunk)
            if count > expected.bytes:
                break
            digest.update(chunk)
            file.write(chunk)
    if count != expected.bytes or digest.hexdigest() != expected.sha256:
        raise WorldError(f"{name} does not match its hash in {PACK_FILE}")


def _manifest(raw: bytes) -> tuple[str, str, dict[str, _Entry]]:
    """pack.json, strict: name, world hash, entries."""
    try:
        data = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise WorldError(f"{PACK_FILE} is not JSON: {_line(error)}") from error
    if not isinstance(data, dict) or set(data) != {"format", "name", "hash", "files"}:
        raise WorldError(f"{PACK_FILE}: expected format, name, hash and files")
    if data["format"] != FORMAT:
        raise WorldError(f"{PACK_FILE}: format {str(data['format'])[:20]} is not known here (expected {FORMAT})")
    name, world_hash, files = data["name"], data["hash"], data["files"]
    # the name becomes a folder where the user gives none
    if not isinstance(name, str) or not re.fullmatch(r"[^\W_][\w.+ -]{0,99}", name) or name.endswith("."):
        raise WorldError(f"{PACK_FILE}: name {str(name)[:100]!r} cannot be a folder's; give one")
    if not isinstance(world_hash, str) or not isinstance(files, dict) or not set(NEEDED) <= set(files) <= set(LIMITS):
        raise WorldError(f"{PACK_FILE}: files must be {', '.join(NEEDED)}, and may be {CARD_FILE} and {FIGURES_FILE}")
    for value in files.values():
        if (not isinstance(value, dict) or set(value) != {"bytes", "sha256"} or type(value["bytes"]) is not int
                or not isinstance(value["sha256"], str)):
            raise WorldError(f"{PACK_FILE}: a file has bytes and sha256")
    return name, world_hash, {n: _Entry(v["bytes"], v["sha256"]) for n, v in files.items()}


def _information(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(name)  # of 1980, so that the same world makes the same file


def _entry(path: Path) -> _Entry:
    return _Entry(path.stat().st_size, _sha256(path))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _line(error: BaseException) -> str:
    return "".join(c if c.isprintable() else "?" for c in str(error))[:300] or type(error).__name__
