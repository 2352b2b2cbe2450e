"""World folders: a round trip that keeps every number it can, and folders that nobody should trust."""

from __future__ import annotations

import json
import os
import random
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bounds import bounded
from core.strategies import world_specs
from hypothesis import given, settings, strategies as st
from safetensors.numpy import load, save
from worlds import random_frames, random_weights, tiny_spec, tiny_world

from dreamloop.models.core.errors import WorldError
from dreamloop.models.core.quantize import SCALE, is_quantized
from dreamloop.models.core.spec import DynamicsSpec, to_json, weight_shapes
from dreamloop.models.core.world import (
    CARD_FILE,
    FIGURES_FILE,
    MAX_SPEC_BYTES,
    SPEC_FILE,
    STARTS_FILE,
    WEIGHTS_FILE,
    World,
    load_world,
    save_world,
)

DATA_FILES = (SPEC_FILE, WEIGHTS_FILE, STARTS_FILE)
MEMORY_CAP_BYTES = 48 << 20  # far above what the tiny world takes, far below what a hostile one asks for


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A tiny world; its folder is `folder_of(good)`, and no test writes there."""
    return tiny_world(tmp_path_factory.getbasetemp() / "good-world")


@pytest.fixture(scope="module")
def files(good: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Name -> content of each file of the good world."""
    folder = tmp_path_factory.getbasetemp() / "good-world"
    return {name: (folder / name).read_bytes() for name in (*DATA_FILES, CARD_FILE)}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """A fresh folder with these files."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def refusal(folder: Path) -> str:
    """The one line with which a folder is refused, having taken little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(WorldError) as caught:
            load_world(folder)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert message and message.isprintable(), f"not one printable line: {message!r}"
    assert peak < MEMORY_CAP_BYTES
    return message


# -- round trip --------------------------------------------------------------------------------------


def test_save_then_load_keeps_everything_but_rounding(good: World) -> None:
    spec, written = tiny_spec(), random_weights(tiny_spec())
    assert good.spec == spec and good.name == "tiny" and good.card == "# tiny\n"
    np.testing.assert_array_equal(good.starts, random_frames(spec, len(good.starts)))
    assert list(good.weights) == list(weight_shapes(spec))
    for name, shape in weight_shapes(spec).items():
        value = good.weights[name]
        assert value.dtype == np.float32 and value.shape == shape
        if is_quantized(shape):
            step = np.abs(written[name]).reshape(shape[0], -1).max(axis=1) / 127
            error = np.abs(value - written[name]).reshape(shape[0], -1).max(axis=1)
            assert (error <= step * 0.501).all(), name
            assert error.max() > 0, name
        else:
            np.testing.assert_array_equal(value, written[name], err_msg=name)


@settings(max_examples=15, deadline=None)
@given(world_specs())
def test_any_world_survives_its_folder(tmp_path_factory: pytest.TempPathFactory, spec: Any) -> None:
    folder = tmp_path_factory.mktemp("any")
    saved = save_world(folder, spec, random_weights(spec), random_frames(spec, 2), "card")
    loaded = load_world(folder)
    assert loaded.spec == spec and loaded.hash == saved.hash
    for name, value in saved.weights.items():
        np.testing.assert_array_equal(loaded.weights[name], value)
    shutil.rmtree(folder)


def test_saving_what_was_loaded_changes_no_weight(good: World, tmp_path: Path) -> None:
    again = save_world(tmp_path, good.spec, good.weights, good.starts, good.card)
    for name, value in good.weights.items():
        np.testing.assert_allclose(again.weights[name], value, rtol=1e-6, err_msg=name)


def test_a_world_does_not_change_when_its_files_do(files: dict[str, bytes], tmp_path: Path) -> None:
    folder = write(tmp_path / "world", files)
    world = load_world(folder)
    before = {name: value.copy() for name, value in world.weights.items()}
    for name in DATA_FILES:
        (folder / name).write_bytes(bytes(len(files[name])))
    for name, value in before.items():
        np.testing.assert_array_equal(world.weights[name], value)
    assert world.starts.any()


