"""The player's window: a source of input and a sink of frames, drawn with pygame.

    dreamloop play doom-arena

It knows keys and pixels. What a frame is and when it is due is the loop's affair (runtime/loop.py).
Importing this file imports pygame.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

import numpy as np
import pygame

from dreamloop.demos import keys
from dreamloop.demos.overlay import Painter
from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.spec import WorldSpec
from dreamloop.models.core.world import World
from dreamloop.runtime.loop import Command, FrameLoop
from dreamloop.runtime.profiler import percentiles
from dreamloop.runtime.session import FaultError, Frame, Session
from dreamloop.runtime.snapshot import Snapshot

WINDOW_WIDTH = 800  # the default scale is the whole number that comes nearest to it
BACKGROUND = (8, 8, 11)
HINT_MS, TOAST_MS, STATS_EVERY_MS = 7000, 2500, 250
REWIND_FRAMES = 2  # for each frame that Backspace is held: time runs back at this speed
QUICK = "quick"  # the bookmark of F5 and F9
SPLIT_GAP = 4  # pixels of the frame between the halves of a split picture
MOUSE = {1: "left", 2: "middle", 3: "right"}
COMMANDS = (("R", "Start again from the next start frame"), ("P", "Pause"), ("N", "One frame, while paused"),
            ("Backspace", "Back in time, while held"), ("F5", "Save"), ("F9", "Load"),
            ("B", "Split: the other half goes on without keys"),
            ("H", "This page"), ("F3", "Statistics"), ("F12", "Screenshot"), ("Esc", "Quit"))


class NoDisplay(DreamloopError):
    """There is no screen to open a window on; the message says why."""


def _milliseconds() -> float:
    return time.monotonic() * 1000  # pygame's own stands still unless all of pygame is initialised


def load_image(path: str | os.PathLike[str], spec: WorldSpec) -> np.ndarray:
    """An image file as a start frame, resized to the world's size, (H, W, 3) uint8."""
    if not Path(path).is_file():
        raise DreamloopError(f"--start {path}: no such image (and not the index of a start frame)")
    try:
        loaded = pygame.image.load(os.fspath(path))
    except pygame.error as error:
        raise DreamloopError(f"--start {path}: not an image that can be read ({error})") from error
    flat = pygame.Surface(loaded.get_size(), 0, 24)
    flat.blit(loaded, (0, 0))
    size = (spec.frame_width, spec.frame_height)
    if flat.get_size() != size:
        flat = pygame.transform.smoothscale(flat, size)
    pixels = np.frombuffer(pygame.image.tobytes(flat, "RGB"), np.uint8)
    return pixels.reshape(spec.frame_height, spec.frame_width, 3).copy()


def start_display() -> str:
    """Start pygame's display and say what it is. Raises `NoDisplay` where there is none."""
    asked = os.environ.get("SDL_VIDEODRIVER")
    if sys.platform.startswith("linux") and not (asked or os.environ.get("DISPLAY")
                                                 or os.environ.get("WAYLAND_DISPLAY")):
        raise NoDisplay("no display here (neither DISPLAY nor WAYLAND_DISPLAY is set)")
    if os.environ.get("DISPLAY") and asked in (None, "x11"):
        # plain shared memory: SDL would draw with OpenGL, which a machine without a GPU emulates
        os.environ.setdefault("SDL_FRAMEBUFFER_ACCELERATION", "0")
    try:
        pygame.display.init()
        sizes = ", ".join(f"{width}x{height}" for width, height in pygame.display.get_desktop_sizes())
        return f"{pygame.display.get_driver()} {sizes}".strip()
    except pygame.error as error:
        raise NoDisplay(f"no display here ({error})") from error


