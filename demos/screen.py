"""The screen: whether there is one, and images to start from. Imports pygame."""

from __future__ import annotations

import os
import sys

import numpy as np
import pygame

from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.spec import WorldSpec

UNSEEN = ("offscreen", "dummy")  # what SDL falls back to where no screen answers


class NoDisplay(DreamloopError):
    """There is no screen to open a window on; the message says why."""


def load_image(path: str | os.PathLike[str], spec: WorldSpec) -> np.ndarray:
    """An image file as a start frame, resized to the world's size, (H, W, 3) uint8."""
    if not os.path.isfile(path):  # False, too, for a name that no file can have
        raise DreamloopError(f"--start {path}: no such image (and not the index of a start frame)")
    try:
        loaded = pygame.image.load(os.fspath(path))
    except pygame.error as error:
        raise DreamloopError(f"--start {path}: not an image that can be read ({error})") from error
    flat = pygame.Surface(loaded.get_size(), 0, 24)
    flat.blit(loaded, (0, 0))
    size = (spec.frame_width, spec.frame_height)
    if flat.get_size() != size:
        flat = pygame.transform.smoothscale(flat, size)
    pixels = np.frombuffer(pygame.image.tobytes(flat, "RGB"), np.uint8)
    return pixels.reshape(spec.frame_height, spec.frame_width, 3).copy()


def start_display() -> str:
    """Start pygame's display and say what it is. Raises `NoDisplay` where there is none."""
    asked = os.environ.get("SDL_VIDEODRIVER")
    if sys.platform.startswith("linux") and not (asked or os.environ.get("DISPLAY")
                                                 or os.environ.get("WAYLAND_DISPLAY")):
        raise NoDisplay("no display here (neither DISPLAY nor WAYLAND_DISPLAY is set)")
    if os.environ.get("DISPLAY") and asked in (None, "x11"):
        # plain shared memory: SDL would draw with OpenGL, which a machine without a GPU emulates
        os.environ.setdefault("SDL_FRAMEBUFFER_ACCELERATION", "0")
    try:
        pygame.display.init()
        if not asked and pygame.display.get_driver() in UNSEEN:
            pygame.display.quit()
            named = [f"{name}={os.environ[name]}" for name in ("DISPLAY", "WAYLAND_DISPLAY") if os.environ.get(name)]
            raise NoDisplay(f"no display here ({' and '.join(named) or 'the screen'} does not answer)")
        sizes = ", ".join(f"{width}x{height}" for width, height in pygame.display.get_desktop_sizes())
        return f"{pygame.display.get_driver()} {sizes}".strip()
    except pygame.error as error:
        raise NoDisplay(f"no display here ({error})") from error


def picture(pixels: np.ndarray) -> pygame.Surface:
    """A frame, (H, W, 3) uint8, as a surface."""
    return pygame.image.frombuffer(np.ascontiguousarray(pixels).data, pixels.shape[1::-1], "RGB")
