"""What is drawn over the picture: statistics, help, hints. Pure drawing; imports pygame."""

from __future__ import annotations

from collections.abc import Sequence

import pygame

from dreamloop.demos.bindings import Bindings
from dreamloop.demos.inputs import is_gamepad, label
from dreamloop.runtime.loop import FrameLoop
from dreamloop.runtime.profiler import percentiles

SMALLEST = 11  # pixels of a letter's height that can still be read
INK, DIM, ACCENT = (238, 238, 242), (158, 162, 176), (255, 176, 74)
GOOD, BAD = (98, 202, 134), (238, 84, 84)
PANEL = (14, 15, 20, 222)
GAP = "     "  # between parts of a line that stand for themselves


class Painter:
    """Draws panels on a surface, in letters of `size` pixels, by default sized to it."""

    def __init__(self, surface: pygame.Surface, size: int | None = None) -> None:
        self.surface = surface
        self.size = size or max(15, min(26, round(surface.get_height() / 30)))
        self.pad = self.size * 2 // 3
        self.line = round(self.size * 1.35)
        self.font = pygame.font.Font(None, round(self.size * 1.35))
        self.large = pygame.font.Font(None, round(self.size * 1.9))

    def panel(self, area: pygame.Rect, above: bool = False) -> None:
        """A dark translucent sheet with round corners. above: it lies on another one, so nothing shines through."""
        sheet = pygame.Surface(area.size, pygame.SRCALPHA)
        pygame.draw.rect(sheet, PANEL[:3] if above else PANEL, sheet.get_rect(), border_radius=self.size // 2)
        if above:
            pygame.draw.rect(sheet, DIM, sheet.get_rect(), width=1, border_radius=self.size // 2)
        self.surface.blit(sheet, area)

    def text(self, text: str, x: int, y: int, colour: tuple[int, int, int] = INK,
             font: pygame.font.Font | None = None) -> int:
        """Write at (x, y); returns the width in pixels."""
        drawn = (font or self.font).render(text, True, colour)
        self.surface.blit(drawn, (x, y))
        return drawn.get_width()

    def pill(self, text: str, top: int | None = None, bottom: int | None = None, above: bool = False) -> None:
        """One centred line, or as many as it takes, on a sheet of its own, at a distance from the top or the bottom."""
        lines = self.lines(text, self.surface.get_width() - 4 * self.pad)
        widths, height = [self.font.size(line)[0] for line in lines], self.font.get_linesize()
        area = pygame.Rect(0, 0, max(widths) + 2 * self.pad, height * len(lines) + self.pad)
        area.centerx = self.surface.get_width() // 2
        if bottom is not None:
            area.bottom = self.surface.get_height() - bottom
        else:
            area.top = top or 0
        self.panel(area, above)
        for i, (line, width) in enumerate(zip(lines, widths, strict=True)):
            self.text(line, area.centerx - width // 2, area.y + self.pad // 2 + 1 + i * height)

    def lines(self, text: str, width: int) -> list[str]:
        """A text in lines of `width` pixels at most, broken at its gaps where it has some, else between words."""
        gap = GAP if GAP in text else " "
        first, *parts = text.split(gap)
        lines = [first]
        for part in parts:
            longer = f"{lines[-1]}{gap}{part}"
            if self.font.size(longer)[0] <= width:
                lines[-1] = longer
            else:
                lines.append(part)
        return lines

    def tag(self, text: str, x: int, top: int, side: int) -> None:
        """A short name on a sheet of its own, near a top corner; side: -1 the left one, 1 the right one."""
        width, height = self.font.size(text)
        area = pygame.Rect(0, 0, width + 2 * self.pad, height + self.pad)
        area.top = top + self.pad
        area.centerx = x - side * (area.width // 2 + self.pad)
        self.panel(area)
        self.text(text, area.x + self.pad, area.y + self.pad // 2 + 1, ACCENT)

    def table(self, title: str, rows: Sequence[tuple[str, ...]], notes: Sequence[str] = ()) -> None:
        """A centred page of columns, in smaller letters where it would not fit; a row () is half a line of space."""
        columns = max((len(row) for row in rows), default=0)
        widths = [max((self.font.size(row[i])[0] for row in rows if len(row) > i), default=0) for i in range(columns)]
        gap, title_height = 2 * self.pad, round(self.line * 1.7)
        heights = [self.line if row else self.line // 2 for row in rows]
        width = max(sum(widths) + gap * (columns - 1), self.large.size(title)[0],
                    *(self.font.size(note)[0] for note in notes))
        area = pygame.Rect(0, 0, width + 4 * self.pad,
                           title_height + sum(heights) + self.line * len(notes) + 3 * self.pad)
        room = self.surface.get_rect().inflate(-self.pad, -self.pad)
        if self.size > SMALLEST and (area.width > room.width or area.height > room.height):
            return Painter(self.surface, self.size - 1).table(title, rows, notes)
        area.center = self.surface.get_rect().center
        self.panel(area)
        left, y = area.x + 2 * self.pad, area.y + self.pad
        self.text(title, left, y, ACCENT, self.large)
        y += title_height
        for row, height in zip(rows, heights, strict=True):
            for i, cell in enumerate(row):
                self.text(cell, left + sum(widths[:i]) + gap * i, y, DIM if i == 1 else INK)
            y += height
        for i, note in enumerate(notes):
            self.text(note, left, y + self.pad + i * self.line, DIM)

    def stats(self, rows: Sequence[tuple[str, ...]], latencies_ms: Sequence[float], budget_ms: float) -> None:
        """The F3 page: rows of figures, then one bar per frame, the newest on the right, with the
        budget as a line at half height."""
        label = max(self.font.size(a)[0] for a, _ in rows) + self.pad
        mark = self.font.render(f"{budget_ms:.0f} ms", True, DIM)
        inner = max(self.size * 17, label + max(self.font.size(b)[0] for _, b in rows))
        high = round(self.line * 2.2)
        area = pygame.Rect(self.pad, self.pad, inner + 2 * self.pad, len(rows) * self.line + high + 3 * self.pad)
        self.panel(area)
        x, y = area.x + self.pad, area.y + self.pad
        for name, value in rows:
            self.text(name, x, y, DIM)
            self.text(value, x + label, y)
            y += self.line
        strip = pygame.Rect(x, y + self.pad // 2, inner - mark.get_width() - self.pad // 2, high)
        bar = max(1, self.size // 8)
        for i, latency in enumerate(reversed(latencies_ms[-(strip.width // bar):]), start=1):
            height = max(1, min(high, round(high * latency / (2 * budget_ms))))
            column = pygame.Rect(strip.right - i * bar, strip.bottom - height, bar, height)
            pygame.draw.rect(self.surface, GOOD if latency <= budget_ms else BAD, column)
        pygame.draw.line(self.surface, DIM, strip.midleft, (strip.right - 1, strip.centery))
        self.surface.blit(mark, mark.get_rect(midright=(x + inner, strip.centery)))


def help_page(painter: Painter, title: str, bindings: Bindings, pads: Sequence[str],
              without: Sequence[str] = ()) -> None:
    """Every control and command: keyboard and mouse, gamepad, what it does. without: commands left out."""
    commands = zip(bindings.commands, bindings.command_rows(), strict=True)
    rows = [("Keyboard, mouse", "Gamepad", "What it does"), (), *bindings.action_rows(), (),
            *(row for name, row in commands if name not in without)]
    file = f"Keys changed by {bindings.path}" if bindings.path else "To change keys: dreamloop bindings --write"
    pad = f"Gamepad: {', '.join(pads)}" if pads else "Gamepad: none yet; plug one in at any time"
    painter.table(title, rows, ("Every frame of the dream is made by a network.", pad, file,
                                "Keys go by their place on a US keyboard."))


def hint(bindings: Bindings, pad: bool, command: str = "help") -> str:
    """The first input of every control, and of one command, on one line."""
    parts = []
    for name, inputs in (*bindings.actions.items(), (command, bindings.commands[command])):
        mine = next((one for one in inputs if is_gamepad(one) == pad), inputs[0] if inputs else None)
        if mine is not None:
            parts.append(f"{label(mine)}: {name.replace('_', ' ')}")
    return GAP.join(parts)


def pause_hint(bindings: Bindings) -> str:
    """How to go on after a pause."""
    keys = {name: label(inputs[0]) for name, inputs in bindings.commands.items() if inputs}
    parts = [f"{keys[name]}: {does}" for name, does in (("pause", "go on"), ("frame", "one frame")) if name in keys]
    return "   ".join(["Paused.", *parts])


def figures(loop: FrameLoop | None, fps: float, engine: str) -> list[tuple[str, ...]]:
    """The rows of the statistics page."""
    recent = list(loop.recent) if loop else []
    if loop is None or len(recent) < 2:
        return [("frames a second", "-")]
    interval = sum(shown.interval_ms for shown in recent[1:]) / (len(recent) - 1)
    latency = percentiles([shown.latency_ms for shown in recent])
    return [("frames a second", f"{1000 / interval:.1f} of {fps:g}"),
            ("key to picture", f"{latency['p50_ms']:.1f} ms p50   {latency['p99_ms']:.1f} ms p99"),
            ("late frames", f"{loop.late_frames} of {loop.presented}"), ("engine", engine)]
