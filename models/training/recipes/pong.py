"""pong: 80x105 pixels, 30 frames a second. The ball is two pixels that cross the court in a second.

Small fast things are what latent models lose, so: cells of 8x8 pixels, not 16x16, so that the ball is 3% of
one; pixels and cells of ball and paddles, which the game tells from its memory, weigh far more in both losses,
the ball as much as a paddle (by its area alone it was forgotten: of 52 frames with a ball the autoencoder
showed none), and so do pixels that change. Three quarters of the autoencoder's batches are windows around ball and
paddles: of 148 held-out frames with a ball, whole frames alone had taught it to show 98 in some 20 minutes of one
core; after 6 of windows it showed 136, after 13 of them 146, none of them elsewhere.
The game is all but certain given two frames, so its memory is short, and four layers, two thirds of the arithmetic
of six, are enough. It ends on its own rollouts, pulled towards the recording: of held-out frames
with a ball, 14 frames into a rollout, 65% showed it after 56 minutes of stage `dynamics` (50% where it should be),
82% (65%) after 16 minutes of rollouts; eight minutes of scoring in their stead gave 64% (43%) and lost paddles. What is
open, such as how the other side will return, is answered with a mean, and that is why things fade after some seconds.
"""

from __future__ import annotations

from dreamloop.models.core.spec import ActionSpec, AutoencoderSpec, Button, DynamicsSpec, MemorySpec, WorldSpec
from dreamloop.models.training.autoencoder import AutoencoderTraining
from dreamloop.models.training.distillation.regression import SelfRollout
from dreamloop.models.training.dynamics import DynamicsTraining
from dreamloop.models.training.recipes import Recipe

PONG = Recipe(
    spec=WorldSpec(
        name="pong", game="pong", frame_height=105, frame_width=80, fps=30.0,
        actions=ActionSpec((Button("up", ("ArrowUp", "KeyW"), ("button12",)),
                            Button("down", ("ArrowDown", "KeyS"), ("button13",)))),
        autoencoder=AutoencoderSpec(latent_channels=16, widths=(48, 96), encoder_blocks=(1, 1), decoder_blocks=(1, 2)),
        dynamics=DynamicsSpec(width=192, layers=4, heads=4, mlp_width=576, patch=2),
        memory=MemorySpec(window_frames=6)),
    record_frames=100_000,
    held_out_frames=12_000,
    minutes=115.0,  # of one core
    shares={"autoencoder": 0.28, "dynamics": 0.487, "self_rollout": 0.165, "judges": 0.03},
    gates={"autoencoder.psnr": 28.0, "autoencoder.objects_kept": 0.9,
           "dynamics.shuffle_ratio": 1.05, "self_rollout.shuffle_ratio": 1.05},
    autoencoder=AutoencoderTraining(object_weight=32.0, object_weight_end=8.0, object_size=64, change_weight=4.0,
                                      crop_share=0.75),
    dynamics=DynamicsTraining(batch_clips=5, object_weight=12.0, history_noise=0.3),
    distillation=(SelfRollout(learning_rate=5e-4, matrix_learning_rate=5e-3, parallel_share=0.4),))
