"""Keys by their W3C `KeyboardEvent.code` names, as worlds bind them, and pygame's numbers for them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from dreamloop.models.core.spec import ActionSpec

_SPECIAL = {  # W3C code -> (pygame constant, what a player calls it)
    "Space": ("K_SPACE", "Space"), "Enter": ("K_RETURN", "Enter"), "Tab": ("K_TAB", "Tab"),
    "Backspace": ("K_BACKSPACE", "Backspace"), "Escape": ("K_ESCAPE", "Esc"),
    "ArrowLeft": ("K_LEFT", "Left"), "ArrowRight": ("K_RIGHT", "Right"),
    "ArrowUp": ("K_UP", "Up"), "ArrowDown": ("K_DOWN", "Down"),
    "ShiftLeft": ("K_LSHIFT", "Shift"), "ShiftRight": ("K_RSHIFT", "Right Shift"),
    "ControlLeft": ("K_LCTRL", "Ctrl"), "ControlRight": ("K_RCTRL", "Right Ctrl"),
    "AltLeft": ("K_LALT", "Alt"), "AltRight": ("K_RALT", "Right Alt"),
    "Comma": ("K_COMMA", ","), "Period": ("K_PERIOD", "."), "Slash": ("K_SLASH", "/"),
    "Semicolon": ("K_SEMICOLON", ";"), "Quote": ("K_QUOTE", "'"), "Minus": ("K_MINUS", "-"),
    "Equal": ("K_EQUALS", "="), "BracketLeft": ("K_LEFTBRACKET", "["), "BracketRight": ("K_RIGHTBRACKET", "]"),
    "Backslash": ("K_BACKSLASH", "\\"), "Backquote": ("K_BACKQUOTE", "`"),
}
_FAMILIES = ((re.compile(r"Key([A-Z])"), lambda s: (f"K_{s.lower()}", s)),
             (re.compile(r"Digit([0-9])"), lambda s: (f"K_{s}", s)),
             (re.compile(r"Numpad([0-9])"), lambda s: (f"K_KP{s}", f"Numpad {s}")),
             (re.compile(r"F([1-9]|1[0-2])"), lambda s: (f"K_F{s}", f"F{s}")))


def _lookup(code: str) -> tuple[str, str] | None:
    if code in _SPECIAL:
        return _SPECIAL[code]
    for pattern, entry in _FAMILIES:
        if found := pattern.fullmatch(code):
            return entry(found[1])
    return None


def constant(code: str) -> str | None:
    """The name of pygame's constant for a W3C code; None for a key that we do not know."""
    entry = _lookup(code)
    return entry and entry[0]


def label(code: str) -> str:
    """What a player calls the key."""
    entry = _lookup(code)
    return entry[1] if entry else code


def words(name: str) -> str:
    """An action's name for a player: turn_left -> Turn left."""
    return name.replace("_", " ").capitalize()


def buttons_by_key(actions: ActionSpec) -> dict[int, list[str]]:
    """pygame key number -> names of the buttons that it holds. Imports pygame."""
    import pygame
    held: dict[int, list[str]] = {}
    for button in actions.buttons:
        for code in button.keys:
            if (name := constant(code)) is not None:
                held.setdefault(getattr(pygame, name), []).append(button.name)
    return held


def bindings(actions: ActionSpec) -> Iterable[tuple[str, str]]:
    """(keys, action) for a help page, such as ("Left or A", "Turn left")."""
    mouse = {"left": "left click", "middle": "middle click", "right": "right click"}
    for button in actions.buttons:
        names = [label(code) for code in button.keys] + [mouse.get(m, m) for m in button.mouse]
        yield " or ".join(names) or "no key", words(button.name)
