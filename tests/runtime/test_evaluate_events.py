"""Events, motion, clips and the networks of others: each figure on cases whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vizdoom", reason="the real games: pip install 'dreamloop[games]'")
torch = pytest.importorskip("torch")

# ruff: noqa: E402
from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.training.games import Shooter, open_game
from dreamloop.runtime import evaluate_clips, evaluate_events, evaluate_motion, evaluate_perceptual
from dreamloop.runtime.evaluate import PRIMED_FRAMES, Dream, Truth, _play_episode, play_turns

ARENA_FRAMES = 200


@pytest.fixture(scope="module")
def arena() -> tuple[Shooter, list[Truth]]:
    """Two episodes in which one shoots, idle at first, so that the weapon's clockwork is known."""
    with open_game("doom-arena") as game:
        truths = [_play_episode(game, game.players[-1], seed, ARENA_FRAMES, keep=ARENA_FRAMES)
                  for seed in (1_500_000_001, 1_500_000_005)]
        assert isinstance(game.flashes(truths[0].frames), np.ndarray)  # type: ignore[attr-defined]
        return game, truths  # type: ignore[return-value]


def as_dream(truths: list[Truth], late: int = 0) -> Dream:
    """The game itself, `late` frames too late, as if it were dreamed."""
    frames = np.stack([t.frames[PRIMED_FRAMES - late : PRIMED_FRAMES - late + ARENA_FRAMES] for t in truths])
    return Dream(frames, np.zeros((len(truths), ARENA_FRAMES, 4)))


def clockwork(attack: np.ndarray, idle: int) -> list[int]:
    """When the pistol's flashes are due: 4 tics after a trigger pulled while idle; 10 tics later it shoots again
    if the trigger is held, else it is idle 5 tics after that. attack: (F,) bool; idle: ready from this frame on."""
    due: list[int] = []
    decide = -1
    for t in range(len(attack)):
        if attack[t] and (t == decide or t >= idle):
            due.append(t + 4)
            decide, idle = t + 14, t + 19
    return [t for t in due if t < len(attack)]


def test_the_finder_sees_the_flashes_that_the_pistols_clockwork_says() -> None:
    """Real frames of three episodes, under keys held at random after a pause."""
    due = seen = found = right = 0
    with open_game("doom-arena") as game:
        for seed in (11, 12, 13):
            rng = np.random.default_rng(seed)
            player = game.players[1].make(game.actions, rng)
            view = game.reset(seed)
            frames, attack = [view.frame], [False]
            for t in range(1, 330):
                action = player(view) if t > 30 else game.actions.vector(None)
                view = game.step(action)
                if view.done:
                    break
                frames.append(view.frame)
                attack.append(bool(action[-1] > 0.5))
            flashes = game.flashes(np.stack(frames))  # type: ignore[attr-defined]
            shots = np.array(clockwork(np.array(attack), 20))
            near = np.abs(shots[:, None] - flashes[None]) <= 2
            due, seen = due + len(shots), seen + int(near.any(1).sum())
            found, right = found + len(flashes), right + int(near.any(0).sum())
    assert due > 20
    assert seen >= 0.9 * due and right >= 0.95 * found, (due, seen, found, right)


def test_flashes_of_a_perfect_dream_hit_and_of_a_blind_one_do_not(arena: tuple[Shooter, list[Truth]]) -> None:
    shooter, truths = arena
    perfect = evaluate_events.flash_figures(shooter, truths, as_dream(truths))
    assert perfect["flash_shots"] == perfect["flash_flashes"] > 5
    assert (perfect["flash_hit"], perfect["flash_false"]) == (1.0, 0.0)
    late = evaluate_events.flash_figures(shooter, truths, as_dream(truths, late=3))
    assert late["flash_hit"] == 1.0, "three frames are within half of the weapon's period"
    still = Dream(np.stack([t.frames[:1].repeat(ARENA_FRAMES, 0) for t in truths]), np.zeros((2, ARENA_FRAMES, 4)))
    blind = evaluate_events.flash_figures(shooter, truths, still)
    assert (blind["flash_hit"], blind["flash_false"], blind["flash_flashes"]) == (0.0, None, 0)
    peaceful = [replace(t, frames=t.frames[:1].repeat(len(t.frames), 0)) for t in truths]
    wild = evaluate_events.flash_figures(shooter, peaceful, as_dream(truths))
    assert (wild["flash_hit"], wild["flash_false"]) == (None, 1.0)


