"""A training run: a folder that survives a kill at any moment, and the loop that every stage uses.

    RUN/recording/          episodes (recording.py)
    RUN/STAGE.ckpt          newest checkpoint of a stage, written atomically every two minutes
    RUN/curves/STAGE.ndjson one line per report: seconds, steps, figures
    RUN/run.json            the recipe, finished stages and their figures

A stage spends a budget of seconds, not of steps: schedules run on the share of the budget that is
spent, and seconds spent before a kill count. Checkpoints hold tensors and numbers only and are read
with `weights_only=True`.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import shutil
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from dreamloop.models.core.errors import DreamloopError

RECORD_FILE = "run.json"
CHECKPOINT_SECONDS = 120.0
REPORT_SECONDS = 10.0


class GateError(DreamloopError):
    """A stage ended below the figure that the next one needs."""


class Run:
    """The run folder, its record of finished stages, and the device that it trains on. compiling: whether stages
    compile what they repeat; on a CPU that makes a step a tenth faster and takes a minute or more."""

    def __init__(self, folder: Path, recipe: str, device: str, resume: bool, compiling: bool = True) -> None:
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise DreamloopError("no CUDA device is there that this torch can use: --device cpu")
        self.folder = folder
        self.device, self.compiling = torch.device(device), compiling
        self.dtype = torch.bfloat16 if multiplies_bfloat16(self.device) else torch.float32
        self.console = Console()
        self._record_path = folder / RECORD_FILE
        if folder.exists() and any(folder.iterdir()) and not resume:
            raise DreamloopError(f"run folder {folder.name} is not empty: --resume goes on with it")
        (folder / "curves").mkdir(parents=True, exist_ok=True)
        self.record: dict[str, Any] = {"recipe": recipe, "stages": {}}
        if self._record_path.exists():
            self.record = json.loads(self._record_path.read_text())
            if self.record["recipe"] != recipe:
                raise DreamloopError(f"run folder {folder.name} belongs to {self.record['recipe']}, not to {recipe}")

        self.record["hardware"] = hardware(self.device)

    def finished(self, stage: str) -> bool:
        return stage in self.record["stages"]

    def finish(self, stage: str, figures: dict[str, float]) -> None:
        """Note a stage as done, with its figures."""
        self.record["stages"][stage] = {k: round(float(v), 4) for k, v in figures.items()}
        _write_atomically(self._record_path, json.dumps(self.record, indent=2).encode())
        shown = "  ".join(f"{k} {float(v):.4g}" for k, v in figures.items())
        self.console.print(f"[bold]{stage}[/] done: {shown}")

    def save(self, stage: str, payload: dict[str, Any]) -> None:
        partial = self.folder / f"{stage}.ckpt.partial"
        torch.save(payload, partial)
        partial.replace(self.folder / f"{stage}.ckpt")

    def load(self, stage: str) -> dict[str, Any] | None:
        """The newest checkpoint of a stage, or None."""
        path = self.folder / f"{stage}.ckpt"
        return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None

    def log(self, stage: str, line: dict[str, float]) -> None:
        with (self.folder / "curves" / f"{stage}.ndjson").open("a") as file:
            file.write(json.dumps({k: round(float(v), 6) for k, v in line.items()}) + "\n")

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """`dtype` where it pays: matrix products and convolutions."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            yield

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` through torch.compile where a C++ compiler (or CUDA) is at hand, else itself. Every shape has a
        graph of its own: stages of other clips, one after the other, had it make one for any length, and what that
        made of bfloat16 on a CPU stopped at its own check of strides."""
        compiler = shutil.which("g++") or shutil.which("clang++")
        if not self.compiling or (self.device.type == "cpu" and not compiler):
            return function
        return torch.compile(function, dynamic=False)


@functools.cache
def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 are the faster ones on a device. Of CPUs that is tried, once, on products of the
    size of a small step: by AVX-512 they take 0.4 of the time of float32's on an AMD EPYC of the fourth generation, 1.8
    times as long on an Intel Xeon, and with AVX2 alone, where torch converts number by number, seventeen times."""
    if device.type != "cpu":
        return True

    def seconds(dtype: torch.dtype) -> float:
        rows, matrix = torch.ones(512, 256, dtype=dtype), torch.ones(768, 256, dtype=dtype)
        return min(timeit.repeat(lambda: torch.nn.functional.linear(rows, matrix), number=1, repeat=4))

    return seconds(torch.bfloat16) < seconds(torch.float32)


def hardware(device: torch.device) -> str:
    """The processor that a run trains on, as its card names it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{cores} core{'s' if cores > 1 else ''}, {models[0] if models else platform.machine()}"


def _write_atomically(path: Path, data: bytes) -> None:
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_bytes(data)
    partial.replace(path)


class Average:
    """Exponential moving average of a module's parameters and buffers; the shipped weights."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: value.detach().clone().float() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in module.state_dict().items():
            self.values[name].lerp_(value.float(), 1 - decay)


def train_stage(run: Run, stage: str, module: nn.Module, optimizers: list[torch.optim.Optimizer],
                seconds: float, step: Callable[[np.random.Generator, float], dict[str, Tensor]],
                ema_decay: float = 0.998, warmup_steps: int = 100, clip_norm: float = 1.0,
                report: Callable[[Average], dict[str, float]] | None = None,
                report_seconds: float = 300.0, companion: nn.Module | None = None) -> dict[str, Tensor]:
    """Train `module` for a budget of `seconds` and return its averaged weights.

    step(rng, spent): forward and backward of one batch, spent in [0, 1] being the share of the
    budget used; returns figures to show. Learning rates warm up, then fall linearly to zero over the
    budget. `report` is called now and then with the average for figures that cost more. companion:
    networks that learn beside the module (their parameters are among the optimizers'), kept in the
    checkpoint but not part of what is returned.
    """
    average = Average(module, ema_decay)
    base = [[group["lr"] for group in o.param_groups] for o in optimizers]
    done, elapsed = 0, 0.0
    if (saved := run.load(stage)) is not None:
        module.load_state_dict(saved["module"])
        if companion is not None:
            companion.load_state_dict(saved["companion"])
        average.values = {k: v.to(run.device) for k, v in saved["average"].items()}
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        done, elapsed = saved["steps"], saved["seconds"]

    def checkpoint() -> None:
        run.save(stage, {"module": module.state_dict(), "average": average.values, "steps": done,
                         "seconds": elapsed, "optimizers": [o.state_dict() for o in optimizers],
                         "companion": companion.state_dict() if companion is not None else {}})

    sums: dict[str, Tensor] = {}
    counted = 0
    mark = time.monotonic()
    saved_at = reported_at = logged_at = elapsed
    bar = Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
                   TimeElapsedColumn(), TextColumn("{task.fields[figures]}"), console=run.console)
    with bar:
        task = bar.add_task(stage, total=seconds, completed=int(elapsed), figures="")
        while elapsed < seconds:
            spent = elapsed / seconds
            for optimizer, rates in zip(optimizers, base, strict=True):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * min(1.0, (done + 1) / warmup_steps) * (1.0 - spent)
            figures = step(np.random.default_rng([done, 17]), spent)
            torch.nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            done += 1
            average.update(module, done)
            for name, value in figures.items():
                sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value.detach()
            counted += 1
            now = time.monotonic()
            elapsed, mark = elapsed + now - mark, now
            if elapsed - logged_at >= REPORT_SECONDS:
                logged_at = elapsed
                line = {name: float(total) / counted for name, total in sums.items()}
                if not all(np.isfinite(list(line.values()))):
                    raise GateError(f"{stage}: a loss is not finite after {done} steps: {line}")
                if report and elapsed - reported_at >= report_seconds:
                    reported_at = elapsed
                    line |= report(average)
                run.log(stage, {"seconds": elapsed, "steps": done, **line})
                bar.update(task, completed=elapsed, figures="  ".join(f"{k} {v:.4g}" for k, v in line.items()))
                sums, counted = {}, 0
            if elapsed - saved_at >= CHECKPOINT_SECONDS:
                saved_at = elapsed
                checkpoint()
    checkpoint()
    torch.compiler.reset()  # the graphs of one stage only count against the limit of the next one's
    return average.values
