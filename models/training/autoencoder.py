"""Stage `autoencoder`: frames to latents and back, with small things kept.

What the autoencoder drops, no dynamics can dream. A monster of eight pixels is half a percent of
the frame, so a plain loss forgets it; here the loss of a pixel is weighted by what it shows:

    weight = 1 + object_weight [object] + change_weight |frame - previous frame|      (mean 1 per batch)
    loss   = weight (|e| + 2 e^2) + gradient_weight sum over scales |grad e|

Latents are normalised by running statistics, then noise of deviation U(0, latent_noise) is added
before decoding, so that small errors of the dynamics decode to small errors of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor
from torch.nn import functional

from dreamloop.models.core.spec import WorldSpec
from dreamloop.models.networks.autoencoder import Autoencoder, to_frames, to_pixels
from dreamloop.models.training.data import LatentClips, Recording
from dreamloop.models.training.run import Average, Run, train_stage


@dataclass(frozen=True)
class AutoencoderTraining:
    batch_frames: int = 16
    learning_rate: float = 1.5e-3
    object_weight: float = 8.0
    change_weight: float = 2.0
    gradient_weight: float = 0.5
    latent_noise: float = 0.15
    ema_decay: float = 0.998


def channels_last(net: Autoencoder) -> Autoencoder:
    """The layout that convolutions run fastest in."""
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def pixel_weights(settings: AutoencoderTraining, pixels: Tensor, before: Tensor, objects: Tensor) -> Tensor:
    """(B, 1, h, w) weights of mean 1. pixels, before: (B, 3, h, w) in [-1, 1]; objects: (B, h, w) float."""
    near = functional.max_pool2d(objects[:, None], 3, stride=1, padding=1)
    change = (pixels - before).abs().mean(1, keepdim=True).clamp(max=1.0)
    weight = 1.0 + settings.object_weight * near + settings.change_weight * change
    return weight / weight.mean()


def gradient_loss(error: Tensor, scales: int = 3) -> Tensor:
    """Mean absolute spatial gradient of the error over `scales` halvings: keeps edges where they are."""
    total = error.new_zeros(())
    for scale in range(scales):
        total = total + error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        if scale + 1 < scales:
            error = functional.avg_pool2d(error, 2)
    return total


def _batch(run: Run, spec: WorldSpec, data: Recording, rng: np.random.Generator,
           count: int) -> tuple[Tensor, Tensor, Tensor]:
    now, before, objects = (torch.from_numpy(x).to(run.device) for x in data.sample_frames(rng, count))
    pad = (0, spec.padded_width - spec.frame_width, 0, spec.padded_height - spec.frame_height)
    pixels = to_pixels(spec, now).contiguous(memory_format=torch.channels_last)
    return pixels, to_pixels(spec, before), functional.pad(objects.float(), pad)


def train_autoencoder(run: Run, spec: WorldSpec, settings: AutoencoderTraining, seconds: float,
                      data: Recording, held_out: Recording) -> dict[str, float]:
    """Train for `seconds`, leave the averaged weights in `autoencoder.ckpt`; returns figures."""
    torch.manual_seed(0)
    net = channels_last(Autoencoder(spec).to(run.device))
    optimizer = torch.optim.AdamW(net.parameters(), lr=settings.learning_rate, weight_decay=1e-4, betas=(0.9, 0.99))
    encoder, decoder = run.compiled(net.encoder), run.compiled(net.decoder)

    def step(rng: np.random.Generator, spent: float) -> dict[str, Tensor]:
        pixels, before, objects = _batch(run, spec, data, rng, settings.batch_frames)
        with run.autocast():
            raw = encoder(pixels)
        raw = raw.float()
        _track(net, raw.detach())
        noise = torch.randn_like(raw) * torch.rand(len(raw), 1, 1, 1, device=raw.device) * settings.latent_noise
        with run.autocast():
            out = decoder(raw + noise * net.latent_std[:, None, None])
        error = out.float() - pixels
        weight = pixel_weights(settings, pixels, before, objects)
        fidelity = (weight * (error.abs() + 2.0 * error.square())).mean()
        loss = fidelity + settings.gradient_weight * gradient_loss(error)
        loss.backward()
        return {"loss": loss, "mse": error.square().mean()}

    def report(average: Average) -> dict[str, float]:
        return measure(run, spec, average.values, held_out)

    values = train_stage(run, "autoencoder", net, [optimizer], seconds, step, settings.ema_decay, report=report)
    return measure(run, spec, values, held_out)


@torch.no_grad()
def _track(net: Autoencoder, raw: Tensor) -> None:
    """Running mean and deviation per channel; the first batch sets them."""
    mean, std = raw.mean((0, 2, 3)), raw.std((0, 2, 3))
    first = bool((net.latent_mean == 0).all())
    net.latent_mean.lerp_(mean, 1.0 if first else 0.02)
    net.latent_std.lerp_(std.clamp(min=1e-3), 1.0 if first else 0.02)


@torch.no_grad()
def measure(run: Run, spec: WorldSpec, values: dict[str, Tensor], data: Recording,
            frames: int = 160) -> dict[str, float]:
    """PSNR in dB of encoding and decoding held-out frames: over all pixels, and over the pixels of
    small objects alone."""
    net = Autoencoder(spec).to(run.device)
    net.load_state_dict(values)
    rng = np.random.default_rng(5)
    squared, squared_objects, pixels, object_pixels = 0.0, 0.0, 0, 0
    for _ in range(frames // 16):
        now, _, objects = data.sample_frames(rng, 16)
        decoded = to_frames(spec, net.decode(net.encode(torch.from_numpy(now).to(run.device)))).cpu().numpy()
        error = np.square(decoded.astype(np.float64) - now).mean(axis=3)
        squared, pixels = squared + error.sum(), pixels + error.size
        squared_objects, object_pixels = squared_objects + error[objects].sum(), object_pixels + objects.sum()
    return {"psnr": 10 * np.log10(255**2 * pixels / squared),
            "psnr_objects": 10 * np.log10(255**2 * object_pixels / max(squared_objects, 1e-9))}


@torch.no_grad()
def encode_recording(run: Run, spec: WorldSpec, split: str, data: Recording, clip_frames: int) -> LatentClips:
    """The latents of every episode and which latent cells show a small thing, ready to be cut into
    clips. Kept in RUN/latents_SPLIT.safetensors, so a resumed run does not encode again."""
    path = run.folder / f"latents_{split}.safetensors"
    if not path.exists():
        _encode(run, spec, data, path)
    kept = load_file(path)
    parts = [np.split(kept[name], data.starts[1:-1]) for name in ("latents", "objects")]
    return LatentClips(parts[0], data.actions, parts[1], clip_frames)


def _encode(run: Run, spec: WorldSpec, data: Recording, path: Path) -> None:
    net = channels_last(Autoencoder(spec).to(run.device))
    saved = run.load("autoencoder")
    assert saved is not None, "the autoencoder is trained before anything is encoded"
    net.load_state_dict(saved["average"])
    latents, objects = [], []
    cell = spec.autoencoder.downsample
    pad = ((0, 0), (0, spec.padded_height - spec.frame_height), (0, spec.padded_width - spec.frame_width))
    with run.console.status(f"encoding {len(data)} frames"), run.autocast():
        for episode, length in enumerate(map(int, data.lengths)):
            for first in range(0, length, 64):
                frames = torch.from_numpy(data.frames(episode, first, 64)).to(run.device)
                # contiguous: a channels-last array would be written to the file in its own order
                latents.append(np.ascontiguousarray(net.encode(frames).half().cpu().numpy()))
            shown = np.pad(data.objects(episode, 0, length), pad)
            objects.append(shown.reshape(length, spec.latent_height, cell, spec.latent_width, cell).any((2, 4)))
    partial = path.with_suffix(".partial")
    save_file({"latents": np.ascontiguousarray(np.concatenate(latents)), "objects": np.concatenate(objects)}, partial)
    partial.replace(path)
