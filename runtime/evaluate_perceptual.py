"""LPIPS and FVD, where the user brings the networks: they are other people's weights, and none ship here.

    dreamloop evaluate doom-arena --lpips vgg16.pt --fvd i3d_torchscript.pt

Both are TorchScript files as the StyleGAN repositories publish them, and running one runs what its maker wrote.

    lpips    net(images (B, 3, H, W) float32 0..255, resize_images=False, return_lpips=True) -> features whose
             squared distance is LPIPS (Zhang et al. 2018)
    fvd      net(clips (B, 3, F, H, W) float32 0..255, rescale=True, resize=True, return_features=True) -> features
             whose Frechet distance is FVD (Unterthiner et al. 2018); clips of 16 frames
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from dreamloop.models.core.errors import DreamloopError

if TYPE_CHECKING:
    from dreamloop.runtime.evaluate import Dream, Truth

FVD_FRAMES = 16
Features = Callable[[np.ndarray], np.ndarray]


def perceptual(truths: list[Truth], dream: Dream, horizons: tuple[int, ...],
               lpips: str | os.PathLike[str] | None, fvd: str | os.PathLike[str] | None) -> dict[str, Any]:
    """`lpips`: horizon -> mean over the episodes that reach it; `fvd`: of all clips of 16 frames that dream and
    game both have, one after the other. None where no network was given, and `perceptual_note` then says so."""
    missing = [f"--{name}" for name, path in (("lpips", lpips), ("fvd", fvd)) if path is None]
    figures: dict[str, Any] = {"lpips": None, "fvd": None}
    if lpips is not None:
        net = image_features(lpips)
        figures["lpips"] = {str(h): _lpips(net, truths, dream, h) for h in horizons}
    if fvd is not None:
        game, made = clips_of(truths, dream)
        if len(game) < 2:
            raise DreamloopError(f"fvd needs two clips of {FVD_FRAMES} frames at least: more --episodes or --frames")
        features = clip_features(fvd)
        figures["fvd"] = round(frechet_distance(*(np.concatenate([features(clip[None]) for clip in side])
                                                  for side in (game, made))), 3)
    if missing:
        figures["perceptual_note"] = f"not measured: {' and '.join(missing)} with the network's TorchScript file"
    return figures


def _lpips(net: Features, truths: list[Truth], dream: Dream, horizon: int) -> float | None:
    reached = [e for e, truth in enumerate(truths) if horizon <= min(dream.frames.shape[1], len(truth.future))]
    if not reached:
        return None
    game = net(np.stack([truths[e].future[horizon - 1] for e in reached]))
    made = net(dream.frames[reached, horizon - 1])
    return round(float(np.square(game - made).sum(axis=1).mean()), 4)


def clips_of(truths: list[Truth], dream: Dream) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Clips of `FVD_FRAMES` frames of game and dream, the same episodes and horizons."""
    game, made = [], []
    for episode, truth in enumerate(truths):
        count = min(len(truth.future), dream.frames.shape[1]) // FVD_FRAMES
        for first in range(0, count * FVD_FRAMES, FVD_FRAMES):
            game.append(truth.future[first : first + FVD_FRAMES])
            made.append(dream.frames[episode, first : first + FVD_FRAMES])
    return game, made


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """|mean a - mean b|^2 + trace(A + B - 2 (A B)^1/2) of two sets of features, (N, D) and (M, D), A and B their
    covariances. The trace of the root is the sum of the roots of A B's eigenvalues, which are not negative."""
    difference = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    first, second = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    roots = np.sqrt(np.clip(np.linalg.eigvals(first @ second).real, 0, None)).sum()
    return float(difference + np.trace(first) + np.trace(second) - 2 * roots)


def image_features(path: str | os.PathLike[str]) -> Features:
    """(B, H, W, 3) uint8 -> (B, D) float64."""
    return _features(path, (0, 3, 1, 2), {"resize_images": False, "return_lpips": True})


def clip_features(path: str | os.PathLike[str]) -> Features:
    """(B, F, H, W, 3) uint8 -> (B, D) float64."""
    return _features(path, (0, 4, 1, 2, 3), {"rescale": True, "resize": True, "return_features": True})


def _features(path: str | os.PathLike[str], order: tuple[int, ...], options: dict[str, bool]) -> Features:
    name = os.path.basename(os.fspath(path))
    try:
        import torch
        net = torch.jit.load(os.fspath(path), map_location="cpu").eval()
    except ImportError as error:
        raise DreamloopError(f"{name} needs torch ({error}); pip install 'dreamloop[train]'") from error
    except (OSError, ValueError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        raise DreamloopError(f"{name} is not a TorchScript file that can be read: {why}") from error

    def features(frames: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(np.ascontiguousarray(frames.transpose(order))).float()
        try:
            with torch.inference_mode():
                out = net(pixels, **options)
        except RuntimeError as error:
            raise DreamloopError(f"{name} does not take {', '.join(options)}: {str(error).splitlines()[0]}") from error
        return out.double().flatten(1).numpy()

    return features
