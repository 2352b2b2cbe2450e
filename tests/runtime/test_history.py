"""State that the caller owns: whatever is done to a session, its frames are those of a straight run."""

from __future__ import annotations

import dataclasses
import gc
import json
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from bounds import bounded
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, precondition, rule
from safetensors.numpy import load_file, save_file
from worlds import tiny_world

from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.spec import DynamicsSpec, MemorySpec
from dreamloop.models.core.world import World
from dreamloop.runtime import Engine, HistoryError, Session, Snapshot, engine_status, open_engine
from dreamloop.runtime.history import LONGEST_GAP_FRAMES, MAX_BYTES, MAX_FRAMES, History, Mark, Moment, Move

NAMES = ("turn_left", "turn_right", "attack")
SLOT_BYTES = 2 * 2 * 2 * 8 * 16 * 4  # of the tiny world: layers, key and value, heads, padded tokens, head size


def keys(code: int) -> set[str]:
    return {name for bit, name in enumerate(NAMES) if code >> bit & 1}


def view(code: int) -> int | None:
    """The upper half of the codes of a program reads two frames only."""
    return 2 if code >= 8 else None


def play(session: Session, codes: list[int]) -> list[bytes]:
    return [session.step(keys(code)).pixels.tobytes() for code in codes]


def everything(session: Session) -> bytes:
    """All that the next frames follow from, as bytes."""
    state = session._live()
    return b"".join(np.ascontiguousarray(np.asarray(a)).tobytes()
                    for a in (state.ring, state.latent, state.frame, state.seed))


class Programs(RuleBasedStateMachine):
    """Random programs on one engine. A timeline is (seed, start, actions); the picture of every
    timeline that was ever on a screen is kept, and played straight at the end."""

    engine: Engine  # set on a subclass
    bookmarks: Bundle[tuple[Snapshot, tuple[int, int, tuple[int, ...]], int]] = Bundle("bookmarks")

    @initialize(history_bytes=st.sampled_from([6 * SLOT_BYTES, 20 * SLOT_BYTES, MAX_BYTES]))
    def begin(self, history_bytes: int) -> None:
        self.folder = TemporaryDirectory()
        self.all_kept = history_bytes == MAX_BYTES
        self.sessions = [(Session(self.engine.world, self.engine, history_bytes=history_bytes), (0, 0, ()), 0)]
        self.seen: dict[tuple[int, int, tuple[int, ...]], bytes] = {}
        self.files = 0
        self.look()

    def look(self) -> None:
        session, timeline, begins = self.sessions[-1]
        pixels = session.render().pixels.tobytes()
        assert self.seen.setdefault(timeline, pixels) == pixels
        assert session.index == len(timeline[2])
        assert session.history_frames <= session.index - begins
        if self.all_kept:
            assert session.history_frames == session.index - begins

    def now(self, session: Session, timeline: tuple[int, int, tuple[int, ...]], begins: int) -> None:
        self.sessions[-1] = (session, timeline, begins)
        self.look()

    @rule(codes=st.lists(st.integers(0, 15), min_size=1, max_size=9))
    def step(self, codes: list[int]) -> None:
        for code in codes:
            session, (seed, start, actions), begins = self.sessions[-1]
            session.step(keys(code), view_frames=view(code))
            self.now(session, (seed, start, (*actions, code)), begins)

    @rule(seed=st.integers(0, 2), start=st.integers(0, 1))
    def reset(self, seed: int, start: int) -> None:
        session = self.sessions[-1][0]
        session.reset(start, seed=seed)
        self.now(session, (seed, start, ()), 0)

    @rule(target=bookmarks)
    def snapshot(self) -> object:
        session, timeline, begins = self.sessions[-1]
        return session.snapshot(), timeline, begins

    @rule(bookmark=bookmarks)
    def restore(self, bookmark: tuple[Snapshot, tuple[int, int, tuple[int, ...]], int]) -> None:
        session = self.sessions[-1][0]
        assert session.restore(bookmark[0]).index == len(bookmark[1][2])
        self.now(session, *bookmark[1:])

    @rule(share=st.floats(0, 1))
    def rewind(self, share: float) -> None:
        session, (seed, start, actions), begins = self.sessions[-1]
        frames = round(share * session.history_frames)
        assert session.rewind(frames).index == len(actions) - frames
        self.now(session, (seed, start, actions[: len(actions) - frames]), begins)

    @rule(more=st.integers(1, 5))
    def rewind_too_far(self, more: int) -> None:
        session = self.sessions[-1][0]
        before = everything(session)
        with pytest.raises(HistoryError, match="goes back to frame"):
            session.rewind(session.history_frames + more)
        assert everything(session) == before
        self.look()

    @precondition(lambda self: len(self.sessions) < 3)
    @rule()
    def branch(self) -> None:
        session, timeline, begins = self.sessions[-1]
        self.sessions.append((session.branch(), timeline, begins))
        self.look()

    @rule()
    def turn_to_another_branch(self) -> None:
        self.sessions.insert(0, self.sessions.pop())
        self.look()

    @rule(target=bookmarks)
    def save_and_load(self) -> object:
        session, timeline, _ = self.sessions[-1]
        self.files += 1
        path = Path(self.folder.name) / f"{self.files}.safetensors"
        session.snapshot().save(path)
        return Snapshot.load(path), timeline, len(timeline[2])

    def teardown(self) -> None:
        if not hasattr(self, "sessions"):
            return
        for seed, start, actions in self.seen:
            if not any(other != actions and other[: len(actions)] == actions
                       for s, i, other in self.seen if (s, i) == (seed, start)):  # longer ones pass through it
                straight = Session(self.engine.world, self.engine, seed=seed, start=start)
                for count, code in enumerate((*actions, None)):
                    shown = straight.render().pixels.tobytes()
                    assert self.seen.get((seed, start, actions[:count]), shown) == shown
                    if code is not None:
                        straight.step(keys(code), view_frames=view(code))
        self.folder.cleanup()


