"""The autoencoder: frames to latents and back, every convolution at a quarter of the frame or less.

    frame (3, 120, 160) -> pad to (3, 128, 160) -> pixel-unshuffle 4 -> stages, halving -> (C, 8, 10)

A convolution at full resolution would cost more than all the rest together on a CPU; the
pixel-shuffles at both ends leave that work to one matrix product. Latents are normalised per
channel to mean 0 and deviation 1 over the training data, so noise of deviation 1 is a natural
unit for them. Parameter names are those of `core.spec.weight_shapes`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from dreamloop.models.core.spec import PIXEL_SHUFFLE, AutoencoderSpec, WorldSpec


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(relu(x)))), without normalisation; (B, width, h, w) in and out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        for parameter in self.second.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(functional.relu(self.first(functional.relu(x))))


class Stage(nn.Module):
    """Residual blocks at one resolution, then (encoder) `down` or (decoder) `up` where there is one."""

    def __init__(self, width: int, blocks: int, down: int = 0, up: int = 0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(blocks))
        if down:
            self.down = nn.Conv2d(width, down, 3, stride=2, padding=1)
        if up:
            self.up = nn.Conv2d(width, 4 * up, 1)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        if hasattr(self, "down"):
            x = self.down(x)
        if hasattr(self, "up"):
            x = functional.pixel_shuffle(self.up(x), 2)
        return x


class Encoder(nn.Module):
    """(B, 3, padded height, padded width) in [-1, 1] -> (B, C, height/16, width/16), not normalised."""

    def __init__(self, spec: AutoencoderSpec) -> None:
        super().__init__()
        widths = spec.widths
        self.stem = nn.Conv2d(3 * PIXEL_SHUFFLE**2, widths[0], 3, padding=1)
        self.stages = nn.ModuleList(
            Stage(width, spec.encoder_blocks[i], down=widths[i + 1] if i + 1 < len(widths) else 0)
            for i, width in enumerate(widths))
        self.head = nn.Conv2d(widths[-1], spec.latent_channels, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.stem(functional.pixel_unshuffle(pixels, PIXEL_SHUFFLE))
        for stage in self.stages:
            x = stage(x)
        return self.head(functional.relu(x))


class Decoder(nn.Module):
    """(B, C, h, w), not normalised -> (B, 3, padded height, padded width), about [-1, 1]."""

    def __init__(self, spec: AutoencoderSpec) -> None:
        super().__init__()
        widths = spec.widths
        self.stem = nn.Conv2d(spec.latent_channels, widths[-1], 3, padding=1)
        self.stages = nn.ModuleList(
            Stage(width, spec.decoder_blocks[i], up=widths[i - 1] if i > 0 else 0)
            for i, width in enumerate(widths))
        self.head = nn.Conv2d(widths[0], 3 * PIXEL_SHUFFLE**2, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.stem(latents)
        for stage in reversed(self.stages):
            x = stage(x)
        return functional.pixel_shuffle(self.head(functional.relu(x)), PIXEL_SHUFFLE)


class Autoencoder(nn.Module):
    """Encoder, decoder, and the statistics that normalise the latents between them."""

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, spec: WorldSpec) -> None:
        super().__init__()
        self.spec = spec
        channels = spec.autoencoder.latent_channels
        self.encoder = Encoder(spec.autoencoder)
        self.decoder = Decoder(spec.autoencoder)
        self.register_buffer("latent_mean", torch.zeros(channels))
        self.register_buffer("latent_std", torch.ones(channels))

    def encode(self, frames: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 -> normalised latents (B, C, h, w)."""
        raw = self.encoder(to_pixels(self.spec, frames, self.latent_mean.dtype))
        return (raw - self.latent_mean[:, None, None]) / self.latent_std[:, None, None]

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents (B, C, h, w) -> (B, 3, padded height, padded width), about [-1, 1]."""
        return self.decoder(latents * self.latent_std[:, None, None] + self.latent_mean[:, None, None])


def to_pixels(spec: WorldSpec, frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, padded height, padded width) in [-1, 1]; the padding repeats
    the last row and column."""
    pixels = frames.permute(0, 3, 1, 2).to(dtype) / 127.5 - 1.0
    pad = (0, spec.padded_width - spec.frame_width, 0, spec.padded_height - spec.frame_height)
    return functional.pad(pixels, pad, mode="replicate") if any(pad) else pixels


def to_frames(spec: WorldSpec, pixels: Tensor) -> Tensor:
    """Inverse of `to_pixels`: crop, clamp, round; returns (B, H, W, 3) uint8."""
    cropped = pixels[:, :, : spec.frame_height, : spec.frame_width]
    return ((cropped.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
