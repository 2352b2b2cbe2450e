"""Gamepads, mouse and rebinding, through SDL: the gamepads are SDL's own virtual devices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from worlds import tiny_world

from dreamloop.models.core.spec import ActionSpec, Axis, Button
from dreamloop.models.core.world import World

pygame = pytest.importorskip("pygame", reason="input comes from pygame")
from hands import UNKNOWN, Pad, down, up  # noqa: E402

from dreamloop.demos.bindings import default_bindings  # noqa: E402
from dreamloop.demos.controls import MOUSE_FULL_PIXELS, Controls  # noqa: E402
from dreamloop.demos.player import Window  # noqa: E402

ACTIONS = ActionSpec((Button("turn_left", ("ArrowLeft", "KeyA"), ("button14",)),
                      Button("turn_right", ("ArrowRight", "KeyD"), ("button15",)),
                      Button("attack", ("Space",), ("button0", "button7"), ("left",))))
FLIGHT = ActionSpec((Button("fire", gamepad=("button0",)),),
                    (Axis("roll", 1.0, "x", "axis0"), Axis("climb", 0.5, "y", "axis3")))


@pytest.fixture(autouse=True)
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setenv("SDL_JOYSTICK_ALLOW_BACKGROUND_EVENTS", "1")  # no window has the focus here
    pygame.display.init()
    pygame.display.set_mode((64, 64))
    yield
    pygame.display.quit()


def controls_of(actions: ActionSpec) -> Controls:
    controls = Controls(actions, default_bindings(actions))
    pygame.event.get()
    return controls


def feed(controls: Controls) -> list[str]:
    return [command for event in pygame.event.get() for command in controls.feed(event)]


@pytest.fixture
def controls() -> Iterator[Controls]:
    controls = controls_of(ACTIONS)
    yield controls
    controls.close()


@pytest.fixture
def pad(controls: Controls) -> Pad:
    pad = Pad()
    feed(controls)
    return pad


def test_keys_go_by_place_whatever_letter_stands_there(controls: Controls) -> None:
    down("KeyA", "KeyP")  # `hands` says z for each of them
    assert feed(controls) == ["pause"]
    assert controls.held() == {"turn_left"}
    up("KeyA")
    feed(controls)
    assert controls.held() == frozenset()


def test_a_gamepad_has_the_w3c_layout(controls: Controls, pad: Pad) -> None:
    for sdl, names in ((13, {"turn_left"}), (14, {"turn_right"}), (0, {"attack"})):
        pad.button(sdl, True)
        feed(controls)
        assert controls.held() == names
        pad.button(sdl, False)
        feed(controls)
        assert controls.held() == frozenset()
    pad.button(6, True)
    assert feed(controls) == ["pause"]  # Start


def test_sticks_and_triggers_press_once_they_are_pushed_far(controls: Controls, pad: Pad) -> None:
    pad.axis(0, -0.3)
    feed(controls)
    assert controls.held() == frozenset()
    pad.axis(0, -0.8)
    pad.axis(5, 1.0)
    feed(controls)
    assert controls.held() == {"turn_left", "attack"}
    pad.axis(0, 0.9)
    pad.axis(5, -1.0)
    feed(controls)
    assert controls.held() == {"turn_right"}


def test_a_tap_on_a_gamepad_counts_for_one_frame(controls: Controls, pad: Pad) -> None:
    pad.button(0, True)
    feed(controls)
    pad.button(0, False)
    feed(controls)
    assert controls.action() == {"attack"} and controls.action() == frozenset()


def test_gamepads_come_and_go_while_the_game_runs(controls: Controls) -> None:
    first, second = Pad(), Pad()
    feed(controls)
    assert len(controls.gamepads.names) == 2
    first.button(13, True)
    second.button(14, True)
    feed(controls)
    assert controls.held() == {"turn_left", "turn_right"}
    second.unplug()
    feed(controls)
    assert controls.held() == {"turn_left"} and len(controls.gamepads.names) == 1
    first.unplug()
    feed(controls)
    assert controls.held() == frozenset() and controls.gamepads.names == {}
    third = Pad()
    feed(controls)
    third.button(13, True)
    feed(controls)
    assert controls.held() == {"turn_left"}
    third.unplug()


def test_a_gamepad_that_is_there_from_the_start_is_found() -> None:
    pygame.joystick.init()
    pad = Pad()
    controls = Controls(ACTIONS, default_bindings(ACTIONS))
    feed(controls)
    pad.button(13, True)
    feed(controls)
    assert controls.held() == {"turn_left"}
    pad.unplug()
    controls.close()


def test_a_pad_that_nobody_knows_keeps_its_numbers_and_its_hat_is_the_d_pad(controls: Controls) -> None:
    pad = Pad(UNKNOWN, axes=2, buttons=8, hats=1)
    feed(controls)
    pad.button(0, True)
    pad.hat(0, 8)
    feed(controls)
    assert controls.held() == {"attack", "turn_left"}
    pad.hat(0, 2)
    feed(controls)
    assert controls.held() == {"attack", "turn_right"}
    pad.unplug()


def test_axes_follow_the_sticks() -> None:
    controls = controls_of(FLIGHT)
    pad = Pad()
    feed(controls)
    pad.axis(0, 0.75)
    pad.axis(3, -1.0)
    pad.button(0, True)
    feed(controls)
    assert controls.action() == {"fire": 1.0, "roll": pytest.approx(0.75, abs=1e-3), "climb": -0.5}
    pad.axis(0, 0.05)  # at rest, not quite
    pad.button(0, False)
    feed(controls)
    assert controls.action() == {"roll": 0.0, "climb": -0.5}
    assert FLIGHT.vector(controls.action()).tolist() == [0.0, 0.0, -0.5]
    pad.unplug()
    controls.close()


def test_axes_follow_the_mouse_until_it_rests() -> None:
    controls = controls_of(FLIGHT)
    for rel in ((MOUSE_FULL_PIXELS // 4, 0), (MOUSE_FULL_PIXELS // 4, -3 * MOUSE_FULL_PIXELS)):
        pygame.event.post(pygame.event.Event(pygame.MOUSEMOTION, pos=(9, 9), rel=rel, buttons=(0, 0, 0)))
    feed(controls)
    assert controls.needs_mouse
    assert controls.action() == {"roll": 0.5, "climb": -0.5}
    assert controls.action() == {"roll": 0.0, "climb": 0.0}
    controls.close()


def test_a_pair_of_keys_moves_an_axis() -> None:
    bindings = default_bindings(FLIGHT)
    controls = Controls(FLIGHT, replace(bindings, actions={**bindings.actions, "climb": ("KeyW/KeyS",)}))
    down("KeyS")
    feed(controls)
    assert controls.action() == {"roll": 0.0, "climb": 0.5}
    down("KeyW")
    feed(controls)
    assert controls.action() == {"roll": 0.0, "climb": 0.0}
    controls.close()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.chdir(tmp_path)
    return tiny_world(tmp_path / "tiny")


def test_a_rebound_window_answers_to_the_new_keys_alone(world: World) -> None:
    bindings = default_bindings(world.spec.actions)
    window = Window(world, bindings=replace(bindings, actions={**bindings.actions, "attack": ("KeyX", "mouse-right")},
                                            commands={**bindings.commands, "pause": ("button3",)}))
    window.read()
    down("Space", "KeyP")
    assert window.read().action == frozenset() and window.read().advance
    pygame.event.post(pygame.event.Event(pygame.MOUSEBUTTONDOWN, button=3, pos=(1, 1)))
    assert window.read().action == {"attack"}
    pad = Pad()
    window.read()
    assert "Virtual" in window._toast
    pad.button(9, True)
    assert window.read().rewind == 2  # LB, while it is held
    pad.button(9, False)
    pad.button(3, True)
    assert not window.read().advance
    pad.unplug()
    window.read()
    assert window._toast == "The gamepad is gone"
    window.close()


def test_a_world_that_the_mouse_steers_has_the_pointer_while_it_is_played(tmp_path: Path) -> None:
    window = Window(tiny_world(tmp_path / "flight", actions=FLIGHT))
    window.read()
    assert pygame.event.get_grab() == pygame.key.get_focused()
    down("KeyP")
    window.read()
    assert not pygame.event.get_grab() and pygame.mouse.get_visible()
    window.close()
