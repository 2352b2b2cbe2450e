"""What the host hands an engine for one pass: condition, rotary angles, plan, slots, noise.

Every engine calls `pass_inputs` and so cannot disagree about them.

Rotary position (RoPE, Su et al. 2021) in three dimensions. A head of size D has D/2 pairs, pair i
made of elements (i, i + D/2):

    q'_i = q_i cos - q_(i+D/2) sin        q'_(i+D/2) = q_i sin + q_(i+D/2) cos

The first half of the pairs turns with time, the third quarter with the token's row, the last
with its column. Time is the absolute frame index; angles are made in float64 here and rounded to
float32, so a session of days has exact differences. Keys are stored rotated. A sink's key is
stored without its time rotation and turned at each pass for the time t - min(t - s, max_age).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dreamloop.models.core import memory, noise
from dreamloop.models.core.plan import Plan, build_plan, narrowed
from dreamloop.models.core.spec import LEVEL_FEATURES, WorldSpec


@dataclass(frozen=True)
class PassInputs:
    """Inputs of one pass of B players, all numpy float32 unless stated.

    condition     (B, condition_size)        action, then features of noise level, step size, history noise
    action        (B, A)
    noise         (B, C, latent height, latent width)
    cos, sin      (B, T, D/2)                rotation of this frame's queries and keys
    store_cos, store_sin  (B, T, D/2)        rotation of the keys as they are written to the ring
                                             (the same, but without time where the frame is a sink)
    sink_cos, sink_sin    (B, sinks, D/2)    rotation of each sink slot's stored keys at this pass
    slot          (B,) int64                 the slot that this frame is written to
    plan          Plan
    """

    condition: np.ndarray
    action: np.ndarray
    noise: np.ndarray
    cos: np.ndarray
    sin: np.ndarray
    store_cos: np.ndarray
    store_sin: np.ndarray
    sink_cos: np.ndarray
    sink_sin: np.ndarray
    slot: np.ndarray
    plan: Plan


def level_features(level: np.ndarray) -> np.ndarray:
    """Sines and cosines of levels in [0, 1]: (...,) -> (..., LEVEL_FEATURES) float32."""
    octaves = 0.5 * np.pi * 2.0 ** np.arange(LEVEL_FEATURES // 2)
    angle = np.asarray(level, np.float64)[..., None] * octaves
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1).astype(np.float32)


def condition(action: np.ndarray, noise_level: np.ndarray, step_size: np.ndarray,
              history_noise: np.ndarray) -> np.ndarray:
    """Condition of frames. action: (..., A); levels: (...,); returns (..., condition_size)."""
    levels = [level_features(level) for level in (noise_level, step_size, history_noise)]
    return np.concatenate([np.asarray(action, np.float32), *levels], axis=-1)


def _frequencies(spec: WorldSpec, pairs: int) -> np.ndarray:
    return spec.dynamics.rope_base ** (-np.arange(pairs) / pairs)


def time_angles(spec: WorldSpec, frames: np.ndarray) -> np.ndarray:
    """Angles of the time pairs, zero for the others: (...,) frame indices -> (..., D/2) float64."""
    pairs = spec.dynamics.head_size // 2
    angles = np.zeros((*np.shape(frames), pairs))
    angles[..., : pairs // 2] = np.asarray(frames, np.float64)[..., None] * _frequencies(spec, pairs // 2)
    return angles


@lru_cache(maxsize=8)
def space_angles(spec: WorldSpec) -> np.ndarray:
    """Angles of the row and column pairs of each token, zero for time: (T, D/2) float64."""
    pairs = spec.dynamics.head_size // 2
    rows, columns = np.divmod(np.arange(spec.tokens), spec.grid[1])
    frequencies = _frequencies(spec, pairs // 4)
    angles = np.zeros((spec.tokens, pairs))
    angles[:, pairs // 2 : pairs // 2 + pairs // 4] = rows[:, None] * frequencies
    angles[:, pairs // 2 + pairs // 4 :] = columns[:, None] * frequencies
    return angles


@lru_cache(maxsize=8)
def _space_rotation(spec: WorldSpec) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of `space_angles`, (1, T, D/2) float32 each: the same for every frame, but for the time
    pairs, which are ones and zeros here."""
    angles = space_angles(spec)[None]
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _rotation(spec: WorldSpec, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of the angles of every token at a time, (B,) -> (B, T, D/2) float32 each."""
    first = spec.dynamics.head_size // 4  # pairs that turn with time
    angles = time_angles(spec, times)[:, None, :first]
    found = []
    for space, turned in zip(_space_rotation(spec), (np.cos(angles), np.sin(angles)), strict=True):
        whole = space.repeat(len(times), axis=0)
        whole[..., :first] = turned
        found.append(whole)
    return found[0], found[1]


@lru_cache(maxsize=64)
def play_levels(sigma: float) -> np.ndarray:
    """The part of a pass's condition that no player chooses, (3 LEVEL_FEATURES,): every pass, the first of several
    too, makes the clean latent, so it goes all the way from its noise level, and nobody adds noise to the history."""
    return np.concatenate([level_features(np.array(value)) for value in (sigma, sigma, 0.0)])


def _are_sinks(spec: WorldSpec, frames: np.ndarray) -> np.ndarray:
    return np.array([memory.is_sink(spec.memory, int(f)) for f in frames])


def sink_times(spec: WorldSpec, frame: int) -> np.ndarray:
    """The time each sink slot's key is turned to at `frame`: t - min(t - s, max_age), (sinks,)."""
    sinks = np.arange(1, spec.memory.sink_frames + 1)
    return frame - np.minimum(frame - sinks, spec.memory.max_age)


def pass_inputs(spec: WorldSpec, frames: np.ndarray, seeds: np.ndarray, actions: np.ndarray,
                index: int = 0, view_frames: int | None = None) -> PassInputs:
    """Inputs of pass `index` for B players about to make the frames `frames`.

    frames: (B,) int64, each >= 1; seeds: (B,) uint64; actions: (B, A) float32; view_frames: read no frame that
    lies so many or more back, see `narrowed`.
    """
    batch, d = len(frames), spec.dynamics
    cos, sin = _rotation(spec, frames)
    store_cos, store_sin = cos, sin
    if spec.memory.sink_frames:
        store_cos, store_sin = _rotation(spec, np.where(_are_sinks(spec, frames), 0, frames))
    sinks = np.array([sink_times(spec, int(f)) for f in frames]).reshape(batch, spec.memory.sink_frames)
    sink_angles = time_angles(spec, sinks)
    sink_cos, sink_sin = np.cos(sink_angles).astype(np.float32), np.sin(sink_angles).astype(np.float32)
    size = int(np.prod(spec.latent_shape))
    plan = build_plan(spec, frames)
    drawn = [noise.normal(int(s), int(f), size, index) for s, f in zip(seeds, frames, strict=True)]
    return PassInputs(
        condition=np.concatenate([actions, play_levels(d.sigmas[index])[None].repeat(batch, axis=0)], axis=-1,
                                 dtype=np.float32),
        action=np.asarray(actions, np.float32),
        noise=np.stack(drawn).reshape(batch, *spec.latent_shape),
        cos=cos, sin=sin, store_cos=store_cos, store_sin=store_sin, sink_cos=sink_cos, sink_sin=sink_sin,
        slot=np.array([memory.slot_of(spec.memory, int(f)) for f in frames], np.int64),
        plan=plan if view_frames is None else narrowed(plan, spec, frames, view_frames))
