"""The server of dreams over real sockets: everybody's frames are their own, and nobody hurts another."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds import tiny_world

from dreamloop.demos import client, server
from dreamloop.demos.client import Client
from dreamloop.demos.server import MAX_LINE_BYTES, Server
from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.world import World
from dreamloop.runtime import Session

HOST = "127.0.0.1"
Frames = list[tuple[dict[str, Any], np.ndarray]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return tiny_world(tmp_path_factory.mktemp("worlds") / "tiny")


@asynccontextmanager
async def serving(world: World, seats: int) -> AsyncIterator[tuple[Server, int]]:
    server, port = Server(world, seats, fps=200.0), asyncio.get_running_loop().create_future()
    task = asyncio.create_task(server.serve(HOST, 0, port.set_result))
    try:
        yield server, await port
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def run(test: Callable[[], Awaitable[None]]) -> None:
    """A test of a minute at most."""
    asyncio.run(asyncio.wait_for(test(), 60))


async def watch(game: Client, count: int) -> Frames:
    return [await game.frame() for _ in range(count)]


def same_as_alone(world: World, game: Client, frames: Frames) -> bool:
    """Whether these are, from the first on, the frames of a session of one's own with the same keys."""
    assert [head["frame"] for head, _ in frames] == list(range(1, len(frames) + 1))
    with Session(world, seed=game.hello["seed"]) as alone:
        return all(np.abs(alone.step(np.array(head["action"])).pixels.astype(int) - pixels).max() <= 1
                   for head, pixels in frames)


def test_everybody_plays_a_dream_of_their_own(world: World) -> None:
    async def test() -> None:
        async with serving(world, 3) as (_, port), Client(HOST, port) as one, Client(HOST, port) as two:
            frames_of_one = await watch(one, 5)
            await one.hold({"turn_left"})
            await two.hold({"attack", "turn_right"})
            frames_of_one += await watch(one, 20)
            frames_of_two = await watch(two, 20)
            assert frames_of_one[-1][0]["action"] == [1.0, 0.0, 0.0] and frames_of_one[-1][0]["input"] == 1
            assert frames_of_two[-1][0]["action"] == [0.0, 1.0, 1.0]
            assert same_as_alone(world, one, frames_of_one) and same_as_alone(world, two, frames_of_two)
            assert one.hello["seed"] != two.hello["seed"]
    run(test)


def test_a_key_between_two_frames_counts_for_one(world: World) -> None:
    async def test() -> None:
        async with serving(world, 1) as (_, port), Client(HOST, port) as game:
            await game.frame()
            game.writer.write(b'{"hold": ["attack"]}\n{"hold": []}\n')
            frames = await watch(game, 12)
            assert sum(head["action"][2] for head, _ in frames) == 1.0
    run(test)


def test_who_comes_and_goes_changes_nothing_for_the_others(world: World) -> None:
    async def test() -> None:
        async with serving(world, 2) as (server, port), Client(HOST, port) as stays:
            frames = await watch(stays, 3)
            for _ in range(4):
                async with Client(HOST, port) as guest:
                    assert same_as_alone(world, guest, await watch(guest, 3))
                while len(server.players) > 1:
                    frames += await watch(stays, 1)
            frames += await watch(stays, 1)
            assert same_as_alone(world, stays, frames) and len(frames) >= 8
    run(test)


def test_nobody_sits_on_a_taken_seat(world: World) -> None:
    async def test() -> None:
        async with serving(world, 1) as (_, port), Client(HOST, port) as game:
            await game.frame()
            with pytest.raises(DreamloopError, match="all 1 seats are taken"):
                async with Client(HOST, port):
                    pass
            await game.frame()
    run(test)


BAD = {
    b"hello": "not a line of JSON", b"\xff\x00": "not a line of JSON", b"[" * 3000: "not a line of JSON",
    b"7": "expected", b'{"hold": "attack"}': "expected", b'{"hold": [1]}': "expected", b'{"press": []}': "expected",
    b'{"hold": ["fly"]}': "unknown action fly; this world knows: turn_left, turn_right, attack",
    b'{"hold": {"attack": NaN}}': "must be finite", b'{"hold": {"attack": "much"}}': "must be numbers",
}


