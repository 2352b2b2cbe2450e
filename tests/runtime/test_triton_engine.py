"""The triton engine on CPU tensors: its step in plain torch in every shape of memory, with the Triton kernels in the
interpreter on the shipped world, and its FP8 arithmetic. What needs a GPU (the graph) is measured by
`dreamloop bench --device cuda`, which verifies it first."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from worlds import tiny_world

from dreamloop.demos.cli import main
from dreamloop.models.core import noise as host_noise
from dreamloop.models.core.errors import EngineError
from dreamloop.models.core.spec import DynamicsSpec
from dreamloop.models.core.world import load_world
from dreamloop.models.networks.dit import Dynamics
from dreamloop.runtime import Session
from dreamloop.runtime.batch import BatchedSession
from dreamloop.runtime.bench import BOUNDS, largest_error, oracle_steps
from dreamloop.runtime.engines import AUTO_ORDER, engine_status, open_engine, triton_engine, triton_frame
from dreamloop.runtime.engines.triton_engine import TritonEngine
from dreamloop.runtime.engines.triton_frame import OUTPUTS, Graphs
from dreamloop.runtime.engines.triton_linear import LARGEST, NARROW, NarrowLinear
from dreamloop.runtime.gpu import kernels_for, noise, plain
from dreamloop.runtime.gpu.plain import codes

ALL = {**oracle.SCENARIOS, **oracle.WITH_LINEAR, **oracle.CHOSEN_AT_PLAY}
FP8_BOUND = 0.15  # of the largest latent, as `dreamloop bench` has it
INTERPRETED = """
import json, sys
sys.path[:0] = {paths!r}
import torch; torch.set_num_threads(1)
import oracle
from dreamloop.models import load_world
from dreamloop.runtime.engines.torch_engine import TorchEngine
from dreamloop.runtime.engines.triton_engine import TritonEngine
from dreamloop.runtime.gpu import fused, plain
for name, precision in (("doom-arena", "fp32"), ("doom-arena", "bf16"), ("pong", "bf16")):
    engine = TritonEngine(load_world(name), precision, device="cpu")
    exact, usual = TorchEngine(engine.world, "fp64"), TorchEngine(engine.world, precision)
    assert engine.network.kernels is fused
    engine.network.kernels = plain
    state = oracle.start(engine, seed=3)
    oracle.play(engine, state, 18)  # the ring is full and has wrapped around
    engine.network.kernels = fused
    states = [oracle.moved(other, state) for other in (exact, usual)]
    actions = oracle.random_actions(engine.world, 1, 9)
    for other, its_state in zip((exact, usual, engine), (*states, state)):
        other.step(its_state, actions)
    print(json.dumps([engine.describe()["noise"], *(oracle.max_difference(x, states[0]) for x in (state, states[1]))]))
"""


def engine_of(folder: Path, precision: str = "fp32", **overrides: Any) -> TritonEngine:
    """On a CPU, with plain kernels also where other tests have asked for interpreted ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_engine, "kernels_for", lambda device: plain)
        patch.setattr(triton_engine, "why_plain", lambda device: "a test")
        return TritonEngine(tiny_world(folder, **overrides), precision, device="cpu", calibration_frames=12)


@pytest.mark.parametrize("overrides", ALL.values(), ids=ALL)
def test_one_step_errs_like_torch(tmp_path: Path, overrides: dict[str, Any]) -> None:
    error, usual = oracle.step_errors(engine_of(tmp_path, **overrides), 24)
    assert error <= 2 * usual + oracle.FLOOR


def test_one_step_in_bf16_errs_like_torch_in_bf16(tmp_path: Path) -> None:
    error, usual = oracle.step_errors(engine_of(tmp_path, "bf16"), 12, "bf16")
    assert error <= 2 * usual + oracle.FLOOR


def test_cached_equals_uncached(tmp_path: Path) -> None:
    oracle.check_cached_equals_uncached(engine_of(tmp_path))


def test_players_at_different_frames_go_on_as_if_alone(tmp_path: Path) -> None:
    oracle.check_players_at_different_frames(engine_of(tmp_path))


