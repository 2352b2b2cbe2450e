"""Makes the helper of this folder importable (`from shapes import WORLDS`), and builds the C library once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = str(Path(__file__).resolve().parent)
if HERE not in sys.path:
    sys.path.insert(0, HERE)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `libdreamloop.a` and the example `embed`, built by CMake from the sources as they are; the
    portable tier alone and hardly optimised, so that it takes seconds."""
    folder = tmp_path_factory.mktemp("embed")
    for command in (["cmake", "-S", ROOT, "-B", folder, "-DDREAMLOOP_PYTHON=OFF", "-DDREAMLOOP_OPTIMISE=-O1",
                     "-DDREAMLOOP_X86_TIERS=OFF"],
                    ["cmake", "--build", folder, "--target", "embed"]):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder
