"""Plans, slots and rotations made on the device against those of the host, for every policy and time."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
from cases import FRAMES, SPECS

from dreamloop.models.core import conditioning, memory
from dreamloop.models.core.plan import build_plan, narrowed
from dreamloop.runtime.gpu import plain
from dreamloop.runtime.gpu.sizes import DevicePlan


def lists(plan: DevicePlan) -> list[list[int]]:
    """The blocks that every row lists, in order."""
    index, count = plan.index.flatten(0, 2).tolist(), plan.count.flatten().tolist()
    return [row[:n] for row, n in zip(index, count, strict=True)]


def host_lists(index: np.ndarray, count: np.ndarray) -> list[list[int]]:
    return [row[:n].tolist() for row, n in zip(index.reshape(-1, index.shape[-1]), count.flatten(), strict=True)]


def rows_of(found: DevicePlan, parts: int) -> list[list[int]]:
    """A plan with one list for all rows repeats it."""
    repeat = parts // found.count.shape[2]
    return [row for row in lists(found) for _ in range(repeat)]


def fused_or_plain(kind: str) -> ModuleType:
    if kind == "plain":
        return plain
    pytest.importorskip("triton", reason="triton comes with dreamloop[gpu]")
    from dreamloop.runtime.gpu import fused
    return fused


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(("kind", "view"), [("plain", None), ("plain", 2), ("plain", 4), ("fused", None), ("fused", 3)])
def test_slots_and_lists_are_those_of_the_host(name: str, kind: str, view: int | None) -> None:
    spec = SPECS[name]
    frames = np.arange(1, 60) if kind == "plain" else np.array([1, 3, 5, 9, 36, 58])
    expected = build_plan(spec, frames)
    views = None
    if view is not None:
        expected, views = narrowed(expected, spec, frames, view), torch.full((len(frames),), view)
    slot, plan = fused_or_plain(kind).slot_and_plan(spec, torch.from_numpy(frames), views)
    assert slot.tolist() == [memory.slot_of(spec.memory, int(t)) for t in frames]
    assert rows_of(plan, spec.blocks_per_frame) == host_lists(expected.block_index, expected.block_count)
    assert plan.length.tolist() == expected.block_length.tolist()
    if expected.block_kept is not None and view is None:
        assert plan.kept is not None
        assert plan.kept.expand(-1, -1, spec.blocks_per_frame).tolist() == expected.block_kept.tolist()


@pytest.mark.parametrize("name", SPECS)
def test_rotations_are_those_of_the_host(name: str) -> None:
    """Equal but for the last bit of a cosine, after a million frames too."""
    spec, frames = SPECS[name], np.array([*FRAMES, 1_000_003])
    count = len(frames)
    expected = conditioning.pass_inputs(spec, frames, np.zeros(count, np.uint64), np.zeros((count, 3), np.float32))
    found = plain.rotations(spec, torch.from_numpy(frames))
    for field in ("cos", "sin", "store_cos", "store_sin", "sink_cos", "sink_sin"):
        theirs = getattr(expected, field)
        assert getattr(found, field).shape == theirs.shape
        assert np.abs(getattr(found, field).numpy() - theirs).max(initial=0) <= 1.2e-7, field


def test_a_score_that_is_not_a_number_is_chosen_last_and_equals_in_the_order_of_the_list() -> None:
    spec = SPECS["top_k_with_sinks_and_a_tail"]
    plan = build_plan(spec, FRAMES)
    scores = np.random.default_rng(0).integers(0, 3, (len(FRAMES), 2, spec.blocks_per_frame,
                                                      plan.block_length.shape[1])).astype(np.float64)
    scores[:, :, :, ::3] = np.nan
    expected = plan.select(scores, 3)
    assert plan.block_kept is not None
    device = DevicePlan(*(torch.from_numpy(a) for a in (plan.block_index, plan.block_count, plan.block_length,
                                                       plan.block_kept)))
    found = plain.selected(torch.from_numpy(scores), device, 3)
    assert lists(found) == host_lists(expected.block_index, expected.block_count)
