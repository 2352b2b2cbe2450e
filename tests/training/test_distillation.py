"""The distillation family: each method does what its formula says, and ends in a one-step student
that obeys the keys."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import clips_of
from worlds import tiny_spec

from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.spec import LEVEL_FEATURES
from dreamloop.models.training.data import LatentClips
from dreamloop.models.training.distillation import Method, train_student
from dreamloop.models.training.distillation.adversarial import Adversarial, AdversarialStudent
from dreamloop.models.training.distillation.consistency import Consistency, flow_step
from dreamloop.models.training.distillation.distribution_matching import DistributionMatching, MatchingStudent
from dreamloop.models.training.distillation.error_bank import ErrorBank
from dreamloop.models.training.distillation.regression import Rollouts, SelfRollout, alike, followed, play
from dreamloop.models.training.distillation.scoring import Scoring, energy_score
from dreamloop.models.training.dynamics import ClipTrainer, DynamicsTraining, measure, optimizers_for
from dreamloop.models.training.run import Average, Run

SMALL = Rollouts(batch_clips=2, real_frames=4)
METHODS: list[Method] = [
    SelfRollout(rollouts=SMALL, learning_rate=2e-3),
    Scoring(rollouts=SMALL, batch_clips=2, learning_rate=5e-4, matrix_learning_rate=2e-3),
    Scoring(rollouts=SMALL, batch_clips=2, learning_rate=5e-4, matrix_learning_rate=2e-3,
            bank=ErrorBank(dreams=2, every=5, real_frames=4)),
    Consistency(batch_clips=2, matrix_learning_rate=2e-3),
    DistributionMatching(rollouts=SMALL),
    DistributionMatching(rollouts=SMALL, steps=3),
    Adversarial(rollouts=SMALL, learning_rate=1e-3)]


def trainer_in(folder: Path, **settings: float) -> ClipTrainer:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return ClipTrainer(Run(folder, "toy", "cpu", True), tiny_spec(), DynamicsTraining(batch_clips=2, **settings))  # type: ignore[arg-type]


def learn(trainer: ClipTrainer, clips: LatentClips, steps: int) -> None:
    optimizers = optimizers_for(trainer.net, 3e-3, 1e-2)
    for step in range(steps):
        trainer.parallel_step(clips, np.random.default_rng(step), 0.2)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LatentClips]:
    """A run folder whose stage `dynamics` has learnt the toy's rule a little, at all noise levels."""
    folder = tmp_path_factory.mktemp("base")
    trainer = trainer_in(folder, noisy_target_share=0.5)
    clips = clips_of(trainer.spec, 6)
    learn(trainer, clips, 40)
    trainer.run.save("dynamics", {"average": trainer.net.state_dict()})
    return folder, clips


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_keeps_a_one_step_student_that_obeys(method: Method, base: tuple[Path, LatentClips]) -> None:
    folder, clips = base
    trainer = trainer_in(folder)
    started = trainer.run.load("dynamics")["average"]  # type: ignore[index]
    trainer.net.load_state_dict(started)
    student = method.student(trainer)
    average = Average(student.net, 0.9)  # what a stage leaves; at a rate that does not fall a single step says little
    for step in range(18):
        student.step(clips, np.random.default_rng(step), step / 18)
        for optimizer in student.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        average.update(student.net, step + 1)
    before, after = (measure(trainer.run, trainer.spec, values, clips, count=4)
                     for values in (started, average.values))
    assert any(not torch.equal(value, started[name]) for name, value in student.net.state_dict().items())
    # an answer that is drawn errs up to twice as much, squared, as the mean that regression gives
    allowed = 2.5 if method.name == "scoring" else 1.3
    assert after["one_step"] < min(allowed * before["one_step"], 0.8 * after["copy_last"]), (before, after)
    assert after["shuffle_ratio"] > 1.2, after


def test_a_stage_keeps_its_critic_in_the_checkpoint_and_goes_on_with_it(base: tuple[Path, LatentClips]) -> None:
    folder, clips = base
    run = Run(folder, "toy", "cpu", True)
    method = Adversarial(rollouts=SMALL, warmup=0.0)
    for seconds in (1.5, 3.0):
        figures = train_student(run, tiny_spec(), method, DynamicsTraining(batch_clips=2), "dynamics", seconds, clips,
                                clips)
    assert set(figures) == {"one_step", "copy_last", "shuffle_ratio", "rollout_16", "copy_16", "spread_16"}
    saved = run.load(method.name)
    assert saved is not None and saved["steps"] >= 2
    assert any(name.startswith("critic.") for name in saved["companion"])
    assert not any("critic" in name for name in saved["average"])


