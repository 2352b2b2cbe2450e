"""The Triton kernels compiled ahead of time, with no GPU: they fit every architecture and spill nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton comes with dreamloop[gpu]")
SCRIPT = Path(__file__).with_name("ahead_of_time.py")
SHARED_BYTES = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10, 120: 99 << 10}  # of a program, CUDA programming guide
ELSEWHERE = ("attention_shipped", "attention_pong", "attention_waypoint", "rows", "heads")  # in `make test`
QUICK = ("attention_wan_int8", "narrow_int8", "attention_arena", "attention_arena_fp32", "heads_top_k", "rows_fp8",
         "schedule_radial", "schedule_dilated", "noise", "linear_wan")
H200 = ("attention_wan", "attention_wan_split", "attention_wan_fp8", "attention_sweep_64", "attention_sweep_128",
        "attention_sweep_128_int8", "narrow_fp8")  # what its bench runs, besides
CROWDED = ("attention_sweep_64", "attention_sweep_128_int8")  # registers are scarcest there


@pytest.mark.parametrize(("arch", "names"), [
    (89, QUICK), (80, ELSEWHERE), (90, (*ELSEWHERE, *QUICK, *H200)), (120, (*ELSEWHERE, *CROWDED)),
    *(pytest.param(arch, (), marks=pytest.mark.long) for arch in SHARED_BYTES)])
def test_kernels_fit_and_spill_nothing(arch: int, names: tuple[str, ...], tmp_path: Path) -> None:
    """In a process of its own: kernels that were imported to be interpreted cannot be compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, str(SCRIPT), str(arch), *names], capture_output=True, text=True,
                          env={**environment, "TRITON_CACHE_DIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr[-2000:]
    reports = json.loads(done.stdout.splitlines()[-1])
    assert len({report.split(": ")[1] for report in reports}) >= 5  # different kernels
    for name, report in reports.items():
        assert report["shared"] <= SHARED_BYTES[arch], name
        assert report["scratch"] == 0, name
        assert report["spilled"] == 0, name
