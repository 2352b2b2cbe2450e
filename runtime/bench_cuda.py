"""What the GPU engine takes, on the GPU that is here: `dreamloop bench --device cuda --out OUT`.

    dreamloop bench --device cuda --out gpu-figures --json
    dreamloop bench --device cpu --toy --out rehearsal          # every section at toy size, without a GPU

Sections, one after the other: what the machine reaches (products, copies), each kernel against its twin, the attention
sweep, lists split over programs (not at toy size), the kernels between the products, the presets, players in one step,
action to pixels, and the steps of a world by engine, `torch.compile` at the very end, for it takes minutes. What is
wrong is not timed. A section that fails, or a row of it, says why under `unavailable` and the next one goes on.
`report.json` is written anew after every row, so a run that is cut keeps what it has; what would begin after the budget
is listed, not run.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.world import World
from dreamloop.runtime import bench_cuda_kernels as on_kernels, bench_cuda_steps as on_steps
from dreamloop.runtime.bench import oracle_steps
from dreamloop.runtime.bench_cuda_presets import PRESETS, TOYS
from dreamloop.runtime.bench_limits import hardware
from dreamloop.runtime.gpu import kernels_for, why_plain

BUDGET_S = 480.0
FRAMES = 300
PRESET_WINDOWS = {"wan-1.3b": (7, 21), "waypoint-1b": (16,)}
SECTIONS = ("limits", "kernels", "sweep", "splits", "rows", "presets", "players", "latency_ms", "steps")


class Run:
    """The report as it grows, on the disk after every row; and how much time is left."""

    def __init__(self, folder: Path, machine: dict[str, Any], budget_s: float,
                 sections: Sequence[str] = SECTIONS) -> None:
        self.folder, self.budget_s, self.sections, self._began = folder, budget_s, sections, time.monotonic()
        self.report: dict[str, Any] = {**machine, "unavailable": {}, "seconds": {}}

    def left(self) -> float:
        return self.budget_s - (time.monotonic() - self._began)

    def save(self) -> None:
        part = self.folder / "report.json.part"
        part.write_text(json.dumps(self.report, indent=1), "utf-8")
        os.replace(part, self.folder / "report.json")

    def put(self, section: str, name: str, row: Any) -> None:
        """A row of a section; one that is unavailable goes where all of them are listed."""
        if isinstance(row, dict) and "unavailable" in row and len(row) == 1:
            self.report["unavailable"][f"{section}: {name}"] = row["unavailable"]
        else:
            self.report.setdefault(section, {})[name] = row
        self.save()

    def section(self, name: str, work: Callable[[], Any], always: bool = False) -> None:
        """Run a section, if it is asked for; what it returns is its figures, if it returns any. always: also when it is
        not, and when no time is left."""
        if name not in self.sections and not always:
            return
        began = time.monotonic()
        if self.left() <= 0 and not always:
            self.report["unavailable"][name] = f"not begun: the budget of {self.budget_s:.0f} s was spent"
        else:
            try:
                found = work()
                if found is not None:
                    self.report[name] = found
            except Exception as error:  # whatever a section dies of, the others are worth having
                self.report["unavailable"][name] = on_kernels.one_line(error)
        self.report["seconds"][name] = round(time.monotonic() - began, 1)
        self.save()


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on, in words; commit: of the source where it is a repository, else empty."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU: a rehearsal, not figures"
    try:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, text=True,
                                capture_output=True, check=False).stdout.strip()
    except OSError:
        commit = ""
    return {"device": name, "host": hardware(), "torch": torch.__version__, "cuda": torch.version.cuda,
            "python": platform.python_version(), "kernel_kind": kernels_for(device).__name__.rpartition(".")[2],
            "commit": commit}


def bench_cuda(world: World, out: str, device: str = "cuda", toy: bool = False, budget_s: float = BUDGET_S,
               frames: int | None = None, presets: str | None = None,
               sections: Sequence[str] = SECTIONS) -> dict[str, Any]:
    """The report, which lies in `out`/report.json too, with plots beside it. presets: one preset alone, or all;
    sections: the ones to run, of `SECTIONS`: a fault of the device ends a process, and the rest can be had in another.

    Raises `DreamloopError` without CUDA, for an unknown preset or section, and where `out` cannot be written.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise DreamloopError(f"bench --device cuda: torch {torch.__version__} finds no NVIDIA GPU with CUDA here")
    if device == "cuda" and (reason := why_plain(device)):
        raise DreamloopError(f"bench --device cuda: {reason}")
    if presets is not None and presets not in PRESETS:
        raise DreamloopError(f"no preset {presets[:100]!r} for a GPU; known: {', '.join(PRESETS)}")
    if unknown := [name for name in sections if name not in SECTIONS]:
        raise DreamloopError(f"no section {unknown[0][:100]!r}; known: {', '.join(SECTIONS)}")
    place, count = torch.device(device), frames or (5 if toy else FRAMES)
    folder = Path(out)
    run = Run(folder, machine(place), budget_s, sections)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        run.save()
    except OSError as error:
        raise DreamloopError(f"cannot write to {out}: {error.strerror}") from error
    run.report |= {"world": world.name, "frames": count, "toy": toy}
    try:
        _measure(run, world, device, count, presets)
    finally:  # also of what there is where it was cut short
        run.section("plots", lambda: _plots(run.report, folder), always=True)
    return run.report