def test_interpreted_kernels_match_the_oracle_on_the_shipped_world() -> None:
    """In a process of its own, for the interpreter is chosen when the kernels are imported."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed: pip install 'dreamloop[gpu]'")
    here = Path(__file__).resolve().parent
    code = INTERPRETED.format(paths=[str(here), str(here.parent)])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False,
                          env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        drawn, error, usual = json.loads(line)
        assert drawn == "noise_kernel" and error <= 2 * usual + oracle.FLOOR, line
    assert len(done.stdout.splitlines()) == 3


READING = {f"aten::{name}" for name in ("item", "_local_scalar_dense", "nonzero", "is_nonzero", "equal",
                                        "masked_select")}


class NoReading(TorchDispatchMode):
    """Refuses what would make the host wait for a number from the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.name() not in READING, func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("overrides", ALL.values(), ids=ALL)
def test_nothing_of_a_frame_waits_for_the_device(tmp_path: Path, overrides: dict[str, Any]) -> None:
    engine = engine_of(tmp_path, "bf16", **overrides)
    state = oracle.start(engine, seed=3)
    oracle.play(engine, state, 3)
    buffers = engine._buffers[1]
    with torch.inference_mode(), NoReading():
        engine._frame(buffers, buffers.next_output(), state.ring)
    with torch.inference_mode(), NoReading(), pytest.raises(AssertionError):
        float(buffers.inputs.device["latent"].sum())


class OnlyThere(TorchDispatchMode):
    """Refuses what reads or makes a tensor elsewhere than on the device `meta`, such as a constant that is copied to
    it: a copy from memory that is not pinned cannot be captured."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        places = {x.device.type for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)}
        assert places <= {"meta"}, f"{func.name()} on {places}"
        return out


def elsewhere(thing: Any) -> Any:
    """A tensor without memory for every tensor of an engine's network, in place where it can be."""
    if isinstance(thing, torch.Tensor):
        return torch.empty_strided(thing.shape, thing.stride(), dtype=thing.dtype, device="meta")
    if isinstance(thing, torch.nn.Module):
        return thing._apply(elsewhere)
    if isinstance(thing, dict):
        return {name: elsewhere(value) for name, value in thing.items()}
    if isinstance(thing, list):
        return [elsewhere(value) for value in thing]
    if type(thing).__module__.startswith("dreamloop.runtime"):
        for name, value in vars(thing).items():
            object.__setattr__(thing, name, elsewhere(value))
    return thing


@pytest.mark.parametrize(("overrides", "precision"), [
    *((overrides, "bf16") for overrides in ALL.values()), (ALL["two_noise_levels"], "fp8-qk8")],
    ids=[*ALL, "in_one_byte"])
def test_nothing_of_a_frame_comes_from_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                overrides: dict[str, Any], precision: str) -> None:
    """On tensors without memory, in a frame after the first, which keeps what is made once for a device."""
    engine = engine_of(tmp_path, precision, **overrides)
    state = oracle.start(engine, seed=3)
    oracle.play(engine, state, 3)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which knows no such device
    buffers, ring = engine._buffers[1], elsewhere(state.ring)
    with torch.no_grad():
        elsewhere(engine.network)
        elsewhere(engine.autoencoder)
        for packed in (buffers.inputs, *buffers.outputs):
            packed.device = elsewhere(packed.device)
        engine._frame(buffers, 0, ring)
        with OnlyThere():
            engine._frame(buffers, 1, ring)
        with OnlyThere(), pytest.raises(AssertionError, match=r"on .*cpu"):
            ring.mul_(torch.tensor(2.0).to("meta"))


# -- FP8 -------------------------------------------------------------------------------------------------


def fp8_model(engine: TritonEngine) -> Dynamics:
    """The definition in bf16 with the weights and inputs of the narrow products rounded as FP8 rounds them."""
    model = oracle.dynamics_fp64(engine.world).bfloat16()
    for block, layer in zip(model.blocks, engine.network.layers, strict=True):
        for name in NARROW:
            linear, narrow = getattr(block, name), getattr(layer, name)
            assert isinstance(narrow, NarrowLinear) and narrow.accepts is not None
            linear.weight.data = (narrow.weight.float() * narrow.weight_scale).bfloat16()

            def rounded(_: Any, given: tuple[torch.Tensor], scale: torch.Tensor = narrow.accepts.scale) -> Any:
                return ((codes(given[0] / scale, torch.float8_e4m3fn).float() * scale).bfloat16(),)
            linear.register_forward_pre_hook(rounded)
    return model


