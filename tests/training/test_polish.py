"""The decoder gives texture back that fidelity alone smoothes away."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from worlds import tiny_spec

from dreamloop.models.core.spec import AutoencoderSpec
from dreamloop.models.networks.autoencoder import Autoencoder
from dreamloop.models.training.autoencoder import AutoencoderTraining, measure
from dreamloop.models.training.data import Recording
from dreamloop.models.training.polish import DecoderStudent, Polish
from dreamloop.models.training.recording import Episode, save_episode
from dreamloop.models.training.run import Run

SPEC = tiny_spec(autoencoder=AutoencoderSpec(latent_channels=4, widths=(24, 24, 24), encoder_blocks=(0, 0, 0),
                                             decoder_blocks=(0, 0, 1)))


@pytest.fixture()
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(Run, "compiled", lambda self, function: function)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return Run(tmp_path / "run", "tiny", "cpu", resume=False)


@pytest.fixture()
def noisy(tmp_path: Path) -> Recording:
    """Plain frames of one grey under a grain that four numbers a cell cannot hold."""
    rng = np.random.default_rng(0)
    shape = (64, SPEC.frame_height, SPEC.frame_width, 3)
    grey = rng.integers(60, 200, (64, 1, 1, 1))
    frames = np.clip(grey + 40 * rng.choice([-1, 1], (*shape[:3], 1)), 0, 255).astype(np.uint8).repeat(3, 3)
    (tmp_path / "recording" / "train").mkdir(parents=True)
    save_episode(tmp_path / "recording" / "train" / "0.safetensors", "none", Episode(
        0, "random", frames, np.zeros((64, SPEC.actions.size), np.float32), np.zeros(shape[:3], bool),
        {"x": np.zeros(64, np.float32)}))
    return Recording(tmp_path / "recording")


def taught(run: Run, data: Recording, weight: float, steps: int = 100) -> Autoencoder:
    """An autoencoder of random weights whose decoder learns for `steps`."""
    torch.manual_seed(0)
    net = Autoencoder(SPEC)
    student = DecoderStudent(run, SPEC, Polish(batch_frames=8, learning_rate=3e-3, critic_learning_rate=2e-3,
                                               weight=weight, gradient_weight=0.0, warmup=0.0),
                             AutoencoderTraining(), net, data)
    for step in range(steps):
        student.step(np.random.default_rng(step), step / steps)
        for optimizer in student.optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return net


def test_the_judge_brings_grain_back_that_fidelity_takes_for_its_mean(run: Run, noisy: Recording) -> None:
    grain = {weight: measure(run, SPEC, taught(run, noisy, weight).state_dict(), noisy, 32)["gradient"]
             for weight in (0.0, 0.3)}
    assert grain[0.0] < 0.35 and grain[0.3] > 2 * grain[0.0], grain