def run_programs(engine: Engine, count: int) -> None:
    from hypothesis.stateful import run_state_machine_as_test
    machine = type("ProgramsOf", (Programs,), {"engine": engine})
    run_state_machine_as_test(machine, settings=settings(
        max_examples=count, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)))


def test_random_programs_are_bit_exact(engine: Engine) -> None:
    run_programs(engine, 12)


@pytest.mark.long
def test_a_thousand_random_programs_are_bit_exact(engine: Engine) -> None:
    run_programs(engine, 1000)


def test_rewind_follows_the_restored_timeline(world: World, engine: Engine) -> None:
    with Session(world, engine) as session:
        play(session, [1] * 10)
        bookmark = session.snapshot()
        play(session, [2] * 10)
        session.restore(bookmark)
        session.rewind(5)
        frames = play(session, [1] * 5)
        session.reset(0)
        assert play(session, [1] * 10)[5:] == frames


def test_a_loaded_state_goes_on_in_another_session(world: World, engine: Engine, tmp_path: Path) -> None:
    with Session(world, engine, seed=3) as one, Session(world, engine, seed=9) as two:
        play(one, [1, 2, 3] * 9)
        one.snapshot().save(tmp_path / "state.safetensors")
        loaded = Snapshot.load(tmp_path / "state.safetensors")
        assert two.restore(loaded).index == loaded.index == 27
        assert everything(one) == everything(two)
        assert play(one, [4, 5, 6] * 9) == play(two, [4, 5, 6] * 9)
        two.rewind(27)
        with pytest.raises(HistoryError, match="frame 26 is before the history, which goes back to frame 27"):
            two.rewind(1)


def test_bfloat16_keys_survive_the_file(world: World, tmp_path: Path) -> None:
    if not engine_status("torch").available:
        pytest.skip("torch is not installed")
    engine = open_engine(world, "torch", precision="bf16", threads=1)
    with Session(world, engine) as one, Session(world, engine) as two:
        play(one, [1, 2, 3] * 5)
        one.snapshot().save(tmp_path / "state")
        two.restore(Snapshot.load(tmp_path / "state"))
        assert play(one, [5] * 4) == play(two, [5] * 4)


def test_primed_history_is_where_rewinding_ends(world: World, engine: Engine) -> None:
    with Session(world, engine) as session:
        session.prime(world.starts[:3], [None] * 3)
        shown = session.render().pixels.tobytes()
        play(session, [3] * 6)
        assert session.history_frames == 6
        assert session.rewind(6).pixels.tobytes() == shown
        with pytest.raises(HistoryError):
            session.rewind(1)


@pytest.mark.parametrize("frames", [-1, 1.5, "2", None])
def test_a_rewind_by_no_number_of_frames_is_refused(world: World, engine: Engine, frames: int) -> None:
    with Session(world, engine) as session:
        play(session, [1] * 3)
        with pytest.raises(DreamloopError, match="frames="):
            session.rewind(frames)
        assert session.index == 3


