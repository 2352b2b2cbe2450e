"""How good is a dream? The same actions, the same start, the dream beside the game.

    dreamloop evaluate doom-arena --json

A scripted player plays episodes of the real game that no training saw. A batch of dreams is primed
with the first `PRIMED_FRAMES` frames of each, then goes on alone under the same actions: horizon h
is the h-th frame after the last primed one. docs/evaluation.md defines every figure as computed here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.spec import WorldSpec
from dreamloop.models.core.world import ZOO, World, load_world
from dreamloop.runtime import metrics
from dreamloop.runtime.engines import open_engine
from dreamloop.runtime.engines.base import Engine
from dreamloop.runtime.evaluate_state import state_error

if TYPE_CHECKING:
    from dreamloop.models.networks.inverse_dynamics import Judge
    from dreamloop.models.training.games import Finder, Game

PRIMED_FRAMES = 16
HORIZONS = (1, 16, 64, 256)
COMPARED_FRAMES = max(HORIZONS)  # horizons up to this one are compared frame by frame
DRIFT_WINDOW = 64  # frames
EVALUATION_SEED = 1_500_000_000  # training counts up from 0, its held-out split from 1,000,000,000
JUDGES = ZOO / "judges"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Truth:
    """One episode of the real game. seed: of the game, the policy and the dream's noise.

    actions     (PRIMED_FRAMES + F, A) float32   all F dreamed frames have one, the game's end or not
    frames      (n, H, W, 3) uint8               real frames up to horizon COMPARED_FRAMES, or all of them
    statistics  (m, 4) float64                   of each real frame after the primed ones, `metrics.STATISTICS`
    """

    seed: int
    actions: np.ndarray
    frames: np.ndarray
    statistics: np.ndarray

    def at(self, horizon: int) -> np.ndarray | None:
        """The real frame at a horizon (0: the last primed one), None where the episode was over."""
        index = PRIMED_FRAMES - 1 + horizon
        return self.frames[index] if index < len(self.frames) else None


@dataclass(frozen=True)
class Dream:
    """What the engine made of E episodes, F frames each.

    frames      (E, min(F, COMPARED_FRAMES), H, W, 3) uint8   dreamed frames, horizon h at index h - 1
    statistics  (E, F, 4) float64                             NaN where a frame was not decoded
    watched     (F, H, W, 3) uint8                            every frame of one episode, if asked for
    """

    frames: np.ndarray
    statistics: np.ndarray
    watched: np.ndarray | None = None


def evaluate(world: World | str | os.PathLike[str], engine: str | Engine = "auto", precision: str | None = None,
             frames: int = 1000, episodes: int = 16, plot: str | os.PathLike[str] | None = None,
             video: str | os.PathLike[str] | None = None, strip: str | os.PathLike[str] | None = None,
             threads: int | None = None, judge: str | os.PathLike[str] | None = None,
             game_name: str | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Judge a world against its game; a dictionary that JSON can hold, keys in docs/evaluation.md.

    frames: how long each dream runs; plot (PNG or SVG), video (MP4), strip (PNG): files to write;
    judge: a judge folder (default: the zoo's for this game); game_name: the game to open, where the world's
    own word for it is not enough (a folder of recordings, a module); progress: called with (done, all) frames.
    Raises `DreamloopError`, `GameError` where the game is not installed.
    """
    for name, value in (("frames", frames), ("episodes", episodes)):
        if value < 1:
            raise DreamloopError(f"{name}={value} must be 1 or more")
    began = time.monotonic()
    world = world if isinstance(world, World) else load_world(world)
    opened = open_engine(world, engine, precision, threads) if isinstance(engine, str) else engine

    from dreamloop.models.training.games import open_game
    with open_game(game_name) if game_name else open_game(world.spec.game, trusted=False) as game:
        _check_game(world.spec, game)
        reader, note = _find_judge(world.spec, Path(judge) if judge is not None else JUDGES / world.spec.game)
        truths = play_game(game, episodes, frames)
        policy = game.players[-1].name
        # the one to look at: there the game lasts longest
        longest = max(range(len(truths)), key=lambda i: len(truths[i].statistics))
        if video is not None:
            truths[longest] = _play_episode(game, truths[longest].seed, frames, keep=frames)
        finder = cast("Finder", game) if hasattr(game, "find") else None
    dream = run_dream(opened, truths, frames, everything=plot is not None,
                      watch=longest if video is not None else None, progress=progress)

    horizons = tuple(range(1, COMPARED_FRAMES + 1)) if plot is not None else HORIZONS
    errors = compare(opened, truths, dream, horizons)
    report: dict[str, Any] = {
        "world": world.name, "world_hash": world.hash, "engine": opened.name, "precision": opened.precision,
        "frames": frames, "policy": policy, "first_seed": EVALUATION_SEED, **quality(truths, dream, errors, horizons),
        "drift": drift_at(truths, dream, frames), **inverse_dynamics(reader, truths, dream),
        "judge_hash": reader.hash if reader else None,
        "state_error": state_error(finder, truths, dream, HORIZONS, PRIMED_FRAMES) if finder else None,
    }
    if note:
        report["inverse_dynamics_note"] = note
    if plot is not None or video is not None or strip is not None:
        from dreamloop.runtime import pictures
        if plot is not None:
            curves = {name: [metrics.pooled_psnr(e) for e in values.T] for name, values in errors.items()}
            times = sorted({*range(DRIFT_WINDOW, frames, 8), frames})
            pictures.draw_plot(plot, world.name, horizons, curves, times, [drift_at(truths, dream, t) for t in times])
        if strip is not None:
            pictures.draw_strip(strip, truths[longest], dream.frames[longest])
        if dream.watched is not None and video is not None:
            pictures.write_video(video, truths[longest], dream.watched, world.spec.fps)
    report["seconds"] = round(time.monotonic() - began, 1)
    return report


