"""The onnxruntime engine: cached equals uncached, errors against the oracle, graphs, and their cache."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import oracle
import pytest
import torch
from worlds import random_frames, tiny_world

from dreamloop.models.core import memory
from dreamloop.models.core.errors import EngineError
from dreamloop.models.core.world import World
from dreamloop.runtime.engines import cache, onnx_cache, onnx_device, onnx_engine, onnx_graph, onnx_pass
from dreamloop.runtime.engines.onnx_engine import OnnxEngine
from dreamloop.runtime.engines.torch_engine import TorchEngine

EVERY_SCENARIO = pytest.mark.parametrize("overrides", oracle.SCENARIOS.values(), ids=oracle.SCENARIOS)
EVERY_FORM = pytest.mark.parametrize("form", onnx_graph.FORMS)


# -- the mathematics --------------------------------------------------------------------------------


@EVERY_FORM
@EVERY_SCENARIO
def test_cached_equals_uncached(tmp_path: Path, overrides: dict[str, Any], form: str) -> None:
    oracle.check_cached_equals_uncached(OnnxEngine(tiny_world(tmp_path, **overrides), form=form))


@EVERY_FORM
@EVERY_SCENARIO
def test_a_step_errs_at_most_twice_as_much_as_plain_torch(tmp_path: Path, overrides: dict[str, Any],
                                                          form: str) -> None:
    error, of_torch = oracle.step_errors(OnnxEngine(tiny_world(tmp_path, **overrides), form=form))
    assert error <= 2 * of_torch + oracle.FLOOR


@pytest.mark.long
@EVERY_FORM
def test_300_frames_err_at_most_twice_as_much_as_plain_torch(tmp_path: Path, form: str) -> None:
    """Sinks, dilated slots and a window, all of them gone round many times."""
    error, of_torch = oracle.step_errors(OnnxEngine(tiny_world(tmp_path), form=form), frames=300)
    assert error <= 2 * of_torch + oracle.FLOOR


@EVERY_FORM
def test_players_at_different_frames_go_on_as_if_alone(tmp_path: Path, form: str) -> None:
    oracle.check_players_at_different_frames(OnnxEngine(tiny_world(tmp_path), form=form))


@EVERY_FORM
def test_a_batch_equals_single_sessions(tmp_path: Path, form: str) -> None:
    engine = OnnxEngine(tiny_world(tmp_path), form=form)
    alone = [oracle.start(engine, seed) for seed in (1, 2, 3)]
    together = oracle.joined(engine, alone)
    for frame in range(12):
        actions = oracle.random_actions(engine.world, 3, frame)
        engine.step(together, actions)
        for player, state in enumerate(alone):
            engine.step(state, actions[player : player + 1])
    assert oracle.max_difference(together, oracle.joined(engine, alone)) <= 1e-4


@pytest.mark.parametrize("size", [(32, 48), (30, 44), (33, 17)], ids=str)
def test_frames_and_latents_equal_those_of_torch(tmp_path: Path, size: tuple[int, int]) -> None:
    world = tiny_world(tmp_path, frame_height=size[0], frame_width=size[1])
    engine, reference = OnnxEngine(world), TorchEngine(world)
    frames = random_frames(world.spec, 21)  # chunks of 16, 4 and 1
    latents = engine.encode(frames)
    assert latents.dtype == np.float32 and latents.shape == (21, *world.spec.latent_shape)
    assert np.max(np.abs(latents - reference.encode(frames))) <= 1e-4
    decoded, expected = engine.decode(latents), reference.decode(latents)
    assert decoded.dtype == np.uint8 and decoded.shape == frames.shape
    difference = np.abs(decoded.astype(int) - expected)
    assert difference.max() <= 1 and difference.mean() <= 0.01
    assert expected.std() > 10  # not a flat grey, where anything would agree


def test_very_bright_and_very_dark_latents_are_clamped_not_wrapped(tmp_path: Path) -> None:
    world = tiny_world(tmp_path)
    latents = 50 * np.random.default_rng(0).standard_normal((1, *world.spec.latent_shape)).astype(np.float32)
    difference = np.abs(OnnxEngine(world).decode(latents).astype(int) - TorchEngine(world).decode(latents))
    assert difference.max() <= 1


# -- the state --------------------------------------------------------------------------------------


@EVERY_FORM
def test_a_frame_changes_its_own_slot_alone_and_keeps_the_ring_in_place(tmp_path: Path, form: str) -> None:
    engine = OnnxEngine(tiny_world(tmp_path), form=form)
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


@EVERY_FORM
def test_two_states_take_turns_on_one_engine(tmp_path: Path, form: str) -> None:
    engine = OnnxEngine(tiny_world(tmp_path), form=form)
    first, second = oracle.start(engine, seed=1), oracle.start(engine, seed=2)
    undisturbed = oracle.start(engine, seed=1)
    expected = oracle.play(engine, undisturbed, 10)[0].latents
    turns = []
    for _ in range(10):
        turns += oracle.play(engine, first, 1)[0].latents
        oracle.play(engine, second, 1)
        first = first.copy()  # a bookmark restored: the same player in another ring
    assert np.array_equal(np.stack(turns), np.stack(expected))


# -- where buffers lie ------------------------------------------------------------------------------


@EVERY_FORM
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_buffers_of_torch_make_the_same_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str,
                                               precision: str) -> None:
    """The path of a GPU, whose buffers are torch tensors, over tensors of the CPU: bit for bit the numpy path."""
    world = tiny_world(tmp_path)
    plain = OnnxEngine(world, precision, form=form)
    expected = oracle.start(plain, seed=1)
    oracle.play(plain, expected, 12)
    monkeypatch.setattr(onnx_engine, "best", lambda runtime: onnx_device.Torch(torch, "cpu"))
    engine = OnnxEngine(world, precision, form=form)
    state = oracle.start(engine, seed=1)
    ring, bookmark = state.ring, None
    for frame in range(12):
        oracle.play(engine, state, 1)
        if frame == 5:
            bookmark = state.copy()
    assert isinstance(state.ring, torch.Tensor) and state.ring is ring
    assert np.array_equal(state.latent, expected.latent) and np.array_equal(ring.numpy(), expected.ring)
    assert bookmark is not None
    oracle.play(engine, bookmark, 6)  # the same player, in another ring
    assert np.array_equal(bookmark.latent, state.latent) and torch.equal(bookmark.ring, ring)


def test_a_cuda_provider_without_a_gpu_or_torch_leaves_the_cpu_and_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    assert onnx_device.best(onnxruntime).name == "cpu" or torch.cuda.is_available()
    with_provider = SimpleNamespace(get_available_providers=lambda: [onnx_device.CUDA, "CPUExecutionProvider"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = onnx_device.best(with_provider)
    assert type(found) is onnx_device.Host and "no NVIDIA GPU" in found.note
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "torch is not" in onnx_device.best(with_provider).note


def test_a_provider_that_does_not_load_is_refused_in_one_line(tmp_path: Path) -> None:
    if onnx_device.CUDA in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has the CUDA provider")
    model = onnx_cache.load_or_build(tiny_world(tmp_path), "decode", 1)
    with pytest.warns(UserWarning, match="not in available"), \
            pytest.raises(EngineError, match="could not use CUDAExecutionProvider") as caught:
        onnx_pass.open_session(onnxruntime, model, 1, device=onnx_device.Torch(torch))
    assert "\n" not in str(caught.value)


# -- the cache --------------------------------------------------------------------------------------


def first_latent(world: World) -> np.ndarray:
    engine = OnnxEngine(world)
    return oracle.play(engine, oracle.start(engine, seed=4), 1)[0].latents[0]


def count_builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows by the kind of every graph that is built from now on."""
    built: list[str] = []
    build = onnx_graph.build

    def counted(world: World, kind: str, batch: int, *options: Any) -> onnx.ModelProto:
        built.append(kind)
        return build(world, kind, batch, *options)

    monkeypatch.setattr(onnx_graph, "build", counted)
    return built


