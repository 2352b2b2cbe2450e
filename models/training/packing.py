"""Stage `pack`: the averaged weights of a run as a world folder, with its card.

The card says how the world came to be: the command, the data, the time, the figures of every stage,
and, once `dreamloop evaluate` has judged it, the figures of play.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.spec import WorldSpec
from dreamloop.models.core.world import CARD_FILE, FIGURES_FILE, World, load_world, save_world
from dreamloop.models.training.data import Recording
from dreamloop.models.training.games import assets_licence
from dreamloop.models.training.run import RECORD_FILE, Run

START_FRAMES = 8


def pack_world(run: Run, spec: WorldSpec, data: Recording, dynamics: str = "self_rollout",
               folder: str = "world", noise_at_play: float = 1.0) -> World:
    """Write RUN/`folder` with the averaged weights of the autoencoder and of stage `dynamics`; returns it
    as a player will load it. With the stage of that name and a spec of several noise levels, this packs
    the teacher. Where stage `decoder` has run, the decoder is the polished one. noise_at_play: see `Recipe`."""
    weights: dict[str, np.ndarray] = {}
    autoencoder = "polished" if run.finished("decoder") else "autoencoder"
    for prefix, stage in (("autoencoder.", autoencoder), ("dynamics.", dynamics)):
        saved = run.load(stage)
        assert saved is not None, f"stage {stage} comes before packing"
        weights |= {prefix + name: value.float().numpy() for name, value in saved["average"].items()}
    weights = with_less_noise(spec, weights, noise_at_play)
    where = run.folder / folder
    save_world(where, spec, weights, start_frames(data), card(spec, run.record))
    write_figures(where, spec)
    return load_world(where)


def with_less_noise(spec: WorldSpec, weights: dict[str, np.ndarray], scale: float) -> dict[str, np.ndarray]:
    """The weights of a one-step world whose answers are drawn from noise of this deviation, not 1: the columns that
    read it are scaled, so nothing that plays a world knows of it. Below 1 answers lie closer to the middle of
    those that might be, as images do whose generator's noise is truncated (Brock et al. 2019, BigGAN)."""
    if scale == 1.0:
        return weights
    if len(spec.dynamics.sigmas) > 1:
        raise DreamloopError(f"{spec.name} is played at {len(spec.dynamics.sigmas)} noise levels: only one's noise "
                             "can be scaled")
    read = weights["dynamics.input.weight"].copy()  # (W, previous latent's token, then the noise's)
    read[:, spec.token_channels :] *= scale
    return {**weights, "dynamics.input.weight": read}


def start_frames(data: Recording) -> np.ndarray:
    """Frames to start from, (START_FRAMES, H, W, 3) uint8: moments of episodes a second and a half in,
    when the weapon is up, with much to see: things across the width of the picture, not one of them close by."""
    moment = min(52, int(data.lengths.max()) - 1)
    long_enough = [e for e in range(len(data.lengths)) if data.lengths[e] > moment]
    busy = [(int(data.objects(e, moment, 1).any((0, 1)).sum()), e) for e in long_enough]
    ranked = [e for _, e in sorted(busy, reverse=True)]
    starts = [data.frames(e, moment, 1)[0] for e in ranked[2::3] or ranked]
    return np.stack(starts[:START_FRAMES])


def card(spec: WorldSpec, record: dict[str, Any], evaluation: dict[str, Any] | None = None) -> str:
    """The model card, Markdown. record: run.json; evaluation: what `dreamloop evaluate --json` gave."""
    stages = record["stages"]
    recorded = stages["record"]
    d, a = spec.dynamics, spec.autoencoder
    lines = [
        f"# {spec.name}", "",
        f"A world learnt from {spec.game}: {spec.frame_width}x{spec.frame_height}, {spec.fps:g} frames a second, "
        f"keys {', '.join(spec.actions.names)}. "
        f"{'One network evaluation' if len(d.sigmas) == 1 else f'{len(d.sigmas)} network evaluations'} per frame.", "",
        "| | |", "|---|---|",
        f"| command | `{record.get('command', 'dreamloop train ' + record['recipe'])}` |",
        f"| data | {recorded.get('train_frames', 0):.0f} frames in {recorded.get('train_episodes', 0):.0f} episodes, "
        "recorded by the same command; other seeds held out |",
        *([f"| first weights | those of {record['begins_from']} |"] if "begins_from" in record else []),
        f"| hardware | {record.get('hardware', 'not noted')} |",
        f"| training time | {sum(s.get('minutes', 0.0) for s in stages.values()):.0f} minutes |",
        f"| autoencoder | {a.downsample}x down, {a.latent_channels} channels, widths {'/'.join(map(str, a.widths))} |",
        f"| dynamics | {d.layers} layers, width {d.width}, {spec.tokens} tokens a frame, "
        f"{d.patch}x{d.patch} latents each |",
        f"| memory | {spec.memory.window_frames} recent frames, {spec.memory.dilated_frames} at every "
        f"{spec.memory.dilation}th, {spec.memory.sink_frames} sinks; plan {spec.plan.policy}"
        f"{', with a linear branch for what it skips' if spec.plan.linear else ''} |",
        *([f"| noise at play | {noise:g} of what it learnt with |"]
          if (noise := record.get("noise_at_play", 1.0)) != 1.0 else []),
        "| storage | int8 codes, 16 to a channel's root mean square, deflated; small tensors float32 |", "",
        "## Training", "", "Figures of each stage, on held-out episodes.", "", "| stage | figures |", "|---|---|"]
    lines += [f"| {name} | {', '.join(f'{k} {v:g}' for k, v in figures.items())} |" for name, figures in stages.items()]
    if evaluation:
        lines += ["", "## Evaluation", "", "`dreamloop evaluate` (docs/evaluation.md defines every figure).", "",
                  "| figure | value |", "|---|---|"]
        lines += [f"| {name} | {_shown(value)} |" for name, value in evaluation.items()]
    return "\n".join([*lines, ""]) + licence(spec.game)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_shown(v)}" for k, v in value.items())
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def write_card(folder: Path, spec: WorldSpec, evaluation: dict[str, Any]) -> None:
    """Put the figures of play on the card of RUN/world and into its figures.json (neither is part of the
    world's hash)."""
    record = json.loads((folder.parent / RECORD_FILE).read_text("utf-8"))
    (folder / CARD_FILE).write_text(card(spec, record, evaluation), "utf-8")
    write_figures(folder, spec, evaluation)


def write_figures(folder: Path, spec: WorldSpec, evaluation: dict[str, Any] | None = None) -> None:
    """figures.json: the card for programs, such as `dreamloop worlds`."""
    figures = {"assets": assets_licence(spec.game), **({"evaluation": evaluation} if evaluation else {})}
    (folder / FIGURES_FILE).write_text(json.dumps(figures, indent=2) + "\n", "utf-8")


def licence(game: str) -> str:
    """The section of the card that says whose the pictures are."""
    return f"""
## Licence

The weights are under Apache-2.0, as dreamloop is. They were trained on frames of {assets_licence(game)};
start frames are screenshots of it.
"""
