"""pong: 80x105 pixels, 30 frames a second. The ball is two pixels that cross the court in a second.

Small fast things are what latent models lose, so: cells of 8x8 pixels, not 16x16, so that the ball is 3% of
one; pixels and cells of ball and paddles, which the game tells from its memory, weigh far more in both losses,
the ball as much as a paddle (by its area alone it was forgotten: of 52 frames with a ball the autoencoder
showed none), and so do pixels that change. Three quarters of the autoencoder's batches are windows around ball and
paddles: of 148 held-out frames with a ball, whole frames alone had taught it to show 98 in some 20 minutes of one
core; after 6 of windows it showed 136, after 13 of them 146, none of them elsewhere.
Nothing of the game is left to chance, given memory enough. After a point the court is empty for 31 frames, then the
ball comes from the middle, towards the side that lost the point, up or down as the last one went out: so the window
is 36 frames. With six nobody could know when, and the ball did not come back. Four layers, two thirds of the
arithmetic of six, are enough.

It ends on its own rollouts, pulled towards the recording for as long as they have not parted from it: to be pulled on
teaches the mean of what might be, and balls and paddles faded within seconds. Of held-out frames with a ball, 32 to 55
frames behind 8 real ones, 55% had lost it after 19 minutes of rollouts of up to 24 frames, all of them pulled, with a
memory of six; at 32 to 63 frames behind 36 real ones, 39% after 36 more minutes and 23% after 61, this way. (Eight
minutes of scoring in their stead lost paddles.) The decoder ends on dreams, too: a latent that is not quite right had
dots around the ball. What dots are left are the decoder's own, on real frames too: where the four pixels around a ball
weighed as much as it does, twelve more minutes took most of them away (motion at 1,000 frames 1.53 of the game's, then
1.14), and dimmed the ball until one in eight was not found, so that was not kept.

What parts a dream from the recording is not settled. `parted`, a cell's squared error, leaves out all that follows a
ball or a paddle that is off. At 2.0 a third of the dreamed frames taught anything, and half of them with the code that
ships, in whose latents a ball or a paddle that is off differs twice as much; at 4.0 six in ten. `thing=0.8` waits for a
ball that is gone (three quarters taught): in 92 minutes with it the ball came back no more often, and in play the court
stayed empty for longer than in any recording.

What lost most balls was the player's paddle, for one that is four pixels off misses. The console reads it at every
second picture, and episodes began at any: half of them answered a key a picture later than the others, which no picture
shows. Where keys have just changed, a small network that is given the exact heights and keys of the last eight frames
is 1.41 of the console's pixels off in the next height (root of the mean square) over such episodes, 0.56 where all
begin at an even picture, and a world behind real frames was 1.5. So they do now (`PongGame.reset`). The autoencoder had
lost 3.5% of the balls of real frames by itself, most of them beside a paddle; after 13 minutes of learning them anew it
loses 0.8%. Little noise on previous latents lets a dream trust what it sees, and alone is too little: with 0.05 and no
`foreign_share` the player's own paddle faded for a tenth to six tenths of 400 frames in three of eight plays; nine
minutes of noise 0.3 made both blink. Cells that are something else from some frame on teach to mend what fades: of
eight plays of 400 frames seven never lost the player's paddle, and one did for a tenth of them. And recordings hold
games whose ball is taken away in mid-court (`losing` in games/pong.py): they show when the next one comes to a court
that a dream has emptied.

The world that ships came here in three steps of one core: 111 minutes with a window of six and rollouts that were all
pulled; 117 with a window of 36, `--only self_rollout,decoder`, at any picture; then 136 of all stages, `--begin pong`,
with what stands below (of 84 minutes of rollouts the first 10 with parted=2.0). At 64 frames a ball was there in 0.935
of 367 frames of 48 episodes after 45 minutes of rollouts, in 0.918 after 66 (0.929 with its own decoder), in 0.956
after 84 (0.795 by the world before, in such a game), the player near in 0.849, 0.896, 0.904 (0.66), 45.2 dB at 16
frames (40.3); in eight plays of 400 frames from the starts the ball was there in 68 to 89% of them (49 to 67 before).
Which of the changes did how much of that was not told apart.
"""

from __future__ import annotations

from dreamloop.models.core.spec import ActionSpec, AutoencoderSpec, Button, DynamicsSpec, MemorySpec, WorldSpec
from dreamloop.models.training.autoencoder import AutoencoderTraining
from dreamloop.models.training.distillation.regression import Rollouts, SelfRollout
from dreamloop.models.training.dynamics import DynamicsTraining
from dreamloop.models.training.polish import Polish
from dreamloop.models.training.recipes import Recipe

PONG = Recipe(
    spec=WorldSpec(
        name="pong", game="pong", frame_height=105, frame_width=80, fps=30.0,
        actions=ActionSpec((Button("up", ("ArrowUp", "KeyW"), ("button12",)),
                            Button("down", ("ArrowDown", "KeyS"), ("button13",)))),
        autoencoder=AutoencoderSpec(latent_channels=16, widths=(48, 96), encoder_blocks=(1, 1), decoder_blocks=(1, 2)),
        dynamics=DynamicsSpec(width=192, layers=4, heads=4, mlp_width=576, patch=2),
        memory=MemorySpec(window_frames=36)),
    record_frames=100_000,
    held_out_frames=12_000,
    minutes=225.0,  # of one core
    shares={"autoencoder": 0.11, "dynamics": 0.23, "self_rollout": 0.56, "decoder": 0.065, "judges": 0.035},
    gates={"autoencoder.psnr": 28.0, "autoencoder.objects_kept": 0.9,
           "dynamics.shuffle_ratio": 1.05, "self_rollout.shuffle_ratio": 1.05},
    autoencoder=AutoencoderTraining(object_weight=32.0, object_weight_end=10.0, object_size=64, change_weight=4.0,
                                      crop_share=0.75),
    dynamics=DynamicsTraining(batch_clips=5, object_weight=12.0, history_noise=0.1, history_noise_share=0.5,
                              foreign_share=0.3),
    distillation=(SelfRollout(clip_frames=72, learning_rate=5e-4, matrix_learning_rate=5e-3, parallel_share=0.25,
                              rollouts=Rollouts(real_frames=24, shortest=12, grow=0.4, parted=4.0)),),
    polish=Polish(weight=0.0, batch_frames=16, dream_share=1.0, dreams=256, dream_frames=72, parted=4.0, kept=1.0))
