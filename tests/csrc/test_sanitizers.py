"""The C example under the sanitizers of the compiler: `make sanitize`.

Every tier, precision and shape of memory plays for a while on three threads. The thread sanitizer watches the pool,
the address and undefined-behaviour sanitizers watch the kernels. A report ends the program with an error.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from shapes import WORLDS
from worlds import tiny_world

from dreamloop.models.core import packed
from dreamloop.runtime import kernels

pytestmark = pytest.mark.long
ROOT = Path(__file__).resolve().parents[2]

if reason := kernels.available():
    pytest.skip(reason, allow_module_level=True)
if not (shutil.which("cmake") and (shutil.which("c++") or shutil.which("g++"))):
    pytest.skip("no compiler to build the example with", allow_module_level=True)


@pytest.fixture(scope="module", params=["address,undefined", "thread"])
def example(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sanitize")
    for command in (["cmake", "-S", ROOT, "-B", folder, "-DDREAMLOOP_PYTHON=OFF", "-DDREAMLOOP_OPTIMISE=-O1",
                     f"-DDREAMLOOP_SANITIZE={request.param}"],
                    ["cmake", "--build", folder, "--target", "embed"]):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "embed"


@pytest.mark.parametrize("tier", kernels.instruction_tiers())
@pytest.mark.parametrize("name", WORLDS)
def test_no_sanitizer_has_anything_to_say(example: Path, tmp_path: Path, name: str, tier: str) -> None:
    packed.save_packed(tiny_world(tmp_path / "world", **WORLDS[name]), tmp_path / "world.dream")
    for precision in ("fp32", "bf16", "int8"):
        command = [example, tmp_path / "world.dream", "24", tmp_path / "last.ppm", precision, "3"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True,
                              env={**os.environ, kernels.ISA_VARIABLE: tier})
        assert done.returncode == 0, f"{precision}: {done.stderr}"
        assert done.stderr == "" and f"{tier} {precision} on 3 threads" in done.stdout
