"""Time as an input: the loop asks a clock, and a test hands it another one."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds; only differences mean anything."""

    def now(self) -> float:
        """Seconds since some fixed moment, never falling."""

    def sleep_until(self, deadline_s: float) -> None:
        """Return at `deadline_s` or as soon after it as possible; at once if it has passed."""


class SystemClock:
    """The machine's own clock."""

    def now(self) -> float:
        return time.perf_counter()

    def sleep_until(self, deadline_s: float) -> None:
        while (left := deadline_s - time.perf_counter()) > 0:
            time.sleep(left)
