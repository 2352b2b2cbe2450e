"""Stage `judges`, second half: probes that read the game's state from pictures (networks/probes.py).

`motion` learns from the heading and position that Doom's recordings hold. `sight` needs to know where the
living monsters are, which recordings do not say: some training episodes are played again, from their seeds
under their recorded actions, and the game's labels tell. Both are measured on held-out episodes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dreamloop.models.core.spec import WorldSpec
from dreamloop.models.networks.inverse_dynamics import InverseDynamics, Judge, write_judge
from dreamloop.models.networks.probes import MOTION, MOTION_SCALES, SIGHT, probe_spec, read_motion, read_sight
from dreamloop.models.training.games import open_game

if TYPE_CHECKING:
    from dreamloop.models.training.data import Recording
    from dreamloop.models.training.run import Run

Batch = Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]
Loss = Callable[[Tensor, Tensor], Tensor]

CLIP_FRAMES = 24
BATCH_CLIPS, BATCH_PAIRS = 6, 48
LEARNING_RATE = 1.5e-3  # at twice that the first steps could leave every channel of `squeeze` below 0, for good
SIGHT_FRAMES = 20_000  # of training that are played again; a tenth of it held out
MEASURED_FRAMES = 256  # of each held-out episode, at most
CROSSHAIR_SHARE = 6 / 160  # of the picture's width: a monster's middle so near to the crosshair is in it


def probe_kinds(spec: WorldSpec, data: Recording) -> tuple[str, ...]:
    """Which probes a recording can teach."""
    moves = {"heading", "x", "y"} <= set(data.variables(0))
    shoots = moves and "attack" in spec.actions.names
    return (MOTION,) * moves + (SIGHT,) * shoots


def train_probes(run: Run, spec: WorldSpec, data: Recording, held_out: Recording, seconds: float) -> dict[str, float]:
    """Train every probe of the game for its share of `seconds`, resumable; leaves each in RUN/judges/KIND."""
    kinds = probe_kinds(spec, data)
    figures: dict[str, float] = {}
    for kind in kinds:
        train = _train_motion if kind == MOTION else _train_sight
        figures |= train(run, spec, data, held_out, seconds / len(kinds))
    return figures


def true_motion(variables: dict[str, np.ndarray]) -> np.ndarray:
    """(N - 1, 3) float64: ahead, left (as the player faced before it) and turn, in degrees to the left, of each
    transition. variables: `heading` in degrees, `x`, `y` of N frames."""
    heading, x, y = (np.asarray(variables[name], np.float64) for name in ("heading", "x", "y"))
    facing, dx, dy = np.radians(heading[:-1]), np.diff(x), np.diff(y)
    return np.stack([dx * np.cos(facing) + dy * np.sin(facing), dy * np.cos(facing) - dx * np.sin(facing),
                     (np.diff(heading) + 180) % 360 - 180], axis=1)


def _train(run: Run, spec: WorldSpec, kind: str, seconds: float, batch: Batch, loss_of: Loss,
           measure: Callable[[Judge], dict[str, float]]) -> dict[str, float]:
    """batch(rng): frames and what to read from their transitions; measure: figures of the stored probe."""
    from dreamloop.models.training.run import train_stage
    torch.manual_seed(0)
    of = probe_spec(kind, spec.game, spec.frame_height, spec.frame_width)
    net = InverseDynamics(of).to(run.device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=1e-3, betas=(0.9, 0.99))

    def step(rng: np.random.Generator, spent: float) -> dict[str, Tensor]:
        frames, aim = batch(rng)
        loss = loss_of(net(torch.from_numpy(frames).to(run.device)).float(), torch.from_numpy(aim).to(run.device))
        loss.backward()
        return {"loss": loss}

    values = train_stage(run, f"judges_{kind}", net, [optimizer], seconds, step, ema_decay=0.99, warmup_steps=100)
    folder = run.folder / "judges" / kind
    figures = measure(write_judge(folder, of, values, {}))
    write_judge(folder, of, values, {name: round(value, 4) for name, value in figures.items()})
    return {f"{kind}_{name}": value for name, value in figures.items()}


def _train_motion(run: Run, spec: WorldSpec, data: Recording, held_out: Recording, seconds: float) -> dict[str, float]:
    truth = [true_motion(data.variables(e)) for e in range(len(data.lengths))]
    starts = np.array([max(int(length) - CLIP_FRAMES + 1, 0) for length in data.lengths])

    def batch(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        frames, aims = [], []
        for episode in rng.choice(len(starts), BATCH_CLIPS, p=starts / starts.sum()):
            first = int(rng.integers(0, starts[episode]))
            frames.append(data.frames(int(episode), first, CLIP_FRAMES))
            aims.append(truth[episode][first : first + CLIP_FRAMES - 1] / MOTION_SCALES)
        return np.stack(frames), np.stack(aims).astype(np.float32)

    return _train(run, spec, MOTION, seconds, batch, functional.smooth_l1_loss,
                  lambda probe: measure_motion(probe, held_out))


def measure_motion(probe: Judge, data: Recording, stretch_frames: int = 35) -> dict[str, float]:
    """Mean absolute error of a transition (`ahead`, `left` in units, `turn` in degrees), and `turn_35`: of the
    heading after stretches of 35 frames, readings summed up; `told`: 1 - `turn` over what it would be if always the
    median were read, so 0 is a probe that sees nothing."""
    errors, summed, turns = [], [], []
    for episode, length in enumerate(data.lengths):
        if length >= 2:
            count = min(int(length), MEASURED_FRAMES)
            truth = true_motion({k: v[:count] for k, v in data.variables(episode).items()})
            error = read_motion(probe, data.frames(episode, 0, count)) - truth
            errors.append(error)
            turns.append(truth[:, 2])
            whole = len(error) // stretch_frames * stretch_frames
            summed.append(error[:whole, 2].reshape(-1, stretch_frames).sum(axis=1))
    ahead, left, turn = np.abs(np.concatenate(errors)).mean(axis=0)
    figures = {"ahead": float(ahead), "left": float(left), "turn": float(turn)}
    turned = np.concatenate(turns)
    if away := float(np.abs(turned - np.median(turned)).mean()):
        figures["told"] = 1 - figures["turn"] / away
    stretches = np.concatenate(summed)
    return figures | ({f"turn_{stretch_frames}": float(np.abs(stretches).mean())} if len(stretches) else {})


def _train_sight(run: Run, spec: WorldSpec, data: Recording, held_out: Recording, seconds: float) -> dict[str, float]:
    with run.console.status("playing training episodes again"):
        frames, seen = monsters_of(spec.game, data, SIGHT_FRAMES)
        judged = monsters_of(spec.game, held_out, SIGHT_FRAMES // 10)
    pairs = np.concatenate([np.arange(1, len(part)) + first for part, first in zip(
        seen, np.cumsum([0, *map(len, seen)]), strict=False)])
    every, said = np.concatenate(frames), np.concatenate(seen)
    share = said.mean(axis=0).clip(0.02, 0.98)
    weight = torch.from_numpy(((1 - share) / share).astype(np.float32)).to(run.device)

    def batch(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        chosen = rng.choice(pairs, BATCH_PAIRS)
        return np.stack([every[chosen - 1], every[chosen]], axis=1), said[chosen][:, None].astype(np.float32)

    def loss_of(out: Tensor, aim: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(out, aim, pos_weight=weight)

    return _train(run, spec, SIGHT, seconds, batch, loss_of, lambda probe: measure_sight(probe, *judged))


def measure_sight(probe: Judge, frames: list[np.ndarray], seen: list[np.ndarray]) -> dict[str, float]:
    """Balanced accuracy of each output; one that is always or never so is left out."""
    read = np.concatenate([read_sight(probe, part) for part in frames])
    fact = np.concatenate([part[1:] for part in seen])
    return {name: float((read[fact[:, i], i].mean() + (~read[~fact[:, i], i]).mean()) / 2)
            for i, name in enumerate(probe.spec.buttons) if fact[:, i].any() and not fact[:, i].all()}


def monsters_of(game_name: str, data: Recording, frames: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Episodes of a recording played again, from seed and actions, until there are `frames` frames: the frames
    of each, (N, H, W, 3) uint8, and what is in them, (N, 2) bool: a living monster, one in the crosshair."""
    pictures: list[np.ndarray] = []
    seen: list[np.ndarray] = []
    with open_game(game_name) as game:
        reach = CROSSHAIR_SHARE * game.frame_width
        for episode, length in enumerate(map(int, data.lengths)):
            if sum(map(len, seen)) >= frames:
                break
            views = [game.reset(data.seed(episode))]
            for action in data.actions[episode][1:length]:
                if views[-1].done:
                    break
                views.append(game.step(action))
            pictures.append(np.stack([view.frame for view in views]))
            seen.append(np.array([monsters_in(view.targets, reach) for view in views]))
    return pictures, seen


def monsters_in(targets: tuple[float, ...], reach: float) -> tuple[bool, bool]:
    """Whether a living monster is in view, and whether one is in the crosshair. targets: of a `View`; reach:
    pixels."""
    return bool(targets), any(abs(offset) <= reach for offset in targets)
