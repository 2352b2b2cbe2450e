"""The window, on SDL's dummy video driver: real events in, real pixels out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from worlds import random_frames, tiny_world

from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.world import World
from dreamloop.runtime import Command, Frame, FrameLoop, Session

pygame = pytest.importorskip("pygame", reason="the window is drawn with pygame")
from hands import down, up  # noqa: E402

from dreamloop.demos import overlay  # noqa: E402
from dreamloop.demos.player import Window  # noqa: E402
from dreamloop.demos.screen import NoDisplay, load_image  # noqa: E402


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return tiny_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def window(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Window]:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.chdir(tmp_path)
    window = Window(world, scale=4)
    window.read()  # what SDL says on opening
    yield window
    window.close()


def screen() -> np.ndarray:
    """The window's pixels, (H, W, 3) uint8."""
    return np.ascontiguousarray(pygame.surfarray.array3d(pygame.display.get_surface()).transpose(1, 0, 2))


def test_keys_are_held_until_they_are_let_go(window: Window) -> None:
    down("ArrowLeft", "Space")
    assert window.read().action == {"turn_left", "attack"}
    assert window.read().action == {"turn_left", "attack"}
    up("Space")
    assert window.read().action == {"turn_left"}
    up("ArrowLeft")
    assert window.read().action == frozenset()


def test_two_keys_of_one_button_need_both_to_be_let_go(window: Window) -> None:
    down("ArrowLeft", "KeyA")
    up("ArrowLeft")
    assert window.read().action == {"turn_left"}
    up("KeyA")
    assert window.read().action == frozenset()


def test_a_tap_between_two_frames_counts_for_one(window: Window) -> None:
    down("Space")
    up("Space")
    assert window.read().action == {"attack"}
    assert window.read().action == frozenset()


def test_keys_let_go_in_another_window_do_not_stick(window: Window) -> None:
    down("ArrowLeft")
    window.read()
    pygame.event.post(pygame.event.Event(pygame.WINDOWFOCUSLOST))
    assert window.read().action == frozenset()


def test_pause_holds_and_n_makes_one_frame(window: Window) -> None:
    down("KeyN")
    assert window.read() == Command(frozenset())
    down("KeyP")
    assert not window.read().advance and not window.read().advance
    down("KeyN", "ArrowRight")
    assert window.read() == Command(frozenset({"turn_right"}))
    assert not window.read().advance
    down("KeyP")
    assert window.read() == Command(frozenset({"turn_right"}))


def test_r_goes_round_the_start_frames(window: Window, world: World) -> None:
    starts = []
    for _ in range(len(world.starts) + 1):
        down("KeyR")
        starts.append(window.read().reset)
    assert starts == [1, 2, 0, 1]


@pytest.mark.parametrize("event", [lambda: down("Escape"),
                                   lambda: pygame.event.post(pygame.event.Event(pygame.QUIT))])
def test_escape_and_the_closed_window_stop(window: Window, event: object) -> None:
    assert callable(event)
    event()
    assert window.read().stop


