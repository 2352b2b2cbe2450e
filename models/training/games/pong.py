"""Pong of the Atari 2600, in the Arcade Learning Environment (`ale-py` from PyPI).

The console draws 60 pictures a second; one step is two of them, so a world of it runs at 30. Frames
are the console's 160x210 at half the size, areas averaged. The console's memory tells where ball and
paddles are (addresses as in Anand et al. 2019, "Atari Annotated RAM Interface"): recordings use it to
weigh small things, the scripted player to meet the ball.

`find` tells the same from a picture alone, so it can read a dream; tests hold it to the memory on real frames.
"""

from __future__ import annotations

from types import TracebackType

import numpy as np

from dreamloop.models.core.spec import ActionSpec, Button
from dreamloop.models.training.games import Found, Player, Policy, View
from dreamloop.models.training.games.players import held_keys, random_keys, switching

STEP_PICTURES = 2  # of the console's 60 a second
EPISODE_FRAMES = 3000  # or when a side has 21 points
SHRINK = 2
COURT = slice(34, 194)  # rows of the console's picture between the walls
BALL_X, BALL_Y, PLAYER_Y, ENEMY_Y, ENEMY_SCORE, PLAYER_SCORE = 49, 54, 51, 50, 13, 14  # addresses
SERVE = 11  # address: of the console's pictures, how many are left until the ball comes; 63 when a point is made
# from a byte of memory to the top left pixel, and the size of the thing, in the console's pixels
BALL_OFFSET, BALL_SIZE = (-49, -14), (2, 4)
PLAYER_X, ENEMY_X, PADDLE_SIZE = 140, 16, (4, 16)
PLAYER_OFFSET, ENEMY_OFFSET = -13, -15


def tracking(actions: ActionSpec, rng: np.random.Generator) -> Policy:
    """Meets the ball: follows its height with a wandering aim, so that it returns most balls at all
    angles and misses some; goes towards the middle while there is no ball."""
    aim, hold, vector = 0.0, 0, np.zeros(actions.size, np.float32)

    def act(view: View) -> np.ndarray:
        nonlocal aim, hold, vector
        if rng.random() < 0.03:
            aim = rng.normal(0, 5.0)
        hold -= 1
        if hold <= 0:
            hold = int(rng.integers(1, 4))  # nobody changes keys at every frame
            ball = view.variables["ball_y"] if view.variables["ball"] else (COURT.start + COURT.stop) / 2
            away = ball + aim - view.variables["player_y"]
            vector = actions.vector({"up"} if away < -4 else {"down"} if away > 4 else None)
        return vector

    return act


def losing_balls(game: PongGame, rng: np.random.Generator) -> None:
    """Takes the ball away wherever it is, once in 150 frames or so: the console serves another as after a point. And
    one empty court in five stays so for 36 frames, not 31: then a window of 36 shows nothing else. A dream that has
    lost its ball learns from both when there is one again."""
    game.meddle(lost=rng.random() < 1 / 150, held=rng.random() < 0.2)


