"""How good is a dream? The same actions, the same start, the dream beside the game.

    dreamloop evaluate doom-arena --json

A scripted player plays episodes of the real game that no training saw. A batch of dreams is primed
with the first frames of each, as many as the world remembers, then goes on alone under the same actions: horizon h
is the h-th frame after the last primed one. docs/evaluation.md defines every figure as computed here.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.spec import WorldSpec
from dreamloop.models.core.world import ZOO, World, load_world
from dreamloop.runtime import metrics
from dreamloop.runtime.engines import open_engine
from dreamloop.runtime.engines.base import Engine
from dreamloop.runtime.evaluate_clips import clip_discriminator
from dreamloop.runtime.evaluate_events import flash_figures, gone_figures, monster_figures
from dreamloop.runtime.evaluate_motion import CIRCLE_FRAMES, TURN_KEYS, motion_error, turn_figures
from dreamloop.runtime.evaluate_perceptual import perceptual
from dreamloop.runtime.evaluate_state import state_error

if TYPE_CHECKING:
    from dreamloop.models.networks.inverse_dynamics import Judge
    from dreamloop.models.training.games import Finder, Game, Player, Shooter

PRIMED_FRAMES = 16  # or the world's window, where that is longer: what came before it is of no use to it
HORIZONS = (1, 16, 64, 256)
COMPARED_FRAMES = max(HORIZONS)  # horizons up to this one are compared frame by frame
DRIFT_WINDOW = 64  # frames
EVALUATION_SEED = 1_500_000_000  # training counts up from 0, its held-out split from 1,000,000,000
JUDGES = ZOO / "judges"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Truth:
    """One episode of the real game. seed: of the game, the policy and the dream's noise; primed: frames that the
    dream is given.

    actions     (primed + F, A) float32   all F dreamed frames have one, the game's end or not
    frames      (n, H, W, 3) uint8               real frames up to horizon COMPARED_FRAMES, or all of them
    statistics  (m, S) float64                   of each real frame after the primed ones, see `statistics_of`
    """

    seed: int
    actions: np.ndarray
    frames: np.ndarray
    statistics: np.ndarray
    variables: dict[str, np.ndarray] = field(default_factory=dict)
    targets: tuple[tuple[float, ...], ...] = ()
    primed: int = PRIMED_FRAMES

    def at(self, horizon: int) -> np.ndarray | None:
        """The real frame at a horizon (0: the last primed one), None where the episode was over."""
        index = self.primed - 1 + horizon
        return self.frames[index] if index < len(self.frames) else None

    @property
    def future(self) -> np.ndarray:
        """The real frames after the primed ones, horizon h at index h - 1."""
        return self.frames[self.primed :]


@dataclass(frozen=True)
class Dream:
    """What the engine made of E episodes, F frames each.

    frames      (E, min(F, COMPARED_FRAMES), H, W, 3) uint8   dreamed frames, horizon h at index h - 1
    statistics  (E, F, S) float64                             NaN where a frame was not decoded
    watched     (F, H, W, 3) uint8                            every frame of one episode, if asked for
    """

    frames: np.ndarray
    statistics: np.ndarray
    watched: np.ndarray | None = None


def evaluate(world: World | str | os.PathLike[str], engine: str | Engine = "auto", precision: str | None = None,
             frames: int = 1000, episodes: int = 16, plot: str | os.PathLike[str] | None = None,
             video: str | os.PathLike[str] | None = None, strip: str | os.PathLike[str] | None = None,
             threads: int | None = None, judge: str | os.PathLike[str] | None = None,
             game_name: str | None = None, progress: Progress | None = None, drift_frames: int | None = None,
             lpips: str | os.PathLike[str] | None = None, fvd: str | os.PathLike[str] | None = None,
             curve: bool = False, form: str | None = None, primed: int | None = None,
             policy: Player | None = None) -> dict[str, Any]:
    """Judge a world against its game; a dictionary that JSON can hold, keys in docs/evaluation.md.

    frames: how long each dream runs; primed: how many real frames it is given (default: the world's window, and
    `PRIMED_FRAMES` at least); drift_frames: a longer time at which drift is measured again; plot (PNG or
    SVG), video (MP4), strip (PNG): files to write; curve: the PSNR at every horizon, too; lpips, fvd: files of
    networks (evaluate_perceptual.py); policy: who plays (default: the last of the game's own players); judge: a judge
    folder (default: the zoo's for this game); game_name: the game to open, where the world's own word for it is not
    enough (a folder of recordings, a module); progress: called with (done, all) frames.
    Raises `DreamloopError`, `GameError` where the game is not installed.
    """
    for name, value in (("frames", frames), ("episodes", episodes), ("drift_frames", drift_frames),
                        ("primed", primed)):
        if value is not None and value < 1:
            raise DreamloopError(f"{name}={value} must be 1 or more")
    for path, suffixes in ((plot, (".png", ".svg")), (video, (".mp4",)), (strip, (".png",))):
        if path is not None:  # refused now: after minutes of dreams all would be lost
            _check_target(Path(path), suffixes)
    began = time.monotonic()
    dreamed_frames = max(frames, drift_frames or 0)
    world = world if isinstance(world, World) else load_world(world)
    opened = open_engine(world, engine, precision, threads, form) if isinstance(engine, str) else engine
    given = primed or max(PRIMED_FRAMES, world.spec.memory.window_frames)

    from dreamloop.models.training.games import open_game
    with open_game(game_name) if game_name else open_game(world.spec.game, trusted=False) as game:
        _check_game(world.spec, game)
        judges = Path(judge) if judge is not None else JUDGES / world.spec.game
        reader, note = _find_judge(world.spec, judges)
        motion, sight = (_find_probe(world.spec, judges, kind) if reader else None for kind in ("motion", "sight"))
        player = policy or game.players[-1]
        truths = play_game(game, player, episodes, dreamed_frames, given)
        turns = play_turns(game, episodes, min(frames, CIRCLE_FRAMES), given)
        # the one to look at: there the game lasts longest
        longest = max(range(len(truths)), key=lambda i: len(truths[i].statistics))
        if video is not None:
            truths[longest] = _play_episode(game, player, truths[longest].seed, dreamed_frames, keep=dreamed_frames,
                                            primed=given)
        finder = _finder(game)
        shooter = cast("Shooter", game) if hasattr(game, "flashes") and "attack" in game.actions.names else None
    dream = run_dream(opened, truths, dreamed_frames, everything=plot is not None,
                      drift_at=(frames, drift_frames or frames), watch=longest if video is not None else None,
                      progress=progress, finder=finder)
    turned = run_dream(opened, turns, min(frames, CIRCLE_FRAMES)) if turns else None

    horizons = tuple(range(1, COMPARED_FRAMES + 1)) if plot is not None or curve else HORIZONS
    errors = compare(opened, truths, dream, horizons)
    report: dict[str, Any] = {
        "world": world.name, "world_hash": world.hash, "engine": opened.name, "precision": opened.precision,
        "frames": frames, "primed_frames": given, "policy": player.name,
        "first_seed": EVALUATION_SEED, **quality(truths, dream, errors, horizons),
        "drift": drift_at(truths, dream, frames, frames, finder, with_intervals=True),
        "drift_long": {"frames": drift_frames,
                       **drift_at(truths, dream, drift_frames, drift_frames, finder, with_intervals=True)}
        if drift_frames else None,
        **inverse_dynamics(reader, truths, dream), "judge_hash": reader.hash if reader else None,
        **_clip_figures(truths, dream),
        "state_error": _state_figures(finder, motion, truths, dream),
        "turn": turn_figures(motion, turns, turned) if turned else None,
        "events": _event_figures(shooter, sight, truths, dream),
        **perceptual(truths, dream, HORIZONS, lpips, fvd),
    }
    if curve:
        report["psnr_curve"] = [metrics.rounded(metrics.pooled_psnr(e), 3) for e in errors["dream"].T]
    if note:
        report["inverse_dynamics_note"] = note
    if plot is not None or video is not None or strip is not None:
        from dreamloop.runtime import pictures
        if plot is not None:
            curves = {name: [metrics.pooled_psnr(e) for e in values.T] for name, values in errors.items()}
            times = sorted({*range(DRIFT_WINDOW, dreamed_frames, 8), dreamed_frames})
            pictures.draw_plot(plot, world.name, horizons, curves, times,
                               [drift_at(truths, dream, t, dreamed_frames, finder) for t in times])
        if strip is not None:
            pictures.draw_strip(strip, truths[longest], {"dream": dream.frames[longest]})
        if dream.watched is not None and video is not None:
            pictures.write_video(video, truths[longest], dream.watched, world.spec.fps)
    report["seconds"] = round(time.monotonic() - began, 1)
    return report


def play_game(game: Game, player: Player, episodes: int, frames: int, primed: int = PRIMED_FRAMES) -> list[Truth]:
    """Play held-out episodes, one per seed from `EVALUATION_SEED` on, fewer where a game has no more. An
    episode too short to be primed and compared at horizon 1 is left out and the next seed takes its place."""
    from dreamloop.models.training.games import NoMoreEpisodes
    truths: list[Truth] = []
    seed = EVALUATION_SEED
    while len(truths) < episodes:
        if seed - EVALUATION_SEED >= 10 * episodes + 100:
            raise DreamloopError(f"{game.name}: episodes end before {primed + 1} frames; nothing to judge")
        try:
            truth = _play_episode(game, player, seed, frames, keep=min(frames, COMPARED_FRAMES), primed=primed)
        except NoMoreEpisodes:
            break
        if len(truth.frames) > primed:
            truths.append(truth)
        seed += 1
    if not truths:
        raise DreamloopError(f"{game.name}: no held-out episode has {primed + 1} frames; nothing to judge")
    return truths


def play_turns(game: Game, episodes: int, frames: int, primed: int = PRIMED_FRAMES) -> list[Truth]:
    """Episodes of the same seeds in which the player stands still for the primed frames, then holds a turn key,
    left and right in turn: of a game that has these keys and says where the player looks; else none."""
    from dreamloop.models.training.games import NoMoreEpisodes, Player
    from dreamloop.models.training.games.players import holding
    truths: list[Truth] = []
    if not {*TURN_KEYS} <= set(game.actions.names):
        return truths
    with contextlib.suppress(NoMoreEpisodes):
        if "heading" not in game.reset(EVALUATION_SEED).variables:  # a recording does not turn when it is told to
            return truths
        for i in range(episodes):
            player = Player("turning", 1.0, holding({TURN_KEYS[i % 2]}, primed - 1))
            truths.append(_play_episode(game, player, EVALUATION_SEED + i, frames, keep=frames, primed=primed))
    return [truth for truth in truths if len(truth.frames) > primed]


def _play_episode(game: Game, player: Player, seed: int, frames: int, keep: int,
                  primed: int = PRIMED_FRAMES) -> Truth:
    """keep: up to which horizon the real frames are kept."""
    policy, finder = player.make(game.actions, np.random.default_rng(seed)), _finder(game)
    view = game.reset(seed)
    total = primed + frames
    actions, views, statistics = [np.zeros(game.actions.size, np.float32)], [view], []
    for index in range(1, total):
        # past the game's end the player goes on, seeing its last view
        actions.append(policy(view))
        if view.done:
            continue
        before, view = view.frame, game.step(actions[-1])
        if view.done:
            continue
        if index < primed + keep:
            views.append(view)
        if index >= primed:
            statistics.append(statistics_of(view.frame, before, finder))
    variables = {name: np.array([v.variables[name] for v in views], np.float64) for name in view.variables}
    return Truth(seed, np.stack(actions), np.stack([v.frame for v in views]),
                 np.array(statistics).reshape(-1, len(drift_names(finder, view.frame))), variables,
                 tuple(v.targets for v in views), primed)


def _finder(game: Game) -> Finder | None:
    return cast("Finder", game) if hasattr(game, "find") else None


def drift_names(finder: Finder | None, frame: np.ndarray) -> tuple[str, ...]:
    """What drift is measured by: `metrics.STATISTICS`, then the things of a game that can be found in a picture."""
    return (*metrics.STATISTICS, *(finder.find(frame) if finder else ()))


def statistics_of(frame: np.ndarray, before: np.ndarray, finder: Finder | None) -> np.ndarray:
    """(S,) float64 in the order of `drift_names`; of a thing 1 where the frame shows it, else 0."""
    things = finder.find(frame).values() if finder else ()
    return np.array([*metrics.frame_statistics(frame, before), *(thing is not None for thing in things)])


def run_dream(engine: Engine, truths: list[Truth], frames: int, everything: bool = False,
              watch: int | None = None, progress: Progress | None = None, drift_at: tuple[int, ...] = (),
              finder: Finder | None = None) -> Dream:
    """Dream all episodes as one batch: primed with real frames as `Session.prime` does, then alone.

    everything: decode every frame (a plot of the drift needs them); otherwise only those that are
    compared and the last `DRIFT_WINDOW`, at the end and at each of `drift_at`. watch: the episode of which
    every frame is kept. finder: of a game that has things, as in `truths`.
    """
    state, primed = engine.new_state(len(truths)), truths[0].primed
    state.seed[:] = [truth.seed for truth in truths]
    state.latent[:] = engine.encode(np.stack([truth.frames[0] for truth in truths]))
    for index in range(1, primed):
        engine.step(state, np.stack([truth.actions[index] for truth in truths]))
        state.latent[:] = engine.encode(np.stack([truth.frames[index] for truth in truths]))
    size = truths[0].frames.shape[1:]
    kept = min(frames, COMPARED_FRAMES)
    shown = np.zeros((len(truths), kept, *size), np.uint8)
    watched = None if watch is None else np.zeros((frames, *size), np.uint8)
    statistics = np.full((len(truths), frames, len(drift_names(finder, truths[0].frames[0]))), np.nan)
    before: np.ndarray | None = np.stack([truth.frames[primed - 1] for truth in truths])
    for horizon in range(1, frames + 1):
        index = primed - 1 + horizon
        engine.step(state, np.stack([truth.actions[index] for truth in truths]))
        # one frame more than the window: its first motion needs the frame before
        measured = any(end - DRIFT_WINDOW <= horizon <= end for end in (*drift_at, frames))
        if everything or watched is not None or horizon <= kept or measured:
            decoded = engine.decode(state.latent)
            if horizon <= kept:
                shown[:, horizon - 1] = decoded
            if watched is not None:
                watched[horizon - 1] = decoded[watch]
            if before is not None:
                for episode, pair in enumerate(zip(decoded, before, strict=True)):
                    statistics[episode, horizon - 1] = statistics_of(*pair, finder)
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
        held = truths[episode].frames[truths[episode].primed - 1]
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
        values = [metrics.ssim(dream.frames[e, int(horizon) - 1], truths[e].frames[truths[e].primed - 1 + int(horizon)])
                  for e in reached[horizon]]
        return round(float(np.mean(values)), 4) if values else None

    def psnr(name: str) -> dict[str, float | None]:
        return {h: metrics.rounded(metrics.pooled_psnr(errors[name][:, i]), 3) for h, i in columns.items()}

    def psnr_interval(i: int) -> list[float] | None:
        known = errors["dream"][:, i]
        return metrics.rounded_pair(metrics.interval(known[~np.isnan(known)], metrics.pooled_psnr), 3)

    return {"episodes": len(truths), "episodes_at": {h: len(e) for h, e in reached.items()},
            "psnr": psnr("dream"), "psnr_interval": {h: psnr_interval(i) for h, i in columns.items()},
            "ssim": {h: mean_ssim(h) for h in columns},
            "psnr_ceiling": psnr("ceiling"), "psnr_copy_last": psnr("copy_last")}


def drift_at(truths: list[Truth], dream: Dream, horizon: int, of_game: int, finder: Finder | None = None,
             with_intervals: bool = False) -> dict[str, Any]:
    """Ratio dream / game of each statistic. Dream: mean over all episodes and the last `DRIFT_WINDOW`
    frames up to `horizon`. Game: mean over every real frame after the primed ones of the same
    episodes, up to horizon `of_game` and as far as they lived: the player dies before a long dream ends, and a
    statistic of the game does not hang on how long ago it began. with_intervals: and `interval`, 95% over episodes
    of each."""
    window = dream.statistics[:, max(horizon - DRIFT_WINDOW, 0) : horizon]
    assert np.isfinite(window).all(), "a frame of the window was not decoded"
    real = [truth.statistics[:of_game] for truth in truths]
    # of each episode and statistic: the dream's mean, the game's sum and how many frames that is of
    rows = np.stack([window.mean(axis=1), np.stack([x.sum(axis=0) for x in real]),
                     np.array([[len(x)] * window.shape[2] for x in real])], axis=2)

    def ratio(some: np.ndarray) -> float | None:
        game = some[:, 1].sum() / max(some[:, 2].sum(), 1)
        return float(some[:, 0].mean() / game) if game > 0 else None

    names = drift_names(finder, truths[0].frames[0])
    figures: dict[str, Any] = {name: metrics.rounded(ratio(rows[:, i]), 4) for i, name in enumerate(names)}
    if with_intervals:
        figures["interval"] = {name: metrics.rounded_pair(metrics.interval(rows[:, i], ratio), 4)
                               for i, name in enumerate(names)}
    return figures


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
        count = min(len(truth.future), dream.frames.shape[1], COMPARED_FRAMES)
        if count < 2:
            continue
        held.append(truth.actions[truth.primed + 1 : truth.primed + count, : len(buttons)] > 0.5)
        read[keys[0]].append(judge.pressed(truth.future[:count]))
        read[keys[1]].append(judge.pressed(dream.frames[episode, :count]))
    for key in keys:
        per_button: dict[str, float | None] = dict.fromkeys(buttons)
        if held:
            guess, fact = np.concatenate(read[key]), np.concatenate(held)
            per_button = {b: metrics.rounded(metrics.balanced_accuracy(guess[:, i], fact[:, i]), 4)
                          for i, b in enumerate(buttons)}
        figures[key] = metrics.rounded(_mean(per_button.values()), 4)
        figures[f"{key}_interval"] = metrics.rounded_pair(metrics.interval(_counts(read[key], held), _accuracy), 4)
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


def _clip_figures(truths: list[Truth], dream: Dream) -> dict[str, Any]:
    try:
        return clip_discriminator(truths, dream)
    except ImportError:  # it trains a network: without torch there is no figure, as there is no judge
        return {"clip_discriminator": None, "clip_discriminator_interval": None}


def _state_figures(finder: Finder | None, motion: Judge | None, truths: list[Truth],
                   dream: Dream) -> dict[str, Any] | None:
    """`state_error`: by the game's own finder, or by the probe `motion`, or None."""
    if finder is not None:
        return state_error(finder, truths, dream, HORIZONS)
    return motion_error(motion, truths, dream, HORIZONS) if motion is not None else None


def _event_figures(shooter: Shooter | None, sight: Judge | None, truths: list[Truth],
                   dream: Dream) -> dict[str, Any] | None:
    """`events`: of a game in which one shoots; those of monsters need the probe `sight`."""
    if shooter is None:
        return None
    figures = flash_figures(shooter, truths, dream)
    if sight is not None:
        figures |= monster_figures(sight, truths, dream)
        figures |= gone_figures(shooter, sight, truths, dream)
    return figures


def _find_probe(spec: WorldSpec, folder: Path, kind: str) -> Judge | None:
    from dreamloop.models.networks.probes import load_probe
    return load_probe(folder, kind, spec.game, spec.frame_height, spec.frame_width)


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


def _check_target(path: Path, suffixes: tuple[str, ...]) -> None:
    """Refuse a file that could not be written when all is done."""
    if path.suffix.lower() not in suffixes:
        raise DreamloopError(f"{path.name}: expected a name that ends in {' or '.join(suffixes)}")
    if not path.parent.is_dir() or path.is_dir():
        raise DreamloopError(f"cannot write {path}: {'is a folder' if path.is_dir() else 'no such folder'}")


def _check_game(spec: WorldSpec, game: Game) -> None:
    for name, ours, its in (("frame height", spec.frame_height, game.frame_height),
                            ("frame width", spec.frame_width, game.frame_width),
                            ("actions", spec.actions.names, game.actions.names)):
        if ours != its:
            raise DreamloopError(f"world {spec.name}: {name} {ours} differs from the game's {its}")
