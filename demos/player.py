"""The player's window: a source of input and a sink of frames, drawn with pygame.

    dreamloop play doom-arena

It knows commands and pixels; what keys mean is the affair of controls.py, and what a frame is and when it is
due that of the loop (runtime/loop.py). Importing this file imports pygame.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import numpy as np
import pygame

from dreamloop.demos import overlay
from dreamloop.demos.beside import GameBeside
from dreamloop.demos.bindings import Bindings, default_bindings
from dreamloop.demos.controls import Controls
from dreamloop.demos.inputs import words
from dreamloop.demos.screen import NoDisplay, picture, start_display
from dreamloop.demos.sinks import PANE_GAP, joined
from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.world import World
from dreamloop.runtime.loop import Command, FrameLoop
from dreamloop.runtime.session import FaultError, Frame, Session
from dreamloop.runtime.snapshot import Snapshot

WINDOW_WIDTH = 800  # the default scale is the whole number that comes nearest to it
HINT_MS, TOAST_MS, STATS_EVERY_MS = 7000, 2500, 250
REWIND_FRAMES = 2  # for each frame that Backspace is held: time runs back at this speed
QUICK = "quick"  # the bookmark of F5 and F9
BACKGROUND = (8, 8, 11)
TIME_COMMANDS = ("rewind", "save", "load", "split")  # what a real game beside the dream cannot follow


def _milliseconds() -> float:
    return time.monotonic() * 1000  # pygame's own stands still unless all of pygame is initialised


def _largest_scale(width: int, height: int) -> int:
    """How many times a picture of this size goes into the screen, beside what desktops put there."""
    screens = pygame.display.get_desktop_sizes()
    return min(screens[0][0] // width, screens[0][1] * 9 // 10 // height) if screens else 99


class Window:
    """A resizable window. bindings: what keys mean, by default what the world says; beside: the real game,
    shown to the left of the dream. Raises `NoDisplay` where no window can be
    opened."""

    def __init__(self, world: World, start: int = 0, scale: int | None = None, bindings: Bindings | None = None,
                 beside: GameBeside | None = None) -> None:
        self.spec, self.world = world.spec, world
        self.width, self.height = self.spec.frame_width, self.spec.frame_height
        wide = self.width if beside is None else 2 * self.width + PANE_GAP
        try:
            start_display()
            pygame.font.init()
            scale = scale or max(1, min(round(WINDOW_WIDTH / self.width), _largest_scale(wide, self.height)))
            pygame.display.set_icon(picture(world.starts[0]))
            pygame.display.set_mode((wide * scale, self.height * scale), pygame.RESIZABLE)
        except pygame.error as error:
            raise NoDisplay(f"no display here ({error})") from error
        self.controls = Controls(self.spec.actions, bindings or default_bindings(self.spec.actions))
        self._start = start
        self._paused = self._help = self._statistics = False
        self._frame: Frame | None = None
        self._loop: FrameLoop | None = None
        self._beside = beside
        self._other: Session | None = None  # the other half of a split picture
        self._other_pixels: np.ndarray | None = None
        self._narrow = self._widened = (0, 0)  # the window's sizes before it was split, and with room for both halves
        self._unsaved = False  # the bookmark has not been written to its file yet
        self._engine = ""
        self._hint_until = _milliseconds() + HINT_MS
        self._toast, self._toast_until = "", 0.0
        self._pads: tuple[str, ...] = ()
        self._painter: overlay.Painter | None = None
        self._rows: list[tuple[str, ...]] = []
        self._rows_until = 0.0
        self._title()

    def attach(self, loop: FrameLoop) -> None:
        """Show the figures of this loop on the statistics page."""
        self._loop = loop
        engine = loop.session.engine
        self._engine = f"{engine.name} {engine.precision}"

    # -- input -------------------------------------------------------------------------------------

    def read(self) -> Command:
        pressed: list[str] = []
        for event in pygame.event.get():
            if event.type == pygame.QUIT:
                return Command(stop=True)
            pressed += self.controls.feed(event)
        if "quit" in pressed:
            return Command(stop=True)
        if pressed:
            self._hint_until = min(self._hint_until, _milliseconds() + HINT_MS // 3)
        if self._beside is not None and (asked := next((name for name in pressed if name in TIME_COMMANDS), None)):
            self._say(f"No {asked} here: the real game cannot go back")
        pressed = [name for name in pressed if self._beside is None or name not in TIME_COMMANDS]
        frame, save, load = "frame" in pressed and self._paused, "", ""
        for name in pressed:
            if name == "save":
                save, self._unsaved = QUICK, True
            elif name == "load" and self._can_load():
                load = QUICK
            else:
                self._command(name)
        self._look_for_pads()
        self._keep_mouse()
        if "restart" in pressed:
            self._start = (self._start + 1) % len(self.world.starts)
            return Command(reset=self._start, save=save)
        if load:
            return Command(load=load, save=save)
        if self._beside is None and ("rewind" in pressed or self.controls.holds("rewind")):
            if self._loop is not None and self._loop.session.history_frames == 0:
                self._say("No further back")
            return Command(rewind=REWIND_FRAMES, save=save)
        if self._paused and not frame:
            return Command(advance=False, save=save)
        return Command(self.controls.action(), save=save)

    def _command(self, name: str) -> None:
        if name == "pause":
            self._paused = not self._paused
            self.controls.forget()
            self._title()
        elif name == "help":
            self._help = not self._help
        elif name == "statistics":
            self._statistics, self._rows_until = not self._statistics, 0.0
        elif name == "screenshot":
            self._screenshot()
        elif name == "split":
            self._split()

    def _look_for_pads(self) -> None:
        pads = tuple(self.controls.gamepads.names.values())
        if pads != self._pads:
            self._say(f"Gamepad: {pads[-1]}" if len(pads) > len(self._pads) else "The gamepad is gone")
            self._pads = pads

    def _keep_mouse(self) -> None:
        """A world that the mouse steers has the pointer while it is played and the window has the keys."""
        keep = self.controls.needs_mouse and not self._paused and pygame.key.get_focused()
        if keep != pygame.event.get_grab():
            pygame.event.set_grab(keep)
            pygame.mouse.set_visible(not keep)

    # -- time --------------------------------------------------------------------------------------

    def _state_path(self) -> Path:
        """The file of F5 and F9, in the current folder."""
        return Path(f"{self.world.name}-{QUICK}.safetensors")

    def _write_state(self) -> None:
        """Once the loop has taken the bookmark, write it to its file."""
        if not (self._unsaved and self._loop and QUICK in self._loop.bookmarks):
            return
        self._unsaved = False
        try:
            self._loop.bookmarks[QUICK].save(self._state_path())
            self._say(f"Saved {self._state_path()}")
        except DreamloopError as error:
            self._say(str(error))

    def _can_load(self) -> bool:
        """Whether there is a bookmark, of this game or from the file, that this session can go to."""
        if self._loop is None:
            return False
        try:
            snapshot = self._loop.bookmarks.get(QUICK) or Snapshot.load(self._state_path())
            self._loop.session.check(snapshot)
        except DreamloopError as error:
            self._say(f"Nothing to load: {error}"[:200])
            return False
        self._loop.bookmarks[QUICK] = snapshot
        self._say(f"Back at frame {snapshot.index}")
        return True

    def _split(self) -> None:
        """Open or close the other half: a branch of the present that goes on without keys."""
        if self._other is not None:
            self._close_other()
            if pygame.display.get_window_size() == self._widened:  # else the player has chosen another size
                pygame.display.set_mode(self._narrow, pygame.RESIZABLE)
        elif self._loop is not None:
            self._other = self._loop.session.branch()
            self._other_pixels = self._other.render().pixels
            self._widen()

    def _widen(self) -> None:
        """Make room for a second picture at the scale of the first, or the largest that the screen has room for."""
        self._narrow = width, height = pygame.display.get_window_size()
        wide = 2 * self.width + PANE_GAP
        scale = min(width // self.width, height // self.height, _largest_scale(wide, self.height))
        self._widened = (wide * scale, self.height * scale)
        if self._widened[0] > width:
            left, top = pygame.display.get_window_position()
            pygame.display.set_mode(self._widened, pygame.RESIZABLE)
            screen = pygame.display.get_desktop_sizes()[0][0]
            if left < screen < left + self._widened[0]:  # it would reach over the edge
                pygame.display.set_window_position((screen - self._widened[0], top))

    def _close_other(self) -> None:
        if self._other is not None:
            self._other.close()
        self._other = self._other_pixels = None

    def _step_other(self) -> None:
        if self._other is not None:
            with contextlib.suppress(FaultError):  # then its last good frame stays
                self._other_pixels = self._other.step().pixels

    def _title(self) -> None:
        pygame.display.set_caption(f"{self.world.name} - dreamloop{' (paused)' if self._paused else ''}")

    def _screenshot(self) -> None:
        """What the window shows, to the first free name in the current folder."""
        stem = self.world.name.replace("/", "-").replace("\\", "-")
        path = next(p for n in range(1, 1_000_000) if not (p := Path(f"{stem}-{n:03d}.png")).exists())
        surface = pygame.display.get_surface()
        assert surface is not None
        try:
            pygame.image.save(surface, str(path))
            self._say(f"Saved {path}")
        except (pygame.error, OSError) as error:
            self._say(f"Could not save {path}: {error}")

    def _say(self, text: str) -> None:
        self._toast, self._toast_until = text, _milliseconds() + TOAST_MS

    # -- picture -----------------------------------------------------------------------------------

    def present(self, frame: Frame) -> None:
        self._frame = frame
        self._write_state()
        self._step_other()
        self._draw()

    def hold(self) -> None:
        self._write_state()
        self._draw()

    def close(self) -> None:
        self._close_other()
        self.controls.close()
        pygame.display.quit()

    def _panes(self, frame: Frame) -> list[tuple[str, np.ndarray]]:
        """(name, picture) from left to right; one without a name where there is only one."""
        if self._beside is not None:
            name = "the game is over; start again" if self._beside.over else "the game"
            return [(name, self._beside.frame), ("the dream", frame.pixels)]
        if self._other_pixels is not None:
            return [("you", frame.pixels), ("without keys", self._other_pixels)]
        return [("", frame.pixels)]

    def _draw(self) -> None:
        surface = pygame.display.get_surface()
        if self._frame is None or surface is None:
            return
        panes = self._panes(self._frame)
        pixels = joined([shown for _, shown in panes])
        height, width, _ = pixels.shape
        scale = max(1, min(surface.get_width() // width, surface.get_height() // height))
        place = pygame.Rect(0, 0, width * scale, height * scale)
        place.center = surface.get_rect().center
        drawn = picture(pixels).convert(surface)  # small: scaling then writes the screen's format
        if surface.get_rect().contains(place):
            if place.size != surface.get_size():
                surface.fill(BACKGROUND)
            pygame.transform.scale(drawn, place.size, surface.subsurface(place))
        else:  # a window smaller than the frame shows its middle
            surface.blit(drawn, place)
        if self._painter is None or self._painter.surface.get_size() != surface.get_size():
            self._painter = overlay.Painter(surface)
        self._painter.surface = surface
        if len(panes) > 1:
            self._painter.tag(panes[0][0], place.left, place.top, -1)
            self._painter.tag(panes[-1][0], place.right, place.top, 1)
        self._overlays(self._painter)
        pygame.display.flip()

    def _overlays(self, painter: overlay.Painter) -> None:
        now, bindings = _milliseconds(), self.controls.bindings
        if self._help:
            overlay.help_page(painter, self.world.name, bindings, self._pads,
                              without=() if self._beside is None else TIME_COMMANDS)
        elif self._statistics:
            if now >= self._rows_until:
                self._rows = overlay.figures(self._loop, self.spec.fps, self._engine)
                self._rows_until = now + STATS_EVERY_MS
            recent = self._loop.recent if self._loop else ()
            held = self.controls.held()
            keys = ", ".join(words(name) for name in self.spec.actions.names if name in held) or "-"
            painter.stats([*self._rows, ("keys held", keys)], [shown.latency_ms for shown in recent],
                          1000 / self.spec.fps)
        elif now < self._hint_until:
            painter.pill(overlay.hint(bindings, bool(self._pads)), top=painter.pad)
        if now < self._toast_until:
            painter.pill(self._toast, bottom=painter.pad, above=self._help)
        elif self._paused and not self._help:
            painter.pill(overlay.pause_hint(bindings), bottom=painter.pad)
