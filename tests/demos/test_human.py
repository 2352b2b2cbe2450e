"""A human as the player of a real game: keys in, held buttons out, and a window that can be left."""

from __future__ import annotations

import numpy as np
import pygame
import pytest

pytest.importorskip("torch", reason="players belong to training: pip install 'dreamloop[train]'")

from dreamloop.demos.human import HumanWindow
from dreamloop.demos.screen import NoDisplay, start_display
from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.spec import ActionSpec, Button
from dreamloop.models.training.games import PlayerLeft

ACTIONS = ActionSpec((Button("left", ("ArrowLeft",)), Button("fire", ("Space", "KeyX"))))
FRAME = np.full((20, 30, 3), (10, 200, 30), np.uint8)


@pytest.fixture
def window(monkeypatch: pytest.MonkeyPatch) -> HumanWindow:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    start_display()
    pygame.event.clear()
    made = HumanWindow("toy", 1000.0)
    made.bind(ACTIONS)
    return made


def test_keys_that_are_down_are_held_and_a_tap_counts(window: HumanWindow) -> None:
    assert window.held_after(FRAME) == set()
    pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_LEFT, scancode=pygame.KSCAN_LEFT))
    pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_x, scancode=pygame.KSCAN_X))
    pygame.event.post(pygame.event.Event(pygame.KEYUP, key=pygame.K_x, scancode=pygame.KSCAN_X))
    assert window.held_after(FRAME) == {"left", "fire"}
    assert window.held_after(FRAME) == {"left"}
    pygame.event.post(pygame.event.Event(pygame.KEYUP, key=pygame.K_LEFT, scancode=pygame.KSCAN_LEFT))
    assert window.held_after(FRAME) == set()
    surface = pygame.display.get_surface()
    assert surface is not None and surface.get_at((5, 5))[:3] == (10, 200, 30), "the game's frame is shown"
    assert "Left: left" in pygame.display.get_caption()[0]


def test_esc_ends_the_recording_for_good(window: HumanWindow) -> None:
    window.held_after(FRAME)
    pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_ESCAPE, scancode=pygame.KSCAN_ESCAPE))
    for _ in range(2):
        with pytest.raises(PlayerLeft):
            window.held_after(FRAME)


def test_a_game_without_keys_is_refused() -> None:
    with pytest.raises(DreamloopError, match="none of its buttons has a key"):
        HumanWindow("toy", 30.0).bind(ActionSpec((Button("left"),)))


def test_without_a_screen_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from dreamloop.demos.human import human
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(NoDisplay, match="no display"):
        human("doom-arena")