def test_a_bad_message_is_one_line_back_and_hurts_nobody(world: World) -> None:
    async def test() -> None:
        async with serving(world, 2) as (_, port), Client(HOST, port) as good, Client(HOST, port) as bad:
            frames = await watch(good, 2)
            await bad.hold({"turn_left"})
            for message, expected in BAD.items():
                bad.writer.write(message + b"\n")
                with pytest.raises(DreamloopError) as refused:
                    await watch(bad, 1000)
                assert expected in str(refused.value) and "\n" not in str(refused.value)
            while (head := (await bad.frame())[0])["input"] == 0:
                pass
            assert head["input"] == 1 and head["action"] == [1.0, 0.0, 0.0]  # what was held before still is
            while len(frames) < 20:
                frames += await watch(good, 1)
            assert same_as_alone(world, good, frames)
    run(test)


def test_a_line_without_an_end_is_the_last_one(world: World) -> None:
    async def test() -> None:
        async with serving(world, 2) as (server, port), Client(HOST, port) as good, Client(HOST, port) as bad:
            await watch(good, 2)
            bad.writer.write(b"x" * (4 * MAX_LINE_BYTES))
            with pytest.raises(DreamloopError, match=f"longer than {MAX_LINE_BYTES} bytes"):
                await watch(bad, 1000)
            with pytest.raises(DreamloopError, match="the server is gone"):
                await watch(bad, 1000)
            while len(server.players) > 1:
                await good.frame()
    run(test)


def test_who_reads_nothing_fills_no_memory_and_holds_nobody_up(world: World) -> None:
    async def test() -> None:
        async with serving(world, 2) as (server, port), Client(HOST, port) as lazy, Client(HOST, port) as good:
            lazy.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            lazy.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await good.frame()
            slow = next(player for player in server.players if player.seed == lazy.hello["seed"])
            while slow.skipped < 5:
                await good.frame()
            size, skipped = slow.writer.transport.get_write_buffer_size(), slow.skipped
            await watch(good, 20)
            assert slow.writer.transport.get_write_buffer_size() == size <= 2 * 32 * 48 * 3 + 1000
            assert slow.skipped >= skipped + 19
            (head, _), = await watch(good, 1)
            assert head["skipped"] == 0
    run(test)


def test_server_and_client_are_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_world(tmp_path / "tiny")
    command = [sys.executable, "-m", "dreamloop.demos.server", str(tmp_path / "tiny"), "--seats", "2", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = server.stdout.readline().split()[1]
        assert client.main(["--port", port, "--frames", "20"]) == 0
        said = capsys.readouterr().out
        server.terminate()
    assert "tiny: 20 frames" in said
    with pytest.raises(SystemExit) as left:
        client.main(["--port", port])
    assert left.value.code == 2 and capsys.readouterr().err.count("\n") == 1


HELLO = b'{"size": 0, "world": "tiny", "actions": ["attack"], "height": 2, "width": 2, "seed": 1}\n'


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"7\n", b"{}\n", b'{"size": -1}\n',
                                  b"x" * 100_000, b'{"size": 0}\n', HELLO + b'{"size": 3}\nabc'])
def test_what_is_no_server_of_dreams_is_one_line(said: bytes) -> None:
    async def test() -> None:
        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(said)
            await writer.drain()
            writer.close()
        async with await asyncio.start_server(answer, HOST, 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            with pytest.raises(DreamloopError, match=f"{HOST}:{port} is no server of dreams"):
                async with client.Client(HOST, port) as game:
                    await game.frame()
    run(test)


@pytest.mark.parametrize(("program", "options", "message"), [
    (client, ["--port", "99999"], "no server at 127.0.0.1:99999"),
    (client, ["--port", "x"], "'x' is not a whole number"),
    (server, ["--port", "x"], "'x' is not a whole number"), (server, ["--seats", "1" + "0" * 30], "must be 1 to"),
    (server, ["nowhere"], "no world 'nowhere'"), (server, ["TINY", "--port", "99999"], "cannot listen on")])
def test_what_a_user_can_put_right_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], program: Any,
                                               options: list[str], message: str) -> None:
    tiny_world(tmp_path / "tiny")
    with pytest.raises(SystemExit) as left:
        program.main([str(tmp_path / "tiny") if option == "TINY" else option for option in options])
    told = capsys.readouterr().err
    assert left.value.code == 2 and message in told and told.count("\n") == 1


def test_the_hello_is_all_that_a_client_must_know(world: World) -> None:
    async def test() -> None:
        async with serving(world, 1) as (_, port):
            reader, writer = await asyncio.open_connection(HOST, port)
            hello = json.loads(await reader.readline())
            assert hello["actions"] == ["turn_left", "turn_right", "attack"] and hello["size"] == 0
            head = json.loads(await reader.readline())
            assert head["size"] == hello["height"] * hello["width"] * 3
            assert len(await reader.readexactly(head["size"])) == head["size"]
            writer.close()
    run(test)
