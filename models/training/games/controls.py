"""Buttons for any Gymnasium environment: its action space as keys that are up or down.

    Discrete(n)          named by `get_action_meanings`, else by `get_keys_to_action`, else action_0 ...;
                         UPRIGHTFIRE and its like are several buttons at once; a NOOP is no button
    MultiBinary(n)       a button each, named by `buttons` where the environment has that list
    MultiDiscrete(...)   a button for each choice but the first of every entry

`Controls.action` turns held buttons into what the environment takes: the choice that they name; where
they name none, that of the most of them, the first ones first; with nothing held the NOOP or, without
one, the first action.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from dreamloop.models.core.errors import GameError
from dreamloop.models.core.spec import ActionSpec, Button

NOTHING = {"noop", "no_op", "none", "nothing", "idle", "no_action", "do_nothing", "nop", "no_operation"}
PARTS = ("up", "down", "left", "right", "fire")
KEYS = {
    "up": ("ArrowUp", "KeyW"), "down": ("ArrowDown", "KeyS"), "left": ("ArrowLeft", "KeyA"),
    "right": ("ArrowRight", "KeyD"), "fire": ("Space",), "forward": ("ArrowUp", "KeyW"),
    "backward": ("ArrowDown", "KeyS"), "jump": ("Space",), "north": ("ArrowUp", "KeyW"),
    "south": ("ArrowDown", "KeyS"), "west": ("ArrowLeft", "KeyA"), "east": ("ArrowRight", "KeyD"),
    "turn_left": ("ArrowLeft", "KeyA"), "turn_right": ("ArrowRight", "KeyD"), "attack": ("Space",)}
# for buttons without a name of their own; R, P, N, B and H are the player's window's
FREE = ("ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Space", *(f"Key{c}" for c in "ZXCVASDWQEFGTYUIOJKLM"),
        *(f"Digit{n}" for n in "1234567890"))
# pygame's numbers for the keys that `get_keys_to_action` names, today's and those of SDL 1
PYGAME = {1073741904: "ArrowLeft", 1073741903: "ArrowRight", 1073741906: "ArrowUp", 1073741905: "ArrowDown",
          276: "ArrowLeft", 275: "ArrowRight", 273: "ArrowUp", 274: "ArrowDown", 32: "Space", 13: "Enter"}
NAMES_OF_KEYS = {"ArrowLeft": "left", "ArrowRight": "right", "ArrowUp": "up", "ArrowDown": "down", "Space": "fire",
                 "KeyA": "left", "KeyD": "right", "KeyW": "up", "KeyS": "down"}
MOST_BUTTONS = 32


@dataclass(frozen=True)
class Controls:
    """spec: the buttons; action: held buttons, (A,) bool, as an action of the environment."""

    spec: ActionSpec
    action: Callable[[np.ndarray], Any]


def controls(env: gymnasium.Env[Any, Any]) -> Controls:
    """Raises `GameError` with one line for an action space that buttons cannot stand for."""
    space = env.action_space
    if isinstance(space, gymnasium.spaces.Discrete):
        return _choices(_meanings(env, int(space.n)), int(space.start))
    if isinstance(space, gymnasium.spaces.MultiBinary) and len(space.shape) == 1:
        return _switches(getattr(env.unwrapped, "buttons", None), space.shape[0])
    if isinstance(space, gymnasium.spaces.MultiDiscrete) and len(space.shape) == 1:
        return _dials([int(n) for n in space.nvec], [int(s) for s in space.start])
    raise GameError(f"actions are {space}: a world is played with buttons, so they must be Discrete, MultiBinary or "
                    "MultiDiscrete of one dimension; wrap the environment")


def _choices(meanings: Sequence[frozenset[str]], start: int) -> Controls:
    """meanings: the buttons that each choice is, none for a NOOP."""
    names = list(dict.fromkeys(name for meaning in meanings for name in sorted(meaning, key=_order)))
    spec = bound(names)
    held = np.array([[name in meaning for name in spec.names] for meaning in meanings])
    idle = next((i for i, meaning in enumerate(meanings) if not meaning), 0)

    def action(pressed: np.ndarray) -> int:
        best = idle
        if pressed.any():
            # only choices that press nothing that is up; of those the most, the first button first
            possible = [i for i in range(len(held)) if held[i].any() and not (held[i] & ~pressed).any()]
            if possible:
                best = max(possible, key=lambda i: (held[i].sum(), [int(h) for h in held[i]]))
        return start + best

    return Controls(spec, action)


def _switches(given: Any, count: int) -> Controls:
    """MultiBinary. given: the environment's own names, of which some may be None (no such button)."""
    names = [_word(n) if n else None for n in given] if isinstance(given, list | tuple) and len(given) == count \
        else [f"button_{i}" for i in range(count)]
    spec = bound([n for n in names if n is not None])

    def action(pressed: np.ndarray) -> np.ndarray:
        values = dict(zip(spec.names, pressed, strict=True))
        return np.array([n is not None and values[n] for n in names], np.int8)

    return Controls(spec, action)


