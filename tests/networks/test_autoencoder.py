"""The autoencoder: names and shapes as specified, cheap convolutions, frames in and out of any size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from worlds import random_frames, random_weights, tiny_spec

from dreamloop.models.core.spec import PIXEL_SHUFFLE, AutoencoderSpec, PlanSpec, WorldSpec, weight_shapes
from dreamloop.models.networks.autoencoder import Autoencoder, to_frames, to_pixels

SPECS = {
    "tiny": tiny_spec(),
    "160x120": tiny_spec(frame_height=120, frame_width=160),
    "odd": tiny_spec(frame_height=37, frame_width=61, plan=PlanSpec()),
    "two stages": tiny_spec(autoencoder=AutoencoderSpec(6, (8, 12), (2, 1), (0, 2))),
    "one stage": tiny_spec(autoencoder=AutoencoderSpec(3, (8,), (1,), (1,))),
}
each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def network(spec: WorldSpec) -> Autoencoder:
    net = Autoencoder(spec)
    net.load_state_dict({name.removeprefix("autoencoder."): torch.from_numpy(value)
                         for name, value in random_weights(spec).items() if name.startswith("autoencoder.")})
    return net.requires_grad_(False)


@each_spec
def test_state_has_the_names_and_shapes_of_the_specification(spec: WorldSpec) -> None:
    found = {f"autoencoder.{name}": tuple(value.shape) for name, value in Autoencoder(spec).state_dict().items()}
    assert found == {name: shape for name, shape in weight_shapes(spec).items() if name.startswith("autoencoder.")}


@each_spec
def test_frames_become_latents_and_frames_again(spec: WorldSpec) -> None:
    net = network(spec)
    frames = torch.from_numpy(random_frames(spec, 2))
    latents = net.encode(frames)
    assert latents.shape == (2, *spec.latent_shape) and latents.dtype == torch.float32
    decoded = to_frames(spec, net.decode(latents))
    assert decoded.shape == frames.shape and decoded.dtype == torch.uint8 and decoded.is_contiguous()


@each_spec
def test_every_convolution_runs_at_a_quarter_of_the_frame_or_less(spec: WorldSpec) -> None:
    net, sizes = network(spec), []

    def watch(module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        sizes.extend(tensor.shape[-2:] for tensor in (inputs[0], output))

    layers = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    for layer in layers:
        layer.register_forward_hook(watch)
    net.decode(net.encode(torch.from_numpy(random_frames(spec, 1))))
    assert len(sizes) == 2 * len(layers), "a convolution that never ran, or ran twice"
    largest = spec.padded_height // PIXEL_SHUFFLE, spec.padded_width // PIXEL_SHUFFLE
    assert all(height <= largest[0] and width <= largest[1] for height, width in sizes)
    assert largest in [tuple(size) for size in sizes]


@each_spec
def test_padding_then_cropping_gives_every_pixel_back(spec: WorldSpec) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, spec.frame_height, spec.frame_width, 3), np.uint8)
    pixels = to_pixels(spec, torch.from_numpy(frames))
    assert pixels.shape == (2, 3, spec.padded_height, spec.padded_width)
    assert pixels.min() >= -1 and pixels.max() <= 1
    np.testing.assert_array_equal(to_frames(spec, pixels).numpy(), frames)


def test_160x120_is_padded_at_the_bottom_with_its_last_row() -> None:
    spec = SPECS["160x120"]
    assert (spec.padded_height, spec.padded_width) == (128, 160) and spec.latent_shape[1:] == (8, 10)
    pixels = to_pixels(spec, torch.from_numpy(random_frames(spec, 1)))
    assert (pixels[:, :, 120:] == pixels[:, :, 119:120]).all()


def test_every_grey_value_survives_and_what_is_too_bright_is_clamped() -> None:
    spec = tiny_spec(frame_height=16, frame_width=16, plan=PlanSpec())
    ramp = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(1, 16, 16, 3)
    assert torch.equal(to_frames(spec, to_pixels(spec, ramp)), ramp)
    assert (to_frames(spec, torch.full((1, 3, 16, 16), 9.0)) == 255).all()
    assert (to_frames(spec, torch.full((1, 3, 16, 16), -9.0)) == 0).all()


def test_latents_are_in_units_of_their_own_deviation() -> None:
    """Changing the statistics changes the latents as documented, and decoding undoes it."""
    spec = tiny_spec()
    net, frames = network(spec), torch.from_numpy(random_frames(spec, 2))
    raw = net.encoder(to_pixels(spec, frames))
    mean, std = (value[:, None, None] for value in (net.latent_mean, net.latent_std))
    torch.testing.assert_close(net.encode(frames), (raw - mean) / std)
    torch.testing.assert_close(net.decode(net.encode(frames)), net.decoder(raw), rtol=1e-4, atol=1e-4)