def _measure(run: Run, world: World, device: str, count: int, presets: str | None) -> None:
    place, toy = torch.device(device), run.report["toy"]
    run.section("limits", lambda: on_kernels.limits(place, toy))
    run.section("kernels", lambda: _kernels(run, world, place))
    limits = run.report.get("limits", {})
    history = cache(lambda: oracle_steps(world))
    if presets is None:  # what of it errs is not timed, row by row
        run.section("sweep", lambda: _sweep(run, place, toy))
        if not toy:
            run.section("splits", lambda: _put(run, "splits", on_kernels.split_rows(place, torch.bfloat16, run.left)))
        held = (TOYS if toy else PRESETS)["wan-1.3b"]
        run.section("rows", lambda: _put(run, "rows", on_kernels.row_kernels(held.spec, place, torch.bfloat16, limits,
                                                                            held.key_heads)))
    run.section("presets", lambda: _presets(run, place, toy, limits, presets))
    if presets is None:
        run.section("players", lambda: on_steps.players(world, device, count, toy, history(), run.left,
                                                        lambda name, row: run.put("players", name, row)))
        run.section("latency_ms", lambda: on_steps.latency(world, device, count, toy, history()))
        run.section("steps", lambda: on_steps.steps(world, device, count, toy, limits, history(), run.left,
                                                    lambda name, row: run.put("steps", name, row)))


def _kernels(run: Run, world: World, device: torch.device) -> None:
    for verify in (on_kernels.verify, on_kernels.verify_policies):
        verify(world.spec, device, put=lambda name, row: run.put("kernels", name, row))


def _put(run: Run, section: str, rows: Iterator[tuple[str, dict[str, Any]]]) -> None:
    for name, row in rows:
        run.put(section, name, row)


def _sweep(run: Run, device: torch.device, toy: bool) -> None:
    sweep = on_kernels.TOY if toy else on_kernels.Sweep()
    for row in on_kernels.sweep_rows(sweep, device, torch.bfloat16, not toy, run.left, run.report.get("limits")):
        run.report.setdefault("sweep", []).append(row)
        run.save()


def _presets(run: Run, device: torch.device, toy: bool, limits: dict[str, float], only: str | None) -> None:
    for name, preset, precision in _preset_rows(toy, only):
        if run.left() <= 0:
            run.put("presets", name, {"unavailable": "no time was left"})
            continue
        try:
            on_steps.forget_others(device)
            run.put("presets", name, on_steps.preset_row(preset, device, precision, limits))
        except Exception as error:  # one that does not fit leaves the others as they are
            run.put("presets", name, {"unavailable": on_kernels.one_line(error)})


def _preset_rows(toy: bool, only: str | None) -> Iterator[tuple[str, Any, str]]:
    for name, preset in (TOYS if toy else PRESETS).items():
        for window in PRESET_WINDOWS[name] if only in (None, name) else ():
            held = preset if toy else preset.visible(window)
            for precision in ("bf16", "fp8", "fp8-qk8"):
                yield f"{name}, {held.spec.memory.window_frames} frames, {precision}", held, precision


def _plots(report: dict[str, Any], folder: Path) -> None:
    from dreamloop.runtime.bench_cuda_plots import draw
    draw(report, folder)