def _dials(counts: Sequence[int], starts: Sequence[int]) -> Controls:
    """MultiDiscrete: entry i takes 0 .. counts[i] - 1; the first held choice of an entry counts."""
    places = [(entry, choice) for entry, count in enumerate(counts) for choice in range(1, count)]
    spec = bound([f"action_{entry}" if counts[entry] == 2 else f"action_{entry}_{choice}" for entry, choice in places])

    def action(pressed: np.ndarray) -> np.ndarray:
        chosen = np.zeros(len(counts), np.int64)
        for (entry, choice), down in zip(places, pressed, strict=True):
            if down and not chosen[entry]:
                chosen[entry] = choice
        return chosen + np.array(starts)

    return Controls(spec, action)


def _meanings(env: gymnasium.Env[Any, Any], count: int) -> list[frozenset[str]]:
    """The buttons of each of `count` choices."""
    plain: Any = env.unwrapped
    if callable(getattr(plain, "get_action_meanings", None)):
        told = [_split(_word(str(m))) for m in plain.get_action_meanings()]
        if len(told) == count and len(set(told)) == count:
            return told
    by_key: list[frozenset[str] | None] = [None] * count
    if callable(getattr(plain, "get_keys_to_action", None)):
        for keys, choice in plain.get_keys_to_action().items():
            codes = [_code(k) for k in (keys if isinstance(keys, tuple | str) else (keys,))]
            if isinstance(choice, int | np.integer) and 0 <= choice < count and None not in codes:
                found = frozenset(NAMES_OF_KEYS.get(code or "", (code or "").lower()) for code in codes)
                known = by_key[int(choice)]
                if known is None or len(found) < len(known):  # left and right together may mean a NOOP, too
                    by_key[int(choice)] = found
    if all(found is not None for found in by_key) and len(set(by_key)) == count:
        return [found for found in by_key if found is not None]
    return [frozenset({f"action_{i}"}) for i in range(count)]


def _split(word: str) -> frozenset[str]:
    """upleftfire -> up, left, fire; noop -> nothing; any other word is one button."""
    if word in NOTHING:
        return frozenset()
    found = re.fullmatch(f"({'|'.join(PARTS)})+", word)
    return frozenset(re.findall("|".join(PARTS), word)) if found else frozenset({word})


def _order(name: str) -> int:
    return PARTS.index(name) if name in PARTS else len(PARTS)


def _word(text: str) -> str:
    """A name as a button has it: lower case, words joined by underscores."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "button"


def _code(key: Any) -> str | None:
    """The W3C code of a key as `get_keys_to_action` writes it: a character, or pygame's number."""
    if isinstance(key, str) and len(key) == 1:
        key = ord(key.lower())
    if not isinstance(key, int | np.integer):
        return None
    if ord("a") <= key <= ord("z"):
        return f"Key{chr(key).upper()}"
    return f"Digit{chr(key)}" if ord("0") <= key <= ord("9") else PYGAME.get(int(key))


def bound(names: Sequence[str]) -> ActionSpec:
    """Buttons with default keys: by name where that says enough, else the next free key."""
    if not 1 <= len(names) <= MOST_BUTTONS:
        raise GameError(f"{len(names)} buttons: a world has 1 to {MOST_BUTTONS}; wrap the environment")
    if len(set(names)) < len(names):
        raise GameError(f"a button's name stands twice in {', '.join(names)}")
    taken: set[str] = set()
    chosen: dict[str, tuple[str, ...]] = {}
    for name in names:
        keys = tuple(k for k in KEYS.get(name, ()) if k not in taken)
        taken.update(keys)
        if keys:
            chosen[name] = keys
    free = iter([key for key in FREE if key not in taken])
    return ActionSpec(tuple(Button(name, chosen.get(name) or tuple(k for k in (next(free, ""),) if k))
                            for name in names))