class PongGame:
    """A `Game` and a `Finder` (see games/__init__.py) around one console."""

    name = "pong"
    fps = 60.0 / STEP_PICTURES
    frame_height, frame_width = 210 // SHRINK, 160 // SHRINK
    actions = ActionSpec((Button("up", ("ArrowUp", "KeyW"), ("button12",)),
                          Button("down", ("ArrowDown", "KeyS"), ("button13",))))
    players: tuple[Player, ...] = (
        Player("random", 0.05, random_keys), Player("sticky", 0.2, held_keys), Player("tracking", 0.15, tracking),
        Player("losing", 0.4, switching(tracking, held_keys), losing_balls),
        Player("mixed", 0.2, switching(tracking, held_keys)))

    def __init__(self) -> None:
        import ale_py
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self._console = ale_py.ALEInterface()
        self._console.setFloat("repeat_action_probability", 0.0)
        self._console.setInt("random_seed", 0)
        rom = ale_py.roms.get_rom_path("pong")
        assert rom is not None, "ale-py brings its ROMs"
        self._console.loadROM(rom)
        # its right is up, its left is down, and it serves by itself
        self._moves = {(0, 0): ale_py.Action.NOOP, (1, 0): ale_py.Action.RIGHT, (0, 1): ale_py.Action.LEFT,
                       (1, 1): ale_py.Action.NOOP}
        self._shown, self._gone = 0, False

    def reset(self, seed: int) -> View:
        self._console.reset_game()
        # the seed is when play begins: at an even picture, for the console reads keys at every second one
        for _ in range(STEP_PICTURES * int(np.random.default_rng([seed, 5]).integers(0, 60 // STEP_PICTURES))):
            self._console.act(self._moves[0, 0])
        self._shown, self._gone = 0, False
        return self._look()

    def step(self, action: np.ndarray) -> View:
        move = self._moves[int(action[0] > 0.5), int(action[1] > 0.5)]
        for _ in range(STEP_PICTURES):
            self._console.act(move)
        return self._look()

    def meddle(self, lost: bool, held: bool) -> None:
        """lost: a ball that is there is so no longer; held: if it has just gone, the next one comes 5 frames late."""
        memory = self._console.getRAM()
        gone = memory[BALL_Y] == 0
        if lost and not gone:
            self._console.setRAM(BALL_Y, 0)
            self._console.setRAM(SERVE, 64)
            gone = True
        if gone and not self._gone and held:
            self._console.setRAM(SERVE, int(self._console.getRAM()[SERVE]) + 5 * STEP_PICTURES)
        self._gone = gone

    def _look(self) -> View:
        self._shown += 1
        variables = positions(self._console.getRAM())
        picture = self._console.getScreenRGB().astype(np.uint16)
        cells = picture.reshape(self.frame_height, SHRINK, self.frame_width, SHRINK, 3)
        frame = ((cells.sum((1, 3)) + SHRINK**2 // 2) // SHRINK**2).astype(np.uint8)
        return View(frame, _mask(variables), variables=variables,
                    done=self._console.game_over() or self._shown > EPISODE_FRAMES)

    def find(self, frame: np.ndarray) -> dict[str, Found | None]:
        """Middles of `ball`, `player` and `enemy` in the console's pixels (160x210), from their colours."""
        red, green, blue = np.moveaxis(frame[COURT.start // SHRINK : COURT.stop // SHRINK].astype(np.float32), 2, 0)
        # blue: the court has 17, the paddles 74 and 92, the ball 236
        ball = np.clip((blue - 40) / 196, 0, 1)
        for x in (PLAYER_X, ENEMY_X):
            columns = slice(x // SHRINK, (x + PADDLE_SIZE[0]) // SHRINK)
            ball[:, columns] = np.clip((blue[:, columns] - 110) / 126, 0, 1)
        return {"ball": _brightest(ball),
                # green above red: the court has -72, the player's paddle 94; red: 144 against the other's 213
                "player": _middle(np.clip((green - red + 72) / 166, 0, 1), PLAYER_X),
                "enemy": _middle(np.clip((red - 144) / 69, 0, 1), ENEMY_X)}

    def close(self) -> None:
        pass

    def __enter__(self) -> PongGame:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def positions(memory: np.ndarray) -> dict[str, float]:
    """Middles in the console's pixels, of what can be seen of each; ball: 1 while there is one; the scores."""
    at = [int(memory[a]) for a in (BALL_X, BALL_Y, PLAYER_Y, ENEMY_Y)]
    x, y = at[0] + BALL_OFFSET[0], at[1] + BALL_OFFSET[1]
    seen = at[1] > 0 and 0 <= x < 160 and COURT.start - BALL_SIZE[1] < y < COURT.stop

    def middle(top: int, height: int) -> float:
        return (max(top, COURT.start) + min(top + height, COURT.stop)) / 2

    return {"ball": float(seen), "ball_x": x + BALL_SIZE[0] / 2 if seen else 0.0,
            "ball_y": middle(y, BALL_SIZE[1]) if seen else 0.0,
            "player_y": middle(at[2] + PLAYER_OFFSET, PADDLE_SIZE[1]),
            "enemy_y": middle(at[3] + ENEMY_OFFSET, PADDLE_SIZE[1]),
            "enemy_score": float(memory[ENEMY_SCORE]), "player_score": float(memory[PLAYER_SCORE])}


def _mask(at: dict[str, float]) -> np.ndarray:
    """Ball and paddles, (105, 80) bool."""
    mask = np.zeros((210, 160), bool)
    boxes = [(PLAYER_X, at["player_y"], *PADDLE_SIZE), (ENEMY_X, at["enemy_y"], *PADDLE_SIZE)]
    if at["ball"]:
        boxes.append((int(at["ball_x"] - BALL_SIZE[0] / 2), at["ball_y"], *BALL_SIZE))
    for x, middle, width, height in boxes:
        top = max(int(middle - height / 2), COURT.start)
        mask[top : min(int(np.ceil(middle + height / 2)), COURT.stop), x : x + width] = True
    return np.asarray(mask.reshape(210 // SHRINK, SHRINK, 160 // SHRINK, SHRINK).any((1, 3)))


def _brightest(ball: np.ndarray) -> Found | None:
    """The middle of the brightest 5x3 spot of the court, None where there is no ball's worth of light in it."""
    summed = np.pad(ball, ((2, 2), (1, 1)))
    spots = np.lib.stride_tricks.sliding_window_view(summed, (5, 3)).sum((2, 3))
    row, column = np.unravel_index(int(spots.argmax()), spots.shape)
    if spots[row, column] < 0.6:  # a whole ball has 1.5 to 2
        return None
    window = summed[row : row + 5, column : column + 3]
    dy, dx = np.mgrid[-2:3, -1:2]
    middle_y = row + (window * dy).sum() / window.sum() + 0.5
    middle_x = column + (window * dx).sum() / window.sum() + 0.5
    return Found(SHRINK * float(middle_x), COURT.start + SHRINK * float(middle_y))


def _middle(paddle: np.ndarray, x: int) -> Found | None:
    """The middle of the paddle in its own columns, None where there is none."""
    light = paddle[:, x // SHRINK : (x + PADDLE_SIZE[0]) // SHRINK].mean(axis=1)
    light[light < 0.3] = 0
    if light.sum() < 1:
        return None
    rows = np.arange(len(light)) + 0.5
    return Found(x + PADDLE_SIZE[0] / 2, COURT.start + SHRINK * float((light * rows).sum() / light.sum()))