def test_a_method_without_its_base_says_which_stage_is_missing(tmp_path: Path) -> None:
    clips = clips_of(tiny_spec(), 1)
    with pytest.raises(DreamloopError, match="consistency starts from stage dynamics"):
        train_student(Run(tmp_path, "toy", "cpu", True), tiny_spec(), Consistency(), DynamicsTraining(), "dynamics",
                      1.0, clips, clips)


def test_rollouts_grow_to_the_whole_clip_and_their_first_frames_are_real(base: tuple[Path, LatentClips]) -> None:
    folder, clips = base
    trainer = trainer_in(folder)
    lengths = {spent: {play(trainer, clips, np.random.default_rng(i), SMALL, spent, gradient=False).made.shape[1]
                       for i in range(12)} for spent in (0.0, 1.0)}
    assert lengths[0.0] == {SMALL.real_frames + SMALL.shortest}
    assert max(lengths[1.0]) > SMALL.real_frames + 2 * SMALL.shortest and max(lengths[1.0]) <= clips.clip_frames
    played = play(trainer, clips, np.random.default_rng(0), SMALL, 1.0)
    assert torch.equal(played.previous[:, 1 : SMALL.real_frames], played.target[:, : SMALL.real_frames - 1])
    assert played.made.requires_grad and not played.previous.requires_grad


def test_a_dream_is_alike_until_one_cell_of_it_has_parted_and_never_again() -> None:
    recorded = torch.randn(2, 6, 3, 4, 5)
    previous = recorded + 0.5 * torch.randn(recorded.shape).clamp(-1, 1)
    assert alike(previous, recorded, 2.0).eq(1).all()
    previous[1, 3, :, 2, 2] = recorded[1, 3, :, 2, 2] + 1.5  # 2.25 apart, in this frame alone
    assert alike(previous, recorded, 2.0).tolist() == [[1.0] * 6, [1, 1, 1, 0, 0, 0]]
    assert alike(previous, recorded, math.inf).eq(1).all()


def test_a_dream_is_followed_while_it_shows_what_the_recording_shows() -> None:
    background = torch.randn(3, 6, 8)
    recorded = background + 0.2 * torch.randn(4, 6, 3, 6, 8).clamp(-1, 1)
    for t in range(6):
        recorded[:, t, :, 2, 1 + t] = background[:, 2, 1 + t] + 2.0  # a ball on its way
    assert followed(recorded, recorded, background, 1.0).eq(1).all()
    late, lost, doubled = (recorded.clone() for _ in range(3))
    late[:, 1:, :, 2] = recorded[:, :-1, :, 2]  # a cell behind: a little off is not another story
    assert followed(late, recorded, background, 1.0).eq(1).all()
    lost[1, 3, :, 2] = background[:, 2]  # in one frame alone
    assert followed(lost, recorded, background, 1.0).tolist() == [
        [1.0] * 6, [1, 1, 1, 0, 0, 0], [1.0] * 6, [1.0] * 6]
    lost[0, 1:4, :, 2] = background[:, 2]
    lost[0, 5:, :, 2] = background[:, 2]
    assert followed(lost, recorded, background, 1.0, grace=1).tolist() == [
        [1, 1, 0, 0, 0, 0], [1.0] * 6, [1.0] * 6, [1.0] * 6], "for two frames in a row"
    assert followed(lost, recorded, background, 1.0, grace=3).eq(1).all(), "and it came back"
    doubled[2, 4, :, 5, 0] += 2.0
    assert followed(doubled, recorded, background, 1.0)[2].tolist() == [1, 1, 1, 1, 0, 0]
    assert followed(recorded, doubled, background, 1.0)[2].tolist() == [1, 1, 1, 1, 0, 0], "either way round"
    assert followed(doubled, recorded, background, 1.0, grace=3)[2].tolist() == [1, 1, 1, 1, 0, 0], "no grace for more"
    assert followed(doubled, recorded, background, 9.0).eq(1).all(), "fainter than a thing"


