"""What each control is bound to: a world's own defaults, changed by one file that a player can edit.

    dreamloop bindings --write        # writes the defaults to ~/.config/dreamloop/bindings.toml

The file (TOML) has a table of the window's commands and one per world; a control that it does not name keeps
its default, without the inputs that the file gives to another one:

    [commands]
    rewind = ["Backspace", "button4"]

    [worlds.doom-arena]
    turn_left = ["KeyQ", "button14", "axis0-"]

The names of inputs are those of inputs.py. Whatever is unknown is refused by name.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamloop.demos.inputs import KNOWN, KNOWN_RANGES, is_gamepad, is_range, is_switch, label, words
from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.spec import ActionSpec, WorldSpec

MAX_FILE_BYTES = 1 << 20
STICK_OF_PAD = {"button12": "axis1-", "button13": "axis1+", "button14": "axis0-", "button15": "axis0+"}
COMMANDS = {  # name -> (default inputs, what it does)
    "restart": (("KeyR",), "Start again"), "pause": (("KeyP", "button9"), "Pause"),
    "frame": (("KeyN",), "One frame, while paused"), "rewind": (("Backspace", "button4"), "Back in time, while held"),
    "save": (("F5",), "Save"), "load": (("F9",), "Load"),
    "split": (("KeyB",), "Split: the other half goes on without keys"), "help": (("KeyH", "button8"), "This page"),
    "statistics": (("F3",), "Statistics"), "screenshot": (("F12",), "Screenshot"), "quit": (("Escape",), "Quit")}
Inputs = dict[str, tuple[str, ...]]


class BindingsError(DreamloopError):
    """A file of bindings that was refused."""


@dataclass(frozen=True)
class Bindings:
    """actions, commands: name -> inputs that it answers to; path: the file they come from, None for defaults;
    strangers: worlds that the file has keys for, other than the one that is played."""

    actions: Inputs
    commands: Inputs
    path: Path | None = None
    strangers: tuple[str, ...] = ()

    def rows(self, described: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
        """(keyboard and mouse, gamepad, what it does) for a page of help; described: name -> what it does."""
        for name, does in described.items():
            inputs = self.actions.get(name) or self.commands.get(name, ())
            hands = [label(i) for i in inputs if not is_gamepad(i)]
            pad = [label(i) for i in inputs if is_gamepad(i)]
            yield " or ".join(hands) or "-", " or ".join(pad) or "-", does

    def action_rows(self) -> list[tuple[str, str, str]]:
        return list(self.rows({name: words(name) for name in self.actions}))

    def command_rows(self) -> list[tuple[str, str, str]]:
        return list(self.rows({name: COMMANDS[name][1] for name in self.commands}))


def default_actions(actions: ActionSpec) -> Inputs:
    """What a world says itself, but for names that nobody knows. A stick does what the D-pad does, where the
    world does not use it for something else."""
    used = {axis.gamepad for axis in actions.axes}
    inputs: Inputs = {}
    for button in actions.buttons:
        sticks = [STICK_OF_PAD[name] for name in button.gamepad if name in STICK_OF_PAD]
        said = [*button.keys, *(f"mouse-{name}" for name in button.mouse), *button.gamepad,
                *(name for name in sticks if name[:-1] not in used)]
        inputs[button.name] = tuple(name for name in said if is_switch(name))
    for axis in actions.axes:
        said = [axis.gamepad, f"mouse-{axis.mouse}"]
        inputs[axis.name] = tuple(name for name in said if is_range(name))
    return inputs


def default_bindings(actions: ActionSpec) -> Bindings:
    """The defaults of a world and of the window."""
    return _merged(default_actions(actions), {}, {}, "")


def default_path() -> Path:
    """The user's own file: bindings.toml in the folder for settings (XDG_CONFIG_HOME, or ~/.config)."""
    folder = os.environ.get("XDG_CONFIG_HOME") or ""
    base = Path(folder) if os.path.isabs(folder) else Path("~/.config").expanduser()  # a relative one does not count
    return base / "dreamloop" / "bindings.toml"


def load_bindings(spec: WorldSpec, path: str | os.PathLike[str] | None = None) -> Bindings:
    """The bindings of a world with a file's changes. path: None takes the user's own file, where there is one.
    Raises `BindingsError`."""
    file = default_path() if path is None else Path(path)
    if path is None and not file.is_file():
        return default_bindings(spec.actions)
    said = _read(file)
    for name, value in said.items():
        if name not in ("commands", "worlds") or not isinstance(value, dict):
            raise BindingsError(f"{file.name}: {name[:100]!r} is not one of its tables: [commands], [worlds.NAME]")
    worlds = said.get("worlds", {})
    commands = _table(f"{file.name} [commands]", said.get("commands", {}), dict.fromkeys(COMMANDS, False), "command")
    kinds = dict.fromkeys(spec.actions.names, False) | {axis.name: True for axis in spec.actions.axes}
    actions = _table(f"{file.name} [worlds.{spec.name}]", worlds.get(spec.name, {}), kinds, "action")
    merged = _merged(default_actions(spec.actions), actions, commands, f"{file.name}: ")
    return Bindings(merged.actions, merged.commands, file, tuple(sorted(set(worlds) - {spec.name})))


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise BindingsError(f"{file.name} is larger than {MAX_FILE_BYTES} bytes")
        return tomllib.loads(data.decode("utf-8"))
    except OSError as error:
        raise BindingsError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # of TOML, or of UTF-8
        raise BindingsError(f"{file.name} is not TOML: {str(error)[:200] or 'nested too deep'}") from error


