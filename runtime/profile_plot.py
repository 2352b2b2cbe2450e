"""A profile for the eye: stages over time, the latency of every input, and how both are spread."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from dreamloop.models.core.errors import DreamloopError
from dreamloop.runtime.profiler import DEVICE, WHOLE, Profiler

COLOURS = {"input": "#4c72b0", "dynamics": "#dd8452", "decode": "#55a868", "wait": "#c7c7c7", "present": "#8172b3",
           "hold": "#b0a8cf"}
OTHER_COLOUR, LATENCY_COLOUR = "#937860", "#4c72b0"  # a reset, a rewind, a load
SHARES = ((50, "-"), (99, ":"))


def draw_profile(profiler: Profiler, path: str | os.PathLike[str], title: str = "",
                 budget_ms: float | None = None) -> None:
    """Write an image file. Above: the stages of each frame, stacked, and the distribution of their sum. Below: the time
    from reading each input to the end of presenting the first frame that shows it, and its distribution."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DreamloopError(f"a plot needs matplotlib ({error}); pip install matplotlib") from error
    figure = Figure(figsize=(12, 7), layout="constrained")
    (stacked, sums), (line, spread) = figure.subplots(2, 2, width_ratios=(4, 1), sharex="col", sharey="row")
    frames = sorted({span.frame for span in profiler.spans})
    row = {frame: i for i, frame in enumerate(frames)}
    total = np.zeros(len(frames))
    for name, spans in profiler.stages().items():
        if name == WHOLE or spans[0].track == DEVICE:
            continue
        part_ms = np.zeros(len(frames))
        for span in spans:
            part_ms[row[span.frame]] += span.ms
        stacked.fill_between(frames, total, total + part_ms, step="mid", label=name, linewidth=0,
                             color=COLOURS.get(name, OTHER_COLOUR))
        total += part_ms
    inputs = [(read.frame, (present.stop_s - read.start_s) * 1000) for read, present in profiler.shown()]
    latency_ms = np.array([ms for _, ms in inputs])
    line.plot([frame for frame, _ in inputs], latency_ms, linewidth=1, color=LATENCY_COLOUR)
    for values, colour, beside, over in ((total, "0.55", sums, stacked), (latency_ms, LATENCY_COLOUR, spread, line)):
        beside.hist(values, bins=50, orientation="horizontal", color=colour)
        if len(values):
            for share, style in SHARES:
                value = float(np.percentile(values, share))
                beside.axhline(value, color="0.2", linestyle=style, linewidth=1, label=f"p{share} {value:.1f} ms")
        if budget_ms is not None:
            for axes in (over, beside):
                axes.axhline(budget_ms, color="crimson", linestyle="--", linewidth=1,
                             label=f"budget {budget_ms:.1f} ms" if axes is over else None)
        # above the axes, where nothing that is drawn can lie under it
        for axes, place in ((over, {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": 7, "frameon": False}),
                            (beside, {"loc": "upper right"})):
            if axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize="small", **place)
    stacked.set(ylabel="stages of a frame (ms)", ylim=(0, None), xmargin=0)
    line.set(xlabel="frame, or the frame of the input", ylabel="input to picture (ms)", ylim=(0, None), xmargin=0)
    stacked.set_title(title, loc="left")
    line.set_title("from reading an input to the picture that shows it", loc="left", fontsize="medium")
    spread.set(xlabel="how many")
    try:
        figure.savefig(path, dpi=120, format=Path(path).suffix[1:] or "png")  # said here: else it renames the file
    except (OSError, ValueError) as error:  # ValueError: a file type that matplotlib does not know
        raise DreamloopError(f"cannot write the plot {path}: {error}") from error
