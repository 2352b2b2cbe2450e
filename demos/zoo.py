"""The worlds of the zoo, as a table and as a sheet of thumbnails, and worlds as single files.

    dreamloop worlds --sheet worlds.png
    dreamloop pack doom-arena        dreamloop unpack doom-arena.dreamworld OUT
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.world import ZOO, World, load_world, zoo_names

THUMBNAIL_WIDTH = 320
COLUMNS = 3


def worlds(sheet: str | None = None) -> dict[str, Any]:
    """Print the zoo's worlds; returns a row for each. sheet: a PNG to draw them on."""
    rows: list[dict[str, Any]] = []
    found: list[World] = []
    for name in zoo_names():
        size = sum(file.stat().st_size for file in (ZOO / name).iterdir() if file.is_file()) / 1e6
        try:
            world = load_world(name)
        except DreamloopError as error:
            rows.append({"world": name, "error": str(error)})
            print(f"{name:<16}  refused: {error}")
            continue
        found.append(world)
        rows.append(row(world, size))
        _tell(rows[-1])
    if not rows:
        print("no worlds came with this package; `dreamloop train doom-arena` makes one")
    if sheet is not None:
        if not found:
            raise DreamloopError("there is no world to draw")
        draw_sheet(sheet, found)
        print(f"wrote {sheet}")
    return {"worlds": rows}


def row(world: World, size_mb: float) -> dict[str, Any]:
    """What a list says of a world; figures are None where none were measured on these weights."""
    spec, evaluation = world.spec, world.figures.get("evaluation", {})
    measured = evaluation.get("world_hash") == world.hash
    return {"world": world.name, "size_mb": round(size_mb, 2), "width": spec.frame_width, "height": spec.frame_height,
            "fps": spec.fps, "actions": list(spec.actions.names), "game": spec.game,
            "assets": world.figures.get("assets"), "figures": evaluation if measured else None}


def _tell(row: dict[str, Any]) -> None:
    size = f"{row['width']}x{row['height']}"
    print(f"{row['world']:<16}{row['size_mb']:6.1f} MB  {size}  {row['fps']:g} frames a second  "
          f"{' '.join(row['actions'])}")
    told = _figures(row["figures"] or {})
    print(f"{'':<18}{told or 'no figures of these weights: `dreamloop evaluate` measures them'}")
    if row["assets"]:
        print(f"{'':<18}learnt from {row['assets']}")


def _figures(evaluation: dict[str, Any]) -> str:
    """The few of an evaluation's figures that stand in a line; a file may hold anything."""
    def number(*path: str) -> float | None:
        value: Any = evaluation
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return float(value) if isinstance(value, int | float) else None

    parts = []
    for text, value in (("{:.1f} dB at 16 frames", number("psnr", "16")),
                        ("keys read {:.2f}", number("inverse_dynamics_dreamed")),
                        ("of {:.2f}", number("inverse_dynamics_real")),
                        ("spread {:.2f}", number("drift", "spread")), ("motion {:.2f}", number("drift", "motion")),
                        ("after {:.0f} frames", number("frames"))):
        if value is not None:
            parts.append(text.format(value))
    return ", ".join(parts).replace(", of", " of").replace(", after", " after")


def draw_sheet(path: str, found: list[World]) -> None:
    """A PNG with a start frame of every world, its name, keys and speed. Raises `DreamloopError` where the
    file cannot be written."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    import pygame

    from dreamloop.demos.inputs import words
    if Path(path).suffix.lower() != ".png":
        raise DreamloopError(f"--sheet {path}: a sheet is a .png file")
    pygame.font.init()
    name_font, small_font = pygame.font.Font(None, 26), pygame.font.Font(None, 18)
    columns = min(COLUMNS, len(found))
    pictures = []
    for world in found:
        starts = world.starts
        frame = np.ascontiguousarray(starts[len(starts) // 2])
        picture = pygame.image.frombuffer(frame.tobytes(), frame.shape[1::-1], "RGB")
        height = round(THUMBNAIL_WIDTH * frame.shape[0] / frame.shape[1])
        pictures.append(pygame.transform.scale(picture, (THUMBNAIL_WIDTH, height)))
    pad, text = 16, 52
    tallest = max(picture.get_height() for picture in pictures)
    rows = -(-len(found) // columns)
    sheet = pygame.Surface((pad + columns * (THUMBNAIL_WIDTH + pad), pad + rows * (tallest + text + pad)))
    sheet.fill((18, 18, 22))
    for i, (world, picture) in enumerate(zip(found, pictures, strict=True)):
        x = pad + i % columns * (THUMBNAIL_WIDTH + pad)
        y = pad + i // columns * (tallest + text + pad)
        sheet.blit(picture, (x, y))
        told = "  ".join(words(name) for name in world.spec.actions.names)
        sheet.blit(name_font.render(f"{world.name}   {world.spec.fps:g} frames a second", True, (235, 235, 235)),
                   (x, y + picture.get_height() + 8))
        line = small_font.render(told, True, (160, 160, 170))
        sheet.blit(line, (x, y + picture.get_height() + 32), (0, 0, THUMBNAIL_WIDTH, line.get_height()))
    try:
        pygame.image.save(sheet, path)
    except (pygame.error, OSError) as error:
        raise DreamloopError(f"cannot write {path}: {error}") from error


def pack(world: str, file: str | None) -> dict[str, Any]:
    from dreamloop.models.core import pack as packs
    path, digest = packs.pack(world, file)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, SHA-256 {digest}")
    return {"path": str(path), "sha256": digest, "bytes": path.stat().st_size}


def unpack(file: str, out: str | None, sha256: str | None) -> dict[str, Any]:
    from dreamloop.models.core import pack as packs
    world = packs.unpack(file, out, sha256)
    folder = out or world.name
    print(f"{folder}: {world.name}, every file as its hash says; dreamloop play {folder}")
    return {"path": folder, "world": world.name, "world_hash": world.hash}
