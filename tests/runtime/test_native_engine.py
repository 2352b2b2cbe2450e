"""The native engine: every instruction tier against the float64 oracle, and the same bits however it is run."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
from worlds import random_frames, tiny_world

from dreamloop.demos.cli import main
from dreamloop.models.core import memory, packed
from dreamloop.models.core.errors import EngineError
from dreamloop.models.core.spec import AutoencoderSpec, DynamicsSpec, MemorySpec, PlanSpec
from dreamloop.runtime import kernels
from dreamloop.runtime.engines import choice_of, engine_status, open_engine
from dreamloop.runtime.engines.native_engine import NativeEngine
from dreamloop.runtime.engines.torch_engine import TorchEngine

if reason := kernels.available():
    pytest.skip(reason, allow_module_level=True)

TIERS = kernels.instruction_tiers()
EVERY_SCENARIO = pytest.mark.parametrize("overrides", oracle.SCENARIOS.values(), ids=oracle.SCENARIOS)


@pytest.fixture(params=TIERS)
def tier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(kernels.ISA_VARIABLE, request.param)
    return str(request.param)


# -- the mathematics --------------------------------------------------------------------------------


@EVERY_SCENARIO
def test_cached_equals_uncached(tmp_path: Path, tier: str, overrides: dict[str, Any]) -> None:
    engine = NativeEngine(tiny_world(tmp_path, **overrides), threads=2)
    assert engine.describe()["tier"] == tier
    oracle.check_cached_equals_uncached(engine)


@EVERY_SCENARIO
def test_a_step_errs_at_most_twice_as_much_as_plain_torch(tmp_path: Path, tier: str, overrides: dict[str, Any]) -> None:
    error, of_torch = oracle.step_errors(NativeEngine(tiny_world(tmp_path, **overrides)))
    assert error <= 2 * of_torch + oracle.FLOOR


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_condition_that_came_before_gives_the_bits_of_a_new_one(tmp_path: Path, precision: str) -> None:
    """What became of the last 16 conditions is kept: the same action again, and one that 20 others have pushed out."""
    world = tiny_world(tmp_path)
    engine = NativeEngine(world, precision)
    state = oracle.start(engine, seed=3)
    for number in [0, 1, 0, 1, *range(20), 0, 19]:
        actions = np.full((1, world.spec.actions.size), number / 20, np.float32)
        fresh = NativeEngine(world, precision)
        expected = state.copy()
        fresh.step(expected, actions)
        engine.step(state, actions)
        assert np.array_equal(state.latent, expected.latent)


def test_sizes_that_fill_no_register(tmp_path: Path, tier: str) -> None:
    """Widths one above and one below those of registers and panels, and an odd number of tokens."""
    world = tiny_world(tmp_path, frame_height=48, frame_width=80,
                       autoencoder=AutoencoderSpec(3, (17, 33, 5), (1, 1, 1), (2, 1, 1)),
                       dynamics=DynamicsSpec(width=72, layers=2, heads=3, mlp_width=131))
    engine = NativeEngine(world, threads=2)
    error, of_torch = oracle.step_errors(engine, 12)
    assert error <= 2 * of_torch + oracle.FLOOR
    check_frames(engine, 2)


@pytest.mark.parametrize("overrides", oracle.CHOSEN_AT_PLAY.values(), ids=oracle.CHOSEN_AT_PLAY)
def test_blocks_that_are_chosen_at_play_are_those_of_torch(tmp_path: Path, tier: str,
                                                           overrides: dict[str, Any]) -> None:
    """Mean keys in the ring included; one choice that differed would be an error of another order."""
    error, of_torch = oracle.step_errors(NativeEngine(tiny_world(tmp_path, **overrides)))
    assert error <= 2 * of_torch + oracle.FLOOR


def test_a_choice_of_every_block_is_dense(tmp_path: Path, tier: str) -> None:
    """With as many blocks as there are, top_k is the uncached whole history of a dense plan; with two it is not."""
    memory = {"memory": MemorySpec(window_frames=9)}
    oracle.check_cached_equals_uncached(
        NativeEngine(tiny_world(tmp_path / "all", plan=PlanSpec("top_k", block_tokens=2, top_blocks=27), **memory)))
    few = NativeEngine(tiny_world(tmp_path / "few", plan=PlanSpec("top_k", block_tokens=2, top_blocks=2), **memory))
    history = oracle.play(few, oracle.start(few, seed=3), 20)[0]
    assert np.max(np.abs(np.stack(history.latents) - oracle.uncached(few.world, history))) > oracle.CACHED_BOUND


def test_players_at_different_frames_go_on_as_if_alone(tmp_path: Path, tier: str) -> None:
    oracle.check_players_at_different_frames(NativeEngine(tiny_world(tmp_path)))


def check_frames(engine: NativeEngine, count: int) -> None:
    """Latents of encoded frames, and the frames decoded from them, equal those of torch."""
    reference = TorchEngine(engine.world)
    frames = random_frames(engine.world.spec, count)
    latents = engine.encode(frames)
    assert latents.dtype == np.float32 and latents.shape == (count, *engine.world.spec.latent_shape)
    assert np.max(np.abs(latents - reference.encode(frames))) <= 1e-4
    decoded, expected = engine.decode(latents), reference.decode(latents)
    assert decoded.dtype == np.uint8 and decoded.shape == frames.shape
    difference = np.abs(decoded.astype(int) - expected)
    assert difference.max() <= 1 and difference.mean() <= 0.01
    assert expected.std() > 10  # not a flat grey, where anything would agree


@pytest.mark.parametrize("size", [(32, 48), (30, 44), (33, 17)], ids=str)
def test_frames_and_latents_equal_those_of_torch(tmp_path: Path, tier: str, size: tuple[int, int]) -> None:
    check_frames(NativeEngine(tiny_world(tmp_path, frame_height=size[0], frame_width=size[1])), 3)


@pytest.mark.parametrize("widths", [(12,), (8, 24), (8, 8, 8, 16)], ids=str)
def test_any_number_of_stages(tmp_path: Path, widths: tuple[int, ...]) -> None:
    blocks = tuple(1 + i % 2 for i in range(len(widths)))
    check_frames(NativeEngine(tiny_world(tmp_path, frame_height=64, frame_width=96,
                                         autoencoder=AutoencoderSpec(4, widths, blocks, blocks))), 2)


def test_very_bright_and_very_dark_latents_are_clamped_not_wrapped(tmp_path: Path, tier: str) -> None:
    world = tiny_world(tmp_path)
    latents = 50 * np.random.default_rng(0).standard_normal((1, *world.spec.latent_shape)).astype(np.float32)
    difference = np.abs(NativeEngine(world).decode(latents).astype(int) - TorchEngine(world).decode(latents))
    assert difference.max() <= 1


# -- the same bits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [*oracle.SCENARIOS.values(), *oracle.CHOSEN_AT_PLAY.values()],
                         ids=[*oracle.SCENARIOS, *oracle.CHOSEN_AT_PLAY])
def test_a_batch_has_the_bits_of_single_sessions_on_any_number_of_threads(tmp_path: Path, tier: str,
                                                                          overrides: dict[str, Any]) -> None:
    world = tiny_world(tmp_path, **overrides)
    one, three = NativeEngine(world, threads=1), NativeEngine(world, threads=3)
    alone = [oracle.start(one, seed) for seed in (1, 2, 3)]
    together = oracle.joined(three, alone)
    for frame in range(12):
        actions = oracle.random_actions(world, 3, frame)
        three.step(together, actions)
        for player, state in enumerate(alone):
            one.step(state, actions[player : player + 1])
    expected = oracle.joined(one, alone)
    assert np.array_equal(together.latent, expected.latent) and np.array_equal(together.ring, expected.ring)
    decoded = three.decode(together.latent)
    assert np.array_equal(decoded, np.concatenate([one.decode(state.latent) for state in alone]))
    assert np.array_equal(three.encode(decoded), one.encode(decoded))


# -- the state --------------------------------------------------------------------------------------


def test_a_frame_changes_its_own_slot_alone_and_keeps_the_ring_in_place(tmp_path: Path) -> None:
    engine = NativeEngine(tiny_world(tmp_path))
    spec, state = engine.world.spec, oracle.start(engine, seed=1)
    ring = state.ring
    for frame in range(1, 20):
        before, latent = ring.copy(), state.latent
        latent_before = latent.copy()
        oracle.play(engine, state, 1)
        changed = (ring != before).any(axis=(0, 1, 2, 3, 5)).reshape(spec.memory.slots, spec.tokens_padded)
        expected = np.zeros_like(changed)
        expected[memory.slot_of(spec.memory, frame), : spec.tokens] = True
        assert (changed == expected).all()
        assert state.ring is ring and (latent == latent_before).all()


def test_frames_go_straight_into_a_part_of_a_larger_picture(tmp_path: Path) -> None:
    engine = NativeEngine(tiny_world(tmp_path))
    latents = oracle.start(engine, seed=1).latent
    picture = np.full((40, 60, 3), 7, np.uint8)
    part = picture[None, 4:36, 6:54]
    engine.decode_into(latents, part)
    assert np.array_equal(part, engine.decode(latents))
    outside = np.ones(picture.shape[:2], bool)
    outside[4:36, 6:54] = False
    assert (picture[outside] == 7).all()


FAULTS: dict[str, tuple[Any, str]] = {
    "double ring": (lambda s: setattr(s, "ring", s.ring.astype(np.float64)), "ring is float64"),
    "ring of another batch": (lambda s: setattr(s, "ring", s.ring.repeat(2, 2)), "ring has shape"),
    "strided ring": (lambda s: setattr(s, "ring", np.asfortranarray(s.ring)), "ring must be contiguous"),
    "read-only ring": (lambda s: s.ring.setflags(write=False), "ring is read-only"),
    "latent of another world": (lambda s: setattr(s, "latent", s.latent[:, :, :1]), "previous has shape")}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_state_that_does_not_fit_is_refused_and_stays_as_it_was(tmp_path: Path, fault: str) -> None:
    engine = NativeEngine(tiny_world(tmp_path))
    state = oracle.start(engine, seed=1)
    change, message = FAULTS[fault]
    change(state)
    before = state.copy()
    with pytest.raises(ValueError, match=message):
        engine.step(state, np.zeros((1, 3), np.float32))
    assert np.array_equal(state.ring, before.ring) and state.frame[0] == 0


def test_pixels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    engine = NativeEngine(tiny_world(tmp_path))
    latents = oracle.start(engine, seed=1).latent
    for frames, message in ((np.zeros((1, 32, 47, 3), np.uint8), "frames has shape"),
                            (np.zeros((1, 32, 48, 3), np.int8), "expected uint8"),
                            (np.zeros((1, 48, 32, 3), np.uint8).swapaxes(1, 2), "contiguous"),
                            (np.broadcast_to(np.zeros((48, 3), np.uint8), (1, 32, 48, 3)), "must not overlap")):
        with pytest.raises(ValueError, match=message):
            engine.decode_into(latents, frames)


def test_engines_of_two_threads_run_side_by_side(tmp_path: Path) -> None:
    world = tiny_world(tmp_path)
    results: list[np.ndarray] = []

    def session() -> None:
        engine = NativeEngine(world, threads=2)
        results.append(np.stack(oracle.play(engine, oracle.start(engine, seed=4), 15)[0].latents))

    threads = [threading.Thread(target=session) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3 and all(np.array_equal(result, results[0]) for result in results)


# -- what it opens ----------------------------------------------------------------------------------


def test_a_packed_world_that_lies_is_refused(tmp_path: Path) -> None:
    """Each of the 64 numbers changed in turn, and the file cut anywhere: a reason, never a kernel."""
    world = tiny_world(tmp_path)
    data = bytes(packed.pack(world))
    module = importlib.import_module("dreamloop.runtime._kernels")

    def opened(changed: bytes) -> None:
        module.World(changed, 1, TIERS[0], "fp32")

    opened(data)
    refused = 0
    used = 3 + 1 + 15 + 18
    for place in range(used):
        for value in (-1, 0, 3, 1 << 20, 1 << 62):
            changed = bytearray(data)
            changed[40 + 8 * place : 48 + 8 * place] = value.to_bytes(8, "little", signed=True)
            try:
                opened(bytes(changed))  # some numbers may be changed without a change of size: max_age, fps
            except ValueError as error:
                assert str(error).startswith("packed world: ")
                refused += 1
    assert refused > 3 * used
    for end in (0, 7, 39, 100, 551, 560, len(data) // 2, len(data) - 1):
        with pytest.raises(ValueError, match="packed world"):
            opened(data[:end])
    with pytest.raises(ValueError, match="ask for"):
        opened(data + b"x")
    end = len(data) - world.starts.nbytes  # of the weights
    with pytest.raises(ValueError, match="not finite"):
        opened(data[: end - 4] + np.float32(np.nan).tobytes() + data[end:])


# -- what it says -----------------------------------------------------------------------------------


def test_describe_identifies_the_arithmetic(tmp_path: Path, tier: str) -> None:
    said = NativeEngine(tiny_world(tmp_path), threads=1).describe()
    assert said == {"engine": "native", "precision": "fp32", "threads": 1, "tier": tier, "device": "cpu"}


def test_auto_picks_native_and_says_so(tmp_path: Path) -> None:
    assert engine_status("native").available and TIERS[-1] in engine_status("native").reason
    engine = open_engine(tiny_world(tmp_path))
    assert engine.name == "native" and choice_of(engine).startswith("native, the first of")


def test_what_is_wrong_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = tiny_world(tmp_path)
    for options, message in (({"precision": "fp7"}, "fp32, bf16, int8"), ({"threads": 1000}, "threads=1000")):
        with pytest.raises(EngineError, match=message) as caught:
            NativeEngine(world, **options)
        assert "\n" not in str(caught.value)
    monkeypatch.setenv(kernels.ISA_VARIABLE, "sse9")
    with pytest.raises(EngineError, match="sse9"):
        NativeEngine(world)


def test_without_the_kernels_another_engine_plays_and_the_reason_is_said(tmp_path: Path,
                                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dreamloop.runtime._kernels", None)  # its import fails, as when it was not built
    status = engine_status("native")
    assert not status.available and "pip install" in status.reason
    world = tiny_world(tmp_path)
    with pytest.raises(EngineError, match="compiled kernels are missing"):
        open_engine(world, "native")
    assert "native: " in choice_of(open_engine(world))


def test_the_kernels_here_are_those_of_the_sources_here() -> None:
    module: Any = importlib.import_module("dreamloop.runtime._kernels")
    assert module.sources == kernels.sources_hash(kernels.SOURCES)


def lacking(name: str) -> Any:
    """The module as an older build would be, without `name`."""
    module = importlib.import_module("dreamloop.runtime._kernels")
    world = types.SimpleNamespace(**{key: value for key, value in vars(module.World).items() if f"World.{key}" != name})
    return types.SimpleNamespace(**{**{key: value for key, value in vars(module).items() if key != name},
                                    "World": world})


@pytest.mark.parametrize("name", kernels.NEEDED)
def test_kernels_that_lack_something_are_stale(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dreamloop.runtime._kernels", lacking(name))
    assert kernels.available() == (f"the compiled kernels are stale: they lack {name}; `pip install -e .` in the "
                                   "project's folder builds them anew")


def test_kernels_of_other_sources_are_stale_and_another_engine_plays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                     capsys: pytest.CaptureFixture[str]) -> None:
    sources = tmp_path / "csrc"
    shutil.copytree(kernels.SOURCES, sources)
    monkeypatch.setattr(kernels, "SOURCES", sources)
    assert kernels.available() is None
    with (sources / "cpu" / "rows.cpp").open("a") as file:
        file.write("\n")
    kernels.sources_hash.cache_clear()
    world = tiny_world(tmp_path / "world")
    with pytest.raises(EngineError, match="compiled kernels are stale: built from sources"):
        open_engine(world, "native")
    assert choice_of(open_engine(world)).startswith("onnxruntime, because native: ")
    assert main(["engines"]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith("native        cannot run  the compiled kernels are stale: built from sources")


def test_sources_that_are_not_there_say_nothing(tmp_path: Path) -> None:
    """Where a wheel is installed there is no csrc/."""
    assert kernels.sources_hash(tmp_path / "none") == ""


def test_playing_imports_neither_torch_nor_onnx(tmp_path: Path) -> None:
    tiny_world(tmp_path / "world")
    program = """
import sys
from dreamloop.runtime import Session
with Session(sys.argv[1], engine="native") as session:
    assert session.step({"attack"}).pixels.shape == (32, 48, 3)
assert not {"torch", "onnx", "onnxruntime"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "world")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
