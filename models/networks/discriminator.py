"""Discriminators, of clips of latents and of patches of pixels.

The clip discriminator: is this stretch of latents the game, given the keys that were held?

It sees all frames of a clip at once (a causal judge lets motion die: AAD-1), and the keys, so that a
lively picture that ignores them is told from the game too. Every frame gets a verdict.

    latents (B, F, C, h, w), actions (B, F, A) -> logits (B, F), above 0 where it believes in the game

The patch discriminator sees patches of some thirty pixels of one frame, so it judges texture and edges, and leaves
what is where to the loss beside it.

    pixels (B, 3, H, W) in [-1, 1] -> logits (B, 1, H / 8, W / 8)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from dreamloop.models.core.spec import WorldSpec


class PatchDiscriminator(nn.Module):
    """Convolutions at a half, a quarter and an eighth of the resolution."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(2), nn.Conv2d(12, width, 3, padding=1), nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1), nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 3, padding=1))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels)


class ClipDiscriminator(nn.Module):
    """Residual 3-D convolutions over time, rows and columns; space is pooled at the end, time is not."""

    def __init__(self, spec: WorldSpec, width: int = 96, blocks: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv3d(spec.autoencoder.latent_channels, width, 3, padding=1)
        self.action = nn.Linear(spec.actions.size, width)
        # halve rows and columns once: 8 x 10 latents become 4 x 5 cells of two frames' motion each
        self.down = nn.Conv3d(width, width, (3, 2, 2), stride=(1, 2, 2), padding=(1, 0, 0))
        self.blocks = nn.ModuleList(nn.Sequential(nn.GroupNorm(8, width), nn.LeakyReLU(0.2),
                                                  nn.Conv3d(width, width, 3, padding=1)) for _ in range(blocks))
        self.norm = nn.GroupNorm(8, width)
        self.head = nn.Linear(2 * width, 1)

    def forward(self, latents: Tensor, actions: Tensor) -> Tensor:
        x = self.stem(latents.transpose(1, 2))  # (B, W, F, h, w)
        held = self.action(actions).transpose(1, 2)[..., None, None]
        x = self.down(functional.leaky_relu(x + held, 0.2))
        for block in self.blocks:
            x = x + block(x)
        x = functional.leaky_relu(self.norm(x), 0.2)
        # mean: how much of the picture looks right; peak: one wrong monster is enough
        pooled = torch.cat([x.mean((3, 4)), x.amax((3, 4))], dim=1)
        return self.head(pooled.transpose(1, 2))[..., 0]
