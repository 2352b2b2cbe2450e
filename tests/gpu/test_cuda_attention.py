"""The CUDA attention: its arithmetic on the host, warp by warp, and its compilation for every architecture."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import FRAMES, SPECS, max_error, random, small
from plans import CASES, poisoned, random_plan

from dreamloop.models.core.errors import EngineError
from dreamloop.runtime import kernels
from dreamloop.runtime.gpu import cuda, plain
from dreamloop.runtime.gpu.sizes import Geometry

SOURCES = Path(__file__).resolve().parents[2] / "csrc" / "cuda"
BF16, FLOOR = torch.bfloat16, 2e-6
SHARED_BYTES = 48 << 10  # what a program may have without asking, on every architecture
compiler, nvcc = shutil.which("g++") or shutil.which("c++"), shutil.which("nvcc")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if compiler is None:
        pytest.skip("no C++ compiler here")
    path = tmp_path_factory.mktemp("cuda") / "host.so"
    subprocess.run([compiler, "-std=c++20", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC",
                    str(SOURCES / "host.cpp"), "-o", str(path)], check=True)
    return cuda.load(path)


LARGE = [(1, 200, 70, 2, 2, 1, 128, (1, 2, 3)), (2, 65, 65, 2, 1, 1, 64, (2, 1, 1))]


@pytest.mark.parametrize("case", CASES + LARGE, ids=str)
def test_random_lists_match_the_formula_and_nothing_else_is_read(host: ctypes.CDLL, case: tuple) -> None:
    b, t, block_tokens, slots, h, g, d, lead = case
    geometry = Geometry(t, block_tokens, -(-t // block_tokens))
    plan = random_plan(np.random.default_rng(t), lead, b if lead[0] > 1 else 1, slots * geometry.slot_blocks,
                       block_tokens)
    layer, query = random(2, b, g, slots * geometry.stride, d, dtype=BF16), random(b, t, h, d, seed=1, dtype=BF16)
    expected = plain.sparse_attention(query.double(), layer.double(), plan, geometry)
    usual = plain.sparse_attention(query, layer, plan, geometry)
    found = cuda.sparse_attention(query, poisoned(layer, plan, geometry), plan, geometry, library=host)
    # plain torch rounds once, at the end; tensor cores take probabilities in bf16 as well
    assert max_error(found, expected) <= 2 * max_error(usual, expected) + 2.0**-8 * float(expected.abs().max()) + FLOOR


@pytest.mark.parametrize("name", [name for name in SPECS if "top_k" not in name])
def test_plans_of_worlds_with_players_at_different_times(host: ctypes.CDLL, name: str) -> None:
    """Sinks are read from where they were turned, and from nowhere else."""
    spec, frames = small(SPECS[name]), torch.from_numpy(FRAMES)
    geometry, batch = Geometry.of(spec), len(FRAMES)
    _, plan = plain.slot_and_plan(spec, frames)
    layer = random(*spec.ring_shape(batch)[1:], dtype=BF16)
    query = random(batch, spec.tokens, 2, 16, seed=1, dtype=BF16)
    turned = plain.turn_sinks(layer, plain.rotations(spec, frames), geometry)
    wide = None if turned is None else turned.double()
    expected = plain.sparse_attention(query.double(), layer.double(), plan, geometry, wide)
    ring = poisoned(layer, plan, geometry)
    if turned is not None:
        ring[0, :, :, : turned.shape[2]] = torch.nan
    found = cuda.sparse_attention(query, ring, plan, geometry, turned, library=host)
    assert max_error(found, expected) <= 2.0**-7 * float(expected.abs().max())


def test_a_value_that_is_not_a_number_is_not_hidden(host: ctypes.CDLL) -> None:
    geometry = Geometry(4, 4, 1)
    plan = random_plan(np.random.default_rng(0), (1, 1, 1), 1, 2, 4)
    plan.count[:], plan.length[:] = 2, 4
    for part in (0, 1):
        layer = random(2, 1, 1, 8, 16, dtype=BF16)
        layer[part, 0, 0, 5] = torch.nan
        query = random(1, 4, 1, 16, seed=1, dtype=BF16)
        assert cuda.sparse_attention(query, layer, plan, geometry, library=host).isnan().all()


def test_without_the_library_one_line_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"the CUDA kernels are missing \(_cuda.so\); with nvcc on the path"):
        cuda.load(tmp_path / "_cuda.so")


@pytest.mark.skipif(not cuda.LIBRARY.is_file(), reason="it was built without nvcc")
def test_the_built_library_loads_and_an_old_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda.load.cache_clear()
    assert cuda.load().dreamloop_cuda_attention.argtypes
    cuda.load.cache_clear()
    monkeypatch.setattr(kernels, "available", lambda: "the compiled kernels are stale: built from others")
    with pytest.raises(EngineError, match=r"are stale: built from others$"):
        cuda.load()


ARCHITECTURES = [90, *(pytest.param(arch, marks=pytest.mark.long) for arch in (80, 89, 120))]


@pytest.mark.skipif(nvcc is None, reason="nvcc is not on the path")
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_compiles_without_spills(arch: int, tmp_path: Path) -> None:
    assert nvcc is not None
    done = subprocess.run([nvcc, "-std=c++17", "-cubin", f"-arch=sm_{arch}", "-Xptxas", "-v", "-Werror", "all-warnings",
                           str(SOURCES / "attention.cu"), "-o", str(tmp_path / "out.cubin")], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"entry function '(\w+)'", done.stderr) == [f"dreamloop_attention_{d}" for d in (128, 64, 32)]
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert spills == [("0", "0")] * 3, done.stderr
    assert max(int(size) for size in re.findall(r"(\d+) bytes smem", done.stderr)) <= SHARED_BYTES


@pytest.mark.skipif(nvcc is None, reason="nvcc is not on the path")
def test_ptx_has_plain_names_and_twenty_parameters(tmp_path: Path) -> None:
    """What a plugin that brings its own PTX looks a kernel up by, and hands it: pointers, sizes, output."""
    assert nvcc is not None
    path = tmp_path / "out.ptx"
    subprocess.run([nvcc, "-std=c++17", "-ptx", "-arch=compute_80", str(SOURCES / "attention.cu"), "-o", str(path)],
                   check=True, capture_output=True)
    for size in (32, 64, 128):
        kernel = re.search(rf"\.visible \.entry dreamloop_attention_{size}\((.*?)\)", path.read_text(), re.DOTALL)
        assert kernel
        assert re.findall(r"\.param \.(u\d+)", kernel[1]) == ["u64"] * 7 + ["u32"] * 12 + ["u64"]
