"""Worlds on the Hugging Face Hub: `load_world("hub:owner/name")`, `hub:owner/name@revision`.

A repository holds a world folder's files. What is fetched lies in huggingface_hub's own cache, is
found there again without a network, and is as untrusted as any folder.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from dreamloop.models.core.errors import WorldError

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"


def hub_folder(name: str, files: Sequence[str]) -> Path:
    """The folder of the cache that holds `files` of a repository, fetched where they are not there yet.
    Raises `WorldError` with one line: a name that is none, a package that is missing, what the hub said."""
    found = re.fullmatch(rf"({_PART}/{_PART})(?:@([A-Za-z0-9._/-]{{1,200}}))?", name.removeprefix("hub:"))
    if not found:
        raise WorldError(f"{name[:200]!r}: expected hub:owner/name or hub:owner/name@revision")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise WorldError(f"{name} needs huggingface_hub ({error}); pip install 'dreamloop[hub]'") from error
    try:
        return Path(snapshot_download(found[1], revision=found[2], allow_patterns=list(files)))
    except Exception as error:  # its own errors, those of its HTTP client and of the file system
        reason = " ".join(str(error).split())[:300]
        raise WorldError(f"{name}: the hub gave nothing: {type(error).__name__}: {reason}") from error
