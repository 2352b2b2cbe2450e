"""Built graphs in the user's cache folder: $XDG_CACHE_HOME/dreamloop/onnx, or ~/.cache/dreamloop/onnx.

    <world hash>/step-portable-fp32-b1-v1-onnx1.20.onnx           the model
    <world hash>/step-portable-fp32-b1-v1-onnx1.20.onnx.sha256    its checksum

A graph is taken from here only when its checksum holds and its metadata name this very world, form,
precision, batch and builder; anything else is built anew and written over. A folder that cannot be
written costs the time of building and nothing more.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from dreamloop.models.core.world import World
from dreamloop.runtime.engines import onnx_graph


def cache_folder() -> Path:
    """Where graphs are kept; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if os.path.isabs(base) else Path("~").expanduser() / ".cache"
    return root / "dreamloop" / "onnx"


def cache_path(world: World, kind: str, batch: int) -> Path:
    """The file of one graph; its name holds everything that the graph depends on."""
    name = f"{kind}-portable-fp32-b{batch}-v{onnx_graph.BUILDER_VERSION}-onnx{onnx.__version__}.onnx"
    return cache_folder() / world.hash / name


def load_or_build(world: World, kind: str, batch: int) -> bytes:
    """The serialised model `kind` of a world, from the cache where it holds an intact one."""
    try:
        path = cache_path(world, kind, batch)
    except RuntimeError:  # no home folder to be found
        return onnx_graph.build(world, kind, batch).SerializeToString()
    found = _read(path, onnx_graph.identity(world, kind, batch))
    if found is not None:
        return found
    data = onnx_graph.build(world, kind, batch).SerializeToString()
    with contextlib.suppress(OSError):  # the cache saves time; without it the world plays just the same
        _write(path, data)
    return data


def _read(path: Path, identity: dict[str, str]) -> bytes | None:
    """The file's bytes, or None unless they are whole and say that they are `identity`."""
    try:
        data = path.read_bytes()
        written = _checksum_path(path).read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return None
    if hashlib.sha256(data).hexdigest() != written:
        return None
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError:
        return None
    said = {entry.key: entry.value for entry in model.metadata_props}
    return data if all(said.get(key) == value for key, value in identity.items()) else None


def _checksum_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _write(path: Path, data: bytes) -> None:
    """Both files, each at once or not at all; a reader between the two finds a wrong checksum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for target, content in ((path, data), (_checksum_path(path), hashlib.sha256(data).hexdigest().encode())):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=target.name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(temporary, target)
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise
