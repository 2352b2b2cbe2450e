"""Evaluation for the eye: curves, a picture strip, and the game beside the dream as a video."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dreamloop.models.core.errors import DreamloopError

if TYPE_CHECKING:
    from dreamloop.runtime.evaluate import Truth

STRIP_HORIZONS = (1, 4, 16, 32, 64, 128, 256)
ZOOM = 2
GAP = 4  # pixels between pictures, even: video encoders want even sizes
NOTHING = 24  # grey of a picture that does not exist
LABELS = {"dream": "dream", "ceiling": "autoencoder alone (ceiling)", "copy_last": "last primed frame held still"}


def draw_plot(path: str | os.PathLike[str], name: str, horizons: Sequence[int],
              psnr: Mapping[str, Sequence[float | None]], times: Sequence[int],
              drift: Sequence[Mapping[str, float | None]]) -> None:
    """Quality against horizon, and drift ratios against time. psnr: curve -> dB per horizon; drift: the
    ratios at each of `times`, in frames."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DreamloopError(f"a plot needs matplotlib ({error}); pip install 'dreamloop[eval]'") from error
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for curve, values in psnr.items():
        known = [(h, v) for h, v in zip(horizons, values, strict=True) if v is not None]
        left.plot([h for h, _ in known], [v for _, v in known], label=LABELS[curve])
    left.set(title=f"{name}: dream against game", xlabel="horizon (frames)", ylabel="PSNR (dB)", xscale="log")
    left.legend()
    for statistic in drift[0]:
        known = [(t, v) for t, ratios in zip(times, drift, strict=True) if (v := ratios[statistic]) is not None]
        right.plot([t for t, _ in known], [v for _, v in known], label=statistic)
    right.axhspan(0.7, 1.3, color="0.92")
    right.axhline(1.0, color="0.6", linewidth=0.8)
    right.set(title="drift", xlabel="frames dreamed", ylabel="dream / game")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.25)
    figure.savefig(Path(path), dpi=110)


def draw_strip(path: str | os.PathLike[str], truth: Truth, dreams: Mapping[str, np.ndarray]) -> None:
    """A PNG: the game's frames over those of each dream at `STRIP_HORIZONS`, as far as there are any.
    dreams: label -> (F, H, W, 3) uint8, horizon h at index h - 1."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DreamloopError(f"a strip needs matplotlib ({error}); pip install 'dreamloop[eval]'") from error
    longest = next(iter(dreams.values()))
    horizons = [h for h in STRIP_HORIZONS if h <= len(longest)]
    rows = [("game", [truth.at(h) for h in horizons]),
            *((label, [frames[h - 1] for h in horizons]) for label, frames in dreams.items())]
    height, width = longest.shape[1:3]
    dpi = 100
    margin_top, margin_left = 24, max(56, 8 * max(len(label) for label, _ in rows))
    cell_width, cell_height = ZOOM * width + GAP, ZOOM * height + GAP
    full_width, full_height = margin_left + len(horizons) * cell_width, margin_top + len(rows) * cell_height
    figure = Figure(figsize=(full_width / dpi, full_height / dpi), dpi=dpi, facecolor="white")
    for column, horizon in enumerate(horizons):
        x = margin_left + column * cell_width
        figure.text((x + cell_width / 2) / full_width, 1 - 14 / full_height, f"{horizon}", ha="center", va="center")
    for row, (label, pictures) in enumerate(rows):
        y = (len(rows) - 1 - row) * cell_height
        figure.text(margin_left / 2 / full_width, (y + cell_height / 2) / full_height, label, ha="center", va="center")
        for column, picture in enumerate(pictures):
            shown = np.full((height, width, 3), NOTHING, np.uint8) if picture is None else picture
            figure.figimage(shown.repeat(ZOOM, axis=0).repeat(ZOOM, axis=1), xo=margin_left + column * cell_width,
                            yo=y + GAP // 2, origin="upper")
    figure.savefig(Path(path), format="png", dpi=dpi)


def write_video(path: str | os.PathLike[str], truth: Truth, dreamed: np.ndarray, fps: float) -> None:
    """An MP4 at the game's speed, game left, dream right: the last primed frame, then every dreamed
    one. Where the game was over, its side is grey."""
    try:
        import av
    except ImportError as error:
        raise DreamloopError(f"a video needs PyAV ({error}); pip install av") from error
    height, width = dreamed.shape[1:3]
    canvas = np.full((ZOOM * height, 2 * ZOOM * width + GAP, 3), 0, np.uint8)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = canvas.shape[1], canvas.shape[0], "yuv420p"
        stream.options = {"crf": "18"}
        for horizon in range(len(dreamed) + 1):
            left = truth.at(horizon)
            right = dreamed[horizon - 1] if horizon else left
            for offset, picture in ((0, left), (ZOOM * width + GAP, right)):
                shown = np.full((height, width, 3), NOTHING, np.uint8) if picture is None else picture
                canvas[:, offset : offset + ZOOM * width] = shown.repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(canvas, format="rgb24")))
        container.mux(stream.encode())
