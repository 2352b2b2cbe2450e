"""A long game on a one-layer world, everything switched on, in a process of its own.

    python tests/endurance.py FOLDER FRAMES

Prints one line of JSON: resident memory at frame 1000 and the most afterwards, in bytes, how far the last frame's
beat lies from where it should, in seconds, and the hash of the last frame.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from clocks import FakeClock
from worlds import tiny_world

from dreamloop.demos.action_log import ActionLog
from dreamloop.demos.scripted import ScriptedSource
from dreamloop.demos.sinks import NoSink, Sinks
from dreamloop.models.core.spec import DynamicsSpec
from dreamloop.runtime import Command, DriftMonitor, FrameLoop, Profiler, Session
from dreamloop.runtime.engines import AUTO_ORDER, engine_status
from dreamloop.runtime.replay import frame_hash

BUDGET_MS, JITTER_S = 20.0, 0.002
SETTLED_FRAMES, LOOK_EVERY_FRAMES = 1000, 500


class Keys(ScriptedSource):
    """Scripted keys that note when the second and the latest were read."""

    def __init__(self, session: Session, clock: FakeClock) -> None:
        super().__init__(session.world.spec.actions, seed=1)
        self.clock, self.count, self.second_s, self.last_s = clock, 0, 0.0, 0.0

    def read(self) -> Command:
        self.count, self.last_s = self.count + 1, self.clock.now()
        if self.count == 2:
            self.second_s = self.last_s
        return super().read()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGESIZE")


def main(folder: str, frames: int) -> None:
    world = tiny_world(folder, dynamics=DynamicsSpec(width=32, layers=1, heads=2, mlp_width=48))
    name = next(name for name in AUTO_ORDER if name != "torch" and engine_status(name).available)
    clock, settled, most = FakeClock(JITTER_S), 0, 0
    with Session(world, name, seed=2, threads=1) as session, ActionLog(os.devnull, session, 0) as log:
        keys = Keys(session, clock)
        loop = FrameLoop(session, keys, Sinks(NoSink(), log), BUDGET_MS, "degrade", clock,
                         Profiler(capacity=SETTLED_FRAMES), DriftMonitor(session.engine))
        for shown in loop.frames(frames):
            log.write(shown)
            if shown.id == SETTLED_FRAMES:
                settled = resident_bytes()
            elif shown.id > SETTLED_FRAMES and shown.id % LOOK_EVERY_FRAMES == 0:
                most = max(most, resident_bytes())
        drift_s = keys.last_s - keys.second_s - (frames - 2) * BUDGET_MS / 1000
        print(json.dumps({"engine": name, "frames": frames, "settled_bytes": settled, "most_bytes": most,
                          "drift_s": drift_s, "hash": frame_hash(session.render().pixels)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
