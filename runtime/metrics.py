"""The figures of an evaluation as plain functions of frames; numpy only. docs/evaluation.md has them in prose."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from dreamloop.models.core.errors import DreamloopError

STATISTICS = ("mean", "spread", "motion", "gradient")
PSNR_LIMIT_DB = 100.0  # what frames without any error report: JSON knows no infinity


def squared_error(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean squared error of each frame, over its pixels and channels: (..., H, W, 3) uint8 -> (...) float64."""
    difference = a.astype(np.float32) - b.astype(np.float32)
    return np.square(difference).mean(axis=(-3, -2, -1), dtype=np.float64)


def pooled_psnr(errors: np.ndarray) -> float | None:
    """10 log10(255^2 / mean of the errors) in dB, at most `PSNR_LIMIT_DB`: pooled over episodes before
    the logarithm, so one bad episode weighs what its error weighs. errors: mean squared errors, NaN
    where an episode does not reach; None if none does."""
    reached = errors[~np.isnan(errors)]
    if not len(reached):
        return None
    error = float(reached.mean())
    return PSNR_LIMIT_DB if error == 0 else min(PSNR_LIMIT_DB, 10.0 * math.log10(255.0**2 / error))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004, scikit-image's 7x7 uniform window) of two (H, W, 3) uint8
    frames, averaged over pixels and channels."""
    try:
        from skimage.metrics import structural_similarity
    except ImportError as error:
        raise DreamloopError(f"ssim needs scikit-image ({error}); pip install 'dreamloop[eval]'") from error
    return float(structural_similarity(a, b, channel_axis=2, data_range=255))


def frame_statistics(frame: np.ndarray, before: np.ndarray) -> np.ndarray:
    """(4,) float64 in the order of `STATISTICS`, of one (H, W, 3) uint8 frame and the one before it:
    mean of all values; their standard deviation; mean absolute difference to the frame before; mean
    absolute difference between neighbours, down and across, averaged."""
    now = frame.astype(np.float32)
    down, across = np.abs(np.diff(now, axis=0)).mean(), np.abs(np.diff(now, axis=1)).mean()
    return np.array([now.mean(), now.std(), np.abs(now - before).mean(), (down + across) / 2], np.float64)


def balanced_accuracy(read: np.ndarray, truth: np.ndarray) -> float | None:
    """(share of held ones read as held + share of free ones read as free) / 2; (N,) bool each. None if
    the truth is all held or all free."""
    if truth.all() or not truth.any():
        return None
    return float((read[truth].mean() + (~read[~truth]).mean()) / 2)


def interval(episodes: np.ndarray, figure: Callable[[np.ndarray], float | None],
             resamples: int = 1000) -> tuple[float, float] | None:
    """A 95% confidence interval of a figure of E episodes by the bootstrap (Efron 1979): episodes are drawn
    again with replacement, for frames of one episode are not independent of each other, and the
    figure is taken of each draw; the interval runs from its 2.5th to its 97.5th percentile.

    episodes: (E, ...), what each contributes; figure: of such an array, None where it is not defined.
    None where there are fewer than two episodes or no figure.
    """
    if len(episodes) < 2:
        return None
    rng = np.random.default_rng(0)
    draws = (figure(episodes[rng.integers(0, len(episodes), len(episodes))]) for _ in range(resamples))
    values = [value for value in draws if value is not None]
    if not values:
        return None
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def share(name: str, episodes: Sequence[tuple[int, int]], digits: int = 4) -> dict[str, float | list[float] | None]:
    """`NAME`: the share of all episodes together, None where there is nothing to count, and `NAME_interval`, its
    95% confidence interval. episodes: (part, whole) of each."""
    counts = np.array(episodes, np.float64).reshape(-1, 2)

    def pooled(some: np.ndarray) -> float | None:
        part, whole = some.sum(axis=0)
        return float(part / whole) if whole else None

    return {name: rounded(pooled(counts), digits), f"{name}_interval": rounded_pair(interval(counts, pooled), digits)}


def mean_of(name: str, episodes: np.ndarray, digits: int) -> dict[str, float | list[float] | None]:
    """`NAME`: the mean over episodes, (E,), None where there are none, and `NAME_interval`, its 95% interval."""
    mean = float(episodes.mean()) if len(episodes) else None
    return {name: rounded(mean, digits),
            f"{name}_interval": rounded_pair(interval(episodes, lambda some: float(some.mean())), digits)}


def rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def rounded_pair(pair: tuple[float, float] | None, digits: int) -> list[float] | None:
    return None if pair is None else [round(value, digits) for value in pair]
