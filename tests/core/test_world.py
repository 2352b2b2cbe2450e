"""World folders: a round trip that keeps every number it can, and folders that nobody should trust."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from core.folders import DATA_FILES, header, refusal, with_header, write
from core.strategies import world_specs
from hypothesis import given, settings
from safetensors.numpy import load, save
from worlds import random_frames, random_weights, tiny_spec

from dreamloop.models.core.errors import WorldError
from dreamloop.models.core.quantize import SCALE, is_quantized
from dreamloop.models.core.spec import DynamicsSpec, to_json, weight_shapes
from dreamloop.models.core.world import (
    CARD_FILE,
    MAX_SPEC_BYTES,
    SPEC_FILE,
    STARTS_FILE,
    WEIGHTS_FILE,
    World,
    load_world,
    save_world,
)

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
            step = np.sqrt(np.square(written[name]).reshape(shape[0], -1).mean(axis=1)) / 14  # a sixteenth, or so
            error = np.abs(value - written[name]).reshape(shape[0], -1).max(axis=1)
            assert (error <= step / 2).all(), name
            assert error.max() > 0, name
        else:
            np.testing.assert_array_equal(value, written[name], err_msg=name)


def test_a_world_stored_in_int8_of_the_tensors_own_shapes_is_read(files: dict[str, bytes], good: World,
                                                                  tmp_path: Path) -> None:
    """As all worlds were made before."""
    codes = np.arange(good.weights[WEIGHT].size, dtype=np.int64).reshape(good.weights[WEIGHT].shape) % 255 - 127
    before = {**load(files[WEIGHTS_FILE]), WEIGHT: codes.astype(np.int8)}
    world = load_world(write(tmp_path / "world", {**files, WEIGHTS_FILE: save(before)}))
    scale = before[WEIGHT + SCALE][:, None]
    np.testing.assert_allclose(world.weights[WEIGHT], codes * scale, rtol=1e-6)


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
    """Codes would hide it: a training run that diverged must not become a world with a silent channel."""
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


WEIGHT = "dynamics.blocks.0.qkv.weight"  # stored as deflated codes with a scale
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
    (BIAS, swap(BIAS, lambda x: x[:-1])), (WEIGHT, swap(WEIGHT, lambda x: x.view(np.int8))),
    (WEIGHT, swap(WEIGHT, lambda x: x[:-1])), (WEIGHT, swap(WEIGHT, lambda x: x[None])),
    (WEIGHT, swap(WEIGHT, lambda x: np.zeros(1 << 20, np.uint8))),
    (WEIGHT, swap(WEIGHT, lambda x: x[::-1])), (WEIGHT, swap(WEIGHT, lambda x: x.astype(np.float32))),
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
