"""How a world is run: engines, the session of a player, the frame loop, the profiler.

    from dreamloop.runtime import Session

    with Session("doom-arena", seed=7) as session:
        frame = session.step({"turn_left", "attack"})
"""

from __future__ import annotations

from dreamloop.runtime.batch import BatchedSession
from dreamloop.runtime.clock import SystemClock
from dreamloop.runtime.drift import Alarm, DriftMonitor
from dreamloop.runtime.engines import Engine, State, engine_status, open_engine
from dreamloop.runtime.history import HistoryError
from dreamloop.runtime.loop import Command, FrameLoop, Presented
from dreamloop.runtime.profiler import Profiler
from dreamloop.runtime.session import FaultError, Frame, Session
from dreamloop.runtime.snapshot import Snapshot, StateError

__all__ = ["Alarm", "BatchedSession", "Command", "DriftMonitor", "Engine", "FaultError", "Frame", "FrameLoop",
           "HistoryError", "Presented", "Profiler", "Session", "Snapshot", "State", "StateError", "SystemClock",
           "engine_status", "open_engine"]
