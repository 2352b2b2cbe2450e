"""Who plays a plan with a linear branch, and what the others say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import oracle
import pytest
from worlds import tiny_world

from dreamloop.demos.cli import main
from dreamloop.models.core import packed
from dreamloop.models.core.errors import EngineError
from dreamloop.models.core.world import World, load_world
from dreamloop.runtime import Session
from dreamloop.runtime.engines import ENGINE_NAMES, choice_of, open_engine
from dreamloop.runtime.engines.native_engine import NativeEngine
from dreamloop.runtime.engines.onnx_engine import OnnxEngine
from dreamloop.runtime.engines.openvino_engine import OpenVinoEngine
from dreamloop.runtime.engines.torch_engine import CompiledTorchEngine, TorchEngine
from dreamloop.runtime.engines.trt_engine import TensorRTEngine, TensorRTForRTXEngine

WITHOUT = (NativeEngine, OnnxEngine, OpenVinoEngine, CompiledTorchEngine, TensorRTEngine, TensorRTForRTXEngine)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return tiny_world(tmp_path / "branched", **oracle.WITH_LINEAR["linear_window"])


@pytest.mark.parametrize("kind", WITHOUT, ids=lambda kind: kind.name)
def test_an_engine_without_the_branch_says_so_in_one_line(kind: type, world: World) -> None:
    """The engine itself, whoever makes it."""
    with pytest.raises(EngineError, match=r"no linear branch .* torch and triton have it") as caught:
        kind(world)
    assert kind.name in str(caught.value) and "\n" not in str(caught.value)


def test_auto_takes_the_first_that_has_it_and_says_why(world: World) -> None:
    engine = open_engine(world)
    assert engine.name == "torch" and "torch, because native: " in choice_of(engine)
    for name in set(ENGINE_NAMES) - {"torch", "triton"}:
        with pytest.raises(EngineError):
            open_engine(world, name)


def test_the_command_line_and_the_flat_file_refuse_it_in_one_line(world: World, tmp_path: Path,
                                                                  capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "branched")
    assert main(["play", folder, "--engine", "onnxruntime", "--headless", "--frames", "1"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert packed.main([folder, str(tmp_path / "flat.dream")]) == 2
    assert "linear branch" in capsys.readouterr().err and not (tmp_path / "flat.dream").exists()


def test_a_session_goes_back_bit_for_bit(world: World) -> None:
    """The branch keeps nothing of its own: the ring is the whole state."""
    with Session(world, engine="torch", seed=5) as session:
        for _ in range(9):
            session.step({"attack"})
        bookmark = session.snapshot()
        ahead = [session.step({"turn_left"}).pixels for _ in range(5)]
        session.restore(bookmark)
        assert all(np.array_equal(session.step({"turn_left"}).pixels, frame) for frame in ahead)


def test_the_branch_changes_the_dream(world: World, tmp_path: Path) -> None:
    """So an engine that left it out would be found out by the tests that hold engines to the oracle."""
    engine, silent = TorchEngine(world), TorchEngine(load_world(tmp_path / "branched"))
    for block in silent.dynamics.blocks:
        block.skipped.zero_()
    states = [oracle.start(one, seed=3) for one in (engine, silent)]
    for one, state in zip((engine, silent), states, strict=True):
        oracle.play(one, state, 9)
    assert np.abs(states[0].latent - states[1].latent).max() > oracle.CACHED_BOUND
