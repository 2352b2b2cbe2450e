"""Regression on own rollouts: every frame of a dream is pulled towards the recording.

Some real frames fill the ring, then the network runs on its own latents for K frames, one at a time
through the ring of play; the same inputs then pass once in parallel, with gradient (cached
equals uncached, so they give the same latents). K grows over the stage. Games are nearly
deterministic, so the recording is the right answer for as long as the dream has not parted from it.
From there on, to be pulled towards it teaches the mean of what might be: things fade where they are and glimmer
where they are not. Where single things matter, frames after that are left out of the loss. What has parted is told by
single cells (`Rollouts.parted`) or by things (`Rollouts.thing`), which is later: a paddle two pixels off changes a cell
as much as a ball that is gone. recipes/pong.py has the figures of both.

Sources: DIAMOND (Alonso et al. 2024: own detached predictions as context, real targets), Self
Forcing (Huang et al. 2025: roll out through the cache that play uses).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dreamloop.models.training.data import LatentClips
from dreamloop.models.training.dynamics import ClipTrainer, optimizers_for


@dataclass(frozen=True)
class Rollouts:
    """How clips are played. real_frames: that fill the ring; shortest: K at the stage's start, which
    grows to the whole clip over the share `grow` of the stage. parted: mean squared difference of a cell's latent
    from the recording's, at which a dream has parted from it (`alike`); two cells drawn at random are 2 apart.
    thing: mean squared deviation of a cell's latent from what stands there most of the time, at which it shows a thing:
    a dream has parted (`followed`) when it shows a thing where the recording has none, or for more than `grace` frames
    none where there is one; for games whose background stands still."""

    batch_clips: int = 4
    real_frames: int = 8
    shortest: int = 4
    grow: float = 0.5
    parted: float = math.inf
    thing: float = math.inf
    grace: int = 0


@dataclass
class OwnPast:
    """A clip played by the network itself.

    target   (B, F, C, h, w) float32   the recording
    previous the same                  the latents that each frame saw, real for the first frames
    begun    the same                  what its last pass began from: the noise that it saw, where it is the only one
    level    float                     noise level of that pass
    action   (B, F, A); objects (B, F, h, w)
    followed (B, F) float32: 1 until `previous` has parted from the recording, then 0
    real     number of leading frames whose input was real
    """

    target: Tensor
    previous: Tensor
    begun: Tensor
    level: float
    action: Tensor
    objects: Tensor
    followed: Tensor
    real: int


@dataclass
class Played(OwnPast):
    """The same, run again in parallel. made (B, F, C, h, w) float32: what the network makes of it, with
    gradient if asked for."""

    made: Tensor


def own_past(trainer: ClipTrainer, clips: LatentClips, rng: np.random.Generator, rollouts: Rollouts,
             spent: float, levels: tuple[float, ...] = (1.0,)) -> OwnPast:
    """Sample clips and play them through the ring, one pass a noise level, as long as `spent` of the stage allows."""
    z, action, objects = trainer.sample(clips, rng, rollouts.batch_clips)
    longest = action.shape[1] - rollouts.real_frames
    reach = min(1.0, spent / rollouts.grow) if rollouts.grow else 1.0
    most = rollouts.shortest + max(int(reach * (longest - rollouts.shortest)), 0)
    count = rollouts.real_frames + int(rng.integers(rollouts.shortest, most + 1))
    z, action, objects = z[:, : count + 1], action[:, :count], objects[:, :count]
    seeds = rng.integers(0, 2**63, len(z)).astype(np.uint64)
    previous, begun = trainer.rollout(z, action, seeds, rollouts.real_frames, levels)
    still = alike(previous, z[:, :-1], rollouts.parted)
    if rollouts.thing < math.inf:
        still *= followed(previous, z[:, :-1], torch.from_numpy(clips.background).to(z.device), rollouts.thing,
                          rollouts.grace)
    return OwnPast(z[:, 1:], previous, begun, levels[-1], action, objects, still, rollouts.real_frames)


def alike(previous: Tensor, recorded: Tensor, parted: float) -> Tensor:
    """(B, F) float32: 1 for the frames of a clip before the first one at which a cell of `previous` is `parted`
    from that of the recording, 0 from there on; both (B, F, C, h, w)."""
    furthest = (previous - recorded).square().mean(2).flatten(2).amax(2)
    return (furthest < parted).float().cumprod(1)


def followed(previous: Tensor, recorded: Tensor, background: Tensor, thing: float, grace: int = 0) -> Tensor:
    """(B, F) float32: 1 for the frames of a clip before the first one at which `previous` shows a thing, a cell
    `thing` from the background, where the recording has not half as much in that cell or one beside it, or lacks one
    of the recording's for more than `grace` frames in a row; 0 from there on. previous, recorded: (B, F, C, h, w);
    background: (C, h, w)."""
    shown, real = ((latents - background).square().mean(2) for latents in (previous, recorded))
    invented, lacking = (((one >= thing) & (functional.max_pool2d(other, 3, stride=1, padding=1) < thing / 2))
                         .flatten(2).any(2) for one, other in ((shown, real), (real, shown)))
    # how many of the last grace + 1 frames lack something
    lost = functional.pad(lacking.int(), (grace, 0)).unfold(1, grace + 1, 1).sum(2) > grace
    return (~(invented | lost)).float().cumprod(1)


def play(trainer: ClipTrainer, clips: LatentClips, rng: np.random.Generator, rollouts: Rollouts, spent: float,
         gradient: bool = True, levels: tuple[float, ...] = (1.0,)) -> Played:
    """`own_past`, and the last pass of every frame again, all in parallel: the same latents, with gradient."""
    past = own_past(trainer, clips, rng, rollouts, spent, levels)
    with torch.set_grad_enabled(gradient):
        level = torch.full(past.action.shape[:2], past.level, device=past.target.device)
        condition = trainer.condition(past.action, level, torch.zeros_like(level))
        made = trainer.predict(past.previous, past.begun, past.action, condition, 1)
    return Played(**vars(past), made=made)


@dataclass(frozen=True)
class SelfRollout:
    """parallel_share: of the batches are those of the stage before, so that what they teach survives."""

    name: str = "self_rollout"
    clip_frames: int = 32
    rollouts: Rollouts = field(default_factory=Rollouts)
    learning_rate: float = 1e-3
    matrix_learning_rate: float = 1e-2
    parallel_share: float = 0.25
    ema_decay: float = 0.997

    def student(self, trainer: ClipTrainer) -> Regressor:
        return Regressor(self, trainer)


class Regressor:
    def __init__(self, settings: SelfRollout, trainer: ClipTrainer) -> None:
        self.settings, self.trainer, self.net = settings, trainer, trainer.net
        self.companions = nn.ModuleDict()
        self.optimizers = optimizers_for(self.net, settings.learning_rate, settings.matrix_learning_rate)

    def step(self, clips: LatentClips, rng: np.random.Generator, spent: float) -> dict[str, Tensor]:
        if rng.random() < self.settings.parallel_share:
            return {"parallel_loss": self.trainer.parallel_step(clips, rng, 1.0)["loss"]}
        played = play(self.trainer, clips, rng, self.settings.rollouts, spent)
        loss = self.trainer.loss(played.made, played.target, played.objects, played.followed)
        loss.backward()
        dream = slice(played.real, None)
        return {"loss": loss, "rolled_frames": torch.tensor(float(played.made.shape[1] - played.real)),
                "followed": played.followed[:, dream].mean()}
