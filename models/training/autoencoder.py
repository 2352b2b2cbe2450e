"""Stage `autoencoder`: frames to latents and back, with small things kept.

What the autoencoder drops, no dynamics can dream. A monster of eight pixels is half a percent of
the frame, so a plain loss forgets it; here the loss of a pixel is weighted by what it shows:

    weight = 1 + object_weight [object] max(1, object_size / its area)
               + change_weight |frame - previous frame|                               (mean 1 per batch)
    loss   = weight (|e| + 2 e^2) + gradient_weight sum over scales |grad e|

What it keeps must also be foretold: the finer the texture in the code, the more it scrambles when
the picture pans by a fraction of a cell. `motion_error` is measured beside the PSNR for that. A share of the batches
may ask for a code that pans with its picture: latents are shifted by a part of a cell, as one shifts any picture
(bilinear), and must decode to the frames shifted likewise.

Latents are normalised by running statistics, then noise of deviation U(0, latent_noise) is added
before decoding, so that small errors of the dynamics decode to small errors of the picture.

Source of the shift: EQ-VAE (Kouzelis et al. 2025: latents that turn and shrink as their pictures do).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor
from torch.nn import functional

from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.spec import WorldSpec
from dreamloop.models.core.world import World
from dreamloop.models.networks.autoencoder import Autoencoder, to_frames, to_pixels
from dreamloop.models.training.data import LatentClips, Recording
from dreamloop.models.training.inherit import inherited
from dreamloop.models.training.run import Average, Run, train_stage
from dreamloop.models.training.things import thing_weights, things_kept

FALLEN = 0.7  # share of the stage after which `object_weight` stays at its end


@dataclass(frozen=True)
class AutoencoderTraining:
    """object_weight, change_weight: see above; object_weight_end: what `object_weight` falls to (None: it stays);
    object_size: pixels, a thing of fewer weighs as much as one of so many (0: by its area); latent_noise:
    deviations; crop_share: of the batches are windows around things (`around_things`), of crop_cells latent cells
    a side and crops to a frame, instead of whole frames; shift_share: of the batches are decoded from shifted latents
    (`shifted`)."""

    batch_frames: int = 16
    learning_rate: float = 1.5e-3
    object_weight: float = 8.0
    object_weight_end: float | None = None
    object_size: int = 0
    change_weight: float = 1.0
    gradient_weight: float = 0.25
    latent_noise: float = 0.15
    crop_share: float = 0.0
    crop_cells: int = 5
    crops: int = 4
    shift_share: float = 0.0
    ema_decay: float = 0.998

    def later(self, spent: float) -> AutoencoderTraining:
        """The settings when the share `spent` of the stage is over: `object_weight` falls geometrically to its end,
        which it reaches at `FALLEN`. A great weight makes small things found, but shows them wherever they might be,
        in a cloud: a pixel of weight w is lit from a chance of 1 in w on. A small weight shows them where they are."""
        if self.object_weight_end is None:
            return self
        fall = min(spent / FALLEN, 1.0)
        return replace(self, object_weight=self.object_weight ** (1 - fall) * self.object_weight_end**fall)


def channels_last(net: Autoencoder) -> Autoencoder:
    """The layout that convolutions run fastest in."""
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def pixel_weights(settings: AutoencoderTraining, pixels: Tensor, before: Tensor, objects: Tensor) -> Tensor:
    """(B, 1, h, w) weights of mean 1. pixels, before: (B, 3, h, w) in [-1, 1]; objects: (B, h, w) float."""
    near = thing_weights(objects, settings.object_size)
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


def fidelity(settings: AutoencoderTraining, decoded: Tensor, pixels: Tensor, before: Tensor, objects: Tensor) -> Tensor:
    """Mean weighted error of decoded pixels; shapes as in `pixel_weights`."""
    error = decoded - pixels
    return (pixel_weights(settings, pixels, before, objects) * (error.abs() + 2.0 * error.square())).mean()


def sample_batch(run: Run, spec: WorldSpec, data: Recording, rng: np.random.Generator,
                 count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Frames and those before them (count, 3, h, w) in [-1, 1]; objects (count, h, w) float."""
    frames, _, objects = data.sample_moments(rng, count)
    return batch_of(run, spec, frames[:, 2], frames[:, 1], objects)


