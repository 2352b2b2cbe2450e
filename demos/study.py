"""Studies from the command line: train the variants, judge every world, write the table.

    dreamloop study methods OUT --minutes 20

models/training/study.py says what is compared. Every row is judged by `evaluate`, through the runtime's engine,
on the same held-out episodes; its figures lie beside its world (OUT/STUDY/VARIANT/evaluation-STEPS.json), and the
table, its JSON and its plot in OUT/STUDY.md, .json and .png. The same command goes on where one was stopped.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.world import load_world

if TYPE_CHECKING:
    import numpy as np

    from dreamloop.models.training.recipes import Recipe
    from dreamloop.models.training.run import Run
    from dreamloop.models.training.study import Variant

RECIPE = "doom-maze-study"
STRIP_FRAMES = 128
Column = tuple[str, Callable[[dict[str, Any]], Any]]
Say = Callable[[str], None]


def _at(*keys: str) -> Callable[[dict[str, Any]], Any]:
    """A figure by its path in a report, None where a step of it is missing."""
    def get(report: dict[str, Any]) -> Any:
        value: Any = report
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value
    return get


QUALITY: tuple[Column, ...] = (
    ("PSNR 1", _at("psnr", "1")), ("16", _at("psnr", "16")), ("64", _at("psnr", "64")), ("SSIM 16", _at("ssim", "16")),
    ("keys", _at("inverse_dynamics_dreamed")), ("spread", _at("drift", "spread")), ("motion", _at("drift", "motion")),
    ("gradient", _at("drift", "gradient")), ("heading", _at("turn", "heading_error")),
    ("told 8", _at("clip_discriminator", "8")), ("told 32", _at("clip_discriminator", "32")))
REVISIT: tuple[Column, ...] = (("revisit", _at("turn", "revisit_psnr")),
                               ("elsewhere", _at("turn", "revisit_psnr_elsewhere")))
CODE: tuple[Column, ...] = (
    ("decode ms", _at("decode_ms")), ("ceiling", _at("psnr_ceiling", "1")), ("texture", _at("code", "gradient")),
    ("motion error", _at("code", "motion_error")), ("one step", _at("one_step")), *QUALITY[:3], *QUALITY[4:7])
COLUMNS = {"methods": QUALITY, "exposure": QUALITY, "recovery": (*QUALITY, ("mean", _at("drift", "mean"))),
           "memory": (*QUALITY, *REVISIT), "autoencoder": CODE}
BARS = {**dict.fromkeys(("methods", "exposure", "recovery"), QUALITY[5:8]), "memory": REVISIT,
        "autoencoder": (CODE[1], *QUALITY[:2])}
LEGEND = ("PSNR in dB at horizons 1, 16, 64; keys: balanced accuracy of reading them from the dream; mean, spread, "
          "motion, gradient: dream over game at the end; heading: degrees off after 35 frames of turning; told: "
          "accuracy of telling clips of 8 and 32 frames from the game (0.5 is perfect); revisit: PSNR against the "
          "game after a full turn, elsewhere: against its view half a turn away; decode: a frame, by the engine "
          "that judged; ceiling: PSNR of encoding and decoding; texture: gradient of that over the game's; motion "
          "error: what a linear map cannot tell of the next latent (1: no more than to stay); one step: what the "
          "world cannot, behind real frames. docs/evaluation.md defines the rest.")


def study(what: str, out: str, minutes: float, device: str | None = None, engine: str = "auto", frames: int = 1000,
          episodes: int = 16, threads: int | None = None, recipe: Recipe | None = None,
          only: Sequence[str] = (), say: Say = print) -> dict[str, Any]:
    """Run a study to its table; returns what is written to OUT/STUDY.json. minutes: of training for each variant,
    and for each shared stage; frames, episodes: of the evaluation; only: names of variants, default all."""
    import torch

    from dreamloop.models.training import study as training
    from dreamloop.models.training.recipes import recipe as recipe_named
    if what not in training.STUDIES:
        raise DreamloopError(f"no study {what!r}; known: {', '.join(training.STUDIES)}")
    chosen, folder = recipe or recipe_named(RECIPE), Path(out)
    variants = training.STUDIES[what](chosen)
    names = [variant.name for variant in variants]
    if unknown := [name for name in only if name not in names]:
        raise DreamloopError(f"study {what} has no variant {unknown[0]!r}; known: {', '.join(names)}")
    variants = [variant for variant in variants if not only or variant.name in only]
    base = training.prepare(chosen, folder, minutes, device or ("cuda" if torch.cuda.is_available() else "cpu"),
                            with_dynamics=any(not variant.own_share for variant in variants))
    rows: list[dict[str, Any]] = []
    for variant in variants:
        run = training.make(variant, base, folder / what / variant.name, minutes)
        for steps in variant.steps:
            judged = _judged(variant, run, base, steps, {"engine": engine, "frames": frames, "episodes": episodes,
                                                         "threads": threads})
            rows.append({"variant": variant.name, "steps": steps, "minutes": _minutes(run),
                         "world": str(run.folder / f"world-{steps}"),
                         "figures": {**judged, "code": run.record["stages"]["autoencoder"],
                                     "one_step": _one_step(run.record["stages"][variant.stage])}})
            say(f"{variant.name}, {steps} steps: PSNR {judged['psnr']}")
    report = {"study": what, "recipe": chosen.spec.name, "minutes": minutes, "hardware": base.record["hardware"],
              "frames": frames, "episodes": episodes, "only": list(only), "rows": rows}
    _write(folder / f"{what}.json", json.dumps(report, indent=2) + "\n")
    _write(folder / f"{what}.md", table(report))
    draw(folder / f"{what}.png", report)
    strip(folder / f"{what}-strip.png", chosen.game_name, report, threads)
    say(f"wrote {folder / what}.md, .json, .png and -strip.png")
    return report


def _judged(variant: Variant, run: Run, base: Run, steps: int, how: dict[str, Any]) -> dict[str, Any]:
    """The evaluation of a variant, from its file where it was judged like this already."""
    from dreamloop.models.training import study as training
    from dreamloop.runtime import evaluate as runtime
    path = run.folder / f"evaluation-{steps}.json"
    if path.exists():
        kept = json.loads(path.read_text("utf-8"))
        if kept["how"] == how:
            return dict(kept["figures"])
    world = training.pack(variant, run, base, steps)
    figures = runtime.evaluate(world, judge=training.judge_folder(base, variant.spec), curve=True, **how)
    figures["decode_ms"] = _decode_ms(world, how["engine"], how["threads"])
    _write(path, json.dumps({"how": how, "figures": figures}, indent=2) + "\n")
    return figures


def _one_step(stage: dict[str, float]) -> float:
    """Error of a latent behind real ones, over that of holding the last one still."""
    return stage["one_step"] / stage["copy_last"]


def _decode_ms(world: Path, engine: str, threads: int | None, frames: int = 64) -> float:
    """Median time of decoding one frame, of as many."""
    from dreamloop.runtime.engines import open_engine
    opened = open_engine(load_world(world), engine, threads=threads)
    latent, times = opened.new_state(1).latent, []
    for _ in range(frames):
        began = time.perf_counter()
        opened.decode(latent)
        times.append(1e3 * (time.perf_counter() - began))
    return round(statistics.median(times), 3)


def _minutes(run: Run) -> float:
    """Training time of a network: of all dynamics stages that led to it."""
    return round(sum(figures.get("minutes", 0.0) for name, figures in run.record["stages"].items()
                     if name not in ("record", "autoencoder", "judges")), 2)


def table(report: dict[str, Any]) -> str:
    """The study as Markdown, ready for docs/distillation.md."""
    columns = COLUMNS[report["study"]]
    rows = [["variant", "steps", "minutes", *(name for name, _ in columns)]]
    rows += [[row["variant"], str(row["steps"]), f"{row['minutes']:g}",
              *(_shown(get(row["figures"])) for _, get in columns)] for row in report["rows"]]
    ceiling = report["rows"][0]["figures"]["psnr_ceiling"]["1"]
    some = f" --only {','.join(report['only'])}" if report["only"] else ""
    return "\n".join([
        f"`dreamloop study {report['study']} OUT --minutes {report['minutes']:g}{some}`, recipe {report['recipe']}, on "
        f"{report['hardware']}; {report['episodes']} held-out episodes; autoencoder's ceiling {_shown(ceiling)} dB.",
        "", *_lines(rows), "", LEGEND, ""])


def _lines(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def _shown(value: Any) -> str:
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def draw(path: Path, report: dict[str, Any]) -> None:
    """Quality against horizon, and what the study asks about beside it: the drift, or the revisit."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = [f"{row['variant']} ({row['steps']})" if len(report["rows"]) > 4 else row["variant"]
             for row in report["rows"]]
    for name, row in zip(names, report["rows"], strict=True):
        known = [(h, v) for h, v in enumerate(row["figures"]["psnr_curve"], 1) if v is not None]
        left.plot([h for h, _ in known], [v for _, v in known], label=name)
    left.set(title=f"{report['recipe']}: quality against horizon", xlabel="horizon (frames)", ylabel="PSNR (dB)",
             xscale="log")
    left.legend(fontsize="small")
    bars = BARS[report["study"]]
    for i, (label, get) in enumerate(bars):
        heights = [get(row["figures"]) or 0.0 for row in report["rows"]]
        right.bar([x + (i - (len(bars) - 1) / 2) * 0.8 / len(bars) for x in range(len(names))], heights,
                  width=0.8 / len(bars), label=label)
    right.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize="small")
    right.set(title={"memory": "full turn: PSNR (dB)", "autoencoder": "PSNR (dB)"}.get(report["study"],
                                                                                      "drift: dream / game"))
    right.legend(fontsize="small")
    for axes in (left, right):
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=110)


def strip(path: Path, game_name: str, report: dict[str, Any], threads: int | None) -> None:
    """The same episode in every row's world, below the game: of those that are judged, the one that moves most, in
    its first `STRIP_FRAMES` frames."""
    from dreamloop.models.training.games import open_game
    from dreamloop.runtime import evaluate as runtime, pictures
    from dreamloop.runtime.engines import open_engine
    frames = min(STRIP_FRAMES, report["frames"])
    dreams: dict[str, np.ndarray] = {}
    for row in report["rows"]:
        opened = open_engine(load_world(row["world"]), threads=threads)
        if not dreams:
            given = max(runtime.PRIMED_FRAMES, opened.world.spec.memory.window_frames)
            with open_game(game_name) as game:
                truths = runtime.play_game(game, game.players[-1], report["episodes"], frames, given)
            truth = max(truths, key=lambda t: (len(t.future), float(t.statistics[:, 2].sum())))
        label = f"{row['variant']} ({row['steps']})" if row["steps"] > 1 else row["variant"]
        dreams[label] = runtime.run_dream(opened, [truth], frames).frames[0]
    pictures.draw_strip(path, truth, dreams)


def _write(path: Path, text: str) -> None:
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(text, "utf-8")
    partial.replace(path)