def test_what_follows_the_loss_of_a_thing_is_left_out_of_a_rollout(base: tuple[Path, LatentClips],
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    folder, clips = base
    trainer = trainer_in(folder)
    empty = torch.from_numpy(clips.background)
    assert empty.shape == clips.latents[0].shape[1:]
    rolled = trainer.rollout

    def forgets(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        previous, begun = rolled(*args)
        previous[:, SMALL.real_frames:] = empty
        return previous, begun

    monkeypatch.setattr(trainer, "rollout", forgets)
    told = {thing: play(trainer, clips, np.random.default_rng(3), replace(SMALL, thing=thing), 1.0).followed
            for thing in (math.inf, 1e9, 0.1)}
    assert told[math.inf].eq(1).all() and told[1e9].eq(1).all()
    assert told[0.1][:, : SMALL.real_frames].eq(1).all() and told[0.1][:, SMALL.real_frames :].eq(0).all()


def test_frames_after_a_dream_has_parted_teach_nothing(base: tuple[Path, LatentClips]) -> None:
    folder, clips = base
    trainer = trainer_in(folder)
    target, made = torch.randn(2, 2, 5, *clips.latents[0].shape[1:])
    made.requires_grad_()
    objects = torch.zeros(2, 5, *target.shape[-2:])
    kept = torch.tensor([[1.0, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    loss = trainer.loss(made, target, objects, kept)
    loss.backward()
    assert made.grad is not None
    assert torch.equal(made.grad.abs().sum((2, 3, 4)) > 0, kept > 0)
    assert float(loss.detach()) == pytest.approx(float((made - target)[kept > 0].detach().square().mean()), rel=1e-5)


def test_the_flow_from_noise_to_a_known_latent_is_a_straight_line() -> None:
    z, n = torch.randn(2, 1, 3, 4, 2, 2)
    level, lower = torch.full((1, 3), 0.75), torch.full((1, 3), 0.25)
    on_the_line = 0.25 * z + 0.75 * n
    assert torch.allclose(flow_step(on_the_line, z, level, lower), 0.75 * z + 0.25 * n, atol=1e-6)
    assert torch.allclose(flow_step(on_the_line, z, level, torch.zeros(1, 3)), z, atol=1e-6)


def test_where_both_scores_agree_distribution_matching_moves_nothing(base: tuple[Path, LatentClips]) -> None:
    folder, clips = base
    trainer = trainer_in(folder)
    trainer.net.load_state_dict(trainer.run.load("dynamics")["average"])  # type: ignore[index]
    student = DistributionMatching(rollouts=SMALL, critic_updates=0, regression_weight=0.0).student(trainer)
    assert isinstance(student, MatchingStudent)
    same = student.step(clips, np.random.default_rng(0), 0.5)
    assert float(same["gradient"]) == 0.0
    assert all(p.grad is None or float(p.grad.abs().max()) == 0.0 for p in student.net.parameters())
    # a fake score that believes in brighter frames than the real one says: dream darker
    fake = student.companions["fake"]
    with torch.no_grad():
        fake.output.bias += 0.5  # type: ignore[union-attr, operator]
    student.step(clips, np.random.default_rng(0), 0.5)
    assert float(student.net.output.bias.grad.mean()) > 0  # descent lowers the bias, and the frames  # type: ignore[union-attr]


def test_every_pass_of_a_student_of_several_steps_is_its_last_one_in_turn(base: tuple[Path, LatentClips],
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    folder, clips = base
    trainer = trainer_in(folder)
    student = DistributionMatching(rollouts=SMALL, steps=3, critic_updates=0).student(trainer)
    played: list[tuple[float, ...]] = []
    rolled, predict = trainer.rollout, trainer.predict
    told: list[torch.Tensor] = []

    def keeping(*args: Any) -> Any:
        played.append(args[-1])
        return rolled(*args)

    def hearing(*args: Any, **more: Any) -> torch.Tensor:
        if len(args) == 5:  # the student's own pass; a score names its network
            told.append(args[3])
        return predict(*args, **more)

    monkeypatch.setattr(trainer, "rollout", keeping)
    monkeypatch.setattr(trainer, "predict", hearing)
    for i in range(12):
        student.step(clips, np.random.default_rng(i), 0.5)
    thirds = (1.0, 2 / 3, 1 / 3)
    assert set(played) == {thirds[:1], thirds[:2], thirds}
    levels = {tuple(condition[0, 0, -3 * LEVEL_FEATURES :].tolist()) for condition in told}
    assert len(levels) == 3, "and is told its level"


def test_the_students_loss_leaves_no_gradient_in_the_critic(base: tuple[Path, LatentClips]) -> None:
    folder, clips = base
    grads = []
    for weight in (0.0, 5.0):
        trainer = trainer_in(folder)
        student = Adversarial(rollouts=SMALL, weight=weight, warmup=0.0, parallel_share=0.0).student(trainer)
        student.step(clips, np.random.default_rng(3), 0.9)
        assert isinstance(student, AdversarialStudent)
        grads.append([p.grad.clone() for p in student.critic.parameters() if p.grad is not None])
        moved = [float(p.grad.abs().sum()) for p in student.net.parameters() if p.grad is not None]
        assert sum(moved) > 0
    assert len(grads[0]) == len(grads[1]) > 5
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_the_energy_score_is_least_for_answers_drawn_from_the_truth() -> None:
    generator = torch.Generator().manual_seed(0)
    count, weight = 20_000, torch.ones(20_000)

    def drawn(spread: float, shift: float = 0.0) -> torch.Tensor:
        """Either of two vectors, +spread or -spread in every channel, each about as likely."""
        side = torch.randint(0, 2, (count, 1), generator=generator) * 2.0 - 1.0
        return side * spread + shift + 0.05 * torch.randn(count, 4, generator=generator)

    truth = drawn(1.0)
    scores = {name: float(energy_score(*answers, truth, weight)) for name, answers in {
        "drawn": (drawn(1.0), drawn(1.0)), "mean": (drawn(0.0), drawn(0.0)), "narrow": (drawn(0.7), drawn(0.7)),
        "wide": (drawn(1.4), drawn(1.4)), "shifted": (drawn(1.0, 0.4), drawn(1.0, 0.4))}.items()}
    assert min(scores, key=lambda name: scores[name]) == "drawn", scores
    assert scores["mean"] > 1.3 * scores["drawn"], scores


@pytest.mark.parametrize("spread", [1.0, 0.8, 0.5])
def test_less_spread_asks_for_answers_closer_to_the_middle(spread: float) -> None:
    """Of a normal truth of deviation 1 the best answers have spread / sqrt(2 - spread^2) of it."""
    generator = torch.Generator().manual_seed(0)
    truth, *drawn = (torch.randn(400_000, 1, generator=generator) for _ in range(3))
    widths = np.arange(0.05, 1.5, 0.05)
    scores = [float(energy_score(width * drawn[0], width * drawn[1], truth, torch.ones(len(truth)), spread))
              for width in map(float, widths)]
    assert widths[int(np.argmin(scores))] == pytest.approx(spread / (2 - spread**2) ** 0.5, abs=0.06)


def test_scoring_answers_as_widely_as_the_truth_where_regression_answers_its_mean(tmp_path: Path) -> None:
    """Latents that nothing foretells: the mean is 0, the truth has deviation 1."""
    spec = tiny_spec()
    rng = np.random.default_rng(5)
    latents = [rng.standard_normal((60, *spec.latent_shape)).astype(np.float16) for _ in range(4)]
    actions = [np.zeros((60, spec.actions.size), np.float32)] * 4
    clips = LatentClips(latents, actions, [np.zeros((60, *spec.latent_shape[1:]), bool)] * 4, 12)
    spread = {}
    methods: list[Method] = [SelfRollout(parallel_share=1.0), Scoring(batch_clips=2, rollouts_from=2.0)]
    for method in methods:
        trainer = trainer_in(tmp_path, history_noise_share=0.0, noisy_target_share=0.0)
        student = method.student(trainer)
        for step in range(60):
            student.step(clips, np.random.default_rng(step), 0.2)
            for optimizer in student.optimizers:
                optimizer.step()
                optimizer.zero_grad()
        z, action, _ = trainer.sample(clips, np.random.default_rng(9), 4)
        ones = torch.ones(action.shape[:2])
        with torch.no_grad():
            made = trainer.predict(z[:, :-1], torch.randn_like(z[:, 1:]), action,
                                   trainer.condition(action, ones, 0 * ones), 1)
        spread[method.name] = float(made.std())
    assert spread["self_rollout"] < 0.4 and spread["scoring"] > 0.6, spread
