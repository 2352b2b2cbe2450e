"""A game of any length: memory stays flat, time does not drift, and the last frame is the same every time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dreamloop.runtime import engine_status

PROGRAM = Path(__file__).resolve().parents[1] / "endurance.py"
GROWTH_BYTES = 1_000_000  # after the first thousand frames

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="resident memory is read from /proc"),
    pytest.mark.skipif(not any(engine_status(name).available for name in ("native", "onnxruntime")),
                       reason="no engine without torch can run here")]


def played(folder: Path, frames: int) -> dict[str, Any]:
    done = subprocess.run([sys.executable, str(PROGRAM), str(folder), str(frames)], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def check(folder: Path, frames: int) -> None:
    first, second = played(folder, frames), played(folder, frames)
    for report in (first, second):
        print(report)
        assert 0 < report["most_bytes"] <= report["settled_bytes"] + GROWTH_BYTES, report
        assert abs(report["drift_s"]) < 1e-6, report
    assert first["hash"] == second["hash"]


def test_three_thousand_frames_take_no_more_memory_than_the_first_thousand(tmp_path: Path) -> None:
    check(tmp_path, 3000)


@pytest.mark.long
def test_a_million_frames_take_no_more_memory_than_the_first_thousand(tmp_path: Path) -> None:
    check(tmp_path, 1_000_000)