def test_saving_a_wrong_shape_is_refused(tmp_path: Path) -> None:
    weights = random_weights(tiny_spec())
    weights["dynamics.output.bias"] = weights["dynamics.output.bias"][:-1]
    with pytest.raises(WorldError, match=r"dynamics\.output\.bias"):
        save_world(tmp_path, tiny_spec(), weights, random_frames(tiny_spec(), 1), "")


@pytest.mark.parametrize("name", ["dynamics.blocks.0.qkv.weight", "dynamics.input.bias"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_saving_what_is_not_finite_is_refused_and_writes_nothing(tmp_path: Path, name: str, value: float) -> None:
    """int8 would hide it: a training run that diverged must not become a world with a silent channel."""
    weights = random_weights(tiny_spec())
    weights[name].reshape(-1)[3] = value
    with pytest.raises(WorldError, match=name):
        save_world(tmp_path / "world", tiny_spec(), weights, random_frames(tiny_spec(), 1), "")
    assert not (tmp_path / "world").exists()


# -- the hash ----------------------------------------------------------------------------------------


def test_the_hash_changes_with_any_byte_of_data(files: dict[str, bytes], good: World, tmp_path: Path) -> None:
    """A changed byte is another world, or no world; it is never the same one."""
    generator, accepted = random.Random(0), 0
    for name in DATA_FILES:
        for _ in range(25):
            content = bytearray(files[name])
            content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
            folder = write(tmp_path / "world", {**files, name: bytes(content)})
            try:
                other = load_world(folder)
            except WorldError:
                continue
            accepted += 1
            assert other.hash != good.hash, name
    assert accepted > 25, "the bytes of tensors should mostly be accepted"


def test_the_hash_is_of_the_data_and_not_of_the_card_or_the_place(
        files: dict[str, bytes], good: World, tmp_path: Path) -> None:
    assert load_world(write(tmp_path / "a", files)).hash == good.hash
    assert load_world(write(tmp_path / "b", {**files, CARD_FILE: b"another"})).hash == good.hash
    without_card = {name: content for name, content in files.items() if name != CARD_FILE}
    assert load_world(write(tmp_path / "c", without_card)).card == ""


# -- refusals, one by one ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATA_FILES)
def test_a_missing_file_is_refused(files: dict[str, bytes], tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "world", files)
    (folder / name).unlink()
    refusal(folder)


@pytest.mark.parametrize("name", (*DATA_FILES, CARD_FILE))
def test_a_folder_where_a_file_should_be(files: dict[str, bytes], tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "world", files)
    (folder / name).unlink()
    (folder / name).mkdir()
    if name == CARD_FILE:
        assert load_world(folder).card == ""
    else:
        refusal(folder)


@pytest.mark.parametrize("name", DATA_FILES)
def test_a_pipe_where_a_file_should_be_is_refused_unread(files: dict[str, bytes], tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "world", files)
    (folder / name).unlink()
    os.mkfifo(folder / name)  # opening it would wait for ever
    assert name in refusal(folder)


def test_a_card_is_read_up_to_a_limit_whatever_it_holds(files: dict[str, bytes], tmp_path: Path) -> None:
    world = load_world(write(tmp_path / "world", {**files, CARD_FILE: b"\xff" * (2 * MAX_SPEC_BYTES)}))
    assert len(world.card) == MAX_SPEC_BYTES


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_latents_without_deviation_are_refused(files: dict[str, bytes], tmp_path: Path, value: float) -> None:
    """Encoding divides by it."""
    tensors = load(files[WEIGHTS_FILE])
    tensors["autoencoder.latent_std"] = np.full_like(tensors["autoencoder.latent_std"], value)
    assert "latent_std" in refusal(write(tmp_path / "world", {**files, WEIGHTS_FILE: save(tensors)}))


def test_a_file_where_the_folder_should_be(files: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "world").write_bytes(files[WEIGHTS_FILE])
    refusal(tmp_path / "world")


@pytest.mark.parametrize("name", ["no-such-world", "a" * 5000, "nul\0byte", "line\nbreak", "x/" * 3000, "\ud800"])
def test_a_name_that_is_no_world_is_refused(name: str) -> None:
    assert "no world" in refusal(Path(name))
    with pytest.raises(WorldError, match="no world"):
        load_world(name)


@pytest.mark.parametrize("name", DATA_FILES)
def test_a_truncated_file_is_refused_wherever_it_ends(files: dict[str, bytes], tmp_path: Path, name: str) -> None:
    content = files[name]
    # the specification ends in a brace and a line break, of which only the latter can be spared
    last = len(content) - (2 if name == SPEC_FILE else 1)
    for end in sorted({0, 1, 7, 8, 9, 100, last // 3, last // 2, last - 1, last}):
        refusal(write(tmp_path / "world", {**files, name: content[:end]}))


@pytest.mark.parametrize("text", [
    "", "null", "[]", "7", '"world"', "{", "{}", "\ufeff{}", '{"name": NaN}', "[" * 100_000, '{"a":' * 100_000,
    '{"layers": ' + "9" * 5000 + "}", '{"line\\nbreak": 1}', '{"\\u001b[31mred": 1}', '{"\\ud800": 1}'],
    ids=lambda text: repr(text[:16]))
def test_json_that_is_no_specification_is_refused(files: dict[str, bytes], tmp_path: Path, text: str) -> None:
    refusal(write(tmp_path / "world", {**files, SPEC_FILE: text.encode()}))


def test_a_specification_that_is_not_utf8_is_refused(files: dict[str, bytes], tmp_path: Path) -> None:
    refusal(write(tmp_path / "world", {**files, SPEC_FILE: files[SPEC_FILE] + b"\xff"}))


def test_a_specification_of_megabytes_is_refused_unread(files: dict[str, bytes], tmp_path: Path) -> None:
    content = files[SPEC_FILE] + b" " * MAX_SPEC_BYTES
    assert "larger than" in refusal(write(tmp_path / "world", {**files, SPEC_FILE: content}))


def test_weights_above_the_cap_are_refused_before_the_file_is_opened(files: dict[str, bytes], tmp_path: Path) -> None:
    huge = to_json(tiny_spec(dynamics=DynamicsSpec(width=16384, layers=128, heads=128, mlp_width=65536)))
    message = refusal(write(tmp_path / "world", {**dict.fromkeys(files, b""), SPEC_FILE: json.dumps(huge).encode()}))
    assert "cap" in message


WEIGHT = "dynamics.blocks.0.qkv.weight"  # stored as int8 with a scale
BIAS = "dynamics.input.bias"  # stored as float32
Tensors = dict[str, np.ndarray]


def swap(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: np.ascontiguousarray(change(tensors[name]))}


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(("named", "change"), [
    (BIAS, without(BIAS)), (WEIGHT, without(WEIGHT)), (WEIGHT, without(WEIGHT + SCALE)),
    ("extra", lambda tensors: {**tensors, "extra": np.zeros(3, np.float32)}),
    ("line", lambda tensors: {**tensors, "line\nbreak": np.zeros(3, np.float32)}),
    (BIAS, swap(BIAS, lambda x: x.astype(np.float64))), (BIAS, swap(BIAS, lambda x: x.astype(np.float16))),
    (BIAS, swap(BIAS, lambda x: x.view(np.int32))), (BIAS, swap(BIAS, lambda x: x[None])),
    (BIAS, swap(BIAS, lambda x: x[:-1])), (WEIGHT, swap(WEIGHT, lambda x: x.view(np.uint8))),
    (WEIGHT, swap(WEIGHT, lambda x: x.T)), (WEIGHT, swap(WEIGHT, lambda x: x.astype(np.float32))),
    (WEIGHT, swap(WEIGHT + SCALE, lambda x: x[:-1])), (WEIGHT, swap(WEIGHT + SCALE, lambda x: x.astype(np.float64))),
    (BIAS, swap(BIAS, lambda x: x * np.nan)), (BIAS, swap(BIAS, lambda x: x + np.inf)),
    (WEIGHT, swap(WEIGHT + SCALE, lambda x: x * np.nan)),
    (BIAS, swap(BIAS, lambda x: x[:0])), (BIAS, swap(BIAS, lambda x: x[0])),
])
def test_a_wrong_tensor_is_refused_by_name(
        files: dict[str, bytes], tmp_path: Path, named: str, change: Callable[[Tensors], Tensors]) -> None:
    content = save(change(load(files[WEIGHTS_FILE])))
    assert named in refusal(write(tmp_path / "world", {**files, WEIGHTS_FILE: content}))


@pytest.mark.parametrize("frames", [
    np.zeros((0, 32, 48, 3), np.uint8), np.zeros((1, 48, 32, 3), np.uint8), np.zeros((32, 48, 3), np.uint8),
    np.zeros((1, 32, 48, 4), np.uint8), np.zeros((1, 32, 48, 3), np.float32), np.zeros((1, 32, 48, 3), np.int8)],
    ids=lambda x: f"{x.dtype}{x.shape}")
def test_wrong_start_frames_are_refused(files: dict[str, bytes], tmp_path: Path, frames: np.ndarray) -> None:
    message = refusal(write(tmp_path / "world", {**files, STARTS_FILE: save({"frames": frames})}))
    assert "frames" in message
    refusal(write(tmp_path / "world", {**files, STARTS_FILE: save({"images": frames})}))


def of_few_colours(count: int) -> np.ndarray:
    """Start frames of the tiny world, (2, 32, 48, 3) uint8, of so many colours."""
    colours = np.random.default_rng(5).permutation(1 << 24)[:count]
    chosen = np.random.default_rng(6).integers(0, count, (2, 32, 48))
    chosen.flat[:count] = np.arange(count)
    return (colours[chosen][..., None] >> np.array([16, 8, 0])).astype(np.uint8)


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257])
def test_start_frames_of_few_colours_take_a_third(good: World, tmp_path: Path, count: int) -> None:
    starts = of_few_colours(count)
    world = save_world(tmp_path, good.spec, good.weights, starts, "")
    np.testing.assert_array_equal(world.starts, starts)
    assert world.starts.dtype == np.uint8
    stored = load((tmp_path / STARTS_FILE).read_bytes())
    assert stored["frames"].ndim == (3 if count <= 256 else 4)
    assert count > 256 or stored["palette"].shape == (count, 3)


@pytest.mark.parametrize(("named", "frames", "palette"), [
    ("palette has 4", np.full((2, 32, 48), 4, np.uint8), np.zeros((4, 3), np.uint8)),
    ("palette is", np.zeros((2, 32, 48), np.uint8), np.zeros((0, 3), np.uint8)),
    ("palette is", np.zeros((2, 32, 48), np.uint8), np.zeros((257, 3), np.uint8)),
    ("palette is", np.zeros((2, 32, 48), np.uint8), np.zeros((4, 4), np.uint8)),
    ("palette is", np.zeros((2, 32, 48), np.uint8), np.zeros((4, 3), np.float32)),
    ("palette is", np.zeros((2, 32, 48), np.uint8), np.zeros(3, np.uint8)),
    ("frames is", np.zeros((2, 32, 48, 3), np.uint8), np.zeros((4, 3), np.uint8)),
    ("frames is", np.zeros((2, 32, 48), np.int8), np.zeros((4, 3), np.uint8)),
    ("frames is", np.zeros((0, 32, 48), np.uint8), np.zeros((4, 3), np.uint8))])
def test_a_wrong_palette_is_refused(files: dict[str, bytes], tmp_path: Path, named: str, frames: np.ndarray,
                                    palette: np.ndarray) -> None:
    content = save({"frames": frames, "palette": palette})
    assert named in refusal(write(tmp_path / "world", {**files, STARTS_FILE: content}))


def header(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the tensor bytes of a safetensors file."""
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def with_header(head: dict[str, Any], body: bytes, size: int | None = None) -> bytes:
    text = json.dumps(head).encode()
    return (len(text) if size is None else size).to_bytes(8, "little") + text + body


@pytest.mark.parametrize("claim", [[2**40], [2**62, 2**62], [0, 2**63], [2**64], [-1], [1e9], ["a"], None])
def test_a_claimed_shape_takes_no_memory(files: dict[str, bytes], tmp_path: Path, claim: Any) -> None:
    for name, tensor in ((WEIGHTS_FILE, BIAS), (STARTS_FILE, "frames")):
        head, body = header(files[name])
        head[tensor]["shape"] = claim
        refusal(write(tmp_path / "world", {**files, name: with_header(head, body)}))


@pytest.mark.parametrize("offsets", [[0, 2**50], [2**50, 2**51], [8, 0], [-4, 0], [0, 0], [1, 2, 3], None])
def test_claimed_offsets_take_no_memory(files: dict[str, bytes], tmp_path: Path, offsets: Any) -> None:
    for name, tensor in ((WEIGHTS_FILE, BIAS), (STARTS_FILE, "frames")):
        head, body = header(files[name])
        head[tensor]["data_offsets"] = offsets
        refusal(write(tmp_path / "world", {**files, name: with_header(head, body)}))


@pytest.mark.parametrize("size", [0, 1, 2**20, 2**32, 2**63, 2**64 - 1])
def test_a_claimed_header_size_takes_no_memory(files: dict[str, bytes], tmp_path: Path, size: int) -> None:
    for name in (WEIGHTS_FILE, STARTS_FILE):
        refusal(write(tmp_path / "world", {**files, name: with_header(*header(files[name]), size)}))


# -- fuzzing -----------------------------------------------------------------------------------------

FIGURES = {"assets": "drawn", "evaluation": {"psnr": {"1": 20.5}, "episodes": 16, "engine": "native"}}
VALUES: tuple[Any, ...] = (None, True, False, 0, -1, 1, 2, 3, 7, 64, 1024, 4096, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308,
                           float("nan"), float("inf"), "", "x", "dense", "window", "\n", "\ud800", [], {}, [1], [[]],
                           {"a": {}}, "y" * 300)


def mutate_json(data: Any, generator: random.Random) -> Any:
    """One value somewhere in parsed JSON replaced, taken away, doubled or renamed, in place."""
    at = data
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            return data
        key = generator.choice(keys)
        if isinstance(at[key], dict | list) and at[key] and generator.random() < 0.8:
            at = at[key]
            continue
        deed = generator.randrange(5)
        if deed <= 1:
            at[key] = generator.choice(VALUES)
        elif deed == 2 and isinstance(at[key], int | float):
            at[key] = at[key] * generator.choice((-1, 2, 3, 10, 1000)) + generator.choice((0, 1))
        elif deed == 3:
            del at[key]
        elif isinstance(at, dict):
            at[generator.choice(("", "x\ny", "colour", str(key) + "s"))] = at[key]
        else:
            at.insert(key, at[key])
        return data


def mutate_bytes(content: bytes, generator: random.Random) -> bytes:
    """Flipped, cut, repeated or overwritten bytes; the header is hit as often as the rest."""
    changed = bytearray(content)
    area = len(changed) if generator.random() < 0.5 else min(len(changed), 200)
    for _ in range(generator.choice((1, 1, 2, 8))):
        position, deed = generator.randrange(area), generator.randrange(4)
        if deed == 0:
            changed[position % max(len(changed), 1)] = generator.randrange(256)
        elif deed == 1:
            del changed[position : position + generator.choice((1, 8, 1000))]
        elif deed == 2:
            changed[position:position] = changed[: generator.choice((1, 8, 100))]
        else:
            changed[position : position + 8] = generator.choice((bytes(8), b"\xff" * 8))
        if not changed:
            break
    return bytes(changed)


def mutate_tensors(content: bytes, generator: random.Random) -> bytes:
    """One tensor of a well-formed file with another type, shape, value or name."""
    tensors = load(content)
    name = generator.choice(sorted(tensors))
    value, deed = tensors[name], generator.randrange(6)
    if deed == 0:
        value = value.astype(generator.choice(("f2", "f4", "f8", "i1", "i4", "u1", "i8", "bool")))
    elif deed == 1:
        value = generator.choice((value[None], value[:0], value[:-1], value.reshape(-1), value.T))
    elif deed == 2 and value.dtype == np.float32:
        value = value.copy()
        value.reshape(-1)[generator.randrange(value.size)] = generator.choice((np.nan, np.inf, -np.inf, 3e38))
    elif deed == 3:
        del tensors[name]
        name = generator.choice((name + "x", name + SCALE, "", "\n"))
    elif deed == 4:
        tensors[name + SCALE] = value.reshape(-1)[:1].astype(np.float32)
    else:
        name = generator.choice(sorted(tensors))
    return save({**tensors, name: np.ascontiguousarray(value)})


def fuzz(seed: int, files: dict[str, bytes], folder: Path) -> bool:
    """Load one mutated world; True if it was accepted. Anything but a `WorldError` comes through."""
    generator = random.Random(seed)
    files = {**files, FIGURES_FILE: json.dumps(FIGURES).encode()}
    if generator.random() < 0.5:  # the other form
        starts = load(files[STARTS_FILE])
        files[STARTS_FILE] = save({"frames": starts["palette"][starts["frames"]]})
    if generator.random() < 0.1:
        figures = json.dumps(mutate_json(json.loads(files[FIGURES_FILE]), generator)).encode()
        files[FIGURES_FILE] = mutate_bytes(figures, generator) if generator.random() < 0.5 else figures
    for _ in range(generator.choice((1, 1, 1, 2))):
        name = generator.choice(DATA_FILES)
        deed = generator.randrange(4)
        if (deed == 0 and name == SPEC_FILE) or deed == 1:
            try:
                files[SPEC_FILE] = json.dumps(mutate_json(json.loads(files[SPEC_FILE]), generator)).encode()
            except ValueError:  # an earlier mutation has left no JSON there
                continue
        elif deed == 2 and name != SPEC_FILE:
            try:
                files[name] = mutate_tensors(files[name], generator)
            except Exception:  # an earlier mutation has left no tensors there
                continue
        elif deed == 3 and name != SPEC_FILE and len(files[name]) > 8:
            try:
                head, body = header(files[name])
                files[name] = with_header(mutate_json(head, generator), body)
            except (ValueError, TypeError):
                continue
        elif files[name]:
            files[name] = mutate_bytes(files[name], generator)
    write(folder, files)
    try:
        with np.errstate(all="ignore"):
            world = load_world(folder)
    except WorldError as error:
        assert str(error).isprintable() and str(error), repr(str(error))
        return False
    assert {name: value.shape for name, value in world.weights.items()} == weight_shapes(world.spec)
    assert all(np.isfinite(value).all() for value in world.weights.values())
    assert world.starts.shape[1:] == (world.spec.frame_height, world.spec.frame_width, 3)
    assert set(world.figures) <= set(FIGURES)
    return True


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**63))
def test_a_mutated_world_is_a_world_or_a_world_error(
        files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    fuzz(seed, files, tmp_path_factory.getbasetemp() / "fuzzed")


def test_mutations_reach_both_sides_and_take_little_memory(files: dict[str, bytes], tmp_path: Path) -> None:
    """The fuzzer is neither always refused nor always accepted, and no world makes memory soar."""
    tracemalloc.start()
    try:
        accepted = sum(fuzz(seed, files, tmp_path / "world") for seed in range(100))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 5 <= accepted <= 60
    assert peak < MEMORY_CAP_BYTES


@pytest.mark.long
def test_ten_thousand_mutated_worlds(files: dict[str, bytes], tmp_path: Path) -> None:
    accepted = sum(fuzz(seed, files, tmp_path / "world") for seed in bounded(range(10_000), MEMORY_CAP_BYTES))
    print(f"{accepted} accepted")
    assert 500 < accepted < 6_000
