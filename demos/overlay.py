"""What is drawn over the picture: statistics, help, hints. Pure drawing; imports pygame."""

from __future__ import annotations

from collections.abc import Sequence

import pygame

INK, DIM, ACCENT = (238, 238, 242), (158, 162, 176), (255, 176, 74)
GOOD, BAD = (98, 202, 134), (238, 84, 84)
PANEL = (14, 15, 20, 222)


class Painter:
    """Draws panels on a surface, sized to it."""

    def __init__(self, surface: pygame.Surface) -> None:
        self.surface = surface
        self.size = max(11, min(26, round(surface.get_height() / 30)))
        self.pad = self.size * 2 // 3
        self.line = round(self.size * 1.35)
        self.font = pygame.font.Font(None, round(self.size * 1.35))
        self.large = pygame.font.Font(None, round(self.size * 1.9))

    def panel(self, area: pygame.Rect) -> None:
        """A dark translucent sheet with round corners."""
        sheet = pygame.Surface(area.size, pygame.SRCALPHA)
        pygame.draw.rect(sheet, PANEL, sheet.get_rect(), border_radius=self.size // 2)
        self.surface.blit(sheet, area)

    def text(self, text: str, x: int, y: int, colour: tuple[int, int, int] = INK,
             font: pygame.font.Font | None = None) -> int:
        """Write at (x, y); returns the width in pixels."""
        drawn = (font or self.font).render(text, True, colour)
        self.surface.blit(drawn, (x, y))
        return drawn.get_width()

    def pill(self, text: str, top: int | None = None, bottom: int | None = None,
             colour: tuple[int, int, int] = INK) -> None:
        """One centred line on a sheet of its own, at a distance from the top or the bottom."""
        width, height = self.font.size(text)
        area = pygame.Rect(0, 0, width + 2 * self.pad, height + self.pad)
        area.centerx = self.surface.get_width() // 2
        if bottom is not None:
            area.bottom = self.surface.get_height() - bottom
        else:
            area.top = top or 0
        self.panel(area)
        self.text(text, area.x + self.pad, area.y + self.pad // 2 + 1, colour)

    def table(self, title: str, rows: Sequence[tuple[str, str]], note: str = "") -> None:
        """A centred page of two columns; a row ("", "") is a gap of half a line."""
        left = max((self.font.size(a)[0] for a, _ in rows), default=0)
        right = max((self.font.size(b)[0] for _, b in rows), default=0)
        title_height = round(self.line * 1.7)
        heights = [self.line if a or b else self.line // 2 for a, b in rows]
        width = max(left + right + 2 * self.pad, self.large.size(title)[0], self.font.size(note)[0])
        area = pygame.Rect(0, 0, width + 4 * self.pad,
                           title_height + sum(heights) + (self.line * 3 // 2 if note else 0) + 2 * self.pad)
        area.center = self.surface.get_rect().center
        self.panel(area)
        x, y = area.x + 2 * self.pad, area.y + self.pad
        self.text(title, x, y, ACCENT, self.large)
        y += title_height
        for (a, b), height in zip(rows, heights, strict=True):
            self.text(a, x, y, INK)
            self.text(b, x + left + 2 * self.pad, y, DIM)
            y += height
        if note:
            self.text(note, x, y + self.line // 2, DIM)

    def stats(self, rows: Sequence[tuple[str, str]], latencies_ms: Sequence[float], budget_ms: float) -> None:
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
