"""From the real game to a world that plays, at toy size, through the same pipeline."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import CLIP_FRAMES, toy_recipe
from worlds import random_weights

from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.spec import AutoencoderSpec, PlanSpec
from dreamloop.models.core.world import World, load_world, save_world
from dreamloop.models.networks.autoencoder import Autoencoder
from dreamloop.models.networks.inverse_dynamics import InverseDynamics, load_judge, write_judge
from dreamloop.models.training import pipeline
from dreamloop.models.training.autoencoder import encode_recording
from dreamloop.models.training.data import Recording
from dreamloop.models.training.judges import judge_spec
from dreamloop.models.training.packing import write_card
from dreamloop.models.training.recipes import Recipe, in_batches, recipe
from dreamloop.models.training.run import GateError, Run
from dreamloop.runtime import Session

TOY = toy_recipe(recipe("doom-arena"), name="toy-arena")


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler would take longer than all else here; what it makes is the same function."""
    monkeypatch.setattr(Run, "compiled", lambda self, function: function)
    torch.set_num_threads(1)


def test_a_toy_world_is_made_resumed_packed_and_played(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    run_folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        def killed(*_: object) -> None:
            raise Killed
        patch.setattr(pipeline, "train_student", killed)
        pipeline.train(TOY, minutes=0.3, device="cpu", run_folder=run_folder)
    finished = json.loads((run_folder / "run.json").read_text())["stages"]
    assert list(finished) == ["record", "autoencoder", "dynamics"]

    with pytest.raises(DreamloopError, match="--resume"):
        pipeline.train(TOY, minutes=0.3, device="cpu", run_folder=run_folder)
    folder = pipeline.train(TOY, minutes=0.3, device="cpu", run_folder=run_folder, resume=True)
    record = json.loads((run_folder / "run.json").read_text())
    assert {name: record["stages"][name] for name in finished} == finished  # done once
    assert list(record["stages"]) == ["record", "autoencoder", "dynamics", "self_rollout", "decoder", "judges"]

    world = load_world(folder)
    assert world.spec == TOY.spec and "dreamloop train toy-arena --minutes 0.3" in world.card
    assert load_judge(run_folder / "judges" / world.spec.game).spec.buttons == world.spec.actions.names
    with Session(world, engine="onnxruntime") as session:
        frames = [session.step({"turn_left"}).pixels for _ in range(3)]
    assert all(frame.shape == (120, 160, 3) and frame.std() > 5 for frame in frames)
    write_card(folder, world.spec, {"psnr": {"16": 17.25}})
    assert "17.250" in load_world(folder).card and load_world(folder).hash == world.hash
    stored_latents_are_what_the_encoder_gives(run_folder)
    the_world_has_the_polished_decoder_behind_the_same_encoder(run_folder, world)


def stored_latents_are_what_the_encoder_gives(run_folder: Path) -> None:
    run = Run(run_folder, "toy-arena", "cpu", resume=True)
    data = Recording(run_folder / "recording", "train")
    clips = encode_recording(run, TOY.spec, "train", data, CLIP_FRAMES)
    saved = run.load("autoencoder")
    assert saved is not None
    net = Autoencoder(TOY.spec)
    net.load_state_dict(saved["average"])
    with torch.no_grad():
        fresh = net.encode(torch.from_numpy(data.frames(0, 5, 4))).numpy()
    assert np.abs(clips.latents[0][5:9] - fresh).mean() < 0.05  # bfloat16 and float16 against float32
    shown = data.objects(0, 5, 4)
    assert (clips.objects[0][5:9].any((1, 2)) == shown.any((1, 2))).all()
    row, column = (int(i[0]) for i in np.nonzero(shown[0]))
    assert clips.objects[0][5][row // 16, column // 16]


def the_world_has_the_polished_decoder_behind_the_same_encoder(run_folder: Path, world: World) -> None:
    run = Run(run_folder, "toy-arena", "cpu", resume=True)
    before, after = (run.load(stage)["average"] for stage in ("autoencoder", "polished"))  # type: ignore[index]
    for name, value in before.items():
        assert torch.equal(after[name], value) == (not name.startswith("decoder.")), name
    packed = world.weights["autoencoder.decoder.head.weight"]
    lost = np.square(packed - after["decoder.head.weight"].numpy()).mean()
    assert lost <= 1e-3 * np.square(packed).mean()  # by its codes


def test_a_stage_below_its_gate_stops_the_run_with_its_figure(tmp_path: Path) -> None:
    strict: Recipe = dataclasses.replace(TOY, gates={"autoencoder.psnr": 60.0})
    with pytest.raises(GateError, match=r"gate autoencoder.psnr: \d+\.\d+ is below 60.0"):
        pipeline.train(strict, minutes=0.02, device="cpu", run_folder=tmp_path / "run")
    assert list(json.loads((tmp_path / "run" / "run.json").read_text())["stages"]) == ["record"]


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(DreamloopError, match=r"'doom'; known: doom-arena, doom-corridor, doom-maze, doom-maze-hd, "):
        pipeline.train("doom")


def test_a_world_begins_from_anothers_weights_and_its_card_says_so(tmp_path: Path) -> None:
    starts = np.zeros((1, 120, 160, 3), np.uint8)
    save_world(tmp_path / "first", TOY.spec, random_weights(TOY.spec), starts, "")
    first = load_world(tmp_path / "first")
    short = dataclasses.replace(TOY, dynamics=dataclasses.replace(TOY.dynamics, clip_frames=8), noise_at_play=0.5)
    folder = pipeline.train(short, minutes=0.02, device="cpu", run_folder=tmp_path / "run",
                            begin=str(tmp_path / "first"), batch=2)
    world = load_world(folder)
    assert " --batch 2 --minutes 0.02" in world.card
    assert f"| first weights | those of toy-arena ({first.hash[:8]}) |" in world.card and "--begin " in world.card
    assert "| noise at play | 0.5 of what it learnt with |" in world.card
    learnt = torch.load(tmp_path / "run" / "self_rollout.ckpt", weights_only=True)["average"]["input.weight"].numpy()
    of_noise = (slice(None), slice(world.spec.token_channels, None))
    np.testing.assert_allclose(world.weights["dynamics.input.weight"][of_noise], 0.5 * learnt[of_noise],
                               atol=0.1 * np.abs(learnt).max())  # packed as codes
    found = json.loads((tmp_path / "run" / "run.json").read_text())["stages"]["dynamics"]
    assert np.isfinite(found["rollout_16"]), "clips that are shorter than what a stage's figures are taken of"
    for name in ("autoencoder.encoder.stem.weight", "dynamics.blocks.0.qkv.weight"):
        assert np.corrcoef(world.weights[name].ravel(), first.weights[name].ravel())[0, 1] > 0.9


def test_a_world_of_another_autoencoder_lends_the_blocks_of_its_dynamics_alone(tmp_path: Path) -> None:
    finer = AutoencoderSpec(2, (16,), (1,), (1,))
    spec = dataclasses.replace(TOY.spec, autoencoder=finer, dynamics=dataclasses.replace(TOY.spec.dynamics, patch=4))
    other = dataclasses.replace(TOY, spec=spec)
    save_world(tmp_path / "first", TOY.spec, random_weights(TOY.spec), np.zeros((1, 120, 160, 3), np.uint8), "")
    first = load_world(tmp_path / "first")
    # the new autoencoder would learn nothing
    with pytest.raises(DreamloopError, match="toy-arena cannot begin from toy-arena: autoencoder"):
        pipeline.train(other, minutes=0.02, device="cpu", run_folder=tmp_path / "run", begin=str(tmp_path / "first"),
                       stages=["self_rollout"])
    world = load_world(pipeline.train(other, minutes=0.02, device="cpu", run_folder=tmp_path / "run",
                                      begin=str(tmp_path / "first")))
    assert f"those of toy-arena ({first.hash[:8]}), but for the autoencoder |" in world.card
    block = "dynamics.blocks.0.qkv.weight"
    assert np.corrcoef(world.weights[block].ravel(), first.weights[block].ravel())[0, 1] > 0.9
    assert world.spec.token_channels == 32 and world.weights["dynamics.input.weight"].shape == (32, 64)


def test_a_larger_batch_is_one_of_every_stage() -> None:
    chosen = in_batches(recipe("doom-arena"), 3)
    before = recipe("doom-arena")
    assert chosen.polish is not None and before.polish is not None
    for now, was in ((chosen.autoencoder.batch_frames, before.autoencoder.batch_frames),
                     (chosen.dynamics.batch_clips, before.dynamics.batch_clips),
                     (chosen.distillation[0].batch_clips, before.distillation[0].batch_clips),
                     (chosen.distillation[0].rollouts.batch_clips, before.distillation[0].rollouts.batch_clips),
                     (chosen.polish.batch_frames, before.polish.batch_frames)):
        assert now == 3 * was
    assert in_batches(chosen, 1) == chosen and chosen.spec == before.spec


def test_only_some_stages_are_trained_on_and_the_others_stay_as_they_were(tmp_path: Path) -> None:
    starts = np.zeros((1, 120, 160, 3), np.uint8)
    save_world(tmp_path / "first", TOY.spec, random_weights(TOY.spec), starts, "")
    first = load_world(tmp_path / "first")
    strict = dataclasses.replace(TOY, gates={"judges.balanced_accuracy": 2.0})  # of a whole run's judges, not of these
    folder = pipeline.train(strict, minutes=0.02, device="cpu", run_folder=tmp_path / "run",
                            begin=str(tmp_path / "first"), stages=["self_rollout"])
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["command"].endswith(f"--begin {tmp_path / 'first'} --only self_rollout --minutes 0.02")
    minutes = {name: figures["minutes"] for name, figures in record["stages"].items() if "minutes" in figures}
    assert sum(minutes.values()) == pytest.approx(0.02, abs=2e-4)
    assert {name for name, spent in minutes.items() if spent} == {"self_rollout", "judges"}
    for name, value in load_world(folder).weights.items():
        same = np.allclose(value, first.weights[name], rtol=2e-2, atol=2e-3)  # packed as codes
        assert same or not name.startswith("autoencoder."), name
    changed = "dynamics.blocks.0.qkv.weight"
    assert np.abs(load_world(folder).weights[changed] - first.weights[changed]).max() > 1e-4  # rounding alone: 1e-6


def test_a_world_that_is_trained_on_keeps_its_judges(tmp_path: Path) -> None:
    run = tmp_path / "first"
    save_world(run / "world", TOY.spec, random_weights(TOY.spec), np.zeros((1, 120, 160, 3), np.uint8), "")
    of = judge_spec(TOY.spec)
    torch.manual_seed(3)
    kept = write_judge(run / "judges" / of.game, of, InverseDynamics(of).state_dict(), {"balanced_accuracy": 0.77})
    pipeline.train(TOY, minutes=0.02, device="cpu", run_folder=tmp_path / "run", begin=str(run / "world"),
                   stages=["self_rollout"])
    stages = json.loads((tmp_path / "run" / "run.json").read_text())["stages"]
    assert stages["judges"] == {"balanced_accuracy": 0.77, "minutes": 0.0}
    assert stages["self_rollout"]["minutes"] == pytest.approx(0.02, abs=2e-4)
    assert load_judge(tmp_path / "run" / "judges" / of.game).hash == kept.hash


@pytest.mark.parametrize(("begin", "stages", "said"), [
    ("", ["self_rollout"], "to train only self_rollout, name a world to begin from: --begin WORLD"),
    ("doom-arena", ["polish"], "toy-arena has no stage 'polish' to train; it has autoencoder, dynamics")])
def test_stages_that_cannot_be_trained_alone_are_refused(tmp_path: Path, begin: str, stages: list[str],
                                                         said: str) -> None:
    with pytest.raises(DreamloopError, match=said):
        pipeline.train(TOY, minutes=0.02, device="cpu", run_folder=tmp_path / "run", begin=begin, stages=stages)
    assert not (tmp_path / "run").exists()


def test_a_world_of_other_sizes_is_no_beginning_and_nothing_is_recorded(tmp_path: Path) -> None:
    with pytest.raises(DreamloopError, match="toy-arena cannot begin from doom-arena: dynamics"):
        pipeline.train(TOY, minutes=0.02, device="cpu", run_folder=tmp_path / "run", begin="doom-arena")
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_a_world_with_a_linear_branch_goes_through_the_same_stages(tmp_path: Path) -> None:
    """Trained in every stage of the dynamics, packed with its matrices, and played by an engine that has the branch."""
    toy = toy_recipe(recipe("doom-arena"), name="toy-linear", plan=PlanSpec("window", 3, 20, linear=True))
    world = load_world(pipeline.train(toy, minutes=0.3, device="cpu", run_folder=tmp_path / "run"))
    learnt = world.weights["dynamics.blocks.0.skipped"]
    assert learnt.shape == (2, 16, 16) and np.abs(learnt).max(axis=(1, 2)).min() > 1e-4
    assert world.spec == toy.spec and "plan window, with a linear branch for what it skips |" in world.card
    with Session(world) as session:
        assert session.engine.name == "torch"
        frames = [session.step({"turn_left"}).pixels for _ in range(10)]
    assert all(frame.std() > 5 for frame in frames)