def test_snapshots_share_the_slots_that_nobody_wrote(world: World, engine: Engine) -> None:
    with Session(world, engine) as session:
        play(session, [1] * 20)
        before = session.snapshot()
        session.step()
        after = session.snapshot()
    different = [a is not b for a, b in zip(before.moment.parts, after.moment.parts, strict=True)]
    assert sum(different) == 1


def test_a_snapshot_cannot_be_written_to(world: World) -> None:
    with Session(world, "onnxruntime", threads=1) as session:
        play(session, [1] * 5)
        bookmark = session.snapshot()
    for array in (bookmark.moment.latent, *(p for p in bookmark.moment.parts if p is not None)):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        bookmark.moment = None  # type: ignore[assignment,misc]


# -- the bound of memory -----------------------------------------------------------------------------


def moment(index: int, parts: tuple[np.ndarray | None, ...]) -> Moment:
    return Moment(index, 0, np.zeros(2, np.float32), None, parts)


@settings(deadline=None, max_examples=30)
@given(slots=st.integers(1, 6), cap=st.integers(200, 4000), frames=st.integers(1, 300), backs=st.data())
def test_history_counts_its_memory_and_stays_under_the_cap(slots: int, cap: int, frames: int,
                                                           backs: st.DataObject) -> None:
    """Parts of 40 bytes; the figure it keeps is that of the distinct arrays it holds."""
    history = History(max_bytes=cap, max_frames=200)
    parts: list[np.ndarray | None] = [None] * slots
    history.begin(moment(0, tuple(parts)))
    index = 0
    for _ in range(frames):
        index += 1
        parts[index % slots] = np.full(10, index, np.float32)
        if history.note(Move(np.array([index], np.float32))):
            history.mark(moment(index, tuple(parts)))
        marks = history.timeline().marks
        held = {id(p): p.nbytes for m in marks for p in m.moment.parts if p is not None}
        assert history.bytes == sum(held.values()) + 8 * len(marks)
        assert history.bytes <= cap or len(marks) == 1
        assert index - history.oldest < 200 + LONGEST_GAP_FRAMES
        assert [int(move.action[0]) for m in marks for move in m.moves] == list(range(history.oldest + 1, index + 1))
    target = backs.draw(st.integers(history.oldest, index))
    timeline, moves = history.back_to(target)
    assert [int(move.action[0]) for move in moves] == list(range(timeline.marks[-1].moment.index + 1, target + 1))
    history.follow(timeline)
    held = {id(p): p.nbytes for m in timeline.marks for p in m.moment.parts if p is not None}
    assert history.bytes == timeline.bytes == sum(held.values()) + 8 * len(timeline.marks)


def test_the_shipped_worlds_history_reaches_back_ten_seconds() -> None:
    """18 slots of 6 layers, 4 heads, 20 tokens, 64 numbers: 245 kB a slot, 40 MB in all. Arrays of
    zeros, which take no memory until they are written."""
    history = History()
    parts: list[np.ndarray | None] = [None] * 18
    history.begin(moment(0, tuple(parts)))
    for index in range(1, 2 * MAX_FRAMES):
        parts[index if index < 2 else 2 + index % 16] = np.zeros((6, 2, 4, 20, 64), np.float32)
        if history.note(Move(np.zeros(7, np.float32))):
            history.mark(moment(index, tuple(parts)))
        assert history.bytes <= MAX_BYTES
    assert index - history.oldest >= 350
    assert all(len(mark.moves) <= LONGEST_GAP_FRAMES for mark in history.timeline().marks)


# -- what is refused -----------------------------------------------------------------------------------


@pytest.fixture
def saved(world: World, tmp_path: Path) -> Path:
    with Session(world, "onnxruntime", threads=1) as session:
        play(session, [1, 2] * 4)
        session.snapshot().save(tmp_path / "state")
    return tmp_path / "state"


def test_a_state_of_another_world_is_refused(saved: Path, tmp_path: Path) -> None:
    other = tiny_world(tmp_path / "other", dynamics=DynamicsSpec(width=32, layers=1, heads=2, mlp_width=48),
                       memory=MemorySpec(window_frames=4))
    with Session(other, "onnxruntime", threads=1) as session, pytest.raises(DreamloopError, match="is of world"):
        session.restore(Snapshot.load(saved))


def test_a_state_of_another_engine_is_refused(world: World, saved: Path) -> None:
    with (Session(world, "onnxruntime", threads=2) as session,
          pytest.raises(DreamloopError, match=r"'threads': 1.*this session runs on.*'threads': 2")):
        session.restore(Snapshot.load(saved))


