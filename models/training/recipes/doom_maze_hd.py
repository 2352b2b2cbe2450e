"""doom-maze-hd: the maze at 320x240, drawn at 640x480, in 20x15 tokens of 16x16 pixels.

A frame has 300 tokens, where doom-maze has 80. Its networks are doom-maze's, so it begins from the corridor's blocks,
and may begin from the maze's once they are worth it.

No world of it ships, and nothing of this recipe has been trained. Of the one before (frames as Doom draws them, the
corridor's cells of 16x16 pixels) the code was: 27.1 dB untrained, 29.3 and 29.6 dB after 5 and 12 minutes of one core
of an AMD EPYC (float32, 82 and 180 steps, four episodes), at rates that had fallen to zero. A frame has nearly four
times the maze's tokens, and the maze's minutes are not enough for the maze.
"""

from __future__ import annotations

import dataclasses

from dreamloop.models.training.recipes.doom_maze import DOOM_MAZE

DOOM_MAZE_HD = dataclasses.replace(
    DOOM_MAZE,
    spec=dataclasses.replace(DOOM_MAZE.spec, name="doom-maze-hd", game="doom-maze-hd", frame_height=240,
                             frame_width=320),
    record_frames=200_000,
    minutes=240.0)
