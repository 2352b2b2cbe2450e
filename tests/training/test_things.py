"""Small things count one by one, not by their pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("skimage", reason="regions: pip install 'dreamloop[eval]'")

from dreamloop.models.training.autoencoder import AutoencoderTraining, around_things
from dreamloop.models.training.things import thing_weights, things_kept

BALL, PADDLE = (slice(10, 12), slice(20, 21)), (slice(10, 18), slice(50, 52))


def court() -> tuple[np.ndarray, np.ndarray]:
    """A frame with a ball of 2 pixels and a paddle of 16, and where they are."""
    objects = np.zeros((40, 64), bool)
    objects[BALL] = objects[PADDLE] = True
    return np.where(objects[..., None], 230, 80).astype(np.uint8).repeat(3, 2), objects


def test_a_ball_weighs_as_much_as_a_paddle() -> None:
    _, objects = court()
    given = torch.from_numpy(objects).float()[None]
    plain, even = thing_weights(given, 0)[0, 0], thing_weights(given, 40)[0, 0]
    left = slice(0, 36)
    assert plain[:, left].sum() * 3 < plain[:, 36:].sum(), "by area the paddle is all"
    assert even[:, left].sum() == pytest.approx(40), "a thing below the size weighs as one of that size"
    assert even[:, left].sum() == pytest.approx(float(even[:, 36:].sum()), rel=0.15)
    assert torch.equal(plain > 0, even > 0) and even[plain == 0].sum() == 0


def test_a_thing_is_kept_where_it_can_still_be_told_from_what_is_behind_it() -> None:
    frame, objects = court()
    assert things_kept(frame, frame, objects) == (2, 2)
    lost, faint = frame.copy(), frame.copy()
    lost[BALL], faint[BALL] = 80, 190
    assert things_kept(lost, frame, objects) == (1, 2)
    assert things_kept(faint, frame, objects) == (2, 2)
    assert things_kept(frame, frame, np.zeros_like(objects)) == (0, 0)
    assert things_kept(frame, frame, np.ones_like(objects)) == (0, 0), "nothing behind it to tell it from"


def test_windows_lie_on_the_cells_and_hold_small_things_as_often_as_large_ones() -> None:
    torch.manual_seed(0)
    settings = AutoencoderTraining(object_size=64, crop_cells=5, crops=400)
    objects = torch.zeros(2, 112, 80)
    objects[0, 10:18, 70:72] = 1  # a paddle, and a ball far from it
    objects[0, 50:52, 30] = 1
    place = torch.arange(112 * 80, dtype=torch.float32).view(1, 1, 112, 80).expand(2, 3, 112, 80)
    pixels, before, shown = around_things(settings, 8, place, place, objects)
    assert pixels.shape == before.shape == (800, 3, 40, 40) and shown.shape == (800, 40, 40)
    first = pixels[:, 0, 0, 0].long()
    assert not (first // 80 % 8).any() and not (first % 80 % 8).any()
    assert torch.equal(pixels[:, 0], first[:, None, None] + torch.arange(40)[:, None] * 80 + torch.arange(40))
    counts = shown.sum((1, 2))
    assert (counts[:400] > 0).float().mean() > 0.9 and not counts[400:].any()  # anywhere, where a frame shows none
    assert 0.4 < (counts[:400] == 2).float().mean() < 0.6
    assert len(first[400:].unique()) > 20