def test_a_monster_is_gone_when_the_crosshair_is_empty_and_the_player_has_not_turned_away() -> None:
    aimed, heading = np.zeros(60, bool), np.zeros(60)
    aimed[:10] = True
    shot = np.array([5])
    assert evaluate_events.shot_gone(shot, aimed, heading) == (1, 1)
    assert evaluate_events.shot_gone(shot, np.ones(60, bool), heading) == (1, 0)
    flicker = np.ones(60, bool)
    flicker[20:22] = False
    assert evaluate_events.shot_gone(shot, flicker, heading) == (1, 0), "two frames may be a misreading"
    away = np.where(np.arange(60) < 8, 0.0, 10.0)
    assert evaluate_events.shot_gone(shot, aimed, away) == (0, 0), "the crosshair left the monster"
    assert evaluate_events.shot_gone(np.array([20]), aimed, heading) == (0, 0), "nobody was there"
    assert evaluate_events.shot_gone(np.array([58]), np.ones(60, bool), heading) == (0, 0), "the second is not over"


def test_dead_reckoning_walks_a_square() -> None:
    side = np.concatenate([np.tile([10.0, 0, 0], (3, 1)), [[0, 0, 90.0]]])
    path = evaluate_motion.walked(np.tile(side, (4, 1)))
    np.testing.assert_allclose(path[-1], [0, 0, 360], atol=1e-9)
    np.testing.assert_allclose(path[4], [30, 0, 90], atol=1e-9)
    np.testing.assert_allclose(path[8], [30, 30, 180], atol=1e-9)  # left is the positive side


def test_a_full_turn_is_found_and_the_room_is_the_same_room() -> None:
    """The real maze: after a full circle of the game itself the view is what it was, half a turn away it is not."""
    with open_game("doom-maze") as game:
        truths = play_turns(game, 2, evaluate_motion.CIRCLE_FRAMES)
    assert len(truths) == 2
    circle = [evaluate_motion.full_turn(t.variables["heading"][PRIMED_FRAMES - 1 :]) for t in truths]
    assert all(c is not None and 100 <= c <= 112 for c in circle), circle
    dream = Dream(np.stack([t.frames[PRIMED_FRAMES:] for t in truths]), np.zeros((2, 128, 4)))
    figures = evaluate_motion.turn_figures(None, truths, dream)
    assert (figures["episodes"], figures["turned"], figures["heading_error"]) == (2, 2, None)
    assert figures["revisit_psnr"] == 100.0 and figures["revisit_psnr_elsewhere"] < 30
    held = np.stack([t.frames[PRIMED_FRAMES - 1 : PRIMED_FRAMES].repeat(128, 0) for t in truths])
    stuck = Dream(held, dream.statistics)
    back = evaluate_motion.turn_figures(None, truths, stuck)
    assert back["revisit_psnr"] > back["revisit_psnr_elsewhere"] + 3, "the room after a full turn looks as before"


