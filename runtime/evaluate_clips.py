"""Can a network tell the dream from the game? A judge of clips, trained on half of the episodes, asked about
the other half; then the halves change places.

It sees frames at a quarter of the resolution (a half of small ones): at the full one the softness of the
autoencoder alone gives every dream away, and nothing would be said about what happens in it. Dreamed and real
clips come in pairs of the same episode, horizons and keys, so accuracy 0.5 is chance and the best there is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dreamloop.runtime import metrics

if TYPE_CHECKING:
    from dreamloop.models.networks.probes import ClipReader
    from dreamloop.runtime.evaluate import Dream, Truth

LENGTHS = (8, 32)  # frames
STEPS = 120
BATCH_FRAMES = 128  # of each side
LEARNING_RATE = 2e-3
REACH = 40  # pixels of the longer side, about, that the judge sees


def clip_discriminator(truths: list[Truth], dream: Dream, steps: int | None = None) -> dict[str, Any]:
    """`clip_discriminator`: length in frames -> accuracy, None where no two episodes have a clip;
    `clip_discriminator_interval`: 95% over episodes. steps: of training (default: `STEPS`)."""
    pairs = []
    for episode, truth in enumerate(truths):
        count = min(len(truth.future), dream.frames.shape[1])
        pairs.append((truth.future[:count], dream.frames[episode, :count]))
    figures: dict[str, dict[str, Any]] = {"clip_discriminator": {}, "clip_discriminator_interval": {}}
    for length in LENGTHS:
        right = right_of_episodes(pairs, length, steps or STEPS)
        known = len(right) >= 2
        span = metrics.interval(right, lambda part: float(part[:, 0].sum() / part[:, 1].sum())) if known else None
        figures["clip_discriminator"][str(length)] = (round(float(right[:, 0].sum() / right[:, 1].sum()), 4)
                                                      if known else None)
        figures["clip_discriminator_interval"][str(length)] = [round(v, 4) for v in span] if span else None
    return figures


def right_of_episodes(pairs: list[tuple[np.ndarray, np.ndarray]], length: int, steps: int) -> np.ndarray:
    """(E, 2): clips of each episode that were told right, and all of them, by the judge that did not see the
    episode. pairs: game and dream, (F, H, W, 3) uint8 each, of the same keys."""
    long_enough = [pair for pair in pairs if len(pair[0]) >= length]
    if len(long_enough) < 2:
        return np.zeros((0, 2))
    rows = []
    for fold in range(2):
        reader = _trained(long_enough[1 - fold :: 2], length, steps, seed=fold)
        rows += [_told(reader, pair, length) for pair in long_enough[fold::2]]
    return np.array(rows, np.float64)


def _trained(pairs: list[tuple[np.ndarray, np.ndarray]], length: int, steps: int, seed: int) -> ClipReader:
    import torch
    from torch.nn import functional

    from dreamloop.models.networks.probes import ClipReader
    rng = np.random.default_rng([seed, length])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = ClipReader(max(round(max(pairs[0][0].shape[1:3]) / REACH), 1))
    optimizer = torch.optim.AdamW(reader.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    starts = np.array([len(pair[0]) - length + 1 for pair in pairs])
    for step in range(steps):
        clips = []
        for episode in rng.choice(len(pairs), max(BATCH_FRAMES // length, 2), p=starts / starts.sum()):
            first = int(rng.integers(0, starts[episode]))
            clips.append([side[first : first + length] for side in pairs[episode]])
        if rng.random() < 0.5:  # mirrored pictures: twice the clips
            clips = [[side[:, :, ::-1] for side in pair] for pair in clips]
        frames = torch.from_numpy(np.ascontiguousarray(np.array(clips).swapaxes(0, 1).reshape(-1, *clips[0][0].shape)))
        dreamed = torch.arange(len(frames)) >= len(clips)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - step / steps)
        loss = functional.binary_cross_entropy_with_logits(reader(frames), dreamed.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return reader


def _told(reader: ClipReader, pair: tuple[np.ndarray, np.ndarray], length: int) -> tuple[int, int]:
    import torch
    count = len(pair[0]) // length
    right = 0
    with torch.inference_mode():
        for side, dreamed in zip(pair, (False, True), strict=True):
            clips = torch.from_numpy(np.ascontiguousarray(side[: count * length])).unflatten(0, (count, length))
            right += int(((reader(clips) > 0) == dreamed).sum())
    return right, 2 * count
