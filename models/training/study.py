"""The laboratory: one small world, one thing changed at a time, the same minutes for everyone.

    dreamloop study methods OUT --minutes 20

A study is a list of `Variant`s. All share one recording, one autoencoder, its latents and its judges
(OUT/base, linked into every variant's run folder); a variant starts from the base's stage `dynamics`, or trains
its own, and an autoencoder of its own, where that is what the study is about. Every stage resumes after a kill at
any moment, and the same command goes on where it was stopped. What comes out are world folders; demos/study.py has
them judged.

    methods       every method of distillation/ from the same base, and the base itself as one-step student and as
                  teacher at 2 and 4 noise levels
    exposure      error recycling and self-rollout, each with and without
    recovery      scoring on clips as they are, with foreign cells, and mixed with its own dreams, hundreds of frames in
    memory        window, sinks and dilated slots: as many slots, so as costly
    autoencoder   channels, size of a cell, loss: what is seen, what it costs, and whether it can be foretold
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.memory import oldest_age
from dreamloop.models.core.spec import MemorySpec, WorldSpec
from dreamloop.models.training import recording
from dreamloop.models.training.autoencoder import AutoencoderTraining, encode_recording, train_autoencoder
from dreamloop.models.training.data import LatentClips, Recording
from dreamloop.models.training.distillation import Method, train_student
from dreamloop.models.training.distillation.adversarial import Adversarial
from dreamloop.models.training.distillation.consistency import Consistency
from dreamloop.models.training.distillation.distribution_matching import DistributionMatching
from dreamloop.models.training.distillation.error_bank import ErrorBank
from dreamloop.models.training.distillation.regression import SelfRollout
from dreamloop.models.training.distillation.scoring import Scoring
from dreamloop.models.training.dynamics import DynamicsTraining, noise_levels, train_dynamics
from dreamloop.models.training.judges import save_judge, train_judges
from dreamloop.models.training.packing import pack_world
from dreamloop.models.training.recipes import Recipe
from dreamloop.models.training.run import Run

BASE = "base"
SHARED = ("autoencoder.ckpt", "latents_train.safetensors", "latents_held_out.safetensors")
JUDGES_SHARE = 0.25  # of a variant's minutes
SLOTS = 16  # of every memory that is compared


@dataclass(frozen=True)
class Variant:
    """One row of a study (one per entry of steps: how many noise levels it is played at). code, code_share: of the
    minutes in which it trains an autoencoder of its own, with these settings, 0 where it has the base's; own_share: a
    stage `dynamics` of its own, 0 where it starts from the base's; method: what it does with the rest, None for
    nothing."""

    name: str
    spec: WorldSpec
    dynamics: DynamicsTraining
    own_share: float = 0.0
    method: Method | None = None
    steps: tuple[int, ...] = (1,)
    code: AutoencoderTraining | None = None
    code_share: float = 0.0

    @property
    def stage(self) -> str:
        """The stage whose network is played."""
        return self.method.name if self.method else "dynamics"


def methods(recipe: Recipe, clip_frames: int = 26) -> list[Variant]:
    """The teacher first; then its students."""
    students: list[Method] = [
        SelfRollout(clip_frames=clip_frames + 8), Consistency(clip_frames=clip_frames),
        DistributionMatching(clip_frames=clip_frames), Adversarial(clip_frames=clip_frames + 8),
        Scoring(clip_frames=clip_frames)]
    few_steps = {"consistency": (1, 2, 4)}  # the others know no level between noise and picture
    several = DistributionMatching(clip_frames=clip_frames, steps=4)
    return [Variant("teacher", recipe.spec, recipe.dynamics, steps=(1, 2, 4)),
            *(Variant(student.name, recipe.spec, recipe.dynamics, method=student,
                      steps=few_steps.get(student.name, (1,))) for student in students),
            Variant("distribution_matching-several", recipe.spec, recipe.dynamics, method=several, steps=(1, 2, 4))]


def exposure(recipe: Recipe) -> list[Variant]:
    """Quality against horizon under four trainings of equal length."""
    variants = []
    for recycled in (False, True):
        settings = recipe.dynamics if recycled else replace(recipe.dynamics, recycle_share=0.0)
        name = "recycling" if recycled else "plain"
        variants += [Variant(name, recipe.spec, settings, own_share=1.0),
                     Variant(f"{name}-self-rollout", recipe.spec, settings, own_share=0.5, method=SelfRollout())]
    return variants


def recovery(recipe: Recipe, foreign: float = 0.25) -> list[Variant]:
    """What teaches `scoring` to find back from frames that went wrong; from the same base, with as little noise on
    previous latents as the worlds of Doom have."""
    little = replace(recipe.dynamics, history_noise=0.15, history_noise_share=0.5)
    clip = recipe.dynamics.clip_frames
    alone, banked = Scoring(clip_frames=clip), Scoring(clip_frames=clip, bank=ErrorBank(frames=clip))
    return [Variant("plain", recipe.spec, little, method=alone),
            Variant("foreign", recipe.spec, replace(little, foreign_share=foreign), method=alone),
            Variant("error_bank", recipe.spec, little, method=banked)]


def memory(recipe: Recipe, dilated: int = 7, dilation: int = 16, sinks: int = 4) -> list[Variant]:
    """`SLOTS` slots each. The dilated ones reach back further than a full turn takes, 106 frames; all begin from the
    base, whose window has as many, and learn by scoring from clips long enough for them."""
    long = MemorySpec(window_frames=SLOTS - dilated, dilated_frames=dilated, dilation=dilation)
    clip = oldest_age(long) + 4
    memories = {"window": MemorySpec(window_frames=SLOTS), "dilated": long,
                "sinks": MemorySpec(window_frames=SLOTS - sinks, sink_frames=sinks, max_age=clip)}
    return [Variant(name, replace(recipe.spec, memory=of), recipe.dynamics,
                    method=Scoring(clip_frames=clip, batch_clips=1)) for name, of in memories.items()]


def autoencoder(recipe: Recipe) -> list[Variant]:
    """Half of the minutes for the autoencoder, half for the dynamics of its latents: a code is as good as what can be
    foretold of it. A token has as many numbers with cells of 8x8 pixels as with 32 channels of 16x16."""
    spec, settings = recipe.spec, recipe.autoencoder
    small = replace(spec, dynamics=replace(spec.dynamics, patch=2), autoencoder=replace(
        spec.autoencoder, latent_channels=spec.autoencoder.latent_channels // 4, widths=spec.autoencoder.widths[1:],
        encoder_blocks=spec.autoencoder.encoder_blocks[1:], decoder_blocks=spec.autoencoder.decoder_blocks[1:]))
    codes = {f"channels-{n}": (replace(spec, autoencoder=replace(spec.autoencoder, latent_channels=n)), settings)
             for n in (16, 32, 64)}
    codes |= {"cells-8": (small, settings), "shifted": (spec, replace(settings, shift_share=0.5)),
              "noisy": (spec, replace(settings, latent_noise=0.6)),
              "plain-loss": (spec, replace(settings, object_weight=0.0, change_weight=0.0, gradient_weight=0.0))}
    return [Variant(name, of, recipe.dynamics, own_share=0.5, code=code, code_share=0.5)
            for name, (of, code) in codes.items()]


STUDIES: dict[str, Callable[[Recipe], list[Variant]]] = {
    "methods": methods, "exposure": exposure, "recovery": recovery, "memory": memory, "autoencoder": autoencoder}


def prepare(recipe: Recipe, out: Path, minutes: float, device: str, with_dynamics: bool) -> Run:
    """What all variants share, in OUT/base: recording, autoencoder (`minutes`), latents, judges (a quarter of
    them), and the stage `dynamics` (`minutes`) where a variant starts from it."""
    folder = out / BASE
    if out.exists() and any(out.iterdir()) and not folder.exists():
        raise DreamloopError(f"{out.name} is not empty and holds no study: name another folder")
    run = Run(folder, recipe.spec.name, device, resume=True)
    run.record["command"] = f"dreamloop study ... --minutes {minutes:g}"
    if not run.finished("record"):
        figures: dict[str, float] = {}
        for split, frames in (("train", recipe.record_frames), ("held_out", recipe.held_out_frames)):
            with run.console.status(f"recording {frames} {split} frames of {recipe.game_name}"):
                counts = recording.record(recipe.game_name, folder / "recording", frames, split=split)
            figures |= {f"{split}_{name}": value for name, value in counts.items()}
        run.finish("record", figures)
    data, held_out = recordings(run)
    spec, seconds = recipe.spec, 60.0 * minutes
    if not run.finished("autoencoder"):
        found = train_autoencoder(run, spec, recipe.autoencoder, seconds, data, held_out)
        run.finish("autoencoder", {**found, "minutes": minutes})
    if not run.finished("judges"):
        found = train_judges(run, spec, data, held_out, seconds * JUDGES_SHARE)
        save_judge(run, judge_folder(run, spec))
        run.finish("judges", {**found, "minutes": minutes * JUDGES_SHARE})
    both = clips(run, spec, recipe.dynamics.clip_frames)
    if with_dynamics and not run.finished("dynamics"):
        found = train_dynamics(run, spec, recipe.dynamics, seconds, *both)
        run.finish("dynamics", {**found, "minutes": minutes})
    return run


def make(variant: Variant, base: Run, folder: Path, minutes: float) -> Run:
    """Train what a variant has of its own, in `folder`; returns its run, ready to be packed."""
    # the first of a kind would pay for a compiler whose work the next ones find on the disk
    run = Run(folder, variant.name, str(base.device), resume=True, compiling=base.device.type != "cpu")
    shared = ["record", *([] if variant.code else ["autoencoder"]), *([] if variant.own_share else ["dynamics"])]
    for name in (*([] if variant.code else SHARED), *([] if variant.own_share else ["dynamics.ckpt"])):
        link(base.folder / name, folder / name)
    run.record["command"] = base.record["command"]
    run.record["stages"] = {name: base.record["stages"][name] for name in shared} | run.record["stages"]

    def stage(name: str, share: float, train: Callable[[float], dict[str, float]]) -> None:
        if not run.finished(name):
            run.finish(name, {**train(60.0 * minutes * share), "minutes": minutes * share})
        elif abs((had := run.record["stages"][name]["minutes"]) - minutes * share) > 1e-3:  # of a minute
            raise DreamloopError(f"{variant.name} has been trained with --minutes {had / share:g}, not {minutes:g}: "
                                 "name another folder")

    if (code := variant.code) is not None:
        stage("autoencoder", variant.code_share, lambda seconds: train_autoencoder(
            run, variant.spec, code, seconds, *recordings(base)))
    if variant.own_share:
        stage("dynamics", variant.own_share, lambda seconds: train_dynamics(
            run, variant.spec, variant.dynamics, seconds,
            *clips(run, variant.spec, variant.dynamics.clip_frames, base)))
    if (method := variant.method) is not None:
        stage(method.name, 1 - variant.code_share - variant.own_share, lambda seconds: train_student(
            run, variant.spec, method, variant.dynamics, "dynamics", seconds,
            *clips(run, variant.spec, method.clip_frames, base)))
    return run


def pack(variant: Variant, run: Run, base: Run, steps: int) -> Path:
    """The variant as a world folder that is played with so many steps a frame."""
    spec = replace(variant.spec, name=f"{variant.spec.name}-{variant.name}-{steps}",
                   dynamics=replace(variant.spec.dynamics, sigmas=noise_levels(steps)))
    folder = f"world-{steps}"
    pack_world(run, spec, recordings(base)[0], variant.stage, folder)
    return run.folder / folder


def recordings(base: Run) -> tuple[Recording, Recording]:
    return Recording(base.folder / "recording", "train"), Recording(base.folder / "recording", "held_out")


def judge_folder(base: Run, spec: WorldSpec) -> Path:
    return base.folder / "judges" / "zoo" / spec.game


def clips(run: Run, spec: WorldSpec, clip_frames: int, base: Run | None = None) -> list[LatentClips]:
    """Training and held-out clips, from the latents in the run's folder (made there if they are not)."""
    return [encode_recording(run, spec, split, part, clip_frames)
            for split, part in zip(("train", "held_out"), recordings(base or run), strict=True)]


def link(source: Path, target: Path) -> None:
    """`target` is the file `source`: linked, or copied where a file system has no links. Files of a run are replaced
    whole, never written into, so neither can spoil the other's."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:
        shutil.copy2(source, partial)
    partial.replace(target)
