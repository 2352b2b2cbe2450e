"""Stage `dynamics`: clips in parallel, and that a rollout is what play does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from toys import clips_of
from worlds import tiny_spec

from dreamloop.models.core.spec import DynamicsSpec, MemorySpec, PlanSpec
from dreamloop.models.networks.dit import Dynamics
from dreamloop.models.training.distillation.regression import Rollouts, SelfRollout
from dreamloop.models.training.dynamics import (
    ClipTrainer,
    DynamicsTraining,
    measure,
    optimizers_for,
)
from dreamloop.models.training.run import Run

LINEAR = PlanSpec("window", 2, 4, linear=True)


@pytest.fixture(params=[None], ids=["dense"])
def trainer(tmp_path: Path, request: pytest.FixtureRequest) -> ClipTrainer:
    torch.manual_seed(0)
    spec = tiny_spec() if request.param is None else tiny_spec(plan=request.param)
    made = ClipTrainer(Run(tmp_path, "toy", "cpu", True), spec, DynamicsTraining(batch_clips=2))
    for parameter in made.net.parameters():
        torch.nn.init.normal_(parameter, std=0.2 / max(parameter.shape[-1], 1) ** 0.5)
    return made


def test_a_spoilt_clip_has_foreign_cells_from_some_frame_on_and_the_others_have_none(tmp_path: Path) -> None:
    trainer = ClipTrainer(Run(tmp_path, "toy", "cpu", True), tiny_spec(), DynamicsTraining(foreign_share=0.5))
    torch.manual_seed(0)
    previous = torch.randn(64, 12, 3, 5, 6)  # odd: a block at the edge is cut
    changed = (trainer.spoilt(previous) - previous).abs().amax(2) > 0  # (B, F, h, w)
    spoilt = changed.any((1, 2, 3))
    assert 0.3 < spoilt.float().mean() < 0.7
    ever = changed[spoilt].flatten(2)
    begun = ever.any(2)
    assert torch.equal(begun, begun.cummax(1).values), "from some frame on, ever after"
    assert torch.equal(ever, (ever.any(1)[:, None] & begun[..., None])), "the same cells in all of them"
    assert len(set(begun.sum(1).tolist())) > 4 and 0.1 < ever.any(1).float().mean() < 0.4
    within = trainer.spoilt(torch.full((8, 4, 3, 4, 4), 2.0))
    assert within.allclose(torch.tensor(2.0)), "mixed of what there is"


@pytest.mark.parametrize("levels", [(1.0,), (1.0, 0.5), (1.0, 0.75, 0.5)], ids=["one-pass", "two", "random-exit"])
@pytest.mark.parametrize("trainer", [None, LINEAR], indirect=True, ids=["dense", "linear"])
def test_a_rollout_is_what_the_parallel_pass_makes_of_the_same_inputs(trainer: ClipTrainer,
                                                                      levels: tuple[float, ...]) -> None:
    z, action, _ = trainer.sample(clips_of(trainer.spec), np.random.default_rng(1), 2)
    seeds = np.array([3, 4], np.uint64)
    with torch.autocast("cpu", enabled=False):
        previous, begun = trainer.rollout(z, action, seeds, 4, levels)
        last = torch.full(action.shape[:2], levels[-1])
        made = trainer.predict(previous, begun, action, trainer.condition(action, last, torch.zeros_like(last)), 1)
    assert torch.equal(previous[:, :4], z[:, :4])
    # from the first frame after the real ones, what frame t saw is what the parallel pass makes of frame t - 1
    gap = (made[:, 3:-1] - previous[:, 4:]).abs().max() / previous.std()
    assert gap <= 0.05, float(gap)  # both in bfloat16
    assert (previous[:, 5] - z[:, 5]).abs().max() > 0.01  # and it is not the recording


def test_the_stage_learns_the_rule_and_obeys_the_key(trainer: ClipTrainer) -> None:
    clips = clips_of(trainer.spec, 6)
    for parameter in trainer.net.output.parameters():
        torch.nn.init.zeros_(parameter)
    optimizers = optimizers_for(trainer.net, 3e-3, 1e-2)
    for step in range(60):
        trainer.parallel_step(clips, np.random.default_rng(step), 0.9)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    figures = measure(trainer.run, trainer.spec, trainer.net.state_dict(), clips, count=4)
    assert figures["one_step"] < 0.5 * figures["copy_last"], figures
    assert figures["shuffle_ratio"] > 1.5, figures


@pytest.mark.parametrize("trainer", [LINEAR], indirect=True, ids=["linear"])
def test_the_linear_branch_learns_in_the_stage_and_in_what_follows_it(trainer: ClipTrainer) -> None:
    """From zero, in every layer, through the parallel step and through a dream of its own."""
    clips = clips_of(trainer.spec, 3)
    for block in trainer.net.blocks:
        torch.nn.init.zeros_(block.skipped)
    student = SelfRollout(rollouts=Rollouts(batch_clips=2, real_frames=4, grow=0.0)).student(trainer)
    for step in (lambda: trainer.parallel_step(clips, np.random.default_rng(3), 0.9),
                 lambda: student.step(clips, np.random.default_rng(3), 0.5)):
        before = [block.skipped.detach().clone() for block in trainer.net.blocks]
        step()
        for optimizer in student.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for old, block in zip(before, trainer.net.blocks, strict=True):
            assert torch.isfinite(block.skipped).all() and (block.skipped - old).abs().amax((1, 2)).min() > 1e-5


def test_what_the_window_skips_can_be_learnt_through_the_branch_alone() -> None:
    """Frame t must show the mean of what frames t - 3 and before brought: out of reach of the window of one layer."""
    errors = {}
    for linear in (False, True):
        torch.manual_seed(0)
        spec = tiny_spec(memory=MemorySpec(8), plan=PlanSpec("window", 2, 6, linear=linear),
                         dynamics=DynamicsSpec(width=16, layers=1, heads=1, mlp_width=8))
        net = Dynamics(spec)
        optimizer = torch.optim.AdamW(net.parameters(), lr=2e-2)
        zero, rest = torch.zeros(8, 8, *spec.latent_shape), torch.zeros(8, 8, spec.actions.size)
        for _ in range(60):
            x = torch.randn(8, 8, spec.latent_shape[0], 1, 1).expand_as(zero)
            made = net.sequence(zero, x, rest, torch.zeros(8, 8, spec.condition_size))
            wanted = torch.stack([x[:, : t - 2].mean(1) for t in range(5, 8)], dim=1)
            error = (made[:, 5:] - wanted).square().mean()
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
        errors[linear] = float(error.detach() / wanted.square().mean())
    assert errors[True] < 0.6 < 0.8 < errors[False], errors


def test_muon_takes_the_matrices_of_the_blocks_and_nothing_else(trainer: ClipTrainer) -> None:
    muon, adamw = optimizers_for(trainer.net, 1e-3, 1e-2)
    matrices = {id(p) for group in muon.param_groups for p in group["params"]}
    others = {id(p) for group in adamw.param_groups for p in group["params"]}
    assert matrices.isdisjoint(others) and len(matrices | others) == len(list(trainer.net.parameters()))
    assert all(id(b.qkv.weight) in matrices and id(b.table) in others for b in trainer.net.blocks)
