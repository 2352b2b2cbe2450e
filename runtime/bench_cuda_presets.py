"""Networks of a billion parameters with random weights: what a frame of that size costs, not how it looks.

    wan-1.3b      width 1536, 30 layers, 12 heads, feed-forward 8960, 832x480 in 1,560 tokens a frame, 512 text keys
    waypoint-1b   width 2048, 24 layers, 32 query and 16 key heads, feed-forward 8192, 512x1024 in 512 tokens

Trained weights are a matter of their owners; these sizes alone are theirs. The step is that of the engine
(engines/triton_network.py) with the things no world of the zoo has: cross attention to the keys of a text, and fewer
key heads than query heads. The decoder has the sizes of TAEHV (github.com/madebyollin/taehv): three memory blocks at
256, 128 and 64 channels each, which see two frames, and 64 channels at full size; here one latent makes one frame.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from dreamloop.models.core.spec import AutoencoderSpec, DynamicsSpec, MemorySpec, PlanSpec, WorldSpec, weight_shapes
from dreamloop.runtime.bench_limits import pass_operations
from dreamloop.runtime.bench_worlds import ACTIONS
from dreamloop.runtime.engines.triton_linear import LARGEST, NARROW
from dreamloop.runtime.engines.triton_network import Network, Text
from dreamloop.runtime.gpu import kernels_for
from dreamloop.runtime.gpu.graph import capture

DECODER_WIDTHS = (256, 128, 64, 64)
START_FRAME = 1000  # by then every memory here is full


@dataclass(frozen=True)
class Preset:
    """A WorldSpec and what it cannot say. decoder_widths: channels at each resolution, coarsest first."""

    spec: WorldSpec
    key_heads: int
    text_keys: int = 0
    decoder_widths: tuple[int, ...] = DECODER_WIDTHS

    def visible(self, frames: int) -> Preset:
        """The same with another memory."""
        return replace(self, spec=replace(self.spec, memory=MemorySpec(window_frames=frames)))


def _spec(name: str, height: int, width: int, channels: int, stages: int, dynamics: DynamicsSpec, window: int,
          block: int) -> WorldSpec:
    widths = (64,) * stages  # of an autoencoder that is never built; its downsampling is what counts
    return WorldSpec(name, "none", height, width, 30.0, ACTIONS, AutoencoderSpec(channels, widths, (0,) * stages,
                     (0,) * stages), dynamics, MemorySpec(window_frames=window), PlanSpec(block_tokens=block))


PRESETS = {
    "wan-1.3b": Preset(_spec("wan-1.3b", 480, 832, 16, 2, DynamicsSpec(1536, 30, 12, 8960, patch=2), 7, 128), 12, 512),
    "waypoint-1b": Preset(_spec("waypoint-1b", 512, 1024, 32, 3, DynamicsSpec(2048, 24, 32, 8192, patch=2), 16, 128),
                          16)}
TOYS = {
    "wan-1.3b": Preset(_spec("wan-toy", 64, 96, 4, 2, DynamicsSpec(64, 2, 4, 96, patch=2), 3, 8), 4, 32, (8, 8, 4, 4)),
    "waypoint-1b": Preset(_spec("waypoint-toy", 64, 64, 4, 3, DynamicsSpec(64, 2, 4, 96, patch=2), 4, 4), 2, 0,
                          (8, 8, 4, 4))}


class MemoryBlock(nn.Module):
    """Three convolutions that see this frame and the one before it; (1, width, h, w) in and out."""

    past: Tensor

    def __init__(self, width: int, height: int, columns: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2 * width, width, 3, padding=1), nn.ReLU(),
                                    nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
                                    nn.Conv2d(width, width, 3, padding=1))
        self.register_buffer("past", torch.zeros(1, width, height, columns))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.layers(torch.cat([x, self.past], dim=1)) + x)
        self.past.copy_(x)
        return y


class LatentDecoder(nn.Module):
    """(1, C, h, w) -> (1, 3, 8 h or 16 h, ...): three doublings, and a pixel shuffle where the latents lie at 16."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        channels, height, columns = preset.spec.latent_shape
        self.shuffle = preset.spec.autoencoder.downsample // 8
        parts: list[nn.Module] = [nn.Conv2d(channels, preset.decoder_widths[0], 3, padding=1), nn.ReLU()]
        for place, width in enumerate(preset.decoder_widths[:-1]):
            parts += [MemoryBlock(width, height << place, columns << place) for _ in range(3)]
            parts += [nn.Upsample(scale_factor=2),
                      nn.Conv2d(width, preset.decoder_widths[place + 1], 3, padding=1, bias=False)]
        parts += [nn.ReLU(), nn.Conv2d(preset.decoder_widths[-1], 3 * self.shuffle**2, 3, padding=1)]
        self.layers = nn.Sequential(*parts)

    def forward(self, latents: Tensor) -> Tensor:
        """uint8 (1, H, W, 3)."""
        pixels = functional.pixel_shuffle(self.layers(latents), self.shuffle)
        return (pixels.float() * 255).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def weight_shapes_of(preset: Preset) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the network."""
    spec, d = preset.spec, preset.spec.dynamics
    shapes = {name.removeprefix("dynamics."): shape for name, shape in weight_shapes(spec).items()
              if name.startswith("dynamics.")}
    for i in range(d.layers):
        shapes[f"blocks.{i}.qkv.weight"] = (d.width + 2 * preset.key_heads * d.head_size, d.width)
        if preset.text_keys:
            for part in ("query", "out"):
                shapes[f"blocks.{i}.cross.{part}.weight"] = (d.width, d.width)
            shapes[f"blocks.{i}.cross.query_norm"] = (d.head_size,)
    return shapes


def random_weights(preset: Preset, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every tensor of the network, made on the device; none is trivial, activations stay of order one."""
    generator = torch.Generator(device).manual_seed(0)

    def drawn(name: str, shape: tuple[int, ...]) -> Tensor:
        value = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        if name.endswith(("query_norm", "key_norm")):
            return 1 + 0.1 * value
        scale = 0.1 if len(shape) == 1 or name.endswith("table") else float(shape[-1]) ** -0.5
        return value * (0.1 * scale if name == "output.weight" else scale)
    return {name: drawn(name, shape) for name, shape in weight_shapes_of(preset).items()}


