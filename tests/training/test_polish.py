"""The decoder gives texture back that fidelity alone smoothes away."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from worlds import tiny_spec

from dreamloop.models.core.spec import AutoencoderSpec
from dreamloop.models.networks.autoencoder import Autoencoder
from dreamloop.models.networks.dit import Dynamics
from dreamloop.models.training.autoencoder import AutoencoderTraining, measure
from dreamloop.models.training.data import LatentClips, Recording
from dreamloop.models.training.polish import DecoderStudent, Dreams, Polish, dream
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


def test_a_dreamed_latent_learns_to_show_what_it_stands_for(run: Run, noisy: Recording) -> None:
    """Latents that the encoder never makes: the decoder meets them in dreams alone."""
    shown = np.full((4, SPEC.frame_height, SPEC.frame_width, 3), 20, np.uint8)
    latents = 3.0 + 0.1 * torch.randn(4, *SPEC.latent_shape)
    dreams = Dreams(latents.half(), shown, np.zeros(shown.shape[:3], bool))
    error = {}
    for dreamed in (None, dreams):
        torch.manual_seed(0)
        net = Autoencoder(SPEC)
        student = DecoderStudent(run, SPEC, Polish(batch_frames=4, learning_rate=3e-3, weight=0.0, dream_share=0.5),
                                 AutoencoderTraining(), net, noisy, dreamed)
        for step in range(60):
            assert set(student.step(np.random.default_rng(step), 0.5)) == {"loss"}  # no judge
            student.optimizers[0].step()
            student.optimizers[0].zero_grad()
        with torch.no_grad():
            error[dreamed is None] = float((net.decode(latents)[..., : SPEC.frame_height, : SPEC.frame_width]
                                            - (20 / 127.5 - 1)).abs().mean())
    assert error[False] < 0.1 < 0.3 < error[True], error


def test_dreams_come_with_the_frames_that_they_follow_and_no_others(run: Run, tmp_path: Path) -> None:
    """A new network makes no change, so behind a latent of t / 100 it dreams (t - 1) / 100 for as long as it may: here
    until one cell is 0.255^2 off, which is 25 frames later."""
    length = 80
    time = np.arange(length)
    shape = (length, SPEC.frame_height, SPEC.frame_width, 3)
    frames = np.broadcast_to(time[:, None, None, None], shape).astype(np.uint8)
    (tmp_path / "recording" / "train").mkdir(parents=True)
    save_episode(tmp_path / "recording" / "train" / "0.safetensors", "none", Episode(
        0, "random", frames, np.zeros((length, SPEC.actions.size), np.float32), frames[..., 0] % 2 == 1,
        {"x": np.zeros(length, np.float32)}))
    data = Recording(tmp_path / "recording")
    z = np.broadcast_to((time / 100)[:, None, None, None], (length, *SPEC.latent_shape)).astype(np.float16)
    clips = LatentClips([z], data.actions, [np.zeros((length, *SPEC.latent_shape[1:]), bool)], 60)
    run.save("dynamics", {"average": Dynamics(SPEC).state_dict()})
    found = dream(run, SPEC, "dynamics", clips, 3, 0.255**2, data)
    assert found.frames is not None and found.objects is not None
    began = (found.latents[:, 0, 0, 0].float() * 100).round().int().numpy()  # the last real frame of each
    ahead = found.frames[:, 0, 0, 0].astype(int) - began
    assert ahead.tolist() == [*range(1, 26)] * 3
    assert (found.objects == (found.frames[..., 0] % 2 == 1)).all()
    assert dream(run, SPEC, "dynamics", clips, 3, 0.0, data).frames is None
