"""Gamepads through SDL, plugged in and out while the game runs. Imports pygame.

SDL's own database turns the buttons and sticks of a known pad into one layout, which we name as W3C's standard
gamepad does; a pad that it does not know keeps its own numbers, with its hat as the D-pad.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pygame
from pygame._sdl2 import controller

# SDL's controller buttons in their order (A B X Y Back Guide Start, sticks, shoulders, D-pad) -> W3C
W3C_BUTTONS = (0, 1, 2, 3, 8, 16, 9, 10, 11, 4, 5, 12, 13, 14, 15)
TRIGGERS = {4: "button6", 5: "button7"}  # SDL's axes of the triggers
PUSHED = 0.5  # how far a stick or a trigger goes before it counts as pressed
AXIS_FULL = 32767.0
HAT = (("button14", 0, -1), ("button15", 0, 1), ("button12", 1, 1), ("button13", 1, -1))  # name, axis, direction


class Gamepads:
    """Every gamepad that is plugged in. names: what they call themselves."""

    def __init__(self) -> None:
        self._pads: dict[int, controller.Controller | pygame.joystick.JoystickType] = {}
        self.names: dict[int, str] = {}
        with contextlib.suppress(pygame.error):  # a system without joysticks: keys and mouse remain
            pygame.joystick.init()
            controller.init()

    def feed(self, event: pygame.event.Event) -> Iterator[tuple[int, str, float]]:
        """What an event changes: (the pad's number, input, value: 0 to 1, or -1 to 1 for axis0 .. axis3)."""
        if event.type == pygame.JOYDEVICEADDED:
            self._open(event.device_index)
        elif event.type == pygame.JOYDEVICEREMOVED:
            self._pads.pop(event.instance_id, None)
            self.names.pop(event.instance_id, None)
        pad = self._pads.get(getattr(event, "instance_id", -1))
        if pad is None:
            return
        number = event.instance_id
        if isinstance(pad, controller.Controller):
            if event.type in (pygame.CONTROLLERBUTTONDOWN, pygame.CONTROLLERBUTTONUP):
                if event.button < len(W3C_BUTTONS):
                    yield number, f"button{W3C_BUTTONS[event.button]}", float(event.type == pygame.CONTROLLERBUTTONDOWN)
            elif event.type == pygame.CONTROLLERAXISMOTION:
                value = max(-1.0, event.value / AXIS_FULL)
                if event.axis in TRIGGERS:
                    yield number, TRIGGERS[event.axis], float(value > PUSHED)
                else:
                    yield from _stick(number, event.axis, value)
        elif event.type in (pygame.JOYBUTTONDOWN, pygame.JOYBUTTONUP):
            yield number, f"button{event.button}", float(event.type == pygame.JOYBUTTONDOWN)
        elif event.type == pygame.JOYAXISMOTION and event.axis < 4:
            yield from _stick(number, event.axis, event.value)
        elif event.type == pygame.JOYHATMOTION:
            for name, axis, direction in HAT:
                yield number, name, float(event.value[axis] == direction)

    def _open(self, index: int) -> None:
        try:
            known = controller.is_controller(index)
            pad = controller.Controller(index) if known else pygame.joystick.Joystick(index)
            joystick = pad.as_joystick() if isinstance(pad, controller.Controller) else pad
        except pygame.error:  # pulled out again before we looked
            return
        self._pads[joystick.get_instance_id()] = pad
        self.names[joystick.get_instance_id()] = joystick.get_name()

    def close(self) -> None:
        self._pads.clear()
        controller.quit()
        pygame.joystick.quit()


def _stick(number: int, axis: int, value: float) -> Iterator[tuple[int, str, float]]:
    yield number, f"axis{axis}", value
    yield number, f"axis{axis}-", float(value < -PUSHED)
    yield number, f"axis{axis}+", float(value > PUSHED)
