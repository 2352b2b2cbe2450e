"""A tiny world that is good, and its files, for tests that spoil them."""

from __future__ import annotations

import pytest
from core.folders import DATA_FILES
from worlds import tiny_world

from dreamloop.models.core.world import CARD_FILE, World


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A tiny world; its folder is `folder_of(good)`, and no test writes there."""
    return tiny_world(tmp_path_factory.getbasetemp() / "good-world")


@pytest.fixture(scope="module")
def files(good: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Name -> content of each file of the good world."""
    folder = tmp_path_factory.getbasetemp() / "good-world"
    return {name: (folder / name).read_bytes() for name in (*DATA_FILES, CARD_FILE)}