def test_a_graph_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, built = tiny_world(tmp_path), count_builds(monkeypatch)
    expected = first_latent(world)
    assert built == ["step"]
    assert np.array_equal(first_latent(world), expected)
    assert built == ["step"]
    assert not [path for path in onnx_cache.cache_path(world, "step", 1).parent.iterdir()
                if path.suffix not in (".onnx", ".sha256")]


@pytest.mark.parametrize("damage", ["one weight", "truncated", "empty", "no checksum", "not a model"])
def test_a_damaged_cache_file_is_built_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    world = tiny_world(tmp_path)
    expected = first_latent(world)
    path = onnx_cache.cache_path(world, "step", 1)
    data = bytearray(path.read_bytes())
    checksum = path.with_name(path.name + ".sha256")
    if damage == "one weight":
        data[len(data) // 2] ^= 0x40
    elif damage == "no checksum":
        checksum.unlink()
    elif damage == "not a model":
        data = bytearray(b"\xff" * 100)
        checksum.write_text(hashlib.sha256(data).hexdigest())
    else:
        data = data[: len(data) // 3 if damage == "truncated" else 0]
    path.write_bytes(data)
    built = count_builds(monkeypatch)
    assert np.array_equal(first_latent(world), expected)
    assert built == ["step"]
    assert np.array_equal(first_latent(world), expected) and built == ["step"]  # and it is whole again


def test_the_graph_of_another_world_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, other = tiny_world(tmp_path / "a", seed=1), tiny_world(tmp_path / "b", seed=2)
    expected, foreign = first_latent(world), first_latent(other)
    assert np.abs(expected - foreign).max() > 1e-2
    ours, theirs = (onnx_cache.cache_path(w, "step", 1) for w in (world, other))
    for suffix in ("", ".sha256"):
        ours.with_name(ours.name + suffix).write_bytes(theirs.with_name(theirs.name + suffix).read_bytes())
    built = count_builds(monkeypatch)
    assert np.array_equal(first_latent(world), expected) and built == ["step"]


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    world, built = tiny_world(tmp_path / "world"), count_builds(monkeypatch)
    assert np.array_equal(first_latent(world), first_latent(world)) and built == ["step", "step"]


def test_the_newest_worlds_of_a_name_are_kept(tmp_path: Path) -> None:
    """Training makes one world after the other; their graphs must not fill the disk."""
    old_layout = cache.cache_folder("onnx") / ("a" * 64)
    old_layout.mkdir(parents=True)
    other = tiny_world(tmp_path / "other", name="another")
    worlds = [tiny_world(tmp_path / str(seed), seed=seed) for seed in range(cache.KEPT_WORLDS + 2)]
    for age, world in enumerate([other, *worlds]):
        onnx_cache.load_or_build(world, "decode", 1)
        os.utime(cache.world_folder("onnx", world), (age, age))
    onnx_cache.load_or_build(worlds[2], "decode", 1)  # read again, and so in use
    onnx_cache.load_or_build(worlds[0], "decode", 1)
    kept = {world.hash for world in worlds if cache.world_folder("onnx", world).exists()}
    assert kept == {worlds[0].hash, worlds[2].hash, worlds[-1].hash}
    assert cache.world_folder("onnx", other).exists() and not old_layout.exists()


def test_a_world_name_does_not_lead_out_of_the_cache(tmp_path: Path) -> None:
    world = tiny_world(tmp_path, name="..")
    assert cache.world_folder("onnx", world).resolve().parent.parent == cache.cache_folder("onnx").resolve()


# -- what it says -----------------------------------------------------------------------------------


def test_describe_identifies_the_arithmetic(tmp_path: Path) -> None:
    said = OnnxEngine(tiny_world(tmp_path), threads=1).describe()
    assert said["engine"] == "onnxruntime" and said["precision"] == "fp32" and said["threads"] == 1
    assert said["onnxruntime"] and said["onnx"] == onnx.__version__ and "CPU" in said["providers"]


def test_an_unknown_precision_or_form_is_one_line(tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, str], str]] = [
        ({"precision": "fp7"}, "fp32"), ({"form": "round"}, "in_place"), ({"precision": "bf16"}, "fp16")]
    for options, known in wrong:
        with pytest.raises(EngineError, match=known) as caught:
            OnnxEngine(tiny_world(tmp_path), **options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_one_line_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                       package: str) -> None:
    world = tiny_world(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)  # makes its import fail, as when it is not installed
    with pytest.raises(EngineError, match=rf"{package}.*pip install") as caught:
        OnnxEngine(world)
    assert "\n" not in str(caught.value)


def test_playing_imports_no_torch(tmp_path: Path) -> None:
    tiny_world(tmp_path / "world")
    program = """
import sys
import numpy as np
from dreamloop.models.core.world import load_world
from dreamloop.runtime.engines import open_engine
world = load_world(sys.argv[1])
engine = open_engine(world, "onnxruntime")
state = engine.new_state(1)
state.latent[:] = engine.encode(world.starts[:1])
engine.step(state, np.zeros((1, 3), np.float32))
assert engine.decode(state.latent).shape == (1, 32, 48, 3)
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "world")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
