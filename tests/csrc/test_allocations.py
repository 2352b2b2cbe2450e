"""A world takes no memory after its first frame, and a process does not grow, however long it plays."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
from shapes import WORLDS
from worlds import tiny_world

from dreamloop.models.core import packed
from dreamloop.runtime import Session, kernels

HERE = Path(__file__).resolve().parent

if reason := kernels.available():
    pytest.skip(reason, allow_module_level=True)
if not (shutil.which("cmake") and shutil.which("cc") and shutil.which("c++")):
    pytest.skip("no compiler to build the counting program with", allow_module_level=True)
if platform.libc_ver()[0] != "glibc":
    pytest.skip("the counting program stands on glibc's own names of malloc", allow_module_level=True)


@pytest.fixture(scope="session")
def counting(library: Path) -> Path:
    for command in (["cc", "-O1", "-I", HERE.parents[1] / "csrc" / "include", "-c", HERE / "allocations.c", "-o",
                     library / "allocations.o"],
                    ["c++", library / "allocations.o", library / "libdreamloop.a", "-lpthread", "-o",
                     library / "allocations"]):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return library / "allocations"


def counted(counting: Path, file: Path, precision: str, frames: int, threads: int = 2) -> tuple[int, int]:
    """(how often memory was taken after the first frame, kilobytes that the process grew after frame 1,000)."""
    done = subprocess.run([str(counting), str(file), precision, str(threads), str(frames)], capture_output=True,
                          text=True, env={**os.environ, kernels.ISA_VARIABLE: "portable"})
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    return int(words[0]), int(words[2])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int8-static"])
def test_no_memory_is_taken_after_the_first_frame(counting: Path, tmp_path: Path, precision: str) -> None:
    """Past every wrap-around of the ring, with noise, plan and angles made in C as well."""
    for name, overrides in WORLDS.items():
        packed.save_packed(tiny_world(tmp_path / name, **overrides), tmp_path / f"{name}.dream")
        assert counted(counting, tmp_path / f"{name}.dream", precision, 60)[0] == 0, name


@pytest.mark.long
def test_a_hundred_thousand_frames_take_no_more_than_a_thousand(counting: Path, tmp_path: Path) -> None:
    packed.save_packed(tiny_world(tmp_path / "world"), tmp_path / "world.dream")
    taken, grown_kb = counted(counting, tmp_path / "world.dream", "int8", 100_000)
    assert taken == 0 and grown_kb <= 1024


@pytest.mark.long
def test_a_session_of_a_hundred_thousand_frames_takes_no_more_than_one_of_a_thousand(tmp_path: Path) -> None:
    """In Python, with history: what it keeps is full after a thousand frames."""
    def resident_kb() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") // 1024

    with Session(tiny_world(tmp_path), engine="native") as session:
        for _ in range(1100):
            session.step({"attack"})
        before = resident_kb()
        for _ in range(100_000 - 1100):
            session.step({"turn_left"})
        assert session.index == 100_000 and resident_kb() - before <= 1024
