"""Recording: real episodes on disk, a file each.

    python -m dreamloop.demos.cli record doom-arena OUT --frames 100000

An episode is a safetensors file, written whole or not at all:

    frames   (N, H, W, 3) uint8      frames[0] is what the player first sees
    actions  (N, A) float32          actions[t] led from frames[t-1] to frames[t]; actions[0] is zero
    objects  (N, H, W / 8) uint8     bit mask of small things that matter, packed along the width
    variables (N, V) float32         the game's own numbers; their names stand in the file's metadata

The split is by seed: `train` episodes count up from the recording's seed, `held_out` ones from
HELD_OUT_SEED, and no seed is in both. The same command goes on where a stopped one left off.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from dreamloop.models.core.errors import GameError
from dreamloop.models.training.games import Game, open_game
from dreamloop.models.training.games.players import POLICIES

HELD_OUT_SEED = 1_000_000_000
SHARES = {"aiming": 0.25, "held_keys": 0.45, "mixed": 0.3}  # of recorded frames


@dataclass(frozen=True)
class Episode:
    """One recorded episode in memory; arrays as in the module's docstring."""

    seed: int
    policy: str
    frames: np.ndarray
    actions: np.ndarray
    objects: np.ndarray
    variables: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.frames)


def play_episode(game: Game, policy_name: str, seed: int, limit_frames: int | None = None) -> Episode:
    """Play one episode of `policy_name` from `seed` to its end or to `limit_frames` frames."""
    policy = POLICIES[policy_name](game.actions, np.random.default_rng(seed))
    view = game.reset(seed)
    frames, actions = [view.frame], [np.zeros(game.actions.size, np.float32)]
    objects, variables = [view.objects], [view.variables]
    while limit_frames is None or len(frames) < limit_frames:
        action = policy(view)
        view = game.step(action)
        if view.done:
            break
        frames.append(view.frame)
        actions.append(action)
        objects.append(view.objects)
        variables.append(view.variables)
    return Episode(seed, policy_name, np.stack(frames), np.stack(actions), np.stack(objects),
                   {name: np.array([v[name] for v in variables], np.float32) for name in variables[0]})


def save_episode(path: Path, game: str, episode: Episode) -> None:
    """Write `episode` to `path`, atomically."""
    meta = {"game": game, "seed": str(episode.seed), "policy": episode.policy,
            "variables": json.dumps(list(episode.variables)), "width": str(episode.objects.shape[2])}
    partial = path.with_suffix(".partial")
    save_file({"frames": episode.frames, "actions": episode.actions,
               "objects": np.packbits(episode.objects, axis=2),
               "variables": np.stack(list(episode.variables.values()), axis=1)}, partial, meta)
    partial.replace(path)


def load_episode(path: Path) -> Episode:
    """Read an episode file back."""
    with safe_open(path, framework="np") as file:
        meta = file.metadata()
        variables = file.get_tensor("variables")
        objects = np.unpackbits(file.get_tensor("objects"), axis=2, count=int(meta["width"])).astype(bool)
        return Episode(int(meta["seed"]), meta["policy"], file.get_tensor("frames"), file.get_tensor("actions"),
                       objects, {n: variables[:, i] for i, n in enumerate(json.loads(meta["variables"]))})


def record(game_name: str, out_folder: Path | str, frames: int, seed: int = 0, split: str = "train",
           progress: Callable[[int, int], None] | None = None) -> dict[str, float]:
    """Record episodes of a game until the folder holds `frames` frames of `split` ("train" or
    "held_out"); policies take turns so that each keeps its share. Returns counts and the share of
    frames in which each button is held."""
    if frames < 1:
        raise GameError(f"frames={frames} must be at least 1")
    if split not in ("train", "held_out"):
        raise GameError(f"split {split!r} must be train or held_out")
    if not 0 <= seed <= HELD_OUT_SEED - frames:  # an episode has a frame at least: the splits cannot meet
        raise GameError(f"seed={seed} must be in 0..{HELD_OUT_SEED - frames}")
    folder = Path(out_folder) / split
    folder.mkdir(parents=True, exist_ok=True)
    done = dict.fromkeys(SHARES, 0)
    first = seed if split == "train" else HELD_OUT_SEED + seed
    held: list[np.ndarray] = []
    with open_game(game_name) as game:
        for number in range(10**9):
            total = sum(done.values())
            if total >= frames:
                break
            policy = min(SHARES, key=lambda name: done[name] / SHARES[name])
            path = folder / f"{first + number:010d}.safetensors"
            if not path.exists():
                save_episode(path, game_name, play_episode(game, policy, first + number))
            with safe_open(path, framework="np") as file:
                held.append(file.get_tensor("actions"))
                policy = file.metadata()["policy"]
            done[policy] += len(held[-1])
            if progress:
                progress(min(sum(done.values()), frames), frames)
        presses = np.concatenate(held).mean(axis=0)
        return {"episodes": len(held), "frames": float(sum(done.values())),
                **{f"held_{name}": round(float(p), 3) for name, p in zip(game.actions.names, presses, strict=True)}}
