"""From a game to a world: record -> autoencoder -> dynamics -> self-rollout -> judges -> pack.

    dreamloop train doom-arena --minutes 110 --resume

Every stage resumes from an atomic checkpoint, spends its share of the time budget, shows a bar, and
ends at a gate: below its figure the run stops and says so.
"""

from __future__ import annotations

from pathlib import Path

import torch

from dreamloop.models.training import recording
from dreamloop.models.training.autoencoder import train_autoencoder
from dreamloop.models.training.data import Recording
from dreamloop.models.training.recipes import Recipe, recipe
from dreamloop.models.training.run import GateError, Run


def train(recipe_name: str, minutes: float | None = None, device: str | None = None, resume: bool = False,
          run_folder: str | Path | None = None) -> Path:
    """Train a world; returns the packed folder. minutes: time for all stages but the recording
    (default: the recipe's); device: `cpu` or `cuda` (default: cuda where there is one)."""
    chosen = recipe(recipe_name)
    folder = Path(run_folder or Path("runs") / recipe_name)
    run = Run(folder, recipe_name, device or ("cuda" if torch.cuda.is_available() else "cpu"), resume)
    seconds = 60.0 * (minutes or chosen.minutes)
    _record(run, chosen)
    data, held_out = Recording(folder / "recording", "train"), Recording(folder / "recording", "held_out")
    if not run.finished("autoencoder"):
        figures = train_autoencoder(run, chosen.spec, chosen.autoencoder, seconds * chosen.shares["autoencoder"],
                                    data, held_out)
        _gate(run, chosen, "autoencoder", figures)
    return folder


def _record(run: Run, chosen: Recipe) -> None:
    if run.finished("record"):
        return
    figures: dict[str, float] = {}
    for split, frames in (("train", chosen.record_frames), ("held_out", chosen.held_out_frames)):
        with run.console.status(f"recording {frames} {split} frames of {chosen.spec.game}"):
            counts = recording.record(chosen.spec.game, run.folder / "recording", frames, split=split)
        figures |= {f"{split}_{name}": value for name, value in counts.items()}
    run.finish("record", figures)


def _gate(run: Run, chosen: Recipe, stage: str, figures: dict[str, float]) -> None:
    """Finish a stage, or stop the run where a figure is below the recipe's gate."""
    for name, least in chosen.gates.items():
        of_stage, figure = name.split(".")
        if of_stage == stage and not figures[figure] >= least:
            raise GateError(f"gate {name}: {figures[figure]:.3f} is below {least}; "
                            "resume with more --minutes to train this stage on")
    run.finish(stage, figures)
