"""A run survives a kill at any moment: checkpoints, budgets, gates."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from worlds import tiny_spec

from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.networks.ring import RingPass
from dreamloop.models.training import dynamics, run as runs
from dreamloop.models.training.dynamics import ClipTrainer, DynamicsTraining
from dreamloop.models.training.run import GateError, Run, train_stage


class Stopped(Exception):
    """Stands for a kill."""


class Stage:
    """Learn one number, 3, on a clock that the test turns: each step takes a second."""

    def __init__(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run, self.now, self.spent = run, 0.0, []
        self.module = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.module.weight)
        monkeypatch.setattr(runs.time, "monotonic", lambda: self.now)

    def go(self, seconds: float, stop_after: int | None = None, broken: bool = False) -> dict[str, Tensor]:
        def step(rng: np.random.Generator, spent: float) -> dict[str, Tensor]:
            if stop_after is not None and len(self.spent) == stop_after:
                raise Stopped
            self.now += 1.0
            self.spent.append(spent)
            loss = (self.module.weight - 3.0).square().sum() * (torch.nan if broken else 1.0)
            loss.backward()
            return {"loss": loss}

        optimizer = torch.optim.AdamW(self.module.parameters(), lr=0.1, weight_decay=0.0)
        return train_stage(self.run, "stage", self.module, [optimizer], seconds, step, warmup_steps=1)


def new_run(folder: Path, resume: bool = True) -> Run:
    return Run(folder, "toy", "cpu", resume)


def test_a_killed_stage_goes_on_from_its_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Stage(new_run(tmp_path), monkeypatch)
    with pytest.raises(Stopped):
        first.go(600, stop_after=300)
    saved = new_run(tmp_path).load("stage")
    assert saved is not None and 300 - runs.CHECKPOINT_SECONDS <= saved["seconds"] < 300

    second = Stage(new_run(tmp_path), monkeypatch)
    values = second.go(600)
    assert second.spent[0] == pytest.approx(saved["seconds"] / 600)  # schedules go on where they were
    assert len(second.spent) == 600 - saved["steps"]
    assert float(values["weight"]) == pytest.approx(3.0, abs=0.1)


def test_a_finished_budget_is_not_spent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Stage(new_run(tmp_path), monkeypatch).go(60)
    again = Stage(new_run(tmp_path), monkeypatch)
    after = again.go(60)
    assert again.spent == [] and torch.equal(before["weight"], after["weight"])


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.save("stage", {"steps": 1})

    def killed(payload: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise Stopped

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(torch, "save", killed)
        run.save("stage", {"steps": 2})
    assert run.load("stage") == {"steps": 1}


def test_a_loss_that_is_not_finite_stops_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GateError, match="not finite"):
        Stage(new_run(tmp_path), monkeypatch).go(60, broken=True)


def test_the_curve_has_a_line_per_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Stage(new_run(tmp_path), monkeypatch).go(60)
    lines = [json.loads(line) for line in (tmp_path / "curves" / "stage.ndjson").read_text().splitlines()]
    assert [line["steps"] for line in lines] == [10, 20, 30, 40, 50, 60]
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_a_run_folder_is_not_overwritten_nor_taken_by_another_recipe(tmp_path: Path) -> None:
    new_run(tmp_path).finish("record", {"frames": 1.0})
    with pytest.raises(DreamloopError, match="--resume"):
        new_run(tmp_path, resume=False)
    with pytest.raises(DreamloopError, match="belongs to toy"):
        Run(tmp_path, "another", "cpu", resume=True)
    assert new_run(tmp_path).finished("record") and not new_run(tmp_path).finished("autoencoder")


@pytest.mark.parametrize("slow", [torch.bfloat16, torch.float32])
def test_which_products_are_faster_is_tried_once(slow: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def linear(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        tried.append(rows.dtype)
        time.sleep(0.02 if rows.dtype == slow else 0.001)
        return rows @ matrix.T

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    runs.multiplies_bfloat16.cache_clear()
    try:
        for _ in range(2):
            assert runs.multiplies_bfloat16(torch.device("cpu")) == (slow == torch.float32)
        assert len(tried) == 8 and set(tried) == {torch.bfloat16, torch.float32}
    finally:
        runs.multiplies_bfloat16.cache_clear()
    assert runs.multiplies_bfloat16(torch.device("cuda")), "of a GPU nothing is tried"


@pytest.mark.parametrize("has_bfloat16", [False, True])
def test_products_are_in_bfloat16_only_where_the_processor_has_them(has_bfloat16: bool, tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "multiplies_bfloat16", lambda device: has_bfloat16)
    run = Run(tmp_path, "toy", "cpu", resume=True)
    trainer = ClipTrainer(run, tiny_spec(), DynamicsTraining())
    rings = []
    monkeypatch.setattr(dynamics, "RingPass", lambda spec, ring, inputs: rings.append(ring) or RingPass(
        spec, ring, inputs))
    z, action = torch.zeros(1, 3, *tiny_spec().latent_shape), torch.zeros(1, 2, tiny_spec().actions.size)
    trainer.rollout(z, action, np.zeros(1, np.uint64), 1)
    with run.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert {product.dtype, rings[0].dtype} == {torch.bfloat16 if has_bfloat16 else torch.float32}