def play_game(game: Game, episodes: int, frames: int) -> list[Truth]:
    """Play held-out episodes, one per seed from `EVALUATION_SEED` on, fewer where a game has no more. An
    episode too short to be primed and compared at horizon 1 is left out and the next seed takes its place."""
    from dreamloop.models.training.games import NoMoreEpisodes
    truths: list[Truth] = []
    seed = EVALUATION_SEED
    while len(truths) < episodes:
        if seed - EVALUATION_SEED >= 10 * episodes + 100:
            raise DreamloopError(f"{game.name}: episodes end before {PRIMED_FRAMES + 1} frames; nothing to judge")
        try:
            truth = _play_episode(game, seed, frames, keep=min(frames, COMPARED_FRAMES))
        except NoMoreEpisodes:
            break
        if len(truth.frames) > PRIMED_FRAMES:
            truths.append(truth)
        seed += 1
    if not truths:
        raise DreamloopError(f"{game.name}: no held-out episode has {PRIMED_FRAMES + 1} frames; nothing to judge")
    return truths


def _play_episode(game: Game, seed: int, frames: int, keep: int) -> Truth:
    """keep: up to which horizon the real frames are kept."""
    policy = game.players[-1].make(game.actions, np.random.default_rng(seed))
    view = game.reset(seed)
    total = PRIMED_FRAMES + frames
    actions, images, statistics = [np.zeros(game.actions.size, np.float32)], [view.frame], []
    for index in range(1, total):
        actions.append(policy(view))  # past the game's end the player goes on, seeing its last view
        if view.done:
            continue
        before, view = view.frame, game.step(actions[-1])
        if view.done:
            continue
        if index < PRIMED_FRAMES + keep:
            images.append(view.frame)
        if index >= PRIMED_FRAMES:
            statistics.append(metrics.frame_statistics(view.frame, before))
    return Truth(seed, np.stack(actions), np.stack(images), np.array(statistics).reshape(-1, len(metrics.STATISTICS)))


def run_dream(engine: Engine, truths: list[Truth], frames: int, everything: bool = False,
              watch: int | None = None, progress: Progress | None = None) -> Dream:
    """Dream all episodes as one batch: primed with real frames as `Session.prime` does, then alone.

    everything: decode every frame (a plot of the drift needs them); otherwise only those that are
    compared and the last `DRIFT_WINDOW`. watch: the episode of which every frame is kept.
    """
    state = engine.new_state(len(truths))
    state.seed[:] = [truth.seed for truth in truths]
    state.latent[:] = engine.encode(np.stack([truth.frames[0] for truth in truths]))
    for index in range(1, PRIMED_FRAMES):
        engine.step(state, np.stack([truth.actions[index] for truth in truths]))
        state.latent[:] = engine.encode(np.stack([truth.frames[index] for truth in truths]))
    size = truths[0].frames.shape[1:]
    kept = min(frames, COMPARED_FRAMES)
    shown = np.zeros((len(truths), kept, *size), np.uint8)
    watched = None if watch is None else np.zeros((frames, *size), np.uint8)
    statistics = np.full((len(truths), frames, len(metrics.STATISTICS)), np.nan)
    before: np.ndarray | None = np.stack([truth.frames[PRIMED_FRAMES - 1] for truth in truths])
    for horizon in range(1, frames + 1):
        index = PRIMED_FRAMES - 1 + horizon
        engine.step(state, np.stack([truth.actions[index] for truth in truths]))
        # one frame more than the window: its first motion needs the frame before
        if everything or watched is not None or horizon <= kept or horizon >= frames - DRIFT_WINDOW:
            decoded = engine.decode(state.latent)
            if horizon <= kept:
                shown[:, horizon - 1] = decoded
            if watched is not None:
                watched[horizon - 1] = decoded[watch]
            if before is not None:
                for episode, pair in enumerate(zip(decoded, before, strict=True)):
                    statistics[episode, horizon - 1] = metrics.frame_statistics(*pair)
            before = decoded
        else:
            before = None
        if progress:
            progress(horizon, frames)
    return Dream(shown, statistics, watched)


