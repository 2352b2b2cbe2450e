"""Makes the helper of this folder importable, keeps built graphs out of the user's cache, and gives
torch one thread: for tiny worlds, two threads on a busy machine spend their time waiting for each other.

Fixtures: `folder` and `world`, a tiny world of a test file; `engine`, in turn every engine that runs here, with it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from worlds import tiny_world

from dreamloop.models.core.world import World
from dreamloop.runtime.engines import ENGINE_NAMES, Engine, engine_status, open_engine

HERE = str(Path(__file__).resolve().parent)
if HERE not in sys.path:
    sys.path.insert(0, HERE)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("worlds") / "tiny"


@pytest.fixture(scope="module")
def world(folder: Path) -> World:
    return tiny_world(folder)


@pytest.fixture(scope="module", params=[name for name in ENGINE_NAMES if engine_status(name).available])
def engine(request: pytest.FixtureRequest, world: World) -> Engine:
    return open_engine(world, request.param, threads=1)
