"""A code that pans with its picture: shifted latents decode to shifted frames."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional
from worlds import tiny_spec

from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.spec import AutoencoderSpec
from dreamloop.models.networks.autoencoder import Autoencoder, to_pixels
from dreamloop.models.training import run as run_module
from dreamloop.models.training.autoencoder import AutoencoderTraining, shifted, train_autoencoder
from dreamloop.models.training.data import Recording
from dreamloop.models.training.recording import Episode, save_episode
from dreamloop.models.training.run import Run

CELL = 8
SPEC = tiny_spec(frame_height=48, frame_width=64, autoencoder=AutoencoderSpec(6, (24, 24), (0, 1), (0, 1)))


@pytest.fixture()
def views(tmp_path: Path) -> Recording:
    """A window that goes to and fro before coarse blobs, as the first key says."""
    rng = np.random.default_rng(0)
    blobs = torch.from_numpy(rng.standard_normal((1, 3, 6, 60)))
    wide = functional.interpolate(blobs, (SPEC.frame_height, 480), mode="bicubic")
    wall = (128 + 60 * wide[0]).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    actions = np.zeros((96, SPEC.actions.size), np.float32)
    actions[:, 0] = rng.random(96) < 0.5
    place = 200 + np.cumsum(np.where(actions[:, 0] > 0, 5, -5))
    frames = np.stack([wall[:, x : x + SPEC.frame_width] for x in place])
    (tmp_path / "recording" / "train").mkdir(parents=True)
    save_episode(tmp_path / "recording" / "train" / "0.safetensors", "none", Episode(
        0, "random", frames, actions, np.zeros(frames.shape[:3], bool), {"x": np.zeros(96, np.float32)}))
    return Recording(tmp_path / "recording")


@pytest.fixture(autouse=True)
def steps_of_a_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage's clock that every step moves by as much, so that a slow machine takes as many steps as a fast one."""
    monkeypatch.setattr(run_module, "time", SimpleNamespace(monotonic=itertools.count(0.0, 0.02).__next__))


def taught(views: Recording, folder: Path, share: float) -> Autoencoder:
    """An autoencoder after 250 steps."""
    torch.set_num_threads(1)
    run = Run(folder, "tiny", "cpu", resume=False, compiling=False)
    how = AutoencoderTraining(learning_rate=3e-3, ema_decay=0.95, batch_frames=8, shift_share=share)
    train_autoencoder(run, SPEC, how, 5.0, views, views)
    net = Autoencoder(SPEC)
    net.load_state_dict(run.load("autoencoder")["average"])  # type: ignore[index]
    return net


def test_pictures_of_any_scale_are_shifted_alike() -> None:
    torch.manual_seed(0)
    ramp = torch.linspace(0, 1, 64)[None, None, None] + torch.linspace(0, 3, 48)[None, None, :, None]
    pixels = ramp.repeat(9, 2, 1, 1)
    cells = functional.avg_pool2d(pixels, CELL)
    moved, moved_cells = shifted(CELL, pixels, cells)
    inner, inner_cells = slice(CELL, -CELL), slice(1, -1)
    assert torch.allclose(functional.avg_pool2d(moved, CELL)[..., inner_cells, inner_cells],
                          moved_cells[..., inner_cells, inner_cells], atol=1e-5)
    ways = [[(y, x) for y in range(1 - CELL, CELL) for x in range(1 - CELL, CELL)
             if torch.allclose(view[:, inner, inner], pixels[0].roll((-y, -x), (1, 2))[:, inner, inner], atol=1e-4)]
            for view in moved]
    assert all(len(way) == 1 for way in ways) and len({way[0] for way in ways}) > 6, "whole pixels, each view its own"


def off(net: Autoencoder, data: Recording) -> float:
    """Mean squared error of frames decoded from shifted latents, within the frame."""
    torch.manual_seed(4)
    pixels = to_pixels(SPEC, torch.from_numpy(data.frames(0, 0, 64)))
    with torch.no_grad():
        moved, latents = shifted(CELL, pixels, net.encoder(pixels))
        error = net.decoder(latents) - moved
    return float(error[..., CELL:-CELL, CELL:-CELL].square().mean())


def test_a_code_learns_to_pan_with_its_picture(views: Recording, tmp_path: Path) -> None:
    found = {share: off(taught(views, tmp_path / str(share), share), views) for share in (0.0, 0.7)}
    assert found[0.7] < 0.8 * found[0.0], found


def test_frames_of_two_cells_have_nothing_left_within(views: Recording, tmp_path: Path) -> None:
    small = dataclasses.replace(SPEC, frame_height=16)
    with pytest.raises(DreamloopError, match="shift_share needs frames of more than two cells of 8 pixels a side"):
        train_autoencoder(Run(tmp_path / "run", "tiny", "cpu", resume=False), small,
                          AutoencoderTraining(shift_share=0.5), 1.0, views, views)
