"""The torch engine: cached equals uncached in every shape of memory, and what its errors say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
from worlds import random_frames, tiny_world

from dreamloop.models.core.errors import EngineError
from dreamloop.runtime.engines.torch_engine import CompiledTorchEngine, TorchEngine

STEP_BOUND = 1e-5  # of float32 against float64, one step, latents and keys of order one


PLAYED = {**oracle.SCENARIOS, **oracle.WITH_LINEAR}


@pytest.mark.parametrize("overrides", PLAYED.values(), ids=PLAYED)
def test_cached_equals_uncached(tmp_path: Path, overrides: dict[str, Any]) -> None:
    oracle.check_cached_equals_uncached(TorchEngine(tiny_world(tmp_path, **overrides)))


def test_players_at_different_frames_go_on_as_if_alone(tmp_path: Path) -> None:
    oracle.check_players_at_different_frames(TorchEngine(tiny_world(tmp_path)))


def test_one_step_stays_near_float64(tmp_path: Path) -> None:
    error, _ = oracle.step_errors(TorchEngine(tiny_world(tmp_path)))
    assert error <= STEP_BOUND


def test_the_comparison_notices_what_it_should(tmp_path: Path) -> None:
    """An engine that reads one key too few is far beyond the bound: the bound separates right from wrong."""
    world = tiny_world(tmp_path)
    engine = TorchEngine(world)
    state = oracle.start(engine, seed=3)
    history = oracle.play(engine, state, 12)[0]
    state.ring[:, 0, :, :, 0] = 0  # one token's keys of the first sink
    oracle.play(engine, state, 1, [history])
    error = np.abs(history.latents[-1] - oracle.uncached(world, history)[-1]).max()
    assert error > oracle.CACHED_BOUND


def test_a_frame_changes_its_own_slot_alone(tmp_path: Path) -> None:
    engine = TorchEngine(tiny_world(tmp_path))
    state = oracle.start(engine, seed=1)
    oracle.play(engine, state, 1)
    assert oracle.ring_of(state)[..., :6, :].all() and not oracle.ring_of(state)[..., 6:, :].any()


def test_frames_survive_padding_and_batching(tmp_path: Path) -> None:
    world = tiny_world(tmp_path, frame_height=30, frame_width=44)
    engine = TorchEngine(world)
    frames = random_frames(world.spec, 3)
    latents = engine.encode(frames)
    assert latents.shape == (3, *world.spec.latent_shape) and latents.dtype == np.float32
    decoded = engine.decode(latents)
    assert decoded.shape == frames.shape and decoded.dtype == np.uint8
    alone = np.concatenate([engine.decode(engine.encode(frame[None])) for frame in frames])
    assert np.abs(decoded.astype(int) - alone).max() <= 1


@pytest.mark.parametrize("name", [n for n, over in oracle.SCENARIOS.items() if "top_k" not in str(over)])
def test_the_compiled_engine_traces_and_steps_as_the_plain_one(tmp_path: Path, name: str) -> None:
    """Traced whole (`fullgraph`), with nothing compiled: what `dreamloop bench` times must at least be the same."""
    error, _ = oracle.step_errors(CompiledTorchEngine(tiny_world(tmp_path, **PLAYED[name]), backend="eager"))
    assert error <= STEP_BOUND


def test_an_unknown_precision_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="fp32") as caught:
        TorchEngine(tiny_world(tmp_path), precision="fp7")
    assert "\n" not in str(caught.value)
