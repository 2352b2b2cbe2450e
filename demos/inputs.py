"""What hands touch, by name: keys, gamepad buttons and sticks, the mouse.

    KeyA .. KeyZ, Digit0, ArrowLeft, Space, F5 ...   a key by its place: W3C `KeyboardEvent.code`, which
                                                     names what the key is on a US keyboard, so that W A S D
                                                     lie where they lie on any layout
    button0 .. button16                              a gamepad's buttons, W3C standard layout
    axis0- axis0+ .. axis3- axis3+                   a stick pushed left or right (0, 2), up or down (1, 3)
    mouse-left mouse-middle mouse-right              a click
    axis0 .. axis3, mouse-x mouse-y                  how far, for controls that are not just on or off
    ArrowLeft/ArrowRight                             the same from two inputs: the low end and the high end

Worlds name their own defaults in these words (`Button.keys`, `.gamepad`, `.mouse`), and so does the file in
which a player changes them (bindings.py). Nothing here imports pygame but `scancodes`.
"""

from __future__ import annotations

_SPECIAL = {  # W3C code -> (pygame's KSCAN_ name, what a player calls it)
    "Space": ("SPACE", "Space"), "Enter": ("RETURN", "Enter"), "Tab": ("TAB", "Tab"),
    "Backspace": ("BACKSPACE", "Backspace"), "Escape": ("ESCAPE", "Esc"),
    "ArrowLeft": ("LEFT", "Left"), "ArrowRight": ("RIGHT", "Right"), "ArrowUp": ("UP", "Up"),
    "ArrowDown": ("DOWN", "Down"), "ShiftLeft": ("LSHIFT", "Shift"), "ShiftRight": ("RSHIFT", "Right Shift"),
    "ControlLeft": ("LCTRL", "Ctrl"), "ControlRight": ("RCTRL", "Right Ctrl"),
    "AltLeft": ("LALT", "Alt"), "AltRight": ("RALT", "Right Alt"), "CapsLock": ("CAPSLOCK", "Caps Lock"),
    "Insert": ("INSERT", "Insert"), "Delete": ("DELETE", "Delete"), "Home": ("HOME", "Home"), "End": ("END", "End"),
    "PageUp": ("PAGEUP", "Page Up"), "PageDown": ("PAGEDOWN", "Page Down"),
    "Comma": ("COMMA", ","), "Period": ("PERIOD", "."), "Slash": ("SLASH", "/"), "Semicolon": ("SEMICOLON", ";"),
    "Quote": ("APOSTROPHE", "'"), "Minus": ("MINUS", "-"), "Equal": ("EQUALS", "="),
    "BracketLeft": ("LEFTBRACKET", "["), "BracketRight": ("RIGHTBRACKET", "]"),
    "Backslash": ("BACKSLASH", "\\"), "Backquote": ("GRAVE", "`"), "IntlBackslash": ("NONUSBACKSLASH", "<"),
    "NumpadEnter": ("KP_ENTER", "Numpad Enter"), "NumpadAdd": ("KP_PLUS", "Numpad +"),
    "NumpadSubtract": ("KP_MINUS", "Numpad -"),
}
KEYS: dict[str, tuple[str, str]] = {
    **_SPECIAL, **{f"Key{c}": (c, c) for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"},
    **{f"Digit{n}": (str(n), str(n)) for n in range(10)},
    **{f"Numpad{n}": (f"KP_{n}", f"Numpad {n}") for n in range(10)},
    **{f"F{n}": (f"F{n}", f"F{n}") for n in range(1, 13)}}
BUTTONS = dict(zip((f"button{i}" for i in range(17)), (
    "A", "B", "X", "Y", "LB", "RB", "LT", "RT", "Back", "Start", "left stick click", "right stick click",
    "D-pad up", "D-pad down", "D-pad left", "D-pad right", "Guide"), strict=True))
STICKS = {"axis0-": "left stick left", "axis0+": "left stick right", "axis1-": "left stick up",
          "axis1+": "left stick down", "axis2-": "right stick left", "axis2+": "right stick right",
          "axis3-": "right stick up", "axis3+": "right stick down"}
CLICKS = {"mouse-left": "left click", "mouse-middle": "middle click", "mouse-right": "right click"}
RANGES = {"axis0": "left stick sideways", "axis1": "left stick up and down", "axis2": "right stick sideways",
          "axis3": "right stick up and down", "mouse-x": "mouse sideways", "mouse-y": "mouse up and down"}
_LABELS = {**{code: label for code, (_, label) in KEYS.items()}, **BUTTONS, **STICKS, **CLICKS, **RANGES}

KNOWN = ("keys by their place (KeyA to KeyZ, Digit0 to Digit9, Numpad0 to Numpad9, F1 to F12, " + ", ".join(_SPECIAL)
         + "), button0 to button16, axis0- axis0+ to axis3- axis3+, " + ", ".join(CLICKS))
KNOWN_RANGES = f"{', '.join(RANGES)}, or two inputs such as ArrowLeft/ArrowRight"


def is_switch(name: str) -> bool:
    """Whether it is an input that is on or off."""
    return name in KEYS or name in BUTTONS or name in STICKS or name in CLICKS


def is_range(name: str) -> bool:
    """Whether it is an input with a value in [-1, 1]."""
    low, slash, high = name.partition("/")
    return name in RANGES or (bool(slash) and is_switch(low) and is_switch(high))


def is_gamepad(name: str) -> bool:
    """Whether it is on a gamepad."""
    return name.startswith(("button", "axis"))


def label(name: str) -> str:
    """What a player calls an input; a key is named as on a US keyboard."""
    return _LABELS.get(name) or "/".join(_LABELS.get(part, part) for part in name.split("/"))


def words(name: str) -> str:
    """An action's name for a player: turn_left -> Turn left."""
    return name.replace("_", " ").capitalize()


def scancodes() -> dict[int, str]:
    """The number by which SDL knows a key's place -> its W3C code. Imports pygame."""
    import pygame
    return {getattr(pygame, f"KSCAN_{name}"): code for code, (name, _) in KEYS.items()}