def test_fp8_errs_like_torch_with_the_same_codes(tmp_path: Path) -> None:
    engine = engine_of(tmp_path, "fp8")
    usual = oracle.TorchEngine(engine.world, "bf16")
    usual.dynamics = fp8_model(engine)
    exact, state = oracle.TorchEngine(engine.world, "fp64"), oracle.start(engine, seed=11)
    errors = []
    for frame in range(12):
        actions = oracle.random_actions(engine.world, 1, frame)
        expected, plainly = oracle.moved(exact, state), oracle.moved(usual, state)
        for other, its_state in ((exact, expected), (usual, plainly), (engine, state)):
            other.step(its_state, actions)
        errors.append([oracle.max_difference(state, expected), oracle.max_difference(plainly, expected)])
        state.latent = state.latent * np.float32(oracle.DAMPING)
    error, its_error = np.max(errors, axis=0)
    assert error <= 2 * its_error + oracle.FLOOR


@pytest.mark.parametrize("rows", [1, 17, 256])
def test_a_narrow_product_is_that_of_its_codes(rows: int) -> None:
    """Exact but for bf16 at the end: e4m3 factors, sums in float32, both scales, the bias."""
    generator = torch.Generator().manual_seed(rows)
    weight, bias = torch.randn(48, 32, generator=generator), torch.randn(48, generator=generator)
    x = torch.randn(rows, 32, generator=generator) * 3
    layer = NarrowLinear(weight, bias, float(x.abs().max()))
    assert layer.accepts is not None
    x8 = codes(x / layer.accepts.scale, torch.float8_e4m3fn)
    exact = (x8.double() * layer.accepts.scale) @ (layer.weight.double() * layer.weight_scale).T + layer.bias.double()
    found = layer(x8)
    assert found.dtype == torch.bfloat16
    assert float(((found.double() - exact).abs() - 2**-8 * exact.abs()).max()) <= 1e-2
    assert float((exact - (x @ weight.T + bias)).abs().max()) <= 0.08 * float(exact.abs().max())


def test_fp8_stays_near_float64(tmp_path: Path) -> None:
    engine = engine_of(tmp_path, "fp8")
    exact, state = oracle.TorchEngine(engine.world, "fp64"), oracle.start(engine, seed=11)
    for frame in range(12):
        expected = oracle.moved(exact, state)
        actions = oracle.random_actions(engine.world, 1, frame)
        exact.step(expected, actions)
        engine.step(state, actions)
        assert np.abs(state.latent - expected.latent).max() <= FP8_BOUND * np.abs(expected.latent).max()
        state.latent = state.latent * np.float32(oracle.DAMPING)


def test_static_scales_come_from_self_rollouts(tmp_path: Path) -> None:
    engine = engine_of(tmp_path, "fp8")
    assert set(engine.largest) == {(i, name) for i in range(2) for name in NARROW}
    assert all(0 < value < 1000 for value in engine.largest.values())
    for i, layer in enumerate(engine.network.layers):
        assert layer.up.accepts is not None
        assert float(layer.up.accepts.scale) == pytest.approx(engine.largest[i, "up"] / LARGEST)
        assert layer.out.accepts is None


# -- noise, states, errors ---------------------------------------------------------------------------------


def noise_modules() -> list[ModuleType]:
    found: list[ModuleType] = [noise]
    if importlib.util.find_spec("triton") and os.environ.get("TRITON_INTERPRET") == "1":
        from dreamloop.runtime.gpu import noise_kernel
        found.append(noise_kernel)
    return found


@pytest.mark.parametrize("count", [1, 17, 1280])
def test_noise_on_the_device_is_that_of_the_host(count: int) -> None:
    seeds, frames = np.array([0, 2**64 - 5, 7], np.uint64), np.array([1, 2**40 + 3, 99], np.int64)
    given = torch.from_numpy(seeds.view(np.int64)), torch.from_numpy(frames)
    for index in (0, 3):
        expected = np.stack([host_noise.normal(int(s), int(f), count, index)
                             for s, f in zip(seeds, frames, strict=True)])
        for module in noise_modules():
            difference = np.abs(module.normal(*given, count, index).numpy() - expected)
            assert difference.max() <= 5e-7 and (difference != 0).mean() <= 1e-3