def _table(where: str, said: Any, kinds: Mapping[str, bool], kind: str) -> Inputs:
    """One table of the file, checked. kinds: known names -> whether it takes ranges instead of switches."""
    if not isinstance(said, dict):
        raise BindingsError(f"{where} is not a table")
    for name, inputs in said.items():
        if name not in kinds:
            raise BindingsError(f"{where}: unknown {kind} {name[:100]!r}; known: {', '.join(kinds)}")
        if not isinstance(inputs, list) or not all(isinstance(one, str) for one in inputs):
            raise BindingsError(f"{where} {name}: expected a list of inputs, such as [\"KeyA\", \"button0\"]")
        check, known = (is_range, KNOWN_RANGES) if kinds[name] else (is_switch, KNOWN)
        for one in inputs:
            if not check(one):
                raise BindingsError(f"{where} {name}: unknown input {one[:100]!r}; known: {known}")
    return {name: tuple(dict.fromkeys(inputs)) for name, inputs in said.items()}


def _merged(defaults: Inputs, actions: Inputs, commands: Inputs, where: str) -> Bindings:
    """What the file says comes first, then the way out, what the world says, and what else the window says: an
    input that one has is taken out of those that come later. The file may give one input to two actions, but not
    to an action and a command."""
    given = {one: name for name, inputs in actions.items() for one in _parts(inputs)}
    ordered: dict[str, str] = {}
    for name, inputs in commands.items():
        for one in inputs:
            other = given.get(one) or ordered.get(one)
            if other is not None:
                raise BindingsError(f"{where}{one} is bound to both {other} and {name}")
            ordered[one] = name
    first = {*given, *ordered}
    leave = commands.get("quit", _free(COMMANDS["quit"][0], first))
    first |= set(leave)
    kept = {name: actions.get(name, _free(inputs, first)) for name, inputs in defaults.items()}
    taken = first.union(*(_parts(inputs) for inputs in kept.values()))
    return Bindings(kept, {name: commands.get(name, _free(inputs, taken)) for name, (inputs, _) in COMMANDS.items()}
                    | {"quit": leave})


def _parts(inputs: tuple[str, ...]) -> Iterator[str]:
    for one in inputs:
        yield from one.split("/")


def _free(inputs: tuple[str, ...], taken: set[str]) -> tuple[str, ...]:
    return tuple(one for one in inputs if not taken & set(one.split("/")))


def file_text(worlds: Mapping[str, Inputs]) -> str:
    """The file as it is first written. worlds: name -> its defaults."""
    lines = ["# What each control is bound to in dreamloop. Take the # away from a line and change its list.",
             "# Keys go by their place: KeyQ is the key where a US keyboard has its Q.",
             "# Gamepads: button0 A, 1 B, 2 X, 3 Y, 4 LB, 5 RB, 6 LT, 7 RT, 8 Back, 9 Start, 10 and 11 stick clicks,",
             "# 12 to 15 D-pad up, down, left, right; axis0 and axis1 the left stick, axis2 and axis3 the right one,",
             "# axis0- is left, axis1- is up. Mouse: mouse-left, mouse-middle, mouse-right.",
             "# Controls that are not just on or off take axis0 to axis3, mouse-x, mouse-y, or a pair: \"KeyA/KeyD\".",
             "", "[commands]"]
    for name, (inputs, does) in COMMANDS.items():
        lines.append(f"{f'# {name} = {_list(inputs)}':<42}# {does}")
    for world, actions in worlds.items():
        lines += ["", f"[worlds.{_key(world)}]",
                  *(f"# {_key(name)} = {_list(inputs)}" for name, inputs in actions.items())]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)


def _list(inputs: tuple[str, ...]) -> str:
    return json.dumps(list(inputs))


def write_bindings(path: Path, worlds: Mapping[str, Inputs]) -> None:
    """Write the defaults to a new file; one that is there is the player's own and stays. Raises `BindingsError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(file_text(worlds))
    except FileExistsError:
        raise BindingsError(f"{path} is there already; delete it first to get the defaults back") from None
    except OSError as error:
        raise BindingsError(f"cannot write {path}: {error.strerror}") from error
