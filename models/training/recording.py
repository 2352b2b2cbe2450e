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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dreamloop.models.core.errors import GameError
from dreamloop.models.core.spec import ActionSpec, WorldSpec
from dreamloop.models.training.games import Game, NoMoreEpisodes, Player, PlayerLeft, open_game
from dreamloop.models.training.games.players import next_player

HELD_OUT_SEED = 1_000_000_000


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


def play_episode(game: Game, player: Player, seed: int, limit_frames: int | None = None) -> Episode:
    """Play one episode as `player` from `seed` to its end or to `limit_frames` frames."""
    policy = player.make(game.actions, np.random.default_rng(seed))
    chance = np.random.default_rng([seed, 6])  # apart from the policy's, which plays the same game either way
    view = game.reset(seed)
    frames, actions = [view.frame], [np.zeros(game.actions.size, np.float32)]
    objects, variables = [view.objects], [view.variables]
    while limit_frames is None or len(frames) < limit_frames:
        try:
            action = policy(view)
        except PlayerLeft:
            if len(frames) < 2:
                raise NoMoreEpisodes("the player has left") from None
            break
        if player.meddle is not None:
            player.meddle(game, chance)
        view = game.step(action)
        if view.done:
            break
        frames.append(view.frame)
        actions.append(action)
        objects.append(view.objects)
        variables.append(view.variables)
    return Episode(seed, player.name, np.stack(frames), np.stack(actions), np.stack(objects),
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
           progress: Callable[[int, int], None] | None = None, player: Player | None = None) -> dict[str, float]:
    """Record episodes of a game until the folder holds `frames` frames of `split` ("train" or
    "held_out"), or the game has no more; its players (or `player` alone) take turns so that each
    keeps its share. Returns counts and the share of frames in which each button is held."""
    if frames < 1:
        raise GameError(f"frames={frames} must be at least 1")
    if split not in ("train", "held_out"):
        raise GameError(f"split {split!r} must be train or held_out")
    if not 0 <= seed <= HELD_OUT_SEED - frames:  # an episode has a frame at least: the splits cannot meet
        raise GameError(f"seed={seed} must be in 0..{HELD_OUT_SEED - frames}")
    folder = Path(out_folder) / split
    done: dict[str, int] = {}
    first = seed if split == "train" else HELD_OUT_SEED + seed
    held: list[np.ndarray] = []
    with open_game(game_name) as game:
        folder.mkdir(parents=True, exist_ok=True)
        while sum(done.values()) < frames:
            number = first + len(held)
            path = folder / f"{number:010d}.safetensors"
            if not path.exists():
                chosen = player or next_player(game.players, done)
                try:
                    save_episode(path, game_name, play_episode(game, chosen, number))
                except NoMoreEpisodes:
                    break
            with safe_open(path, framework="np") as file:
                held.append(file.get_tensor("actions"))
                played = file.metadata()["policy"]
            if held[-1].shape[1] != game.actions.size:
                raise GameError(f"{folder.parent.name}: {path.name} has {held[-1].shape[1]} buttons, {game_name} "
                                f"{game.actions.size}")
            done[played] = done.get(played, 0) + len(held[-1])
            if progress:
                progress(min(sum(done.values()), frames), frames)
        if not held:
            raise GameError(f"{game_name} has no {split} episodes")
        return _counted(held, game.actions)


def _counted(held: list[np.ndarray], actions: ActionSpec) -> dict[str, float]:
    presses = np.concatenate(held).mean(axis=0)
    return {"episodes": len(held), "frames": float(sum(map(len, held))),
            **{f"held_{name}": round(float(p), 3) for name, p in zip(actions.names, presses, strict=True)}}


def counts(paths: Sequence[Path], spec: WorldSpec) -> dict[str, float]:
    """What `record` returns, of episodes that lie there. Raises `GameError` for one of another game."""
    held = []
    for path in paths:
        try:
            with safe_open(path, framework="np") as file:
                frame, held_there = tuple(file.get_slice("frames").get_shape()[1:]), file.get_tensor("actions")
        except (OSError, SafetensorError) as error:
            raise GameError(f"{path.name} cannot be read: {error}") from error
        expected = (spec.frame_height, spec.frame_width, 3)
        if frame != expected or held_there.shape[1] != spec.actions.size:
            raise GameError(f"{path.name} has frames {frame} and {held_there.shape[1]} buttons; {spec.game} has "
                            f"{expected} and {spec.actions.size}")
        held.append(held_there)
    return _counted(held, spec.actions)
