"""Frames go straight into memory that the caller owns: an array, a window's surface, another process's memory."""

from __future__ import annotations

import subprocess
import sys
from multiprocessing import shared_memory
from pathlib import Path

import numpy as np
import pygame
import pytest
from worlds import tiny_world

from dreamloop.runtime import Session, kernels
from dreamloop.runtime.engines.native_engine import NativeEngine

if reason := kernels.available():
    pytest.skip(reason, allow_module_level=True)


class Watched(NativeEngine):
    """Frames that are not written in place would have to be decoded to an array of their own."""

    def decode(self, latents: np.ndarray) -> np.ndarray:
        raise AssertionError("a frame was decoded elsewhere and copied")


def frames_of(folder: Path, count: int) -> list[np.ndarray]:
    with Session(tiny_world(folder), engine="native", seed=5) as session:
        return [session.step({"turn_left"}).pixels for _ in range(count)]


def watched_session(folder: Path) -> Session:
    world = tiny_world(folder)
    session = Session(world, engine="native", seed=5)
    session.engine = Watched(world)
    return session


def test_into_an_array_and_into_a_part_of_one(tmp_path: Path) -> None:
    expected = frames_of(tmp_path / "a", 3)
    canvas = np.full((3, 50, 70, 3), 9, np.uint8)
    with watched_session(tmp_path / "b") as session:
        for i, frame in enumerate(expected):
            part = canvas[i, 5:37, 11:59]
            assert session.step({"turn_left"}, out=part).pixels is part
            assert np.array_equal(part, frame)
    canvas[:, 5:37, 11:59] = 9
    assert (canvas == 9).all()  # nothing beside it was touched


def test_into_the_surface_of_a_window(tmp_path: Path) -> None:
    """Three bytes a pixel in the order red, green, blue; pygame may pad the rows."""
    expected = frames_of(tmp_path / "a", 3)
    surface = pygame.Surface((48, 32), 0, 24, (0xFF, 0xFF00, 0xFF0000, 0))
    with watched_session(tmp_path / "b") as session:
        for frame in expected:
            pixels = pygame.surfarray.pixels3d(surface).swapaxes(0, 1)
            session.step({"turn_left"}, out=pixels)
            del pixels  # the surface is locked as long as this view lives
            assert surface.get_at((17, 5))[:3] == tuple(frame[5, 17])
            assert np.array_equal(pygame.surfarray.array3d(surface).swapaxes(0, 1), frame)


def test_into_memory_that_another_process_reads(tmp_path: Path) -> None:
    expected = frames_of(tmp_path / "a", 2)[-1]
    memory = shared_memory.SharedMemory(create=True, size=32 * 48 * 3)
    try:
        pixels = np.ndarray((32, 48, 3), np.uint8, memory.buf)
        with watched_session(tmp_path / "b") as session:
            for _ in range(2):
                session.step({"turn_left"}, out=pixels)
        reader = ("import sys; from multiprocessing import resource_tracker, shared_memory; "
                  "m = shared_memory.SharedMemory(sys.argv[1]); print(bytes(m.buf[:32 * 48 * 3]).hex()); m.close(); "
                  "resource_tracker.unregister(m._name, 'shared_memory')")
        done = subprocess.run([sys.executable, "-c", reader, memory.name], capture_output=True, text=True, check=True)
        assert bytes.fromhex(done.stdout) == expected.tobytes()
        del pixels
    finally:
        memory.close()
        memory.unlink()
