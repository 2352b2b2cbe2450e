"""Bindings: a world's defaults, and the one file that changes them."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from worlds import tiny_spec, tiny_world

from dreamloop.demos import inputs
from dreamloop.demos.bindings import (
    COMMANDS,
    Bindings,
    BindingsError,
    default_actions,
    default_bindings,
    default_path,
    load_bindings,
    write_bindings,
)
from dreamloop.demos.cli import main
from dreamloop.models.core.spec import ActionSpec, Axis, Button, WorldSpec

SPEC = tiny_spec()
RACER = tiny_spec(name="racer", actions=ActionSpec(
    (Button("brake", keys=("ShiftLeft",), gamepad=("button6",)),), (Axis("steer", 0.5, mouse="x", gamepad="axis0"),)))


def load(folder: Path, text: str, spec: WorldSpec = SPEC) -> Bindings:
    (folder / "keys.toml").write_text(text, "utf-8")
    return load_bindings(spec, folder / "keys.toml")


def test_a_world_says_its_own_defaults_and_the_stick_does_what_the_pad_does() -> None:
    actions = ActionSpec((Button("turn_left", ("ArrowLeft", "Katana"), ("button14", "button99"), ("right", "fourth")),))
    assert default_actions(actions) == {"turn_left": ("ArrowLeft", "mouse-right", "button14", "axis0-")}
    assert default_actions(RACER.actions) == {"brake": ("ShiftLeft", "button6"), "steer": ("axis0", "mouse-x")}


def test_a_stick_that_the_world_steers_with_is_not_the_pad_too() -> None:
    actions = ActionSpec((Button("left", gamepad=("button14",)),), (Axis("look", gamepad="axis0"),))
    assert default_actions(actions)["left"] == ("button14",)


def test_a_worlds_own_key_is_not_the_windows_but_escape_always_leaves() -> None:
    actions = ActionSpec((Button("bow", keys=("KeyB", "Escape")),))
    bindings = default_bindings(actions)
    assert bindings.actions["bow"] == ("KeyB",)
    assert bindings.commands["split"] == () and bindings.commands["quit"] == ("Escape",)


def test_the_file_changes_what_it_names_and_takes_the_input_from_others(tmp_path: Path) -> None:
    bindings = load(tmp_path, '[commands]\nrewind = ["KeyQ"]\n[worlds.tiny]\nattack = ["KeyA", "KeyR"]\n')
    assert bindings.actions == {"turn_left": ("ArrowLeft",), "turn_right": ("ArrowRight", "KeyD"),
                                "attack": ("KeyA", "KeyR")}
    assert bindings.commands["rewind"] == ("KeyQ",) and bindings.commands["restart"] == ()
    assert bindings.path == tmp_path / "keys.toml"


def test_axes_take_sticks_the_mouse_and_pairs(tmp_path: Path) -> None:
    bindings = load(tmp_path, '[worlds.racer]\nsteer = ["KeyA/KeyD", "axis2"]\n', RACER)
    assert bindings.actions["steer"] == ("KeyA/KeyD", "axis2")


BAD = {
    "no TOML": ("turn_left = [", "is not TOML"),
    "unknown table": ("[keys]\na = 1", "'keys' is not one of its tables"),
    "unknown command": ('[commands]\nfly = ["KeyA"]', "unknown command 'fly'; known: restart, pause"),
    "unknown action": ('[worlds.tiny]\nfly = ["KeyA"]', "unknown action 'fly'; known: turn_left, turn_right, attack"),
    "unknown key": ('[worlds.tiny]\nattack = ["KeyÄ"]', "unknown input 'KeyÄ'; known: keys by their place"),
    "no list": ('[worlds.tiny]\nattack = "KeyA"', "expected a list of inputs"),
    "not of texts": ("[worlds.tiny]\nattack = [1]", "expected a list of inputs"),
    "a range for a button": ('[worlds.tiny]\nattack = ["axis0"]', "unknown input 'axis0'"),
    "a world that is no table": ("[worlds]\ntiny = 1", "is not a table"),
    "one key for two things": ('[commands]\npause = ["KeyX"]\n[worlds.tiny]\nattack = ["KeyX"]',
                               "KeyX is bound to both attack and pause"),
    "one key for two commands": ('[commands]\npause = ["KeyX"]\nsave = ["KeyX"]', "bound to both pause and save"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_unknown_is_one_line_with_what_is_known(tmp_path: Path, case: str) -> None:
    text, message = BAD[case]
    with pytest.raises(BindingsError) as refused:
        load(tmp_path, text)
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert str(refused.value).startswith("keys.toml")


def test_a_switch_for_an_axis_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BindingsError, match="unknown input 'KeyA'; known: axis0"):
        load(tmp_path, '[worlds.racer]\nsteer = ["KeyA"]', RACER)


@given(st.binary(max_size=200))
def test_no_file_whatever_does_more_than_be_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any.toml"
    file.write_bytes(data)
    try:
        load_bindings(SPEC, file)
    except BindingsError as error:
        assert "\n" not in str(error)


def test_the_users_own_file_is_found_where_settings_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert default_path() == tmp_path / "dreamloop" / "bindings.toml"
    assert load_bindings(SPEC) == default_bindings(SPEC.actions)  # no file, no change
    write_bindings(default_path(), {})
    default_path().write_text('[worlds.tiny]\nattack = ["KeyX"]\n', "utf-8")
    assert load_bindings(SPEC).actions["attack"] == ("KeyX",)
    monkeypatch.setenv("XDG_CONFIG_HOME", "not/absolute")
    assert default_path() == Path("~/.config/dreamloop/bindings.toml").expanduser()


def test_the_written_file_is_the_defaults_to_edit(tmp_path: Path) -> None:
    strange = tiny_spec(name='a "b" ü', actions=ActionSpec((Button("fire!", keys=("KeyF",)),)))
    file = tmp_path / "new" / "keys.toml"
    write_bindings(file, {spec.name: default_actions(spec.actions) for spec in (SPEC, RACER, strange)})
    text = file.read_text("utf-8")
    for spec in (SPEC, RACER, strange):
        as_written, as_default = load_bindings(spec, file), default_bindings(spec.actions)
        assert (as_written.actions, as_written.commands) == (as_default.actions, as_default.commands)
    edited = tomllib.loads("\n".join(line.removeprefix("# ") if "= [" in line else line for line in text.splitlines()))
    assert edited["worlds"]["tiny"]["turn_left"] == ["ArrowLeft", "KeyA"]
    assert edited["worlds"]['a "b" ü'] == {"fire!": ["KeyF"]} and set(edited["commands"]) == set(COMMANDS)


def test_a_file_that_is_there_is_never_written_over(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text("# mine")
    with pytest.raises(BindingsError, match="is there already"):
        write_bindings(file, {})
    assert file.read_text() == "# mine"


def test_the_verb_shows_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                   capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    tiny_world(tmp_path / "tiny")
    assert main(["bindings", str(tmp_path / "tiny"), "--write", "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["actions"]["attack"] == ["Space"] and report["exists"]
    assert Path(report["file"]).read_text("utf-8").count("[worlds.tiny]") == 1
    assert main(["bindings", str(tmp_path / "tiny"), "--write"]) == 2
    assert main(["bindings", str(tmp_path / "tiny")]) == 0
    out = capsys.readouterr().out
    assert "Back in time, while held" in out and "LB" in out
    assert "goes on without keys  B" in out  # columns apart, however long their texts


def test_every_input_has_a_name_for_players_and_is_one_thing_only() -> None:
    every = [*inputs.KEYS, *inputs.BUTTONS, *inputs.STICKS, *inputs.CLICKS, *inputs.RANGES]
    assert len(set(every)) == len(every)
    assert all(inputs.label(name) != name or len(name) < 4 or name in inputs.KEYS for name in every)
    assert all(inputs.is_switch(name) != inputs.is_range(name) for name in every)
    assert inputs.label("KeyA/KeyD") == "A/D" and inputs.is_range("button14/button15")


def test_every_key_is_a_place_that_pygame_knows() -> None:
    pytest.importorskip("pygame", reason="places are pygame's numbers")
    assert sorted(inputs.scancodes().values()) == sorted(inputs.KEYS)


def test_a_game_says_which_worlds_of_the_file_it_does_not_know(tmp_path: Path,
                                                             capsys: pytest.CaptureFixture[str]) -> None:
    tiny_world(tmp_path / "tiny")
    (tmp_path / "keys.toml").write_text('[worlds.tinny]\nattack = ["KeyX"]\n[worlds.doom-arena]\n', "utf-8")
    assert main(["play", str(tmp_path / "tiny"), "--headless", "--frames", "1", "--bindings",
                 str(tmp_path / "keys.toml")]) == 0
    assert "has keys for tinny: no world of the zoo" in capsys.readouterr().out
