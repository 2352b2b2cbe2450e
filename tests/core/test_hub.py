"""Worlds from the Hub, out of a cache as huggingface_hub keeps it; no network is asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from worlds import tiny_world

from dreamloop.models.core.errors import WorldError
from dreamloop.models.core.world import load_world

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cached(cache: Path, owner: str, name: str) -> str:
    """A tiny world as a downloaded snapshot: files are links to blobs, a branch is a file that names a
    commit. Returns the world's hash."""
    repository = cache / f"models--{owner}--{name}"
    snapshot, blobs = repository / "snapshots" / COMMIT, repository / "blobs"
    world = tiny_world(snapshot)
    blobs.mkdir()
    for number, file in enumerate(sorted(snapshot.iterdir())):
        file.rename(blobs / f"{number:040d}")
        file.symlink_to(Path("../../blobs") / f"{number:040d}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return world.hash


def loaded(name: str, cache: Path) -> tuple[str, str]:
    """(hash, error) of `load_world(name)` in a fresh interpreter: the package reads its settings once."""
    code = ("import sys, json\nfrom dreamloop.models import DreamloopError, load_world\n"
            "try:\n    print(json.dumps([load_world(sys.argv[1]).hash, '']))\n"
            "except DreamloopError as error:\n    print(json.dumps(['', str(error)]))\n")
    done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, check=True,
                          env={**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"})
    found, error = json.loads(done.stdout.splitlines()[-1])
    return found, error


def test_a_world_of_the_hub_is_loaded_from_its_cache(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="worlds of the Hub: pip install 'dreamloop[hub]'")
    world_hash = cached(tmp_path, "somebody", "tiny-world")
    assert loaded("hub:somebody/tiny-world", tmp_path) == (world_hash, "")
    assert loaded(f"hub:somebody/tiny-world@{COMMIT}", tmp_path) == (world_hash, "")
    found, error = loaded("hub:somebody/another", tmp_path)
    assert not found and error.startswith("hub:somebody/another: the hub gave nothing: ") and "\n" not in error


@pytest.mark.parametrize("name", ["hub:", "hub:tiny", "hub:a/b/c", "hub:../b", "hub:a/..", "hub:a/b@", "hub:a/b c",
                                  "hub:https://a/b", "hub:a/b@" + "x" * 300])
def test_a_name_that_is_none_is_refused_before_anything_is_asked(name: str) -> None:
    with pytest.raises(WorldError, match="expected hub:owner/name"):
        load_world(name)


def test_without_the_package_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(WorldError, match=r"needs huggingface_hub .* pip install 'dreamloop\[hub\]'"):
        load_world("hub:somebody/tiny-world")
