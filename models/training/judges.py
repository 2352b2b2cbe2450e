"""Stage `judges`: the network that reads the keys from frames, to tell whether a dream obeys them.

It learns from real frames of training episodes only and is measured on held-out ones; it never
sees a dream before it judges one. Held and free buttons weigh the same in the loss, so a logit above
0 means "held" at equal cost of both errors, which is what balanced accuracy counts:

    balanced accuracy = (share of held frames read as held + share of free frames read as free) / 2
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dreamloop.models.core.errors import GameError
from dreamloop.models.core.spec import WorldSpec
from dreamloop.models.networks.inverse_dynamics import InverseDynamics, Judge, JudgeSpec, load_judge, write_judge
from dreamloop.models.networks.probes import OUTPUTS
from dreamloop.models.training.probes import probe_kinds, train_probes

if TYPE_CHECKING:
    from dreamloop.models.training.data import Recording
    from dreamloop.models.training.run import Run

STAGE = "judges"
CLIP_FRAMES = 32
BATCH_CLIPS = 6
LEARNING_RATE = 3e-3
SMALL_FRAME = 112  # pixels of the longer side: shrunk by four, too little of such a frame would be left
MEASURED_FRAMES = 256  # of each held-out episode, at most


def judge_spec(spec: WorldSpec) -> JudgeSpec:
    """The judge of a world's buttons (axes are not judged)."""
    small = max(spec.frame_height, spec.frame_width) <= SMALL_FRAME
    return JudgeSpec(game=spec.game, frame_height=spec.frame_height, frame_width=spec.frame_width,
                     shrink=2 if small else 4,
                     buttons=tuple(b.name for b in spec.actions.buttons))


def train_judges(run: Run, spec: WorldSpec, data: Recording, held_out: Recording, seconds: float) -> dict[str, float]:
    """Train for `seconds`, resumable; leaves the judge and the game's probes (probes.py) in the run folder for
    `save_judge`; where there are probes they have half of the time.

    Returns `balanced_accuracy` (mean over the buttons) and `balanced_accuracy_BUTTON` on the first
    256 frames of every held-out episode, and the figures of the probes.
    """
    for_probes = seconds / 2 if probe_kinds(spec, data) else 0.0
    figures = train_keys(run, spec, data, held_out, seconds - for_probes)
    return {**figures, **train_probes(run, spec, data, held_out, for_probes)}


def train_keys(run: Run, spec: WorldSpec, data: Recording, held_out: Recording, seconds: float) -> dict[str, float]:
    """The judge that reads keys alone."""
    from dreamloop.models.training.run import train_stage

    torch.manual_seed(0)
    of = judge_spec(spec)
    buttons = len(of.buttons)
    net = InverseDynamics(of).to(run.device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=1e-3, betas=(0.9, 0.99))
    held = np.concatenate(data.actions)[:, :buttons].mean(axis=0).clip(0.01, 0.99)
    free_per_held = torch.from_numpy(((1 - held) / held).astype(np.float32)).to(run.device)
    starts = np.array([max(int(length) - CLIP_FRAMES + 1, 0) for length in data.lengths])
    if not starts.any():
        raise GameError(f"no training episode has the {CLIP_FRAMES} frames of a clip: record longer ones")

    def step(rng: np.random.Generator, spent: float) -> dict[str, Tensor]:
        frames, actions = _clips(data, starts, rng, buttons)
        logits = net(torch.from_numpy(frames).to(run.device))
        target = torch.from_numpy(actions).to(run.device)
        loss = functional.binary_cross_entropy_with_logits(logits.float(), target, pos_weight=free_per_held)
        loss.backward()
        return {"loss": loss, "right": ((logits > 0) == (target > 0.5)).float().mean()}

    values = train_stage(run, STAGE, net, [optimizer], seconds, step, ema_decay=0.99, warmup_steps=20)
    folder = run.folder / STAGE
    judge = write_judge(folder, of, values, {})
    figures = measure(judge, held_out)  # of the weights as stored, in half precision
    write_judge(folder, of, values, {name: round(value, 4) for name, value in figures.items()})
    return figures


def save_judge(run: Run, folder: str | os.PathLike[str]) -> Judge:
    """Put the judge and the probes that `train_judges` left in the run folder into `folder`, such as
    `models/zoo/judges/doom-arena`."""
    return _copy(Path(run.folder) / STAGE, Path(folder))[0]


def inherit_judges(run: Run, folder: Path) -> dict[str, float]:
    """Take over the judge and the probes of `folder` instead of training some; returns their figures, by the names
    that `train_judges` gives them."""
    return _copy(folder, Path(run.folder) / STAGE)[1]


def _copy(source: Path, target: Path) -> tuple[Judge, dict[str, float]]:
    """A judge and its probes, and their figures."""
    figures: dict[str, float] = {}
    for kind in OUTPUTS:
        if (source / kind).is_dir():
            probe = load_judge(source / kind)
            write_judge(target / kind, probe.spec, probe.net.state_dict(), probe.figures)
            figures |= {f"{kind}_{name}": value for name, value in probe.figures.items()}
    judge = load_judge(source)
    return write_judge(target, judge.spec, judge.net.state_dict(), judge.figures), {**judge.figures, **figures}


def _clips(data: Recording, starts: np.ndarray, rng: np.random.Generator,
           buttons: int) -> tuple[np.ndarray, np.ndarray]:
    """Random clips: (BATCH_CLIPS, CLIP_FRAMES, H, W, 3) uint8 and the actions of their transitions,
    (BATCH_CLIPS, CLIP_FRAMES - 1, buttons) float32. starts: how many clips each episode has."""
    frames, actions = [], []
    for episode in rng.choice(len(starts), BATCH_CLIPS, p=starts / starts.sum()):
        first = int(rng.integers(0, starts[episode]))
        frames.append(data.frames(int(episode), first, CLIP_FRAMES))
        actions.append(data.actions[episode][first + 1 : first + CLIP_FRAMES, :buttons])
    return np.stack(frames), np.stack(actions).astype(np.float32)


def measure(judge: Judge, data: Recording) -> dict[str, float]:
    """Balanced accuracy per button and their mean, pooled over the transitions among the first
    `MEASURED_FRAMES` frames of every episode; a button that is held in all of them or in none has no
    accuracy and is left out. Raises `GameError` where that leaves nothing."""
    buttons = len(judge.spec.buttons)
    read, truth = [], []
    for episode, length in enumerate(data.lengths):
        if length >= 2:
            count = min(int(length), MEASURED_FRAMES)
            read.append(judge.pressed(data.frames(episode, 0, count)))
            truth.append(data.actions[episode][1:count, :buttons] > 0.5)
    guess, fact = np.concatenate(read), np.concatenate(truth)
    figures = {}
    for i, button in enumerate(judge.spec.buttons):
        held = fact[:, i]
        if held.all() or not held.any():  # a player who never does it leaves nothing to count
            continue
        figures[f"balanced_accuracy_{button}"] = float((guess[held, i].mean() + (~guess[~held, i]).mean()) / 2)
    if not figures:
        raise GameError("in the held-out episodes no button is both held and released: record more")
    return {"balanced_accuracy": float(np.mean(list(figures.values()))), **figures}


__all__ = ["inherit_judges", "judge_spec", "load_judge", "measure", "save_judge", "train_judges"]