def test_the_words_of_the_noise_are_philox_exactly() -> None:
    """The vector of Random123's kat_vectors whose counter and key this layout can express."""
    words = noise.words(torch.tensor([0]), torch.tensor([0]), 4, 0)
    assert [f"{int(word):08x}" for word in words[0, 0]] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]


def test_pixels_of_the_graph_are_those_of_the_decoder(tmp_path: Path) -> None:
    engine = engine_of(tmp_path)
    state = oracle.start(engine, seed=1)
    seen = []
    for frame in range(3):
        engine.step(state, oracle.random_actions(engine.world, 1, frame))
        seen.append((state.latent.copy(), engine.decode(state.latent)))
    usual = oracle.TorchEngine(engine.world)
    for latent, pixels in seen:  # the last two from the outputs, the first one decoded afresh
        assert np.array_equal(engine.decode(latent), pixels)
        assert np.abs(pixels.astype(int) - usual.decode(latent)).max() <= 1


def test_a_frame_runs_before_it_is_captured_and_graphs_share_memory_with_living_ones(
        monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's capture played by a list: torch refuses the pool of graphs that are all gone."""
    said: list[str] = []
    pools: list[object] = []

    class Graph:
        handle: object

        def pool(self) -> object:
            return self.handle

        def replay(self) -> None:
            said.append("replay")

    def capture(work: Callable[[], object], pool: object) -> Graph:
        pools.append(pool)
        graph = Graph()
        graph.handle = object() if pool is None else pool
        said.append("capture")
        work()
        said.append("captured")
        return graph
    monkeypatch.setattr(triton_frame, "capture", capture)
    graphs = Graphs()

    def play(frames: int) -> list[str]:
        ring = torch.zeros(3)
        said.clear()
        for frame in range(frames):
            graphs.run(ring, frame % OUTPUTS, lambda: said.append("frame"))
        return list(said)
    once = ["frame", "capture", "frame", "captured"]
    assert play(5) == ["frame", *once, *once, "replay", "replay"]
    assert pools[0] is None and pools[1] is not None
    assert play(3) == ["frame", *once, *once]  # another ring, and the first one is gone
    assert pools[2] is None and pools[3] not in (None, pools[1])


def test_frames_that_cannot_be_captured_are_made_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def capture(work: Callable[[], object], pool: object) -> None:
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture\nand a long story")
    monkeypatch.setattr(triton_frame, "capture", capture)
    graphs, ring, made = Graphs(), torch.zeros(3), []
    with pytest.warns(RuntimeWarning, match="previous error during capture$"):
        for frame in range(6):
            graphs.run(ring, frame % OUTPUTS, partial(made.append, frame))
    assert made == list(range(6)) and graphs.refused.startswith("CUDA error")


def test_what_an_engine_builds_in_its_first_frames_is_built_before_anybody_plays(tmp_path: Path) -> None:
    engine, plain = engine_of(tmp_path), engine_of(tmp_path)
    engine.building_frames, made = 3, []  # as on a GPU
    step = engine.step
    engine.step = lambda *given, **more: (made.append(1), step(*given, **more))[1]  # type: ignore[method-assign]
    with (Session(engine.world, engine=engine, seed=5) as session, Session(plain.world, engine=plain, seed=5) as usual):
        assert len(made) == 3 and session.index == 0 and not session.ring.any()
        assert np.array_equal(session.step({"attack"}).pixels, usual.step({"attack"}).pixels)
    made.clear()
    with BatchedSession(engine.world, seats=2, engine=engine):
        assert len(made) == 3


def test_a_session_goes_back_and_a_copy_goes_its_own_way(tmp_path: Path) -> None:
    engine = engine_of(tmp_path)
    with Session(engine.world, engine=engine, seed=5) as session:
        first = [session.step({"attack"}).pixels for _ in range(9)]
        bookmark = session.snapshot()
        ahead = [session.step({"turn_left"}).pixels for _ in range(6)]
        session.restore(bookmark)
        assert all(np.array_equal(session.step({"turn_left"}).pixels, frame) for frame in ahead)
        session.rewind(frames=6)
        assert np.array_equal(session.render().pixels, first[-1])
        bookmark.save(tmp_path / "state")
        assert (tmp_path / "state").is_file()


def test_players_join_a_running_batch(tmp_path: Path) -> None:
    engine = engine_of(tmp_path)
    with BatchedSession(engine.world, seats=3, engine=engine) as game, Session(engine.world, engine=engine,
                                                                              seed=7) as alone:
        seats = [game.join(seed=7)]
        for frame in range(4):
            if frame == 2:
                seats.append(game.join(seed=8))
            pixels = game.step({seat: {"turn_left"} for seat in seats})[seats[0]].pixels
            assert np.abs(pixels.astype(int) - alone.step({"turn_left"}).pixels).max() <= 1


def test_a_shorter_view_is_that_of_the_torch_engine(tmp_path: Path) -> None:
    engine = engine_of(tmp_path, memory=oracle.MemorySpec(window_frames=6))
    usual, state = oracle.TorchEngine(engine.world), oracle.start(engine, seed=2)
    oracle.play(engine, state, 9)
    expected, actions = oracle.moved(usual, state), oracle.random_actions(engine.world, 1, 3)
    whole = oracle.moved(usual, state)
    engine.step(state, actions, view_frames=3)
    usual.step(expected, actions, view_frames=3)
    usual.step(whole, actions)
    assert np.abs(state.latent - expected.latent).max() <= 1e-5 < np.abs(whole.latent - expected.latent).max()


@pytest.mark.parametrize("precision", ["bf16-qk8", pytest.param("fp8-qk8", marks=pytest.mark.long)])
def test_keys_in_eight_bits_stay_within_their_bound_on_the_shipped_world(precision: str) -> None:
    """The bounds that `dreamloop bench` holds, against float64; and the codes are really read."""
    world = load_world("doom-arena")
    history = oracle_steps(world)[-4:]
    engine = TritonEngine(world, precision, device="cpu")
    engine.network.kernels = plain
    errors = [largest_error(engine, [step]) for step in history]
    assert max(errors) <= BOUNDS[precision] * max(float(np.abs(step.after.latent).max()) for step in history)
    engine.network.narrow = None
    assert [largest_error(engine, [step]) for step in history] != errors  # the largest of all may be another's rounding


def test_a_copy_in_eight_bits_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Codes are no part of a state: the ring alone says what comes next, whatever was played in between."""
    engine = engine_of(tmp_path, "bf16-qk8", memory=oracle.MemorySpec(window_frames=3, sink_frames=2, max_age=4))
    state = oracle.start(engine, seed=2)
    oracle.play(engine, state, 7)
    branch, actions = state.copy(), oracle.random_actions(engine.world, 1, 3)
    oracle.play(engine, state, 4)
    state = branch.copy()
    for each in (branch, state):
        engine.step(each, actions)
    assert np.array_equal(branch.latent, state.latent) and torch.equal(branch.ring, state.ring)


def test_without_a_gpu_the_engine_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available() and importlib.util.find_spec("triton"):
        pytest.skip("there is a GPU: the engine runs")
    assert "triton" not in AUTO_ORDER
    reason = engine_status("triton").reason
    assert reason and "\n" not in reason
    world = load_world("doom-arena")
    with pytest.raises(EngineError, match="triton"):
        open_engine(world, "triton")
    with pytest.raises(EngineError, match="engine triton cannot run"):
        TritonEngine(world)
    assert main(["play", "doom-arena", "--engine", "triton", "--headless", "--frames", "2"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_an_unknown_precision_names_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="bf16, bf16-qk8, fp8, fp8-qk8, fp32"):
        TritonEngine(tiny_world(tmp_path), "fp7", device="cpu")


def test_fp8_refuses_widths_that_its_products_cannot_have(tmp_path: Path) -> None:
    world = tiny_world(tmp_path, dynamics=DynamicsSpec(width=32, layers=1, heads=2, mlp_width=40))
    with pytest.raises(EngineError, match="multiples of 16, not 32 and 40"):
        TritonEngine(world, "fp8", device="cpu")


def test_plain_kernels_serve_where_triton_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert kernels_for("cpu") is plain
