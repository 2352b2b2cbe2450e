"""The engine and its C example for 64-bit ARM, where the portable tier's registers are NEON: built, and run where an
emulator is there."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from worlds import tiny_world

from dreamloop.models.core import packed

ROOT = Path(__file__).resolve().parents[2]
TARGET = "aarch64-linux-gnu"

if not (shutil.which("cmake") and shutil.which(f"{TARGET}-g++") and shutil.which(f"{TARGET}-gcc")):
    pytest.skip(f"no cross compiler {TARGET}-g++", allow_module_level=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arm")
    for command in (["cmake", "-S", ROOT, "-B", folder, "-DDREAMLOOP_PYTHON=OFF", "-DDREAMLOOP_OPTIMISE=-O2",
                     "-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", "-DCMAKE_CXX_FLAGS=-Werror",
                     f"-DCMAKE_C_COMPILER={TARGET}-gcc", f"-DCMAKE_CXX_COMPILER={TARGET}-g++",
                     "-DCMAKE_EXE_LINKER_FLAGS=-static"],
                    ["cmake", "--build", folder, "--target", "embed"]):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_it_builds_for_arm_with_its_vector_instructions(folder: Path) -> None:
    (product,) = folder.rglob("product.cpp.o")
    done = subprocess.run([f"{TARGET}-objdump", "-d", str(product)], capture_output=True, text=True, check=True)
    for instruction in ("fmla", "smull2", "addp"):  # sums of float32; pairs of int16 into int32
        assert f"\t{instruction}\tv" in done.stdout, instruction


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_arm_dreams_what_this_machine_dreams(folder: Path, library: Path, tmp_path: Path, precision: str) -> None:
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if not emulator:
        pytest.skip("no qemu-aarch64 to run it with")
    packed.save_packed(tiny_world(tmp_path / "world"), tmp_path / "world.dream")
    pictures = []
    for command in ([emulator, folder / "embed"], [library / "embed"]):
        picture = tmp_path / f"{len(pictures)}.ppm"
        done = subprocess.run(list(map(str, [*command, tmp_path / "world.dream", 21, picture, precision, 1])),
                              capture_output=True, text=True, env={"DREAMLOOP_ISA": "portable"})
        assert done.returncode == 0, done.stderr
        pictures.append(picture.read_bytes())
    largest = max(abs(a - b) for a, b in zip(*pictures, strict=True))
    assert largest <= (1 if precision == "fp32" else 8)  # sums of float32 are contracted otherwise
