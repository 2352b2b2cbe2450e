"""The real game beside its dream, both under the same keys.

    dreamloop play doom-arena --side-by-side

The game is stepped when the loop reads its input, with the very action that the dream's next frame is made from;
so what is shown left and right is the same moment. Starting over starts both: the dream from the game's own
frame. The game itself (games/) is imported only here, when it is asked for.
"""

from __future__ import annotations

from dataclasses import replace
from types import TracebackType
from typing import Self

import numpy as np

from dreamloop.demos.sinks import joined
from dreamloop.models.core.errors import GameError
from dreamloop.models.core.world import World
from dreamloop.runtime.loop import Command, Sink, Source
from dreamloop.runtime.session import Action, Frame

LEAD_FRAMES = 30  # a game begins with its weapon down and nothing in sight: this long without keys, then both start


class GameBeside:
    """frame: the game's picture now, (H, W, 3) uint8; over: whether its episode has ended, so that it stands
    still. Raises `GameError` where the world's game is not installed or is another one."""

    def __init__(self, world: World, seed: int = 0) -> None:
        from dreamloop.models.training.games import open_game
        spec = world.spec
        self._game = open_game(spec.game, trusted=False)
        game = self._game
        if (game.frame_height, game.frame_width, game.actions.names) != (spec.frame_height, spec.frame_width,
                                                                         spec.actions.names):
            game.close()
            raise GameError(f"{spec.game} is {game.frame_width}x{game.frame_height} with "
                            f"{', '.join(game.actions.names)}; world {spec.name} is {spec.frame_width}x"
                            f"{spec.frame_height} with {', '.join(spec.actions.names)}")
        self._seed = seed
        self.frame = self.begin()

    def begin(self) -> np.ndarray:
        """Start the next episode; returns its first frame, which a dream can start from."""
        view = self._game.reset(self._seed)
        self._seed += 1
        for _ in range(LEAD_FRAMES):
            if not view.done:
                view = self._game.step(np.zeros(self._game.actions.size, np.float32))
        self.frame, self.over = view.frame, view.done
        return self.frame

    def step(self, action: np.ndarray) -> None:
        """One frame of the game; nothing once its episode is over."""
        if not self.over:
            view = self._game.step(action)
            self.frame, self.over = view.frame, view.done

    def vector(self, action: Action) -> np.ndarray:
        """An action as both take it, (A,) float32."""
        return self._game.actions.vector(action)

    def close(self) -> None:
        self._game.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


class SharedSource:
    """Reads a source for both: the game takes the action, the dream starts over where the game does."""

    def __init__(self, source: Source, game: GameBeside) -> None:
        self.source, self.game = source, game

    def read(self) -> Command:
        command = self.source.read()
        if command.stop or (not command.advance and not command.jumps):
            return command
        if command.reset is not None:
            return replace(command, reset=self.game.begin())
        assert not command.jumps, "a real game cannot go back"
        vector = self.game.vector(command.action)
        self.game.step(vector)
        return replace(command, action=vector)


class JoinedSink:
    """Gives another sink the game's picture and the dream's as one."""

    def __init__(self, sink: Sink, game: GameBeside) -> None:
        self.sink, self.game = sink, game

    def present(self, frame: Frame) -> None:
        self.sink.present(Frame(frame.index, joined([self.game.frame, frame.pixels])))

    def hold(self) -> None:
        self.sink.hold()
