"""A human as the player of a real game: its frames in a window, its keys, its speed.

    dreamloop record gymnasium:MountainCar-v0 OUT --policy human --frames 3000

The frame on the screen is the one that the pressed keys answer, as in the dream. Esc ends the
recording; what was played is kept. Importing this file imports pygame.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pygame

from dreamloop.demos.inputs import label, scancodes, words
from dreamloop.demos.player import WINDOW_WIDTH, start_display
from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.spec import ActionSpec


def human(game: str) -> Any:
    """A `Player` (models/training/games) that opens a window when it first sees a frame. Raises
    `NoDisplay` where there is no screen."""
    from dreamloop.models.training.games import Player, View, open_game
    start_display()
    with open_game(game) as opened:  # a view does not tell the speed
        fps, name = opened.fps, opened.name
    window = HumanWindow(name, fps)

    def make(actions: ActionSpec, rng: np.random.Generator) -> Any:
        window.bind(actions)

        def act(view: View) -> np.ndarray:
            return actions.vector(window.held_after(view.frame))

        return act

    return Player("human", 1.0, make)


class HumanWindow:
    """Shows frames at `fps` and tells which buttons are down."""

    def __init__(self, name: str, fps: float) -> None:
        self._name, self._fps = name, fps
        self._clock = pygame.time.Clock()
        self._buttons: dict[int, list[str]] = {}
        self._down: set[int] = set()
        self._open = False
        self._left = False

    def bind(self, actions: ActionSpec) -> None:
        self._buttons = {place: [button.name for button in actions.buttons if code in button.keys]
                         for place, code in scancodes().items()}
        if not any(self._buttons.values()):
            raise DreamloopError(f"{self._name}: none of its buttons has a key")
        self._hint = ", ".join(f"{' / '.join(map(label, button.keys))}: {words(button.name).lower()}"
                               for button in actions.buttons if button.keys)

    def held_after(self, frame: np.ndarray) -> set[str]:
        """Show a frame, (H, W, 3) uint8, for as long as it lasts; then the names of the buttons that are
        down, or were since. Raises `PlayerLeft` once the window is closed."""
        from dreamloop.models.training.games import PlayerLeft
        if self._left:
            raise PlayerLeft
        self._show(frame)
        self._clock.tick(self._fps)
        tapped: set[int] = set()
        for event in pygame.event.get():
            if event.type == pygame.QUIT or (event.type == pygame.KEYDOWN and event.key == pygame.K_ESCAPE):
                self._left = True
                pygame.display.quit()
                raise PlayerLeft
            if event.type == pygame.KEYDOWN:
                self._down.add(event.scancode)
                tapped.add(event.scancode)
            elif event.type == pygame.KEYUP:
                self._down.discard(event.scancode)
            elif event.type == pygame.WINDOWFOCUSLOST:
                self._down.clear()
        return {name for place in self._down | tapped for name in self._buttons.get(place, [])}

    def _show(self, frame: np.ndarray) -> None:
        height, width, _ = frame.shape
        scale = max(1, round(WINDOW_WIDTH / width))
        if not self._open:
            pygame.display.set_mode((width * scale, height * scale))
            pygame.display.set_caption(f"{self._name} - recording. {self._hint}. Esc: end")
            self._open = True
        surface = pygame.display.get_surface()
        assert surface is not None
        picture = pygame.image.frombuffer(np.ascontiguousarray(frame).data, (width, height), "RGB")
        pygame.transform.scale(picture.convert(surface), surface.get_size(), surface)
        pygame.display.flip()