def test_the_turn_error_is_the_distance_from_the_games_heading(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe that reads the truth, and one that misses half a degree a frame."""
    with open_game("doom-maze") as game:
        truths = play_turns(game, 2, 40)
    dream = Dream(np.stack([t.frames[PRIMED_FRAMES:] for t in truths]), np.zeros((2, 40, 4)))
    from dreamloop.models.networks import probes
    from dreamloop.models.training.probes import true_motion
    known = {t.frames[PRIMED_FRAMES + 3].tobytes(): true_motion(
        {k: v[PRIMED_FRAMES - 1 :] for k, v in t.variables.items()}) for t in truths}
    for off in (0.0, 0.5):
        monkeypatch.setattr(probes, "read_motion", lambda probe, frames, off=off:
                            known[frames[4].tobytes()][: len(frames) - 1] + [0, 0, off])
        figures = evaluate_motion.turn_figures(object(), truths, dream)  # type: ignore[arg-type]
        assert figures["heading_error"] == figures["heading_error_real"] == pytest.approx(35 * off, abs=0.05)
        errors = evaluate_motion.motion_error(object(), truths, dream, (1, 16, 64))  # type: ignore[arg-type]
        assert errors["heading"]["16"]["degrees"] == pytest.approx(16 * off, abs=0.05)
        assert "64" not in errors["heading"]
        assert errors["position"]["16"]["units"] == pytest.approx(0, abs=0.1) if not off else True


def noise_clips(level: float, episodes: int = 4, frames: int = 48) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of smooth clips, the second darker by `level`."""
    rng = np.random.default_rng(1)
    pairs = []
    for _ in range(episodes):
        both = [np.clip(rng.normal(128, 30, (frames, 4, 5, 3)).repeat(4, 1).repeat(4, 2) - off, 0, 255).astype(np.uint8)
                for off in (0.0, level)]
        pairs.append((both[0], both[1]))
    return pairs


def test_the_clip_judge_tells_what_differs_and_not_what_does_not() -> None:
    torch.set_num_threads(1)
    told = evaluate_clips.right_of_episodes(noise_clips(60.0), 8, steps=20)
    same = evaluate_clips.right_of_episodes(noise_clips(0.0), 8, steps=20)
    assert told[:, 1].tolist() == [12.0] * 4  # six clips of each side of an episode
    assert told[:, 0].sum() / told[:, 1].sum() > 0.9
    assert 0.25 < same[:, 0].sum() / same[:, 1].sum() < 0.75
    assert len(evaluate_clips.right_of_episodes(noise_clips(0.0, episodes=1), 8, steps=1)) == 0


class _Means(torch.nn.Module):
    """A network with the arguments of the published files, whose features are mean colours."""

    def forward(self, x: torch.Tensor, resize_images: bool = True, return_lpips: bool = False) -> torch.Tensor:
        return x.flatten(2).mean(2) if return_lpips and not resize_images else x[:0]


class _ClipMeans(torch.nn.Module):
    def forward(self, x: torch.Tensor, rescale: bool = False, resize: bool = False,
                return_features: bool = False) -> torch.Tensor:
        return x.flatten(2).mean(2) if rescale and resize and return_features else x[:0]


def test_lpips_and_fvd_run_with_networks_of_the_users(tmp_path: Path) -> None:
    for name, net in (("vgg.pt", _Means()), ("i3d.pt", _ClipMeans())):
        torch.jit.script(net).save(str(tmp_path / name))
    rng = np.random.default_rng(2)
    truths = [Truth(0, np.zeros((64, 3)), rng.integers(0, 200, (48, 8, 8, 3)).astype(np.uint8), np.zeros((1, 4)))
              for _ in range(3)]
    dream = Dream(np.stack([t.frames[PRIMED_FRAMES:] + 7 for t in truths]).astype(np.uint8), np.zeros((3, 32, 4)))
    figures = evaluate_perceptual.perceptual(truths, dream, (1, 64), tmp_path / "vgg.pt",
                                             tmp_path / "i3d.pt")
    assert figures["lpips"]["1"] == pytest.approx(3 * 49, rel=1e-3) and figures["lpips"]["64"] is None
    assert figures["fvd"] == pytest.approx(3 * 49, rel=1e-3)  # the means differ by 7 in three colours, nothing else
    assert "perceptual_note" not in figures
    none = evaluate_perceptual.perceptual(truths, dream, (1,), None, None)
    assert none == {"lpips": None, "fvd": None, "perceptual_note":
                    "not measured: --lpips and --fvd with the network's TorchScript file"}
    (tmp_path / "bad.pt").write_bytes(b"no network")
    for file in ("bad.pt", "none.pt"):
        with pytest.raises(DreamloopError, match=f"{file} is not a TorchScript file"):
            evaluate_perceptual.image_features(tmp_path / file)
    with pytest.raises(DreamloopError, match=r"i3d.pt does not take resize_images, return_lpips"):
        evaluate_perceptual.image_features(tmp_path / "i3d.pt")(truths[0].frames)


def test_the_frechet_distance_of_known_gaussians() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (50_000, 2)), rng.normal([3, 0], 2, (50_000, 2))
    assert evaluate_perceptual.frechet_distance(a, b) == pytest.approx(9 + 2, rel=0.03)  # |m|^2 + sum (s1 - s2)^2
    assert evaluate_perceptual.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
