"""World folders to be refused: how they are written, and how a refusal looks."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from dreamloop.models.core.errors import WorldError
from dreamloop.models.core.world import SPEC_FILE, STARTS_FILE, WEIGHTS_FILE, load_world

DATA_FILES = (SPEC_FILE, WEIGHTS_FILE, STARTS_FILE)
MEMORY_CAP_BYTES = 48 << 20  # far above what the tiny world takes, far below what a hostile one asks for


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """A fresh folder with these files."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def refusal(folder: Path) -> str:
    """The one line with which a folder is refused, having taken little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(WorldError) as caught:
            load_world(folder)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert message and message.isprintable(), f"not one printable line: {message!r}"
    assert peak < MEMORY_CAP_BYTES
    return message


def header(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the tensor bytes of a safetensors file."""
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def with_header(head: dict[str, Any], body: bytes, size: int | None = None) -> bytes:
    text = json.dumps(head).encode()
    return (len(text) if size is None else size).to_bytes(8, "little") + text + body
