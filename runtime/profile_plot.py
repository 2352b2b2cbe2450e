"""A profile for the eye: stages over time, the latency of every input, and how both are spread."""

from __future__ import annotations

import os

import numpy as np

from dreamloop.models.core.errors import DreamloopError
from dreamloop.runtime.profiler import DEVICE, WHOLE, Profiler


def draw_profile(profiler: Profiler, path: str | os.PathLike[str], title: str = "",
                 budget_ms: float | None = None) -> None:
    """Write an image file. Above: the stages of each frame, stacked, and the distribution of their sum. Below: the time
    from reading each input to the end of presenting the first frame that shows it, and its distribution."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DreamloopError(f"a plot needs matplotlib ({error}); pip install matplotlib") from error
    figure = Figure(figsize=(11, 7), layout="constrained")
    (stacked, sums), (line, spread) = figure.subplots(2, 2, width_ratios=(3, 1), sharey="row")
    frames = sorted({span.frame for span in profiler.spans})
    row = {frame: i for i, frame in enumerate(frames)}
    total = np.zeros(len(frames))
    for name, spans in profiler.stages().items():
        if name == WHOLE or spans[0].track == DEVICE:
            continue
        part_ms = np.zeros(len(frames))
        for span in spans:
            part_ms[row[span.frame]] += span.ms
        stacked.fill_between(frames, total, total + part_ms, step="mid", label=name, linewidth=0)
        total += part_ms
    sums.hist(total, bins=60, orientation="horizontal", color="0.5")
    inputs = [(read.frame, (present.stop_s - read.start_s) * 1000) for read, present in profiler.shown()]
    latency_ms = np.array([ms for _, ms in inputs])
    line.plot([frame for frame, _ in inputs], latency_ms, linewidth=0.8, color="C0")
    spread.hist(latency_ms, bins=60, orientation="horizontal", color="0.5")
    if inputs:
        for share, style in ((50, "-"), (99, ":")):
            value = float(np.percentile(latency_ms, share))
            spread.axhline(value, color="C0", linestyle=style, linewidth=1, label=f"p{share} {value:.1f} ms")
        spread.legend(loc="upper right", fontsize="small")
    if budget_ms is not None:
        for axes in (stacked, sums, line):
            axes.axhline(budget_ms, color="crimson", linestyle="--", linewidth=1, label=f"budget {budget_ms:.1f} ms")
    stacked.set(xlabel="frame", ylabel="milliseconds", title=title, ylim=(0, None), xmargin=0)
    stacked.legend(loc="upper right", ncols=3, fontsize="small")
    sums.set(xlabel="frames", title="all stages")
    line.set(xlabel="frame of the input", ylabel="input to picture (ms)", ylim=(0, None), xmargin=0)
    spread.set(xlabel="inputs", title="latency")
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:  # ValueError: a file type that matplotlib does not know
        raise DreamloopError(f"cannot write the plot {path}: {error}") from error
