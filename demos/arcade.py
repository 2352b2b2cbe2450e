"""A dream inside a game: an arcade machine whose monitor shows a dreamed world.

    python -m dreamloop.demos.arcade doom-arena

Walk with A and D, press E at the machine to play, and Escape to step back. The game is an ordinary pygame
program: its own shapes, its own clock. The dream is one line of it, `session.step(action)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pygame

from dreamloop.demos.bindings import default_bindings
from dreamloop.demos.controls import Controls
from dreamloop.demos.overlay import hint
from dreamloop.demos.screen import picture, start_display
from dreamloop.demos.scripted import ScriptedSource
from dreamloop.demos.verbs.common import Parser, whole
from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.world import World, load_world
from dreamloop.runtime import Session

SIZE = WIDTH, HEIGHT = 960, 600
FLOOR, MACHINE_X, REACH, WALK = 470, 640, 90, 5  # pixels; WALK: a frame
CLOSE = 0.14  # how much nearer the monitor comes in each frame
WALL, BOARDS, PLANK, WOOD, TRIM = (38, 32, 52), (66, 46, 44), (54, 37, 37), (92, 40, 60), (224, 150, 70)
DARK, SIDE, COAT, SKIN, HAIR = (14, 13, 18), (62, 28, 44), (70, 112, 158), (232, 190, 160), (60, 40, 34)
TEXT = (238, 236, 230)
SCENE = {"left": ("ArrowLeft", "KeyA", "button14", "axis0-"), "right": ("ArrowRight", "KeyD", "button15", "axis0+"),
         "use": ("KeyE", "button2"), "back": ("Escape", "button1")}


class Arcade:
    """The room, the visitor and the machine. playing: whether the keys go to the dream."""

    def __init__(self, world: World, seed: int = 0, engine: str = "auto") -> None:
        start_display()
        pygame.font.init()
        self.surface = pygame.display.set_mode(SIZE)
        pygame.display.set_caption("The arcade - dreamloop")
        self.font = pygame.font.Font(None, 30)
        actions = world.spec.actions
        self.controls = Controls(actions, replace(default_bindings(actions), commands=SCENE))
        self.keys = hint(self.controls.bindings, pad=False, command="back")
        if self.font.size(self.keys)[0] > WIDTH - 60:  # a world of many keys
            self.keys = "Esc: back"
        self.session = Session(world, engine, seed=seed)
        self.nobody = ScriptedSource(actions, seed)  # plays while nobody stands at the machine
        self.dream = self.session.render().pixels
        y, x = np.mgrid[20:HEIGHT:40, 20:WIDTH:40]
        self.fall = 0.7 * np.clip(1 - np.hypot(x - MACHINE_X, y - 300) / 420, 0, 1)[..., None]  # of light with distance
        self.x, self.step, self.zoom, self.playing, self.open = 180.0, 0.0, 0.0, False, True

    @property
    def near(self) -> bool:
        return abs(self.x - MACHINE_X) < REACH

    def update(self) -> None:
        """One frame of the game: the keys, the visitor, the dream."""
        for event in pygame.event.get():
            pressed = self.controls.feed(event)
            if event.type == pygame.QUIT or ("back" in pressed and not self.playing):
                self.open = False
            elif "back" in pressed:
                self.playing = False
            elif "use" in pressed and self.near and not self.playing:
                self.playing = True
                self.controls.forget()  # the key that was pressed to begin is not the dream's
        if not self.playing:
            walk = WALK * (self.controls.holds("right") - self.controls.holds("left"))
            self.x = min(max(self.x + walk, 60), WIDTH - 60)
            self.step = self.step + 0.35 if walk else 0.0
        self.zoom += (self.playing - self.zoom) * CLOSE
        action = self.controls.action() if self.playing else self.nobody.read().action
        self.dream = self.session.step(action).pixels

    def draw(self) -> None:
        surface, glow = self.surface, self.dream.mean((0, 1))
        surface.fill(WALL)
        for x in range(0, WIDTH, 120):
            pygame.draw.line(surface, (44, 38, 60), (x, 0), (x, FLOOR), 2)
        pygame.draw.rect(surface, BOARDS, (0, FLOOR, WIDTH, HEIGHT - FLOOR))
        for y in range(FLOOR + 6, HEIGHT, 30):
            pygame.draw.line(surface, PLANK, (0, y), (WIDTH, y), 3)
        self._light(glow)
        self._machine()
        self._visitor()
        if self.playing or self.zoom < 0.02:
            self._say(self.keys if self.playing else "E: play" if self.near else "A, D: walk to the machine")
        pygame.display.flip()

    def _light(self, glow: np.ndarray) -> None:
        """What the monitor shows colours the room: a soft light, in the mean colour of the dream."""
        light = picture((self.fall * glow).astype(np.uint8))
        self.surface.blit(pygame.transform.smoothscale(light, SIZE), (0, 0), special_flags=pygame.BLEND_RGB_ADD)

    def _machine(self) -> None:
        left, right = MACHINE_X - 120, MACHINE_X + 120
        back = left - 34
        pygame.draw.polygon(self.surface, SIDE, [(left, 140), (back, 158), (back, FLOOR + 6), (left, FLOOR + 20)])
        pygame.draw.polygon(self.surface, WOOD, [(left, 140), (right, 140), (right, FLOOR + 20), (left, FLOOR + 20)])
        pygame.draw.rect(self.surface, TRIM, (left, 140, 240, 40))
        self.surface.blit(title := self.font.render("DREAM", True, DARK), title.get_rect(center=(MACHINE_X, 161)))
        pygame.draw.polygon(self.surface, DARK, [(left, 372), (right, 372), (right + 14, 404), (left - 14, 404)])
        for x, colour in ((-60, TRIM), (20, (200, 60, 60)), (50, (80, 170, 90)), (80, (70, 120, 200))):
            pygame.draw.circle(self.surface, colour, (MACHINE_X + x, 388), 9)
        height, width, _ = self.dream.shape
        small, large = min(200 / width, 160 / height), min(800 / width, (HEIGHT - 90) / height)
        scale = small + (large - small) * self.zoom
        place = pygame.Rect(0, 0, round(width * scale), round(height * scale))
        place.center = (round(MACHINE_X + (WIDTH / 2 - MACHINE_X) * self.zoom),
                        round(275 + (HEIGHT / 2 - 295) * self.zoom))
        pygame.draw.rect(self.surface, DARK, place.inflate(20, 20), border_radius=10)
        self.surface.blit(pygame.transform.scale(picture(self.dream), place.size), place)

    def _visitor(self) -> None:
        """Seen from behind, in front of the machine; out of sight when the monitor is close."""
        x, y, swing = round(self.x), FLOOR + 60 + round(280 * self.zoom), math.sin(self.step) * 14
        pygame.draw.ellipse(self.surface, PLANK, (x - 44, y - 8, 88, 20))
        for side in (-1, 1):
            pygame.draw.line(self.surface, DARK, (x + side * 9, y - 60), (x + side * 9 + side * swing, y), 13)
        pygame.draw.rect(self.surface, COAT, (x - 24, y - 136, 48, 84), border_radius=16)
        pygame.draw.circle(self.surface, SKIN, (x, y - 150), 20)
        pygame.draw.circle(self.surface, HAIR, (x, y - 158), 23)

    def _say(self, text: str) -> None:
        drawn = self.font.render(text, True, TEXT)
        area = drawn.get_rect(midbottom=(WIDTH // 2, HEIGHT - 12))
        pygame.draw.rect(self.surface, DARK, area.inflate(28, 14), border_radius=10)
        self.surface.blit(drawn, area)

    def close(self) -> None:
        self.session.close()
        self.controls.close()
        pygame.display.quit()


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description="Walk up to a dream and play it.")
    parser.add_argument("world", nargs="?", default="doom-arena", help="a world of the zoo or a folder")
    parser.add_argument("--frames", type=whole(1), help="leave after this many")
    args = parser.parse_args(argv)
    clock, count = pygame.time.Clock(), 0
    try:
        world = load_world(args.world)
        arcade = Arcade(world)
    except DreamloopError as error:
        parser.exit(2, f"arcade: {error}\n")
    while arcade.open and count != args.frames:
        arcade.update()
        arcade.draw()
        clock.tick(world.spec.fps)
        count += 1
    arcade.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
