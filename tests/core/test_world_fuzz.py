"""Mutated world folders: a world or one line, never more memory than a world takes."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bounds import bounded
from core.folders import DATA_FILES, MEMORY_CAP_BYTES, header, with_header, write
from hypothesis import given, settings, strategies as st
from safetensors.numpy import load, save

from dreamloop.models.core.errors import WorldError
from dreamloop.models.core.quantize import SCALE
from dreamloop.models.core.spec import weight_shapes
from dreamloop.models.core.world import FIGURES_FILE, SPEC_FILE, STARTS_FILE, load_world

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