def compare(engine: Engine, truths: list[Truth], dream: Dream, horizons: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Mean squared errors per episode and horizon, (E, len(horizons)) float64, NaN where an episode
    does not reach: of the dream, of the autoencoder alone (`ceiling`), of the last primed frame held
    still (`copy_last`)."""
    errors = {name: np.full((len(truths), len(horizons)), np.nan) for name in ("dream", "ceiling", "copy_last")}
    reached = [(e, i, real) for i, h in enumerate(horizons) for e, truth in enumerate(truths)
               if h <= dream.frames.shape[1] and (real := truth.at(h)) is not None]
    for episode, i, real in reached:
        held = truths[episode].frames[PRIMED_FRAMES - 1]
        errors["dream"][episode, i] = metrics.squared_error(dream.frames[episode, horizons[i] - 1], real)
        errors["copy_last"][episode, i] = metrics.squared_error(held, real)
    for first in range(0, len(reached), len(truths)):
        part = reached[first : first + len(truths)]
        # the batch of the dream, filled up where it is the last: some engines build a graph per batch size
        real_frames = np.stack([part[min(i, len(part) - 1)][2] for i in range(len(truths))])
        coded = engine.decode(engine.encode(real_frames))
        for (episode, i, real), frame in zip(part, coded, strict=False):
            errors["ceiling"][episode, i] = metrics.squared_error(frame, real)
    return errors


def quality(truths: list[Truth], dream: Dream, errors: dict[str, np.ndarray],
            horizons: tuple[int, ...]) -> dict[str, Any]:
    """`episodes`, `episodes_at`, `psnr`, `psnr_ceiling`, `psnr_copy_last`, `ssim`: maps from a horizon of
    `HORIZONS`, as a string, to a number, or None where no episode reaches it."""
    columns = {str(h): horizons.index(h) for h in HORIZONS}
    reached = {h: np.flatnonzero(~np.isnan(errors["dream"][:, i])) for h, i in columns.items()}

    def mean_ssim(horizon: str) -> float | None:
        values = [metrics.ssim(dream.frames[e, int(horizon) - 1], truths[e].frames[PRIMED_FRAMES - 1 + int(horizon)])
                  for e in reached[horizon]]
        return round(float(np.mean(values)), 4) if values else None

    def psnr(name: str) -> dict[str, float | None]:
        return {h: _rounded(metrics.pooled_psnr(errors[name][:, i]), 3) for h, i in columns.items()}

    def psnr_interval(i: int) -> list[float] | None:
        known = errors["dream"][:, i]
        return _rounded_pair(metrics.interval(known[~np.isnan(known)], metrics.pooled_psnr), 3)

    return {"episodes": len(truths), "episodes_at": {h: len(e) for h, e in reached.items()},
            "psnr": psnr("dream"), "psnr_interval": {h: psnr_interval(i) for h, i in columns.items()},
            "ssim": {h: mean_ssim(h) for h in columns},
            "psnr_ceiling": psnr("ceiling"), "psnr_copy_last": psnr("copy_last")}


def drift_at(truths: list[Truth], dream: Dream, horizon: int) -> dict[str, float | None]:
    """Ratio dream / game of each statistic. Dream: mean over all episodes and the last `DRIFT_WINDOW`
    frames up to `horizon`. Game: mean over every real frame after the primed ones of the same
    episodes, as far as they lived: the player dies before a long dream ends, and a statistic of the
    game does not hang on how long ago it began."""
    game = np.concatenate([truth.statistics for truth in truths]).mean(axis=0)
    window = dream.statistics[:, max(horizon - DRIFT_WINDOW, 0) : horizon]
    assert np.isfinite(window).all(), "a frame of the window was not decoded"
    dreamed = window.mean(axis=(0, 1))
    return {name: round(float(d / g), 4) if g > 0 else None
            for name, d, g in zip(metrics.STATISTICS, dreamed, game, strict=True)}


def inverse_dynamics(judge: Judge | None, truths: list[Truth], dream: Dream) -> dict[str, Any]:
    """How well the judge reads the keys, on dreamed frames and on the real frames of the same horizons
    and episodes: both sides see the same actions and clips of the same length. Transitions between
    two dreamed frames only, so none has a real frame on one side."""
    keys = [f"inverse_dynamics_{side}" for side in ("real", "dreamed")]
    if judge is None:
        return {k: None for key in keys for k in (key, f"{key}_interval", f"{key}_per_button")}
    buttons = judge.spec.buttons
    figures: dict[str, Any] = {}
    read: dict[str, list[np.ndarray]] = {key: [] for key in keys}
    held = []
    for episode, truth in enumerate(truths):
        count = min(len(truth.frames) - PRIMED_FRAMES, dream.frames.shape[1], COMPARED_FRAMES)
        if count < 2:
            continue
        held.append(truth.actions[PRIMED_FRAMES + 1 : PRIMED_FRAMES + count, : len(buttons)] > 0.5)
        read[keys[0]].append(judge.pressed(truth.frames[PRIMED_FRAMES : PRIMED_FRAMES + count]))
        read[keys[1]].append(judge.pressed(dream.frames[episode, :count]))
    for key in keys:
        per_button: dict[str, float | None] = dict.fromkeys(buttons)
        if held:
            guess, fact = np.concatenate(read[key]), np.concatenate(held)
            per_button = {b: _rounded(metrics.balanced_accuracy(guess[:, i], fact[:, i]), 4)
                          for i, b in enumerate(buttons)}
        figures[key] = _rounded(_mean(per_button.values()), 4)
        figures[f"{key}_interval"] = _rounded_pair(metrics.interval(_counts(read[key], held), _accuracy), 4)
        figures[f"{key}_per_button"] = per_button
    return figures


def _counts(read: list[np.ndarray], held: list[np.ndarray]) -> np.ndarray:
    """Of each episode and button, (E, buttons, 4): frames held, of those read as held, free, read as free."""
    return np.array([np.stack([fact.sum(0), (guess & fact).sum(0), (~fact).sum(0), (~guess & ~fact).sum(0)], axis=1)
                     for guess, fact in zip(read, held, strict=True)])


def _accuracy(counts: np.ndarray) -> float | None:
    """The mean balanced accuracy over buttons of some episodes' `_counts`."""
    return _mean((found_held / held + found_free / free) / 2 if held and free else None
                 for held, found_held, free, found_free in counts.sum(axis=0))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _find_judge(spec: WorldSpec, folder: Path) -> tuple[Judge | None, str]:
    """The judge of this world's game, or None and one line that says why. A judge that is there but
    damaged, or of another game, is refused: a figure must not vanish unseen."""
    if not folder.is_dir():
        return None, f"no judge for game {spec.game}: inverse dynamics is not measured"
    try:
        from dreamloop.models.networks.inverse_dynamics import load_judge
    except ImportError as error:
        return None, f"the judge needs torch ({error}); pip install 'dreamloop[train]'"
    judge = load_judge(folder)
    of = judge.spec
    expected = (spec.game, spec.frame_height, spec.frame_width, tuple(b.name for b in spec.actions.buttons))
    if (of.game, of.frame_height, of.frame_width, of.buttons) != expected:
        raise DreamloopError(f"judge {folder.name} is of {of.game} {of.frame_width}x{of.frame_height} with buttons "
                             f"{', '.join(of.buttons)}; the world {spec.name} is not")
    return judge, ""


def _check_game(spec: WorldSpec, game: Game) -> None:
    for name, ours, its in (("frame height", spec.frame_height, game.frame_height),
                            ("frame width", spec.frame_width, game.frame_width),
                            ("actions", spec.actions.names, game.actions.names)):
        if ours != its:
            raise DreamloopError(f"world {spec.name}: {name} {ours} differs from the game's {its}")


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _rounded_pair(pair: tuple[float, float] | None, digits: int) -> list[float] | None:
    return None if pair is None else [round(value, digits) for value in pair]
