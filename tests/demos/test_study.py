"""Studies at toy size: from the game to the table, through a kill, with everything shared trained once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from toys import toy_recipe

pytest.importorskip("vizdoom", reason="the real games: pip install 'dreamloop[games]'")

from dreamloop.demos import study as laboratory
from dreamloop.demos.cli import main
from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.world import load_world
from dreamloop.models.training import study as training
from dreamloop.models.training.recipes import Recipe, recipe
from dreamloop.models.training.run import Run
from dreamloop.runtime import Session, evaluate_clips

HOW = {"minutes": 0.01, "device": "cpu", "engine": "torch", "frames": 4, "episodes": 1, "threads": 1}
SOME = {**HOW, "only": ("teacher", "consistency")}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recipe]:
    """The study's recipe with hardly any data, tiny networks, no compiler, one thread."""
    monkeypatch.setattr(Run, "compiled", lambda self, function: function)
    monkeypatch.setattr(evaluate_clips, "STEPS", 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield toy_recipe(recipe("doom-maze-study"))
    torch.set_num_threads(threads)


def test_a_study_survives_a_kill_and_ends_in_a_table(toy: Recipe, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(Exception):
        pass

    of = training.methods
    monkeypatch.setitem(training.STUDIES, "methods", lambda chosen: [
        dataclasses.replace(v, steps=(1, 4) if v.name == "teacher" else (1,)) for v in of(chosen)])
    out = tmp_path / "studies"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        def killed(*_: object) -> None:
            raise Killed
        patch.setattr(training, "train_student", killed)
        laboratory.study("methods", str(out), recipe=toy, **SOME)  # type: ignore[arg-type]
    base = {path: path.stat().st_mtime_ns for path in (out / "base").glob("*.ckpt")}
    judged = (out / "methods" / "teacher" / "evaluation-4.json").stat().st_mtime_ns
    assert {path.stem for path in base} >= {"autoencoder", "dynamics", "judges", "judges_motion"}
    assert not (out / "methods.md").exists()

    said: list[str] = []
    report = laboratory.study("methods", str(out), recipe=toy, say=said.append, **SOME)  # type: ignore[arg-type]
    assert base == {path: path.stat().st_mtime_ns for path in (out / "base").glob("*.ckpt")}, "trained once"
    assert (out / "methods" / "teacher" / "evaluation-4.json").stat().st_mtime_ns == judged, "judged once"
    linked = out / "methods" / "consistency" / "autoencoder.ckpt"
    assert linked.stat().st_ino == (out / "base" / "autoencoder.ckpt").stat().st_ino
    assert [(row["variant"], row["steps"]) for row in report["rows"]] == [
        ("teacher", 1), ("teacher", 4), ("consistency", 1)]
    assert [row["minutes"] for row in report["rows"]] == [0.01, 0.01, 0.02]  # of the base, and of its own
    assert len({row["figures"]["world_hash"] for row in report["rows"]}) == 3

    with pytest.raises(DreamloopError, match=r"trained with --minutes 0.01, not 3: name another folder"):
        laboratory.study("methods", str(out), recipe=toy, **{**SOME, "minutes": 3})  # type: ignore[arg-type]

    teacher = load_world(report["rows"][1]["world"])
    assert teacher.spec.dynamics.sigmas == (1.0, 0.75, 0.5, 0.25)
    with Session(teacher, engine="torch") as session:
        assert session.step({"forward"}).pixels.shape == (60, 80, 3), "the teacher can be played"
    table = (out / "methods.md").read_text("utf-8")
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(rows) == 4 and len({line.count("|") for line in rows}) == 1
    assert f"{report['rows'][0]['figures']['psnr']['1']:.2f}" in rows[1]
    assert json.loads((out / "methods.json").read_text("utf-8")) == report
    for picture in ("methods.png", "methods-strip.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
@pytest.mark.parametrize("what", ["methods", "exposure", "recovery", "memory", "autoencoder"])
def test_every_study_runs_to_its_table(what: str, toy: Recipe, tmp_path: Path) -> None:
    report = laboratory.study(what, str(tmp_path), recipe=toy, **{**HOW, "frames": 128, "episodes": 2})  # type: ignore[arg-type]
    rows = sum(len(variant.steps) for variant in training.STUDIES[what](toy))
    assert len(report["rows"]) == rows == {
        "methods": 13, "exposure": 4, "recovery": 3, "memory": 3, "autoencoder": 7}[what]
    for row in report["rows"]:
        assert row["figures"]["psnr"]["64"] is not None and row["figures"]["turn"]["heading_error"] is not None
        assert len(row["figures"]["psnr_curve"]) == 256
    if what == "memory":
        assert all(row["figures"]["turn"]["revisit_psnr"] is not None for row in report["rows"])


def test_studies_change_what_they_ask_about_and_nothing_else() -> None:
    chosen = recipe("doom-maze-study")
    memories = training.memory(chosen)
    assert {v.spec.memory.slots for v in memories} == {training.SLOTS}, "equal cost"
    assert len({(v.dynamics, v.method, v.own_share, v.spec.dynamics) for v in memories}) == 1
    reach = {v.name: v.spec.memory.dilated_frames * v.spec.memory.dilation for v in memories}
    assert reach == {"window": 0, "sinks": 0, "dilated": 112}, "beyond a full turn of 106 frames"
    of_exposure = training.exposure(chosen)
    assert {(v.dynamics.recycle_share > 0, v.method is not None) for v in of_exposure} == {
        (False, False), (False, True), (True, False), (True, True)}
    plain, foreign, banked = training.recovery(chosen)
    assert (plain.method, plain.spec) == (foreign.method, foreign.spec) and plain.dynamics != foreign.dynamics
    assert (plain.dynamics, plain.spec) == (banked.dynamics, banked.spec) and plain.method != banked.method
    codes = training.autoencoder(chosen)
    assert {v.spec.tokens for v in codes} == {chosen.spec.tokens} and len({v.dynamics for v in codes}) == 1
    numbers = {v.name: v.spec.dynamics.patch**2 * v.spec.autoencoder.latent_channels for v in codes}
    assert numbers == {"channels-16": 16, "channels-32": 32, "channels-64": 64, "cells-8": 32, "shifted": 32,
                       "noisy": 32, "plain-loss": 32}
    for variants in (of_exposure, training.methods(chosen)):
        assert {v.spec for v in variants} == {chosen.spec}
    assert {v.stage for v in training.methods(chosen)} == {
        "dynamics", "self_rollout", "consistency", "distribution_matching", "adversarial", "scoring"}
    assert chosen.spec.tokens == 20


def test_a_study_that_cannot_be_is_refused_in_one_line(toy: Recipe, tmp_path: Path,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "quality", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == ("dreamloop study: no study 'quality'; known: methods, exposure, recovery, "
                                       "memory, autoencoder\n")
    assert main(["study", "exposure", str(tmp_path / "out"), "--only", "plain,mist"]) == 2
    assert capsys.readouterr().err == ("dreamloop study: study exposure has no variant 'mist'; known: plain, "
                                       "plain-self-rollout, recycling, recycling-self-rollout\n")
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DreamloopError, match="holds no study"):
        laboratory.study("methods", str(tmp_path), recipe=toy, **HOW)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
