"""A small network that foretells the next latent from the last one and the keys, to teach an autoencoder a code
whose motion can be foretold.

    latents (B, C, h, w), actions (B, A) -> the next latents (B, C, h, w)

It sees three cells to every side, so a pan of more than that is beyond it, as it is for nobody at 30 frames a second.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from dreamloop.models.core.spec import WorldSpec


class Foreteller(nn.Module):
    """Three convolutions; the keys scale what the first two find. At the start all stays as it is."""

    def __init__(self, spec: WorldSpec, width: int = 96) -> None:
        super().__init__()
        channels = spec.autoencoder.latent_channels
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, channels, 3, padding=1)
        self.keys = nn.Linear(spec.actions.size, 4 * width)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, latents: Tensor, actions: Tensor) -> Tensor:
        scale1, shift1, scale2, shift2 = self.keys(actions)[:, :, None, None].chunk(4, dim=1)
        x = functional.gelu(self.first(latents) * (1 + scale1) + shift1)
        x = functional.gelu(self.second(x) * (1 + scale2) + shift2)
        return latents + self.last(x)
