"""The error bank: dreams that go on, and clips that are mixed with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import clips_of
from worlds import tiny_spec

from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.training.data import LatentClips
from dreamloop.models.training.distillation.error_bank import Dreaming, ErrorBank
from dreamloop.models.training.distillation.scoring import Scoring
from dreamloop.models.training.dynamics import ClipTrainer, DynamicsTraining
from dreamloop.models.training.run import Run

SETTINGS = ErrorBank(dreams=4, every=3, frames=9, real_frames=2, kept=1.0, share=1.0)
CLIP_FRAMES = 6


@pytest.fixture
def trainer(tmp_path: Path) -> ClipTrainer:
    torch.manual_seed(0)
    trainer = ClipTrainer(Run(tmp_path, "toy", "cpu", True), tiny_spec(), DynamicsTraining())
    for parameter in trainer.net.parameters():  # one that changes what it sees: a new network only repeats it
        parameter.data += 0.02 * torch.randn_like(parameter)
    return trainer


@pytest.fixture
def clips(trainer: ClipTrainer) -> LatentClips:
    return clips_of(trainer.spec, 6)


def test_a_dream_goes_on_from_its_own_last_frames_every_so_many_steps(trainer: ClipTrainer, clips: LatentClips) -> None:
    bank, rng = Dreaming(SETTINGS, trainer), np.random.default_rng(0)
    bank.step(clips, rng)
    first = bank.latents
    assert first is not None and first.shape == (4, 9, *trainer.spec.latent_shape)
    for _ in range(2):
        bank.step(clips, rng)
    assert bank.latents is first, "dreams before it was time"
    bank.step(clips, rng)
    assert bank.latents is not None and torch.equal(bank.latents[:, :2], first[:, -2:])
    assert not torch.equal(bank.latents[:, 2:], first[:, 2:])


def test_a_dream_may_begin_anew_from_the_recording(trainer: ClipTrainer, clips: LatentClips) -> None:
    bank, rng = Dreaming(replace(SETTINGS, every=1, kept=0.0), trainer), np.random.default_rng(0)
    bank.step(clips, rng)
    bank.step(clips, rng)
    recorded = torch.from_numpy(np.concatenate(clips.latents).astype(np.float32))
    assert bank.latents is not None
    for latent in bank.latents[:, 0]:
        assert (recorded - latent).abs().flatten(1).amax(1).min() == 0


def test_clips_are_mixed_with_one_dream_each_from_some_frame_on(trainer: ClipTrainer, clips: LatentClips) -> None:
    bank, rng = Dreaming(SETTINGS, trainer), np.random.default_rng(0)
    previous = torch.randn(64, CLIP_FRAMES, *trainer.spec.latent_shape)
    assert bank.mixed(previous) is previous, "before there are dreams"
    bank.step(clips, rng)
    assert bank.latents is not None
    mixed = bank.mixed(previous)
    shares = []
    for before, after in zip(previous, mixed, strict=True):
        changed = (after != before).flatten(1).any(1)
        begun = int(changed.int().argmax())
        assert changed[begun:].all() and not changed[:begun].any()
        found = []
        for stretch in bank.latents.unfold(1, CLIP_FRAMES, 1).movedim(-1, 2).flatten(0, 1):
            way, went = (stretch - before)[begun:], (after - before)[begun:]
            share = float((went * way).sum() / way.square().sum())
            found.append((float((share * way - went).abs().max()), share))
        assert min(found)[0] < 1e-4, "no mix of the clip and a dream"
        shares.append(min(found)[1])
    assert 0.0 <= min(shares) < 0.2 and 0.8 < max(shares) <= 1.0
    untouched = Dreaming(replace(SETTINGS, share=0.0), trainer)
    untouched.step(clips, rng)
    assert torch.equal(untouched.mixed(previous), previous)


def test_a_stretch_shorter_than_a_clip_is_refused() -> None:
    with pytest.raises(DreamloopError, match="a clip of 24 frames is not to be had from an error bank's stretch of 9"):
        Scoring(bank=SETTINGS)
