"""A code that pans with its picture: shifted latents decode to shifted frames."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from worlds import tiny_spec

from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.spec import AutoencoderSpec
from dreamloop.models.networks.autoencoder import Autoencoder, to_pixels
from dreamloop.models.training.autoencoder import AutoencoderTraining, shifted, train_autoencoder
from dreamloop.models.training.data import Recording
from dreamloop.models.training.recording import Episode, save_episode
from dreamloop.models.training.run import Run

CELL = 8
SPEC = tiny_spec(frame_height=48, frame_width=64, autoencoder=AutoencoderSpec(6, (24, 24), (0, 1), (0, 1)))


@pytest.fixture()
def views(tmp_path: Path) -> Recording:
    """Frames of coarse blobs, each somewhere else."""
    rng = np.random.default_rng(0)
    blobs = torch.from_numpy(rng.standard_normal((96, 3, 6, 8)))
    wide = functional.interpolate(blobs, (SPEC.frame_height, SPEC.frame_width), mode="bicubic")
    frames = (128 + 60 * wide).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    (tmp_path / "recording" / "train").mkdir(parents=True)
    save_episode(tmp_path / "recording" / "train" / "0.safetensors", "none", Episode(
        0, "random", frames, np.zeros((96, SPEC.actions.size), np.float32), np.zeros(frames.shape[:3], bool),
        {"x": np.zeros(96, np.float32)}))
    return Recording(tmp_path / "recording")


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
    torch.set_num_threads(1)
    found = {}
    for share in (0.0, 0.7):
        run = Run(tmp_path / str(share), "tiny", "cpu", resume=False, compiling=False)
        how = AutoencoderTraining(shift_share=share, learning_rate=3e-3, ema_decay=0.95, batch_frames=8)
        train_autoencoder(run, SPEC, how, 8.0, views, views)
        net = Autoencoder(SPEC)
        net.load_state_dict(run.load("autoencoder")["average"])  # type: ignore[index]
        found[share] = off(net, views)
    assert found[0.7] < 0.8 * found[0.0], found


def test_frames_of_two_cells_have_nothing_left_within(views: Recording, tmp_path: Path) -> None:
    small = dataclasses.replace(SPEC, frame_height=16)
    with pytest.raises(DreamloopError, match="shift_share needs frames of more than two cells of 8 pixels a side"):
        train_autoencoder(Run(tmp_path / "run", "tiny", "cpu", resume=False), small,
                          AutoencoderTraining(shift_share=0.5), 1.0, views, views)
