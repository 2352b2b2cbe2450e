"""The user's cache folder: what an engine builds from a world, so that it is built once.

    $XDG_CACHE_HOME/dreamloop, or ~/.cache/dreamloop
      onnx/<world name>/<world hash>/step-portable-fp32-b1-v2-onnx1.20.onnx     and its .sha256
      tensorrt/<world name>/<world hash>/...

A file is taken from here only when its checksum holds. A folder that cannot be written costs the
time of building and nothing more. Of one world name, the newest few worlds are kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path

from dreamloop.models.core.world import World

KEPT_WORLDS = 3  # per world name: training again and again makes worlds of one name
HASH = re.compile("[0-9a-f]{64}")


def cache_folder(library: str) -> Path:
    """Where things for `library` are kept; it need not exist. Raises `RuntimeError` where there is no home folder."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if os.path.isabs(base) else Path("~").expanduser() / ".cache"
    return root / "dreamloop" / library


def world_folder(library: str, world: World) -> Path:
    """The folder of one world; a name never leads out of the cache."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", world.name)[:60] or "_"
    return cache_folder(library) / name / world.hash


def read(path: Path) -> bytes | None:
    """The file's bytes, where it is there and its checksum holds."""
    try:
        data, written = path.read_bytes(), checksum_path(path).read_text("ascii").strip()
    except (OSError, ValueError):
        return None
    if hashlib.sha256(data).hexdigest() != written:
        return None
    with contextlib.suppress(OSError):
        os.utime(path.parent)  # this world is in use
    return data


def write(path: Path, data: bytes) -> None:
    """The file and its checksum, each at once or not at all; a reader between the two finds a wrong checksum.
    Does nothing where the folder cannot be written. Then forgets the oldest worlds of the same name."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        for target, content in ((path, data), (checksum_path(path), hashlib.sha256(data).hexdigest().encode())):
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=target.name)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
                os.replace(temporary, target)
            except OSError:
                Path(temporary).unlink(missing_ok=True)
                raise
        _forget(path.parent)


def checksum_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _forget(kept: Path) -> None:
    """Remove the folders of all but the newest worlds beside `kept`, which stays, and those of versions that
    laid worlds of all names side by side."""
    beside = [folder for folder in kept.parent.iterdir() if folder != kept and HASH.fullmatch(folder.name)]
    beside.sort(key=lambda folder: folder.stat().st_mtime, reverse=True)
    old = [folder for folder in kept.parent.parent.iterdir() if HASH.fullmatch(folder.name)]
    for folder in [*beside[KEPT_WORLDS - 1 :], *old]:
        shutil.rmtree(folder, ignore_errors=True)