class Window:
    """A resizable window. Raises `NoDisplay` where none can be opened."""

    def __init__(self, world: World, start: int = 0, scale: int | None = None) -> None:
        self.spec, self.world = world.spec, world
        self.width, self.height = self.spec.frame_width, self.spec.frame_height
        try:
            start_display()
            pygame.font.init()
            screens = pygame.display.get_desktop_sizes()
            largest = min(screens[0][0] // self.width, screens[0][1] * 9 // 10 // self.height) if screens else 99
            scale = scale or max(1, min(round(WINDOW_WIDTH / self.width), largest))
            pygame.display.set_icon(self._picture(world.starts[0]))
            pygame.display.set_mode((self.width * scale, self.height * scale), pygame.RESIZABLE)
        except pygame.error as error:
            raise NoDisplay(f"no display here ({error})") from error
        self._buttons = keys.buttons_by_key(self.spec.actions)
        self._mouse = {number: [b.name for b in self.spec.actions.buttons if name in b.mouse]
                       for number, name in MOUSE.items()}
        self._down: set[tuple[str, int]] = set()  # keys and mouse buttons that are down
        self._tapped: set[str] = set()  # pressed since the last reading, even if let go again
        self._start = start
        self._paused = self._help = self._statistics = False
        self._frame: Frame | None = None
        self._loop: FrameLoop | None = None
        self._other: Session | None = None  # the other half of a split picture
        self._other_pixels: np.ndarray | None = None
        self._unsaved = False  # the bookmark has not been written to its file yet
        self._engine = ""
        self._hint_until = _milliseconds() + HINT_MS
        self._toast, self._toast_until = "", 0.0
        self._painter: Painter | None = None
        self._rows: list[tuple[str, str]] = []
        self._rows_until = 0.0
        self._title()

    def attach(self, loop: FrameLoop) -> None:
        """Show the figures of this loop on the statistics page."""
        self._loop = loop
        engine = loop.session.engine
        self._engine = f"{engine.name} {engine.precision}"

    # -- input -------------------------------------------------------------------------------------

    def held(self) -> frozenset[str]:
        """Names of the buttons that are down."""
        names = (self._buttons.get(code, []) if kind == "key" else self._mouse.get(code, [])
                 for kind, code in self._down)
        return frozenset(name for group in names for name in group)

    def read(self) -> Command:
        """Take what happened since the last reading; a key pressed and let go in between counts."""
        single, reset, save, load = False, False, "", ""
        for event in pygame.event.get():
            if event.type == pygame.QUIT or (event.type == pygame.KEYDOWN and event.key == pygame.K_ESCAPE):
                return Command(stop=True)
            if event.type == pygame.KEYDOWN:
                single |= event.key == pygame.K_n and self._paused
                reset |= event.key == pygame.K_r
                if event.key == pygame.K_F5:
                    save, self._unsaved = QUICK, True
                elif event.key == pygame.K_F9 and self._can_load():
                    load = QUICK
                self._command_key(event.key)
                self._press("key", event.key, self._buttons)
            elif event.type == pygame.KEYUP:
                self._down.discard(("key", event.key))
            elif event.type == pygame.MOUSEBUTTONDOWN:
                self._press("mouse", event.button, self._mouse)
            elif event.type == pygame.MOUSEBUTTONUP:
                self._down.discard(("mouse", event.button))
            elif event.type == pygame.WINDOWFOCUSLOST:
                self._down.clear()  # the release will go to another window
        if reset:
            self._start = (self._start + 1) % len(self.world.starts)
            return Command(reset=self._start, save=save)
        if load:
            return Command(load=load, save=save)
        if ("key", pygame.K_BACKSPACE) in self._down:
            return Command(rewind=REWIND_FRAMES, save=save)
        if self._paused and not single:
            return Command(advance=False, save=save)
        action, self._tapped = self.held() | self._tapped, set()
        return Command(action, save=save)

    def _press(self, kind: str, code: int, buttons: dict[int, list[str]]) -> None:
        self._down.add((kind, code))
        self._tapped.update(buttons.get(code, []))

    def _command_key(self, key: int) -> None:
        self._hint_until = min(self._hint_until, _milliseconds() + HINT_MS // 3)
        if key == pygame.K_p:
            self._paused = not self._paused
            self._tapped = set()
            self._title()
        elif key == pygame.K_h:
            self._help = not self._help
        elif key == pygame.K_F3:
            self._statistics, self._rows_until = not self._statistics, 0.0
        elif key == pygame.K_F12:
            self._screenshot()
        elif key == pygame.K_b:
            self._split()

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
            self._other.close()
            self._other = self._other_pixels = None
        elif self._loop is not None:
            self._other = self._loop.session.branch()
            self._other_pixels = self._other.render().pixels

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
        if self._other is not None:
            self._split()
        pygame.display.quit()

    def _picture(self, pixels: np.ndarray) -> pygame.Surface:
        return pygame.image.frombuffer(np.ascontiguousarray(pixels).data, pixels.shape[1::-1], "RGB")

    def _shown(self, frame: Frame) -> np.ndarray:
        """What the window shows of a frame: itself, or beside the other half, (H, W or more, 3) uint8."""
        if self._other_pixels is None:
            return frame.pixels
        gap = np.full((self.height, SPLIT_GAP, 3), BACKGROUND, np.uint8)
        return np.concatenate([frame.pixels, gap, self._other_pixels], axis=1)

    def _draw(self) -> None:
        surface = pygame.display.get_surface()
        if self._frame is None or surface is None:
            return
        pixels = self._shown(self._frame)
        height, width, _ = pixels.shape
        scale = max(1, min(surface.get_width() // width, surface.get_height() // height))
        place = pygame.Rect(0, 0, width * scale, height * scale)
        place.center = surface.get_rect().center
        picture = self._picture(pixels).convert(surface)  # small: scaling then writes the screen's format
        if surface.get_rect().contains(place):
            if place.size != surface.get_size():
                surface.fill(BACKGROUND)
            pygame.transform.scale(picture, place.size, surface.subsurface(place))
        else:  # a window smaller than the frame shows its middle
            surface.blit(picture, place)
        if self._painter is None or self._painter.surface.get_size() != surface.get_size():
            self._painter = Painter(surface)
        self._painter.surface = surface
        self._overlays(self._painter)
        pygame.display.flip()

    def _overlays(self, painter: Painter) -> None:
        now = _milliseconds()
        if self._help:
            rows = [*keys.bindings(self.spec.actions), ("", ""), *COMMANDS]
            painter.table(self.world.name, rows, "Every frame is dreamed by a network.")
        elif self._statistics:
            if now >= self._rows_until:
                self._rows, self._rows_until = self._figures(), now + STATS_EVERY_MS
            recent = self._loop.recent if self._loop else ()
            painter.stats([*self._rows, ("keys held", self._held_words())],
                          [shown.latency_ms for shown in recent], 1000 / self.spec.fps)
        elif now < self._hint_until:
            move = ", ".join(f"{pressed.split(' or ')[0]}: {does.lower()}"
                             for pressed, does in keys.bindings(self.spec.actions))
            painter.pill(f"{move}     H: help", top=painter.pad)
        if now < self._toast_until:
            painter.pill(self._toast, bottom=painter.pad)
        elif self._paused and not self._help:
            painter.pill("Paused.  P: go on   N: one frame", bottom=painter.pad)

    def _held_words(self) -> str:
        held = self.held()
        return ", ".join(keys.words(name) for name in self.spec.actions.names if name in held) or "-"

    def _figures(self) -> list[tuple[str, str]]:
        loop = self._loop
        recent = list(loop.recent) if loop else []
        if loop is None or len(recent) < 2:
            return [("frames a second", "-")]
        interval = sum(shown.interval_ms for shown in recent[1:]) / (len(recent) - 1)
        latency = percentiles([shown.latency_ms for shown in recent])
        return [("frames a second", f"{1000 / interval:.1f} of {self.spec.fps:g}"),
                ("key to picture", f"{latency['p50_ms']:.1f} ms p50   {latency['p99_ms']:.1f} ms p99"),
                ("late frames", f"{loop.late_frames} of {loop.presented}"),
                ("engine", self._engine)]
