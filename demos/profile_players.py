"""What players who come and go cost those who stay. A part of the verb `dreamloop profile`.

    dreamloop profile doom-arena --players 4 --frames 1000 --json

Several players share one pass (`BatchedSession`). In turn one leaves and, some frames later, one joins; a frame's time
is what everybody waits for: the coming and going, the pass and the decoding. Frames around a change are the one in
which it happened and the next.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dreamloop.demos.play import PlayOptions, settled_memory
from dreamloop.demos.scripted import ScriptedSource
from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.world import World
from dreamloop.runtime.batch import BatchedSession
from dreamloop.runtime.clock import Clock, SystemClock
from dreamloop.runtime.engines import open_engine
from dreamloop.runtime.engines.base import Engine
from dreamloop.runtime.profiler import percentiles

CHANGE_EVERY_FRAMES = 10
AROUND_FRAMES = 2
KINDS = ("nobody", "leaving", "joining")


def profile_players(world: World, players: int, options: PlayOptions) -> dict[str, Any]:
    """Play, print a table; returns the report of `dreamloop profile --players --json`."""
    if options.form is not None or options.pipelined or not options.headless:
        raise DreamloopError("--players plays without a window and in one stage: leave --form, --window and "
                             "--pipelined out")
    engine = open_engine(world, options.engine, options.precision, options.threads)
    times = frame_times_ms(world, players, engine, options.frames or 0, options.seed)
    report = {"world": world.name, "engine": engine.name, "precision": engine.precision, "players": players,
              **changes(times)}
    print(f"{'ms a frame of ' + str(players):<18}{'p50':>9}{'p95':>9}{'p99':>9}{'worst':>9}{'frames':>9}")
    for kind in KINDS:
        row = report[kind]
        print(f"{kind:<18}" + "".join(f"{row[f'{name}_ms']:9.2f}" for name in ("p50", "p95", "p99", "worst"))
              + f"{row['frames']:9}")
    print(f"worst frame around a change: {report['ratio']:.2f} of the median without one; worst frame without one: "
          f"{report['ratio_without']:.2f}")
    return report


def frame_times_ms(world: World, players: int, engine: Engine, frames: int, seed: int = 0,
                   clock: Clock | None = None) -> dict[str, list[float]]:
    """Kind of frame (`KINDS`) -> milliseconds of those frames. The player on the last seat never leaves."""
    fewest = 2 * CHANGE_EVERY_FRAMES
    if players < 2 or frames < fewest:
        raise DreamloopError(f"players={players} and frames={frames} must be 2 and {fewest} or more: somebody stays "
                             "while another leaves and joins")
    now = (clock or SystemClock()).now
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with BatchedSession(world, players, engine) as game, settled_memory():
        keys = [ScriptedSource(world.spec.actions, seed + seat) for seat in range(players)]
        for seat in range(players):
            game.join(seed + seat)
        for _ in range(world.spec.memory.slots):  # until every memory is full
            game.step({seat: keys[seat].read().action for seat in game.players})
        kind, since = "nobody", AROUND_FRAMES
        for frame in range(frames):
            begun = now()
            if frame % CHANGE_EVERY_FRAMES == 0:
                since = 0
                if kind != "leaving":
                    kind = "leaving"
                    game.leave(game.players[frame // fewest % (players - 1)])
                else:
                    kind = "joining"
                    game.join(seed + players + frame, frame // fewest % len(world.starts))
            game.step({seat: keys[seat].read().action for seat in game.players})
            times[kind if since < AROUND_FRAMES else "nobody"].append(1000 * (now() - begun))
            since += 1
    return times


def changes(times: dict[str, list[float]]) -> dict[str, Any]:
    """The percentiles of each kind of frame, and two worst frames over the median of those without a change: `ratio`,
    around one, and `ratio_without`, which is what the machine does by itself."""
    rows = {kind: {"frames": len(values), **{name: round(value, 4) for name, value in percentiles(values).items()}}
            for kind, values in times.items()}
    median = float(np.median(times["nobody"]))
    around = max(times["leaving"] + times["joining"])
    return {**rows, "ratio": round(around / median, 4), "ratio_without": round(max(times["nobody"]) / median, 4)}