def batch_of(run: Run, spec: WorldSpec, frames: np.ndarray, last: np.ndarray,
             objects: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """The same of given frames, those before them (count, H, W, 3) uint8 and objects (count, H, W) bool."""
    now, before = (to_pixels(spec, torch.from_numpy(x).to(run.device)) for x in (frames, last))
    pad = (0, spec.padded_width - spec.frame_width, 0, spec.padded_height - spec.frame_height)
    return (now.contiguous(memory_format=torch.channels_last), before,
            functional.pad(torch.from_numpy(objects).to(run.device).float(), pad))


def around_things(settings: AutoencoderTraining, cell: int, pixels: Tensor, before: Tensor,
                  objects: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Windows of `crop_cells` cells a side, on the grid of the cells, around or beside a thing, small ones as often as
    large ones (anywhere, where a frame shows none): where a thing fills a thousandth of a frame, nearly all of the
    time that a whole frame takes goes by without it. Shapes as `sample_batch` gives them, `crops` times as many."""
    side = settings.crop_cells * cell
    height, width = pixels.shape[2:]
    weight = thing_weights(objects, settings.object_size)[:, 0] + 1e-6
    place = torch.multinomial(weight.flatten(1), settings.crops, replacement=True).flatten()
    shift = torch.randint(0, side, (2, len(place)), device=pixels.device)
    top, left = (((at - by).div(cell, rounding_mode="floor") * cell).clamp(0, size - side).tolist()
                 for at, by, size in ((place // width, shift[0], height), (place % width, shift[1], width)))
    frame = [i // settings.crops for i in range(len(place))]

    def windows(x: Tensor) -> Tensor:
        return torch.stack([x[i, ..., t : t + side, w : w + side] for i, t, w in zip(frame, top, left, strict=True)])

    return windows(pixels).contiguous(memory_format=torch.channels_last), windows(before), windows(objects)


def shifted(cell: int, *pictures: Tensor) -> list[Tensor]:
    """Pictures of the same views at any scales, (B, C, h, w) each, every view shifted by up to a cell of `cell` pixels
    up or down and left or right, by whole pixels: pixels stay what they were, latents are mixed of four cells. What
    comes in over the edge repeats it."""
    views, _, height, width = pictures[0].shape
    by = torch.randint(1 - cell, cell, (views, 2)) / (0.5 * torch.tensor([width, height]))
    turn = torch.eye(2).repeat(views, 1, 1)
    found = []
    for picture in pictures:
        way = functional.affine_grid(torch.cat([turn, by[:, :, None]], dim=2), list(picture.shape), align_corners=False)
        found.append(functional.grid_sample(picture, way.to(picture.device, picture.dtype), padding_mode="border",
                                            align_corners=False))
    return found


def train_autoencoder(run: Run, spec: WorldSpec, settings: AutoencoderTraining, seconds: float,
                      data: Recording, held_out: Recording, begin: World | None = None) -> dict[str, float]:
    """Train for `seconds`, leave the averaged weights in `autoencoder.ckpt`; returns figures. begin: a world whose
    weights are the first ones."""
    torch.manual_seed(0)
    cell = spec.autoencoder.downsample
    if settings.shift_share and min(spec.padded_height, spec.padded_width) <= 2 * cell:
        raise DreamloopError(f"{spec.name}: shift_share needs frames of more than two cells of {cell} pixels a side")
    net = Autoencoder(spec)
    if begin is not None:
        net.load_state_dict(inherited(begin, spec, "autoencoder"))
    net = channels_last(net.to(run.device))
    optimizer = torch.optim.AdamW(net.parameters(), lr=settings.learning_rate, weight_decay=1e-4, betas=(0.9, 0.99))
    encoder, decoder = run.compiled(net.encoder), run.compiled(net.decoder)

    def step(rng: np.random.Generator, spent: float) -> dict[str, Tensor]:
        torch.manual_seed(int(rng.integers(2**31)))
        pixels, before, objects = sample_batch(run, spec, data, rng, settings.batch_frames)
        whole = rng.random() >= settings.crop_share
        if not whole:
            pixels, before, objects = around_things(settings, cell, pixels, before, objects)
        with run.autocast():
            raw = encoder(pixels)
        raw = raw.float()
        if whole:  # things are not all that the latents say
            _track(net, raw.detach())
        inner = slice(None)
        if rng.random() < settings.shift_share:
            pixels, before, marks, raw = shifted(cell, pixels, before, objects[:, None], raw)
            objects, inner = (marks[:, 0] > 0.5).float(), slice(cell, -cell)  # without what came in over the edge
        noise = torch.randn_like(raw) * torch.rand(len(raw), 1, 1, 1, device=raw.device) * settings.latent_noise
        with run.autocast():
            out = decoder(raw + noise * net.latent_std[:, None, None])
        made, pixels, before, objects = (x.float()[..., inner, inner] for x in (out, pixels, before, objects))
        error = made - pixels
        loss = (fidelity(settings.later(spent), made, pixels, before, objects)
                + settings.gradient_weight * gradient_loss(error))
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
            moments: int = 256) -> dict[str, float]:
    """Figures on held-out moments. psnr, psnr_objects: PSNR in dB of encoding and decoding, over all
    pixels and over those of small objects alone; objects_kept: the share of things that are still to be seen
    (things.py), small ones counting as much as large ones; gradient: mean absolute difference of neighbouring
    pixels over the game's, 1 where no texture is lost; motion_error: see `motion_error`."""
    net = channels_last(Autoencoder(spec).to(run.device))
    net.load_state_dict(values)
    rng = np.random.default_rng(5)
    squared, squared_objects, pixels, object_pixels = 0.0, 0.0, 0, 0
    kept = np.zeros(2)
    gradients = np.zeros(2)
    pairs, held = [], []
    for _ in range(moments // 16):
        frames, actions, objects = data.sample_moments(rng, 16)
        latents = net.encode(torch.from_numpy(frames[:, 1:]).to(run.device).flatten(0, 1)).unflatten(0, (16, 2))
        now = frames[:, 2]
        decoded = to_frames(spec, net.decode(latents[:, 1])).cpu().numpy()
        error = np.square(decoded.astype(np.float64) - now).mean(axis=3)
        gradients += [sum(np.abs(np.diff(x.astype(np.float32), axis=i)).sum() for i in (1, 2)) for x in (decoded, now)]
        squared, pixels = squared + error.sum(), pixels + error.size
        squared_objects, object_pixels = squared_objects + error[objects].sum(), object_pixels + objects.sum()
        kept += sum(np.array(things_kept(*one)) for one in zip(decoded, now, objects, strict=True))
        pairs.append(latents.float().cpu().numpy())
        held.append(actions[:, 1])
    figures = {"psnr": 10 * np.log10(255**2 * pixels / max(squared, 1e-9)),
               "gradient": gradients[0] / gradients[1],
               "motion_error": motion_error(np.concatenate(pairs), np.concatenate(held))}
    if object_pixels:  # a game may not tell of any
        figures["psnr_objects"] = 10 * np.log10(255**2 * object_pixels / max(squared_objects, 1e-9))
        figures["objects_kept"] = kept[0] / max(kept[1], 1)
    return figures


def motion_error(pairs: np.ndarray, actions: np.ndarray) -> float:
    """What a linear map leaves of the motion: for every set of keys with moments enough, the next latent of a
    cell is fitted by ridge regression from the row of three cells around it, on half of the
    moments, and judged on the other half. Mean squared error over the mean squared change of the
    latents: 0 is a code whose motion is linear, 1 one in which the map knows no better than "stay".

    pairs (N, 2, C, h, w): two latents in a row; actions (N, A): the keys that led to the second."""
    left, changed = 0.0, 0.0
    channels, height, width = pairs.shape[2:]
    kinds = [tuple(row) for row in actions > 0.5]
    for kind in sorted(set(kinds)):
        of = pairs[[k == kind for k in kinds]].astype(np.float64)
        half = len(of) // 2
        if half * height * width < 9 * channels:
            continue
        padded = np.pad(of[:, 0], ((0, 0), (0, 0), (0, 0), (1, 1)))
        around = np.concatenate([padded[..., i : i + width] for i in range(3)], axis=1)
        x, y = (a.transpose(0, 2, 3, 1) for a in (around, of[:, 1] - of[:, 0]))
        fit, rest = (x[:half].reshape(-1, 3 * channels), x[half:].reshape(-1, 3 * channels))
        gram = fit.T @ fit + 0.01 * len(fit) * np.eye(3 * channels)
        guess = rest @ np.linalg.solve(gram, fit.T @ y[:half].reshape(-1, channels))
        left += float(np.square(guess - y[half:].reshape(-1, channels)).sum())
        changed += float(np.square(y[half:]).sum())
    return left / changed if changed else 1.0


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
