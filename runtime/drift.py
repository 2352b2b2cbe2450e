"""Watch a dream for what should not happen: drifting away, or an engine that no longer computes the world.

    loop = FrameLoop(session, source, sink, budget_ms, monitor=DriftMonitor(session.engine, reanchor=True))

What is known of a healthy dream without having seen one, all of it from the world's own files:

    mean, spread   of a frame's latent: near those of the start frames, in units of their spread
    saturation     share of latent values well beyond anything that a start frame has
    motion         mean change of the latent in a frame: below most of what two latents differ by that have nothing
                   to do with each other, for a dream that is another one in every frame only flickers
    key_norm       keys are RMS-normalised and then scaled by the layer's gain, so their length lies between
                   sqrt(D) times its smallest and its largest gain, and rotation changes nothing of that
    slots          a frame changes the keys of its own slot, and of no other
    canary         now and then the engine makes one and the same frame from nothing; its numbers must be the
                   first time's, so changed weights or broken arithmetic show at once

    finite         no frame was refused by the session for not being finite (`FaultError`)

The first four are judged over half a second, for a dream may be wild for a moment. Their bounds are ratios to the
start frames' own statistics, wide enough for the worlds of the zoo.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from dreamloop.models.core import memory
from dreamloop.runtime.engines.base import Engine, turn_of
from dreamloop.runtime.engines.native_engine import floats_of
from dreamloop.runtime.session import Session
from dreamloop.runtime.slots import plain

JUDGED_FRAMES = 16  # half a second
KEPT_ALARMS = 240
CANARY_EVERY_FRAMES = 40
CANARY_TOLERANCE = 1e-3  # of the change that the canary frame makes; an engine that promises its bits is at 0
KEY_NORM_MARGIN = 0.03  # of the bound: what half precision rounds
SPREAD_FACTOR = 1.6
MEAN_SLACK = 0.3  # of the largest spread
FLICKER = 0.8  # of that distance; a turn on the spot, which changes most of the picture, comes to half of it
SATURATED, MAX_SATURATION = 1.5, 0.005  # of the largest absolute value of a start frame; share of values


@dataclass(frozen=True)
class Alarm:
    """A statistic that left its bounds at a frame; text: one line for a player or a log."""

    frame: int
    statistic: str
    text: str


@dataclass(frozen=True)
class Bounds:
    """Lowest and highest value of each statistic that has a range."""

    ranges: dict[str, tuple[float, float]]
    saturated: float  # the absolute value that counts as saturated
    key_norms: np.ndarray  # (L, 2): shortest and longest key of each layer

    @classmethod
    def of(cls, engine: Engine, starts: np.ndarray) -> Bounds:
        """From the latents of the start frames, (N, C, latent height, latent width), and the weights."""
        d = engine.world.spec.dynamics
        means, spreads = starts.mean(axis=(1, 2, 3)), starts.std(axis=(1, 2, 3))
        # the mean distance of two independent normal values; start frames themselves may show one and the same view
        apart = FLICKER * float(2 / np.sqrt(np.pi) * spreads.max())
        slack = MEAN_SLACK * float(spreads.max())
        gains = np.abs([engine.world.weights[f"dynamics.blocks.{layer}.key_norm"] for layer in range(d.layers)])
        norms = np.sqrt(d.head_size) * np.stack([gains.min(axis=1) * (1 - KEY_NORM_MARGIN),
                                                 gains.max(axis=1) * (1 + KEY_NORM_MARGIN)], axis=1)
        return cls({"mean": (float(means.min()) - slack, float(means.max()) + slack),
                    "spread": (float(spreads.min()) / SPREAD_FACTOR, float(spreads.max()) * SPREAD_FACTOR),
                    "saturation": (0.0, MAX_SATURATION), "motion": (0.0, apart)},
                   SATURATED * float(np.abs(starts).max()), norms)


class DriftMonitor:
    """Looks at every frame of one session, after it was made. reanchor: ask the loop, at an alarm, to start
    again from the start frame that lies nearest to the last healthy one.

    values: the newest statistics by name; alarms: the newest, one for each time that a statistic left its
    bounds; count: how many there were in all. Costs tens of microseconds a frame, and one frame's time every
    `canary_every_frames` (0: never).
    """

    def __init__(self, engine: Engine, reanchor: bool = False, canary_every_frames: int = CANARY_EVERY_FRAMES) -> None:
        self.spec, self.reanchor, self.canary_every_frames = engine.world.spec, reanchor, canary_every_frames
        self.starts = engine.encode(engine.world.starts)
        self.bounds = Bounds.of(engine, self.starts)
        self._canary_state = engine.new_state(1)
        self._canary = self._canary_latent(engine)
        self.values: dict[str, float] = {}
        self.alarms: deque[Alarm] = deque(maxlen=KEPT_ALARMS)
        self.count = 0
        self._recent: dict[str, deque[float]] = {name: deque(maxlen=JUDGED_FRAMES) for name in self.bounds.ranges}
        self._out: set[str] = set()
        self._healthy = self.starts[0]
        self._observed = 0
        self._index = -1
        self._latent: np.ndarray | None = None
        self._probe: np.ndarray | None = None

    def observe(self, session: Session) -> list[Alarm]:
        """Judge the frame that the session stands at; returns the alarms that it newly gave."""
        index, latent, probe = session.index, session.latent, _probe(session)
        follows = index == self._index + 1 and self._latent is not None
        found: dict[str, str] = {}
        if follows:
            assert self._latent is not None and self._probe is not None
            self._statistics(latent, self._latent)
            changed = np.flatnonzero((probe != self._probe).any(axis=1))
            own = memory.slot_of(self.spec.memory, index)
            if list(changed) != [own]:
                found["slots"] = f"wrote the slots {', '.join(map(str, changed)) or 'of none'}, not slot {own}"
            if text := self._wrong_key_norm(session, index):
                found["key_norm"] = text
        else:
            for values in self._recent.values():
                values.clear()
        self._index, self._latent, self._probe = index, latent, probe
        self._observed += 1
        if self.canary_every_frames and self._observed % self.canary_every_frames == 0:
            found.update(self._wrong_canary(session.engine))
        elif "canary" in self._out:
            found["canary"] = ""  # until the next one says otherwise
        found.update(self._out_of_range())
        alarms = [Alarm(index, name, f"{name} at frame {index}: {text}")
                  for name, text in found.items() if name not in self._out]
        self._out = set(found)
        if not found:
            self._healthy = latent
        return self._given(alarms)

    def fault(self, session: Session, text: str) -> list[Alarm]:
        """The session has refused a frame, and stands at the last good one."""
        alarms = [] if "finite" in self._out else [Alarm(session.index, "finite", text)]
        self._out.add("finite")
        return self._given(alarms)

    def _given(self, alarms: list[Alarm]) -> list[Alarm]:
        self.alarms += alarms
        self.count += len(alarms)
        return alarms

    def forget(self) -> None:
        """The session went somewhere else: the next frame is not compared with the last."""
        self._latent = None

    def anchor(self) -> int:
        """Index of the start frame nearest to the last healthy frame, by their latents."""
        return int(np.square(self.starts - self._healthy).sum(axis=(1, 2, 3)).argmin())

    def _statistics(self, latent: np.ndarray, before: np.ndarray) -> None:
        self.values.update(mean=float(latent.mean()), spread=float(latent.std()),
                           saturation=float((np.abs(latent) > self.bounds.saturated).mean()),
                           motion=float(np.abs(latent - before).mean()))
        for name, values in self._recent.items():
            values.append(self.values[name])

    def _out_of_range(self) -> dict[str, str]:
        found = {}
        for name, (low, high) in self.bounds.ranges.items():
            values = self._recent[name]
            if len(values) == JUDGED_FRAMES and not low <= (value := sum(values) / JUDGED_FRAMES) <= high:
                found[name] = f"{value:.3f} over {JUDGED_FRAMES} frames, outside {low:.3f} to {high:.3f}"
        return found

    def _wrong_key_norm(self, session: Session, index: int) -> str:
        """Keys of this frame, one layer a frame in turn."""
        layer = index % self.spec.dynamics.layers
        keys = _keys(session, layer, memory.slot_of(self.spec.memory, index), self.spec)
        if keys is None:
            return ""
        lengths = np.sqrt(np.square(keys, dtype=np.float64).sum(axis=-1))
        low, high = self.bounds.key_norms[layer]
        shortest, longest = float(lengths.min()), float(lengths.max())
        self.values["key_norm"] = float(lengths.mean())
        if low <= shortest and longest <= high:
            return ""
        return f"keys of layer {layer} are {shortest:.3f} to {longest:.3f} long, outside {low:.3f} to {high:.3f}"

    def _wrong_canary(self, engine: Engine) -> dict[str, str]:
        change = float(np.abs(self._canary - self.starts[0]).max())
        difference = float(np.abs(self._canary_latent(engine) - self._canary).max()) / max(change, 1e-9)
        self.values["canary"] = difference
        if difference <= CANARY_TOLERANCE:
            return {}
        return {"canary": f"a frame made from nothing differs by {100 * difference:.3g}% from the first time"}

    def _canary_latent(self, engine: Engine) -> np.ndarray:
        """z of frame 1 after the first start frame, no key pressed, seed 0."""
        state = self._canary_state
        state.latent, state.frame = self.starts[:1].copy(), np.zeros(1, np.int64)
        with turn_of(engine):
            engine.step(state, np.zeros((1, self.spec.actions.size), np.float32))
        return state.latent[0].copy()


def _probe(session: Session) -> np.ndarray:
    """A few keys of every slot, (S, D): last layer, first head, first token. A copy."""
    return plain(session.ring[-1, 0, 0, 0, :: session.world.spec.tokens_padded]).copy()


def _keys(session: Session, layer: int, slot: int, spec: Any) -> np.ndarray | None:
    """Keys of one layer and slot, (H, T, D), or None where the ring does not hold plain numbers."""
    first = slot * spec.tokens_padded
    keys = session.ring[layer, 0, 0, :, first : first + spec.tokens]
    if not isinstance(keys, np.ndarray):
        keys = keys.float().cpu().numpy()
    keys = floats_of(keys)
    return keys if keys.dtype.kind == "f" else None
