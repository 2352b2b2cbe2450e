"""What hands do, as a world's action: pygame's events in, names of controls out. Imports pygame.

    controls = Controls(world.spec.actions, default_bindings(world.spec.actions))
    for event in pygame.event.get():
        pressed = controls.feed(event)                  # commands, such as ["pause"]
    frame = session.step(controls.action())

A key that was down for less than a frame still counts for one frame.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import pygame

from dreamloop.demos.bindings import Bindings
from dreamloop.demos.gamepad import Gamepads
from dreamloop.demos.inputs import scancodes
from dreamloop.models.core.spec import ActionSpec
from dreamloop.runtime.session import Action

CLICKS = {1: "mouse-left", 2: "mouse-middle", 3: "mouse-right"}
MOUSE_FULL_PIXELS = 40  # a mouse that moves this far between two frames is at its limit
STILL = 0.12  # sticks at rest are seldom quite at zero
PRESSES = (pygame.KEYDOWN, pygame.MOUSEBUTTONDOWN, pygame.CONTROLLERBUTTONDOWN, pygame.JOYBUTTONDOWN)
HANDS = -1  # the device that keyboard and mouse are, beside the numbers of gamepads


class Controls:
    """The keys, clicks and sticks that are down now. bindings: what they mean."""

    def __init__(self, actions: ActionSpec, bindings: Bindings) -> None:
        self._axes = {axis.name: axis.limit for axis in actions.axes}
        self.bindings = bindings
        self.gamepads = Gamepads()
        self._keys = scancodes()
        self._switches: defaultdict[str, list[str]] = defaultdict(list)  # input -> buttons of the world
        self._commands: defaultdict[str, list[str]] = defaultdict(list)
        for name, inputs in bindings.actions.items():
            for one in inputs if name not in self._axes else ():
                self._switches[one].append(name)
        for name, inputs in bindings.commands.items():
            for one in inputs:
                self._commands[one].append(name)
        self._values: dict[tuple[int, str], float] = {}  # (device, input) -> value, of what is not at rest
        self._tapped: set[str] = set()  # pressed since the last reading, even if let go again
        self._moved = [0, 0]  # by the mouse since the last reading, in pixels

    @property
    def needs_mouse(self) -> bool:
        """Whether the mouse's motion is bound, so that a window should keep the pointer."""
        return any(one in ("mouse-x", "mouse-y") for name in self._axes for one in self.bindings.actions.get(name, ()))

    def feed(self, event: pygame.event.Event) -> list[str]:
        """Take one event; returns the commands that it presses, in the order of the bindings."""
        if event.type == pygame.WINDOWFOCUSLOST:
            self._values.clear()  # the releases will go to another window
        elif event.type == pygame.MOUSEMOTION:
            self._moved = [self._moved[0] + event.rel[0], self._moved[1] + event.rel[1]]
        elif event.type == pygame.JOYDEVICEREMOVED:
            self._values = {key: value for key, value in self._values.items() if key[0] != event.instance_id}
        pressed: list[str] = []
        for device, name, value in [*self._hands(event), *self.gamepads.feed(event)]:
            if value and (event.type in PRESSES or (device, name) not in self._values):
                self._tapped.update(self._switches.get(name, ()))
                pressed += self._commands.get(name, ())
            if value:
                self._values[device, name] = value
            else:
                self._values.pop((device, name), None)
        return pressed

    def _hands(self, event: pygame.event.Event) -> Iterator[tuple[int, str, float]]:
        if event.type in (pygame.KEYDOWN, pygame.KEYUP) and event.scancode in self._keys:
            yield HANDS, self._keys[event.scancode], float(event.type == pygame.KEYDOWN)
        elif event.type in (pygame.MOUSEBUTTONDOWN, pygame.MOUSEBUTTONUP) and event.button in CLICKS:
            yield HANDS, CLICKS[event.button], float(event.type == pygame.MOUSEBUTTONDOWN)

    def held(self) -> frozenset[str]:
        """Names of the world's buttons that are down."""
        return frozenset(name for _, one in self._values for name in self._switches.get(one, ()))

    def holds(self, command: str) -> bool:
        """Whether a command's key is down."""
        return any(command in self._commands.get(one, ()) for _, one in self._values)

    def forget(self) -> None:
        """Forget taps and motion, as a pause does."""
        self._tapped, self._moved = set(), [0, 0]

    def action(self) -> Action:
        """What goes into the next frame: names of buttons, or, for a world with axes, values by name."""
        held = self.held() | self._tapped
        action: Action = held
        if self._axes:
            action = dict.fromkeys(held, 1.0) | {name: limit * self._range(name) for name, limit in self._axes.items()}
        self.forget()
        return action

    def _range(self, name: str) -> float:
        """The value of an axis in [-1, 1]: of its inputs the one that is furthest from rest."""
        return max((self._reading(one) for one in self.bindings.actions.get(name, ())), key=abs, default=0.0)

    def _reading(self, one: str) -> float:
        if one in ("mouse-x", "mouse-y"):
            return max(-1.0, min(1.0, self._moved[one == "mouse-y"] / MOUSE_FULL_PIXELS))
        low, slash, high = one.partition("/")
        if slash:
            down = {name for _, name in self._values}
            return float(high in down) - float(low in down)
        furthest = max((value for (_, name), value in self._values.items() if name == one), key=abs, default=0.0)
        return 0.0 if abs(furthest) < STILL else max(-1.0, min(1.0, furthest))

    def close(self) -> None:
        self.gamepads.close()
