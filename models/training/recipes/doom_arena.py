"""doom-arena: ViZDoom's `defend_the_line` at 160x120, every tic.

The room is plain and the player only turns, so the next frame is nearly certain given the past and the
keys, but not quite, and the mean of what a turn might show is mist: regression lays the ground, then
scoring makes the step a generator. At last the decoder gives the walls their texture back.

The world that ships came here in four steps: 100 minutes of two cores without spoilt clips (`foreign_share`); 42
of one core from that, `--only scoring`, with half of the clips spoilt and at two thirds of the rates; 42 more, with
the corridor's little noise on previous latents (0.15 at most, for half of them; 0.5 before), a quarter spoilt. In the
first world the weapon faded now and then and stayed faded, and one shot in four had no flash: of the game's shots
0.76 had one in the dream, then 0.97; of the dream's flashes 0.07 had no shot, then 0.04; keys read from the dream 0.89,
then 0.92 (0.95 from the game).

What the third step did shows where nobody touches a key (`evaluate --policy idle`): within 400 frames the
world before it lost the room, then status bar and weapon, and never found them again; now both stay through 2,400
frames from six starts, and the room comes back. Clips of 8 and 32 frames are told from the game's with 0.79 and 0.61
(0.90 and 0.75 before, in the same storage), 24.1 dB are left at 64 frames (23.0), after 10,000 frames motion is 0.88 of
the game's (0.71). It cost some obedience: keys 0.895 (0.915), of its flashes 0.07 have no shot (0.05), a turn of
35 frames is 41 degrees off (35). The mean of the weights before and after, half and half, lost the room as well.

In the fourth step the decoder alone learnt, for 9 minutes of one core, beside dreams of the new network
(`--only decoder`; 0.6 of the way is kept as always), and ships half of the way there, which is
`Polish(kept=0.3)`. Texture after 1,000 frames had
been 0.79 of the game's; at the end of the way it is 1.10, and motion 1.27, which is grain; half of the way it is 0.91,
and motion 1.13. After 10,000 frames of 4 episodes mean, spread, motion and gradient are 0.99, 0.86, 0.97 and 0.88
(0.99, 0.85, 0.88, 0.76). Clips of 8 and 32 frames are told from the game's with 0.71 and 0.60 (0.79, 0.61).

It plays with all of its noise. With 0.9 (`noise_at_play`, which mended the corridor's flashes) 0.06 of its flashes have
no shot and 24.3 dB are left at 64 frames (0.07, 23.9), but keys are read from the dream with 0.874 (0.899), and clips
are told with 0.87 and 0.65. Of the 14 flashes without a shot eight come 9 to 15 frames after one of the game's: one
more of a burst."""

from __future__ import annotations

from dreamloop.models.core.spec import (
    ActionSpec,
    AutoencoderSpec,
    Button,
    DynamicsSpec,
    MemorySpec,
    WorldSpec,
)
from dreamloop.models.training.distillation.scoring import Scoring
from dreamloop.models.training.dynamics import DynamicsTraining
from dreamloop.models.training.polish import Polish
from dreamloop.models.training.recipes import Recipe

DOOM_ARENA = Recipe(
    spec=WorldSpec(
        name="doom-arena", game="doom-arena", frame_height=120, frame_width=160, fps=35.0,
        actions=ActionSpec((
            Button("turn_left", ("ArrowLeft", "KeyA"), ("button14",)),
            Button("turn_right", ("ArrowRight", "KeyD"), ("button15",)),
            Button("attack", ("Space",), ("button0",), ("left",)),
        )),
        autoencoder=AutoencoderSpec(latent_channels=16, widths=(64, 96, 128), encoder_blocks=(1, 1, 2),
                                    decoder_blocks=(1, 2, 2)),
        dynamics=DynamicsSpec(width=256, layers=6, heads=4, mlp_width=768, patch=2),
        memory=MemorySpec(window_frames=16),
    ),
    record_frames=100_000,
    held_out_frames=12_000,
    minutes=100.0,
    shares={"autoencoder": 0.14, "dynamics": 0.28, "scoring": 0.40, "decoder": 0.10, "judges": 0.08},
    gates={"autoencoder.psnr": 25.0, "autoencoder.psnr_objects": 18.0,
           "dynamics.shuffle_ratio": 1.1, "scoring.shuffle_ratio": 1.1, "decoder.gradient": 0.7,
           "judges.motion_told": 0.5},
    dynamics=DynamicsTraining(history_noise=0.15, history_noise_share=0.5, foreign_share=0.25),
    distillation=(Scoring(learning_rate=1e-3, matrix_learning_rate=1e-2),),
    polish=Polish(),
)