def rewritten(path: Path, tensors: dict[str, np.ndarray] | None = None, **said: object) -> None:
    """The file with other tensors or other metadata."""
    header = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
    metadata = json.loads(header["__metadata__"]["dreamloop"])
    save_file({**load_file(path), **(tensors or {})}, path, {"dreamloop": json.dumps({**metadata, **said})})


BROKEN = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello there, this is no state"),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "no metadata": lambda path: save_file(load_file(path), path),
    "another format": lambda path: rewritten(path, state=2),
    "index below": lambda path: rewritten(path, index=-1),
    "index beyond": lambda path: rewritten(path, index=1 << 60),
    "index of another frame": lambda path: rewritten(path, index=2),
    "seed no number": lambda path: rewritten(path, seed="7"),
    "seed beyond": lambda path: rewritten(path, seed=1 << 64),
    "slots beyond": lambda path: rewritten(path, slot_count=1 << 30),
    "too few slots": lambda path: rewritten(path, slot_count=2),
    "unknown tensor": lambda path: rewritten(path, {"extra": np.zeros(3)}),
    "latent of another shape": lambda path: rewritten(path, {"latent": np.zeros((4, 2, 2), np.float32)}),
    "latent of another type": lambda path: rewritten(path, {"latent": np.zeros((4, 2, 3))}),
    "latent not finite": lambda path: rewritten(path, {"latent": np.full((4, 2, 3), np.nan, np.float32)}),
    "parts of another shape": lambda path: rewritten(path, {"parts": np.zeros((8, 1, 2, 2, 8, 16), np.float32)}),
    "parts of another type": lambda path: rewritten(path, {"parts": np.zeros((8, 2, 2, 2, 8, 16), np.int8)}),
    "a slot twice": lambda path: rewritten(path, {"slots": np.zeros(8, np.int64)}),
    "a picture of another shape": lambda path: rewritten(path, {"given": np.zeros((4, 4, 3), np.uint8)}),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_bad_state_file_is_one_line_and_the_session_goes_on(world: World, saved: Path, case: str) -> None:
    BROKEN[case](saved)
    with Session(world, "onnxruntime", threads=1) as session:
        play(session, [1, 2, 3])
        before = everything(session)
        with pytest.raises(DreamloopError) as refused:
            session.restore(Snapshot.load(saved))
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 1000
        assert everything(session) == before


@pytest.mark.parametrize("place", ["none/state", "folder", "."])
def test_a_state_that_cannot_be_written_says_so(world: World, tmp_path: Path, place: str,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with Session(world) as session, pytest.raises(DreamloopError, match="cannot write"):
        session.snapshot().save(place)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """A few bytes changed, mostly in the header; or a part cut out, or doubled."""
    changed = bytearray(data)
    kind = random.integers(4)
    if kind == 0:
        at, to = sorted(random.integers(0, len(data), 2))
        return bytes(changed[:at] + changed[to:])
    if kind == 1:
        at = int(random.integers(0, len(data)))
        return bytes(changed[:at] + changed[max(0, at - 40):])
    for _ in range(int(random.integers(1, 6))):
        changed[random.integers(0, 900 if random.random() < 0.8 else len(data))] = random.integers(256)
    return bytes(changed)


def mutate_states(world: World, saved: Path, count: int) -> int:
    random, data, loaded = np.random.default_rng(0), saved.read_bytes(), 0
    with Session(world, "onnxruntime", threads=1) as session:
        play(session, [1, 2, 3])
        for _ in bounded(range(count), 20_000_000):
            saved.write_bytes(mutated(data, random))
            before = everything(session)
            try:
                session.restore(Snapshot.load(saved))
                loaded += 1
            except DreamloopError as error:
                assert str(error).isprintable() and len(str(error)) < 1000, repr(str(error))
                assert everything(session) == before
    return loaded


def test_mutated_state_files_never_crash_and_take_little_memory(world: World, saved: Path) -> None:
    """A file may say what it likes of its sizes: memory is taken for what it holds."""
    tracemalloc.start()
    try:
        assert mutate_states(world, saved, 150) < 150
        assert tracemalloc.get_traced_memory()[1] < 20_000_000 + 10 * saved.stat().st_size
    finally:
        tracemalloc.stop()


@pytest.mark.long
def test_ten_thousand_mutated_state_files_never_crash(world: World, saved: Path) -> None:
    assert mutate_states(world, saved, 10_000) < 10_000


def test_closing_lets_go_of_the_past(world: World) -> None:
    session = Session(world, "onnxruntime", threads=1)
    play(session, [1] * 30)
    session.close()
    gc.collect()
    assert not any(type(thing) is Mark for thing in gc.get_objects())
