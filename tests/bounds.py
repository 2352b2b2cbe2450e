"""What a long count of hostile cases may take: time for each of them, memory for all.

    for case in bounded(range(10_000), growth_bytes=50_000_000):
        ...
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

CASE_SECONDS = 120.0  # a case takes milliseconds; so long only hangs take, even on a machine that is busy elsewhere

Case = TypeVar("Case")


def _peak_bytes() -> int:
    """The most memory that was ever resident, or since `_forget_peak`."""
    status = Path("/proc/self/status").read_text("ascii")
    return next(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", "ascii")


def _hang(*_: Any) -> None:
    raise AssertionError(f"a case took more than {CASE_SECONDS:.0f} seconds")


def bounded(cases: Iterable[Case], growth_bytes: int) -> Iterator[Case]:
    """The cases; fails where one of them takes `CASE_SECONDS`, or all together make the process grow by more than
    `growth_bytes` at any time. Says what they took."""
    count, begun, before = 0, time.perf_counter(), signal.signal(signal.SIGALRM, _hang)
    try:
        for count, case in enumerate(cases, start=1):
            if count == 2:  # the first case imports what all of them use
                _forget_peak()
                settled = _peak_bytes()
            signal.setitimer(signal.ITIMER_REAL, CASE_SECONDS)
            yield case
            signal.setitimer(signal.ITIMER_REAL, 0)
        growth = _peak_bytes() - settled
        print(f"{count} cases in {time.perf_counter() - begun:.0f} s; resident memory grew by {growth} bytes at most")
        assert growth <= growth_bytes, growth
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
