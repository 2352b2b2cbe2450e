"""The C interface from C: the example plays a packed world, and dreams what Python dreams."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from shapes import WORLDS
from worlds import tiny_world

from dreamloop.models.core import packed
from dreamloop.models.core.world import World
from dreamloop.runtime import Session, kernels

FRAMES, HOLD_FRAMES, SEED, TIER = 41, 16, 7, "portable"

if reason := kernels.available():
    pytest.skip(reason, allow_module_level=True)
if not (shutil.which("cmake") and (shutil.which("c++") or shutil.which("g++"))):
    pytest.skip("no compiler to build the example with", allow_module_level=True)


@pytest.fixture(scope="session")
def example(library: Path) -> Path:
    return library / "embed"


def played(example: Path, file: Path, frames: int = FRAMES) -> np.ndarray:
    """The last frame that the example wrote, (H, W, 3) uint8."""
    picture = file.with_suffix(".ppm")
    done = subprocess.run([str(example), str(file), str(frames), str(picture)], capture_output=True, text=True,
                          env={**os.environ, kernels.ISA_VARIABLE: TIER})
    assert done.returncode == 0, done.stderr
    assert f"{frames} frames" in done.stdout and "turn_left turn_right attack" in done.stdout and TIER in done.stdout
    header, data = picture.read_bytes().split(b" 255\n")
    width, height = map(int, header.split()[1:])
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)


def in_python(world: World, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    monkeypatch.setenv(kernels.ISA_VARIABLE, TIER)
    names = world.spec.actions.names
    with Session(world, engine="native", seed=SEED) as session:
        for frame in range(FRAMES):
            session.advance({names[frame // HOLD_FRAMES % len(names)]})
        return session.render().pixels


@pytest.mark.parametrize("name", WORLDS)
def test_c_dreams_what_python_dreams(example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Noise, memory, plan and angles are written twice: forty frames of feedback would show any difference."""
    world = tiny_world(tmp_path / "world", **WORLDS[name])
    packed.save_packed(world, tmp_path / "world.dream")
    expected = in_python(world, monkeypatch)
    difference = np.abs(played(example, tmp_path / "world.dream").astype(int) - expected)
    assert difference.max() <= 1 and difference.mean() <= 0.01  # a library may round an angle's last bit otherwise
    assert expected.std() > 10


@pytest.mark.parametrize("damage", ["cut", "other magic", "no file"])
def test_a_bad_file_is_one_line_and_no_frame(example: Path, tmp_path: Path, damage: str) -> None:
    file = tmp_path / "world.dream"
    data = bytearray(packed.pack(tiny_world(tmp_path / "world")))
    if damage == "cut":
        data = data[:-1]
    elif damage == "other magic":
        data[0] ^= 1
    if damage != "no file":
        file.write_bytes(data)
    done = subprocess.run([str(example), str(file), "3"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("embed: ") and done.stderr.count("\n") == 1
