"""The buttons of the Doom worlds and the keys that they are bound to; no game package is needed for them."""

from __future__ import annotations

from dreamloop.models.core.spec import ActionSpec, Button

BUTTONS = {
    "forward": Button("forward", ("ArrowUp", "KeyW"), ("button12",)),
    "backward": Button("backward", ("ArrowDown", "KeyS"), ("button13",)),
    "turn_left": Button("turn_left", ("ArrowLeft", "KeyA"), ("button14",)),
    "turn_right": Button("turn_right", ("ArrowRight", "KeyD"), ("button15",)),
    "attack": Button("attack", ("Space",), ("button0",), ("left",)),
}
# where one can sidestep, A and D do that and Q and E turn
SIDESTEPPING = BUTTONS | {
    "turn_left": Button("turn_left", ("ArrowLeft", "KeyQ"), ("button14",)),
    "turn_right": Button("turn_right", ("ArrowRight", "KeyE"), ("button15",)),
    "strafe_left": Button("strafe_left", ("KeyA",), ("button4",)),
    "strafe_right": Button("strafe_right", ("KeyD",), ("button5",)),
}
WALK = ("forward", "backward", "turn_left", "turn_right", "strafe_left", "strafe_right")


def doom_actions(*names: str) -> ActionSpec:
    """The controls of a scenario with these buttons."""
    table = SIDESTEPPING if "strafe_left" in names else BUTTONS
    return ActionSpec(tuple(table[name] for name in names))