class PresetFrame:
    """One player in front of a preset, with full memory: `step` is the network, `eagerly` a whole frame.
    precision: of the engine; the scales of FP8 are a guess here, for time does not depend on them. read_bytes: what a
    pass has to read, every weight and all keys and values once."""

    def __init__(self, preset: Preset, device: torch.device, precision: str = "bf16") -> None:
        self.preset, self.device, self.spec = preset, device, preset.spec
        self.dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        weights = random_weights(preset, device, self.dtype)
        layers, _, _, _, rows, size = self.spec.ring_shape(1)
        generator = torch.Generator(device).manual_seed(1)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device, dtype=self.dtype)
        self.ring = random(layers, 2, 1, preset.key_heads, rows, size)
        self.text = Text.of(random(layers, 2, 1, preset.key_heads, preset.text_keys, size),
                            self.spec.tokens) if preset.text_keys else None
        largest = {(i, name): 0.05 * LARGEST for i in range(layers) for name in NARROW} if precision.startswith(
            "fp8") else None
        narrow_bytes = sum(weights[f"blocks.{i}.{name}.weight"].nbytes // 2 for i, name in largest or ())  # spared
        self.read_bytes = (sum(weight.nbytes for weight in weights.values()) - narrow_bytes + self.ring.nbytes
                           + (self.text.ring.nbytes if self.text else 0))
        self.network = Network(self.spec, weights, kernels_for(device), preset.key_heads, self.text, largest,
                               torch.int8 if precision.endswith("-qk8") else None)
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            decoder = LatentDecoder(preset)
        decoder.to(device, self.dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.decoder = decoder.eval()
        self.frame = torch.full((1,), START_FRAME, dtype=torch.int64, device=device)
        self.latent = torch.randn(1, *self.spec.latent_shape, generator=generator, device=device)
        self.noise = torch.randn(1, *self.spec.latent_shape, generator=generator, device=device)
        self.action = torch.ones(1, self.spec.actions.size, device=device)
        self.pixels = torch.zeros(1, self.spec.frame_height, self.spec.frame_width, 3, dtype=torch.uint8, device=device)

    @torch.inference_mode()
    def step(self) -> Tensor:
        """The network alone; returns z, (1, C, h, w) float32."""
        inputs = self.network.inputs(self.frame)
        return self.network(self.latent, self.noise, self.action, 0, inputs, self.ring)

    @torch.inference_mode()
    def eagerly(self) -> None:
        """Network and decoder; the latent stays where it is, for random weights lead nowhere."""
        z = self.step().to(self.dtype, memory_format=torch.channels_last)
        self.pixels.copy_(self.decoder(z))
        self.frame += 1

    def captured(self) -> Tensor:
        """What `step` gives, which has run before, by a captured graph: a new one, replayed once."""
        made = torch.empty(0)

        def step() -> None:
            nonlocal made
            made = self.step()
        with torch.inference_mode():  # replaying too: torch may write to what it made for the graph in this mode
            graph = capture(step)
            made.fill_(torch.nan)  # so that what the graph does not write is seen
            graph.replay()
            torch.cuda.synchronize(self.device)  # before the graph is gone
            return made


def operations(preset: Preset) -> dict[str, float]:
    """FLOP of one pass of the network, one player, full memory, by operation; the decoder is not among them."""
    spec, d = preset.spec, preset.spec.dynamics
    parts = pass_operations(spec)
    parts["qkv"] -= 4.0 * spec.tokens * d.width * (d.width - preset.key_heads * d.head_size) * d.layers
    if preset.text_keys:
        parts["cross"] = 4.0 * spec.tokens * d.width * (d.width + preset.text_keys) * d.layers
    return parts