@pytest.mark.parametrize("size", [(192, 128), (200, 140), (500, 300), (97, 65), (30, 20)])
def test_the_frame_is_shown_in_whole_pixels_in_the_middle(window: Window, world: World, size: tuple[int, int]) -> None:
    pygame.display.set_mode(size, pygame.RESIZABLE)
    window._hint_until = 0
    frame = random_frames(world.spec, 1, seed=8)[0]
    window.present(Frame(1, frame))
    scale = max(1, min(size[0] // 48, size[1] // 32))
    x, y = (size[0] - 48 * scale) // 2, (size[1] - 32 * scale) // 2
    if x >= 0 and y >= 0:
        shown = screen()[y : y + 32 * scale, x : x + 48 * scale]
        assert (shown == frame.repeat(scale, 0).repeat(scale, 1)).all()
    else:
        assert screen().any()


@pytest.mark.parametrize("key", ["KeyH", "F3", "KeyP"])
@pytest.mark.parametrize("size", [(800, 600), (192, 128), (30, 20)])
def test_overlays_come_and_go(window: Window, world: World, key: str, size: tuple[int, int]) -> None:
    pygame.display.set_mode(size, pygame.RESIZABLE)
    window._hint_until = 0
    window.present(Frame(1, world.starts[0]))
    plain = screen()
    down(key)
    window.read()
    window.hold()
    assert (screen() != plain).any()
    down(key)
    window.read()
    window.hold()
    assert (screen() == plain).all()


def test_long_lines_are_broken_between_their_parts_and_stay_in_the_window(window: Window) -> None:
    surface = pygame.display.set_mode((300, 200))
    painter, hint = overlay.Painter(surface), overlay.GAP.join(f"Key {n}: turn {n}" for n in range(9))
    for text, gap in ((hint, overlay.GAP), ("Nothing to load: " + "the reason is long " * 9, " ")):
        lines = painter.lines(text, 280)
        assert len(lines) > 1 and gap.join(lines) == text
        assert all(painter.font.size(line)[0] <= 280 for line in lines)
    surface.fill((0, 0, 0))
    painter.pill(hint, top=painter.pad)
    drawn = np.flatnonzero(screen().any(axis=(0, 2)))
    assert drawn[0] > 0 and drawn[-1] < 299


def test_what_is_said_over_the_help_page_can_be_read(window: Window, world: World) -> None:
    pygame.display.set_mode((800, 600))
    window.present(Frame(1, world.starts[0]))
    down("KeyH")
    window.read()
    window._say("Saved tiny-quick.safetensors")
    window.present(Frame(1, world.starts[0]))
    assert window._painter is not None
    bottom = 600 - window._painter.pad
    assert (screen()[bottom - 5 : bottom - 2, 380:420] == overlay.PANEL[:3]).all()  # nothing shines through
    assert (screen()[bottom - 1, 380:420] == overlay.DIM).all()


def test_the_hint_fades(window: Window, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    window.present(Frame(1, world.starts[0]))
    hinted = screen()
    monkeypatch.setattr("dreamloop.demos.player._milliseconds", lambda: 1e15)
    window.present(Frame(1, world.starts[0]))
    assert (screen() != hinted).any()
    assert (screen() == world.starts[0].repeat(4, 0).repeat(4, 1)).all()


def test_screenshots_show_the_window_and_never_overwrite(window: Window, world: World, tmp_path: Path) -> None:
    window.present(Frame(1, world.starts[0]))
    shown = screen()
    down("F12", "F12")
    window.read()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny-001.png", "tiny-002.png"]
    saved = pygame.surfarray.array3d(pygame.image.load("tiny-001.png")).transpose(1, 0, 2)
    assert (saved == shown).all()


def test_statistics_follow_a_real_game(window: Window, world: World) -> None:
    with Session(world) as session:
        loop = FrameLoop(session, window, window, budget_ms=1.0)
        window.attach(loop)
        down("F3", "ArrowLeft")
        loop.run(5)
        figures = dict(overlay.figures(window._loop, 35, ""))
        assert loop.recent[-1].action.tolist() == [1.0, 0.0, 0.0]
    assert figures["frames a second"].endswith(" of 35")
    assert figures["late frames"] == f"{loop.late_frames} of 5"


# -- time --------------------------------------------------------------------------------------------


class Played:
    """A window around a real session, one command at a time."""

    def __init__(self, window: Window, world: World) -> None:
        self.window, self.session = window, Session(world, threads=1)
        self.loop = FrameLoop(self.session, window, window)
        window.attach(self.loop)
        window._hint_until = 0

    def run(self, frames: int) -> None:
        self.loop.run(frames)


@pytest.fixture
def played(window: Window, world: World) -> Iterator[Played]:
    played = Played(window, world)
    yield played
    played.session.close()


def test_backspace_goes_back_while_it_is_held(played: Played) -> None:
    played.run(10)
    shown = played.session.render().pixels
    played.run(4)
    down("Backspace")
    played.run(2)
    assert played.session.index == 10 and (played.session.render().pixels == shown).all()
    played.run(20)
    assert played.session.index == 0  # no further than the start
    up("Backspace")
    played.run(3)
    assert played.session.index == 3


def test_backspace_goes_back_in_a_pause_too(played: Played) -> None:
    played.run(6)
    down("KeyP", "Backspace")
    played.run(1)
    assert played.session.index == 4


def test_backspace_says_where_the_past_ends(played: Played) -> None:
    played.run(3)
    down("Backspace")
    played.run(1)
    assert played.window._toast == ""
    played.run(2)
    assert played.session.index == 0 and played.window._toast == "No further back"


def test_a_tap_on_backspace_goes_back_once(played: Played) -> None:
    played.run(5)
    down("Backspace")
    up("Backspace")
    played.run(1)
    assert played.session.index == 3


def test_f5_and_f9_save_and_load(played: Played, tmp_path: Path) -> None:
    played.run(5)
    shown = played.session.render().pixels
    down("F5")
    played.run(6)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-quick.safetensors"]
    down("F9")
    played.run(1)
    assert played.session.index == 5 and (played.session.render().pixels == shown).all()


def test_f9_loads_the_file_of_an_earlier_game(played: Played, world: World) -> None:
    with Session(world, threads=1) as earlier:
        for _ in range(7):
            earlier.step({"attack"})
        earlier.snapshot().save("tiny-quick.safetensors")
        down("F9")
        played.run(1)
        assert played.session.index == 7 and (played.session.render().pixels == earlier.render().pixels).all()


@pytest.mark.parametrize("content", [None, b"no state at all"])
def test_f9_without_a_good_file_says_so_and_the_game_goes_on(played: Played, content: bytes | None) -> None:
    if content is not None:
        Path("tiny-quick.safetensors").write_bytes(content)
    played.run(3)
    down("F9")
    played.run(1)
    assert played.session.index == 4 and "tiny-quick" in played.window._toast


def test_b_shows_a_branch_beside_the_game_until_it_is_pressed_again(played: Played, world: World) -> None:
    pygame.display.set_mode((4 * (2 * 48 + 4), 4 * 32), pygame.RESIZABLE)
    played.run(4)

    def shown(left: int) -> np.ndarray:
        """The lower part, under the names of the halves, one pixel for each of the frame's."""
        return screen()[4 * 16 :: 4, 4 * left : 4 * (left + 48) : 4]

    with played.session.branch() as alone:
        down("KeyB", "ArrowLeft")
        played.run(1)
        for count in range(3):
            assert (shown(0) == played.session.render().pixels[16:]).all()
            assert (shown(52) == alone.step().pixels[16:]).all(), count
            played.run(1)
    assert (shown(0) != shown(52)).any()
    down("KeyB")
    played.run(1)
    assert (shown(26) == played.session.render().pixels[16:]).all()


def test_a_split_window_has_room_for_both_halves(played: Played) -> None:
    played.run(2)
    assert pygame.display.get_window_size() == (4 * 48, 4 * 32)
    for split, size in ((True, (4 * (2 * 48 + 4), 4 * 32)), (False, (4 * 48, 4 * 32))):
        down("KeyB")
        played.run(1)
        assert (played.window._other is not None) == split and pygame.display.get_window_size() == size
    down("KeyB")
    played.run(1)
    pygame.display.set_mode((300, 200), pygame.RESIZABLE)  # what the player chose stays
    down("KeyB")
    played.run(1)
    assert pygame.display.get_window_size() == (300, 200)


def test_no_display_says_why(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(NoDisplay, match="DISPLAY"):
        Window(world)


def test_a_display_that_does_not_answer_is_none(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """SDL would go on without a window that anybody sees."""
    for name in ("WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DISPLAY", ":9173")
    if not sys.platform.startswith("linux"):
        pytest.skip("DISPLAY is a thing of X11")
    with pytest.raises(NoDisplay, match="no display here"):
        Window(world)


def test_an_image_of_any_size_becomes_a_start_frame(world: World, tmp_path: Path) -> None:
    picture = np.zeros((90, 64, 3), np.uint8)  # (W, H, 3), as pygame has it
    picture[:, :32] = (200, 10, 30)
    pygame.image.save(pygame.surfarray.make_surface(picture), str(tmp_path / "start.png"))
    start = load_image(tmp_path / "start.png", world.spec)
    assert start.shape == (32, 48, 3) and start.dtype == np.uint8
    assert np.abs(start[:15].astype(int) - (200, 10, 30)).max() <= 2 and start[17:].max() <= 2


def test_an_image_of_the_worlds_size_is_taken_as_it_is(world: World, tmp_path: Path) -> None:
    picture = random_frames(world.spec, 1, seed=4)[0]
    pygame.image.save(pygame.surfarray.make_surface(picture.transpose(1, 0, 2)), str(tmp_path / "start.png"))
    assert (load_image(tmp_path / "start.png", world.spec) == picture).all()


def test_a_bad_image_is_refused(world: World, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    for name, reason in (("text.png", "not an image"), ("none.png", "no such image")):
        with pytest.raises(DreamloopError, match=reason):
            load_image(tmp_path / name, world.spec)
