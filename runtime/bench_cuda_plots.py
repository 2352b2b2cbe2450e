"""The report of `dreamloop bench --device cuda` for the eye: tables on the screen, pictures in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLUMNS = {"steps": ("p50_ms", "p95_ms", "p99_ms", "fps", "share_of_limit", "peak_gib", "error_vs_oracle"),
           "presets": ("network_eager_ms", "network_ms", "frame_ms", "fps", "tflop", "share_of_limit",
                       "share_of_bf16_limit", "share_of_copy_limit", "peak_gib"),
           "players": ("step_ms", "frames_per_s", "times_single", "error_vs_oracle"),
           "rows": ("ms", "mb", "share_of_copy_limit"),
           "splits": ("chosen", "1_ms", "2_ms", "4_ms", "8_ms", "16_ms"),
           "kernels": ("error", "bound", "passed", "failed")}
WIDTH = 180  # of the tables, where the terminal is narrower or there is none
SWEEP = ("window", "block", "density", "sdpa_ms", "flex_ms", "cuda_ms", "sparse_ms", "speedup", "wanted", "tflops",
         "share_of_limit", "int8_ms",
         "float8_ms", "sparse_error")


def show(report: dict[str, Any]) -> None:
    """Print the report."""
    from rich.console import Console
    from rich.table import Table
    console = Console()
    console = Console(width=max(console.width, WIDTH), markup=False)

    def table(title: str, head: tuple[str, ...], lines: list[tuple[str, ...]]) -> None:
        drawn = Table(title=title, title_justify="left")
        for place, name in enumerate(head):
            drawn.add_column(name, justify="left" if place == 0 else "right", no_wrap=True)
        for line in lines:
            drawn.add_row(*line)
        console.print(drawn)
    console.print(f"{report['device']}; {report['host']}; torch {report['torch']}; {report['kernel_kind']} kernels",
                  highlight=False)
    if report.get("limits"):
        table("what it reaches", ("", "TFLOP/s, copy GB/s"), [(n, _figure(v)) for n, v in report["limits"].items()])
    for section, columns in COLUMNS.items():
        rows = report.get(section) or {}
        if rows:
            title = section.replace("_", " ") + (" (random weights, for latency only)" if section == "presets" else "")
            lines = [(name, *(_figure(row.get(c)) for c in columns)) for name, row in rows.items()]
            table(title, ("", *columns), lines)
    if report.get("sweep"):
        table("attention", SWEEP, [tuple(_figure(row.get(c)) for c in SWEEP) for row in report["sweep"]])
        for name in ("sparse", "int8", "float8", "flex", "cuda"):
            for why in sorted({row[f"{name}_unavailable"] for row in report["sweep"] if f"{name}_unavailable" in row}):
                console.print(f"attention, {name}: {why}", highlight=False)
    if report.get("latency_ms"):
        table("action to pixels", tuple(report["latency_ms"]), [tuple(map(_figure, report["latency_ms"].values()))])
    for name, why in report["unavailable"].items():
        console.print(f"{name}: {why}", highlight=False)


def _figure(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:40]


def draw(report: dict[str, Any], folder: Path) -> None:
    """Write sweep.png, steps.png and players.png, as far as there is something to draw."""
    from matplotlib.figure import Figure
    if report.get("sweep"):
        windows = sorted({row["window"] for row in report["sweep"]})
        figure = Figure(figsize=(5 * len(windows), 4), layout="constrained")
        for window, axes in zip(windows, figure.subplots(1, len(windows), squeeze=False)[0], strict=True):
            rows = [row for row in report["sweep"] if row["window"] == window and "sparse_ms" in row]
            for block in sorted({row["block"] for row in rows}):
                own = [row for row in rows if row["block"] == block]
                axes.plot([r["density"] for r in own], [r["sparse_ms"] for r in own], "o-", label=f"blocks of {block}")
                for other, line in (("flex", ":"), ("cuda", "-."), ("int8", "--")):
                    if found := [(r["density"], r[f"{other}_ms"]) for r in own if f"{other}_ms" in r]:
                        axes.plot(*zip(*found, strict=True), line, linewidth=1, label=f"{other}, blocks of {block}")
            if rows:
                axes.axhline(rows[0]["sdpa_ms"], color="0.4", linestyle="--", label="torch SDPA, dense")
                axes.legend(fontsize="small")
            axes.set(title=f"{window} frames", xlabel="density", ylabel="ms", xlim=(0, None), ylim=(0, None))
        figure.savefig(folder / "sweep.png", dpi=120)
    if report.get("steps"):
        names = list(report["steps"])
        figure = Figure(figsize=(8, 1 + 0.4 * len(names)), layout="constrained")
        axes = figure.subplots()
        axes.barh(names, [row["p50_ms"] for row in report["steps"].values()])
        axes.set(xlabel="ms a frame, median", title=report["world"])
        axes.invert_yaxis()
        figure.savefig(folder / "steps.png", dpi=120)
    if report.get("players"):
        counts = [int(name) for name in report["players"]]
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot(counts, [row["frames_per_s"] for row in report["players"].values()], "o-")
        axes.set(xlabel="players in one step", ylabel="frames a second, all together", xlim=(0, None), ylim=(0, None))
        figure.savefig(folder / "players.png", dpi=120)
