"""From a game to a world: record -> autoencoder -> dynamics -> distillation -> decoder -> judges -> pack.

    dreamloop train doom-arena --minutes 100 --resume
    dreamloop train --game gymnasium:MountainCar-v0 --minutes 60

Every stage resumes from an atomic checkpoint, spends its share of the time budget, shows a bar, and
ends at a gate: below its figure the run stops and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import torch

from dreamloop.models.core.errors import GameError
from dreamloop.models.core.world import load_world, world_folder
from dreamloop.models.training import recording
from dreamloop.models.training.autoencoder import encode_recording, train_autoencoder
from dreamloop.models.training.data import LatentClips, Recording
from dreamloop.models.training.distillation import Method, train_student
from dreamloop.models.training.dynamics import MEASURED_FRAMES, train_dynamics
from dreamloop.models.training.games import Player
from dreamloop.models.training.inherit import inherited, same_code
from dreamloop.models.training.judges import inherit_judges, judge_spec, load_judge, save_judge, train_judges
from dreamloop.models.training.packing import pack_world
from dreamloop.models.training.polish import train_decoder
from dreamloop.models.training.recipes import Recipe, beginning_from, in_batches, only, recipe
from dreamloop.models.training.run import GateError, Run


def train(name: str | Recipe, minutes: float | None = None, device: str | None = None, resume: bool = False,
          run_folder: str | Path | None = None, player: Player | None = None,
          recordings: str | Path | None = None, begin: str | None = None, stages: Sequence[str] = (),
          batch: int = 1) -> Path:
    """Train a world; returns the packed folder. minutes: time for all stages but the recording
    (default: the recipe's); device: `cpu` or `cuda` (default: cuda where there is one); player: who
    records, instead of the game's own players; recordings: a folder that `record` has filled, whose
    training episodes are then all there are; begin: a world whose weights are the first ones; stages: that get all
    the minutes, the others staying as that world has them (default: all of them); batch: how many times the recipe's
    clips and frames every step learns from."""
    chosen = in_batches(recipe(name) if isinstance(name, str) else name, batch)
    if begin:
        chosen = beginning_from(chosen, begin)
    judges_before = _judges_of(chosen) if stages else None
    if stages:
        chosen = only(chosen, stages, judged=judges_before is not None)
    first = load_world(chosen.begin_from) if chosen.begin_from else None
    code = None
    if first is not None:  # refused before there is a run folder
        inherited(first, chosen.spec, "dynamics")
        if same_code(first, chosen.spec) or not chosen.shares["autoencoder"]:
            code = first
            inherited(first, chosen.spec, "autoencoder")
    folder = Path(run_folder or Path("runs") / chosen.spec.name)
    run = Run(folder, chosen.spec.name, device or ("cuda" if torch.cuda.is_available() else "cpu"), resume)
    seconds = 60.0 * (minutes or chosen.minutes)
    what = f"--game {unquote(chosen.spec.game)}" if chosen.game else chosen.spec.name
    more = (f" --begin {begin}" if begin else "") + (f" --only {','.join(stages)}" if stages else "")
    more += f" --batch {batch}" if batch != 1 else ""
    run.record["command"] = f"dreamloop train {what}{more} --minutes {seconds / 60:g}"
    if first is not None:
        run.record["begins_from"] = f"{first.name} ({first.hash[:8]})" + ("" if code else ", but for the autoencoder")
    run.record["noise_at_play"] = chosen.noise_at_play
    recorded = _record(run, chosen, player, Path(recordings) if recordings else None)
    data, held_out = Recording(recorded, "train"), Recording(recorded, "held_out")
    spec, shares = chosen.spec, chosen.shares

    def stage(name: str, work: Callable[[float], dict[str, float]]) -> None:
        if not run.finished(name):
            _gate(run, chosen, name, work(seconds * shares[name]), seconds * shares[name])

    stage("autoencoder", lambda s: train_autoencoder(run, spec, chosen.autoencoder, s, data, held_out, code))
    stages = ["dynamics", *(method.name for method in chosen.distillation)]

    def clips(frames: int) -> list[LatentClips]:
        return [encode_recording(run, spec, "train", data, frames),
                encode_recording(run, spec, "held_out", held_out, max(frames, MEASURED_FRAMES))]

    if not run.finished(stages[-1]):
        stage("dynamics", lambda s: train_dynamics(run, spec, chosen.dynamics, s, *clips(chosen.dynamics.clip_frames),
                                                   begin=first))
        for before, method in zip(stages, chosen.distillation, strict=False):
            stage(method.name, partial(_distil, run, chosen, before, method, clips))
    if (polish := chosen.polish) is not None:
        stage("decoder", lambda s: train_decoder(run, spec, polish, chosen.autoencoder, stages[-1], s, data, held_out,
                                                 clips(polish.dream_frames)[0]))
    stage("judges", lambda s: inherit_judges(run, judges_before) if judges_before else
          train_judges(run, spec, data, held_out, s))
    save_judge(run, folder / "judges" / spec.game)
    pack_world(run, spec, data, stages[-1], noise_at_play=chosen.noise_at_play)
    run.console.print(f"packed {folder.name}/world: dreamloop play {folder / 'world'}")
    return folder / "world"


def _judges_of(chosen: Recipe) -> Path | None:
    """The judges of the world that a recipe begins from: beside it, in the zoo as in a run folder."""
    if not chosen.begin_from:
        return None
    folder = world_folder(chosen.begin_from).parent / "judges" / chosen.spec.game
    return folder if folder.is_dir() and load_judge(folder).spec == judge_spec(chosen.spec) else None


def _distil(run: Run, chosen: Recipe, before: str, method: Method, clips: Callable[[int], list[LatentClips]],
            seconds: float) -> dict[str, float]:
    return train_student(run, chosen.spec, method, chosen.dynamics, before, seconds, *clips(method.clip_frames))


def _record(run: Run, chosen: Recipe, player: Player | None, recordings: Path | None) -> Path:
    """Record what is not there yet; returns the folder of the recording."""
    folder = recordings or Path(run.record.get("recordings", run.folder / "recording"))
    if run.finished("record"):
        return folder
    if recordings is not None:
        run.record["recordings"] = str(recordings.resolve())
    figures: dict[str, float] = {}
    for split, frames in (("train", chosen.record_frames), ("held_out", chosen.held_out_frames)):
        there = sorted((folder / split).glob("*.safetensors")) if recordings else []
        if recordings and split == "train" and not there:
            raise GameError(f"no train episodes in {recordings}: `dreamloop record {chosen.game_name} {recordings}` "
                            "fills it")
        with run.console.status(f"recording {frames} {split} frames of {chosen.game_name}"):
            counts = (recording.counts(there, chosen.spec) if there
                      else recording.record(chosen.game_name, folder, frames, split=split, player=player))
        figures |= {f"{split}_{name}": value for name, value in counts.items()}
    run.finish("record", figures)
    return folder


def _gate(run: Run, chosen: Recipe, stage: str, figures: dict[str, float], seconds: float) -> None:
    """Finish a stage, or stop the run where a figure is below the recipe's gate."""
    for name, least in chosen.gates.items():
        of_stage, figure = name.split(".")
        if of_stage == stage and figure not in figures:
            raise GateError(f"gate {name}: nothing to measure it on was recorded")
        if of_stage == stage and not figures[figure] >= least:
            raise GateError(f"gate {name}: {figures[figure]:.3f} is below {least}; "
                            "resume with more --minutes to train this stage on")
    run.finish(stage, {**figures, "minutes": seconds / 60})
