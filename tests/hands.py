"""What a person does, for pygame: keys by their place, and a gamepad that SDL itself makes up.

    from hands import Pad, down, up
"""

from __future__ import annotations

import ctypes

import pygame
import pytest

from dreamloop.demos.inputs import scancodes

GAMEPAD, UNKNOWN = 1, 0  # SDL_JoystickType


def _post(kind: int, codes: tuple[str, ...]) -> None:
    places = {code: number for number, code in scancodes().items()}
    for code in codes:
        # the letter is of another layout: only the place may count
        pygame.event.post(pygame.event.Event(kind, scancode=places[code], key=pygame.K_z, unicode="z"))


def down(*codes: str) -> None:
    """Press keys, by W3C code."""
    _post(pygame.KEYDOWN, codes)


def up(*codes: str) -> None:
    _post(pygame.KEYUP, codes)


class Pad:
    """A virtual joystick of SDL (SDL_JoystickAttachVirtual): as real to a program as one with a plug.

    Buttons and axes are SDL's: for a gamepad 0 A, 6 Start, 9 LB, 11 to 14 D-pad; axes 0 to 3 sticks, 4 and 5
    triggers. SDL must have opened it (Gamepads does) before it can be moved.
    """

    def __init__(self, kind: int = GAMEPAD, axes: int = 6, buttons: int = 15, hats: int = 0) -> None:
        try:
            with open("/proc/self/maps", encoding="utf-8") as maps:
                path = next(line.split()[-1] for line in maps if "libSDL2-2" in line)
        except (OSError, StopIteration):
            pytest.skip("SDL's library is not found here, so no virtual gamepad can be made")
        self._sdl = ctypes.CDLL(path)
        self._sdl.SDL_JoystickFromInstanceID.restype = ctypes.c_void_p
        self.index = self._sdl.SDL_JoystickAttachVirtual(kind, axes, buttons, hats)
        assert self.index >= 0
        self.number = self._sdl.SDL_JoystickGetDeviceInstanceID(self.index)

    def _set(self, what: str, index: int, value: int, kind: type[ctypes._SimpleCData[int]]) -> None:
        joystick = ctypes.c_void_p(self._sdl.SDL_JoystickFromInstanceID(self.number))
        assert getattr(self._sdl, f"SDL_JoystickSetVirtual{what}")(joystick, index, kind(value)) == 0

    def button(self, index: int, pressed: bool) -> None:
        self._set("Button", index, pressed, ctypes.c_uint8)

    def axis(self, index: int, value: float) -> None:
        """value in [-1, 1]."""
        self._set("Axis", index, round(32767 * value), ctypes.c_int16)

    def hat(self, index: int, value: int) -> None:
        """value: 0 centred, 1 up, 2 right, 4 down, 8 left."""
        self._set("Hat", index, value, ctypes.c_uint8)

    def unplug(self) -> None:
        assert self._sdl.SDL_JoystickDetachVirtual(self.index) == 0
