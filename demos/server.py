"""A server of dreams: everybody plays their own, and one pass of the network makes the next frame of all.

    python -m dreamloop.demos.server doom-arena --seats 4 --port 7007        # and demos/client.py plays on it

Plain TCP. A client sends lines of JSON, `{"hold": ["turn_left"]}` (or values by name, for axes): what it holds
from now on. The server sends lines of JSON, each followed by `size` bytes, the frame's (H, W, 3) uint8:

    {"world": "doom-arena", "actions": [...], "height": 120, "width": 160, "fps": 35.0, "seed": 3, "size": 0}
    {"frame": 17, "action": [1.0, 0.0, 0.0], "input": 4, "skipped": 0, "size": 57600}
    {"error": "unknown action fly; this world knows: ...", "size": 0}

Nothing queues up: of what a client holds only the last word counts (and a key that was down between two frames),
and a client that reads too slowly gets the newest frame and misses the ones before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dreamloop.demos.verbs.common import Parser, whole
from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.world import World, load_world
from dreamloop.runtime import BatchedSession, Frame

MAX_LINE_BYTES = 4096
STALLED_S = 10.0  # who reads nothing for so long leaves


class Player:
    """One connection: what it holds, and the newest frame that it has not been sent yet."""

    def __init__(self, size: int, seed: int, writer: asyncio.StreamWriter) -> None:
        self.seed, self.writer, self.seat, self.open = seed, writer, -1, True  # seat -1: not at the game yet
        self.held = self.tapped = np.zeros(size, np.float32)
        self.inputs = self.skipped = 0
        self.latest: tuple[dict[str, Any], bytes] | None = None
        self.news, self.turn = asyncio.Event(), asyncio.Lock()

    def show(self, frame: Frame, action: np.ndarray, inputs: int) -> None:
        self.skipped += self.latest is not None
        self.latest = ({"frame": frame.index, "action": [float(v) for v in action], "input": inputs,
                        "skipped": self.skipped}, frame.pixels.tobytes())
        self.news.set()

    async def send(self, head: dict[str, Any], body: bytes = b"") -> None:
        async with self.turn, asyncio.timeout(STALLED_S):
            self.writer.write(json.dumps({**head, "size": len(body)}).encode() + b"\n" + body)
            await self.writer.drain()

    async def send_frames(self) -> None:
        while await self.news.wait():
            self.news.clear()
            if self.latest is not None:
                (head, body), self.latest = self.latest, None
                await self.send(head, body)


class Server:
    """fps: None is the world's own pace."""

    def __init__(self, world: World, seats: int, engine: str = "auto", fps: float | None = None) -> None:
        self.world, self.game, self.fps = world, BatchedSession(world, seats, engine), fps or world.spec.fps
        self.players: list[Player] = []
        self._seeds = 0

    async def serve(self, host: str, port: int, ready: Callable[[int], None]) -> None:
        """Serve until cancelled; ready: is told the port, once it listens (port 0 takes a free one)."""
        try:
            listening = await asyncio.start_server(self._visit, host, port, limit=MAX_LINE_BYTES)
        except (OSError, OverflowError) as error:
            raise DreamloopError(f"cannot listen on {host}:{port}: {error}") from error
        async with listening:
            ready(listening.sockets[0].getsockname()[1])
            due, now = 0.0, asyncio.get_running_loop().time
            while True:
                due = max(due + 1 / self.fps, now())  # a late frame slows the game, none is made up for
                await asyncio.sleep(due - now())
                if self.players:
                    await self._tick()

    async def _tick(self) -> None:
        """One frame for everybody. The network runs in a thread, so that the lines of others are read meanwhile."""
        players, spec = list(self.players), self.world.spec.actions
        actions = {player: player.held.copy() for player in players}
        for player, action in actions.items():
            action[: len(spec.buttons)] = np.maximum(action, player.tapped)[: len(spec.buttons)]
            player.tapped = np.zeros(spec.size, np.float32)
        inputs = {player: player.inputs for player in players}
        frames = await asyncio.to_thread(self._step, players, actions)
        for player in players:
            if player.seat in frames:
                player.show(frames[player.seat], actions[player], inputs[player])
            else:
                self.players.remove(player)

    def _step(self, players: list[Player], actions: dict[Player, np.ndarray]) -> dict[int, Frame]:
        """Who left gives up the seat, who came takes one, everybody else notices nothing."""
        for player in players:
            if not player.open and player.seat >= 0:
                self.game.leave(player.seat)
                player.seat = -1
        for player in players:
            if player.open and player.seat < 0:
                player.seat = self.game.join(player.seed)
        return self.game.step({player.seat: actions[player] for player in players if player.seat >= 0})

    async def _visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.CancelledError):  # the server closes
            await self._stay(reader, writer)

    async def _stay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        spec, self._seeds = self.world.spec, self._seeds + 1
        player = Player(spec.actions.size, self._seeds, writer)
        frame_bytes = spec.frame_height * spec.frame_width * 3  # what waits in the system's buffers is old news
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * frame_bytes)
        writer.transport.set_write_buffer_limits(high=frame_bytes)
        try:
            if len(self.players) >= self.game.seats:
                await player.send({"error": f"all {self.game.seats} seats are taken"})
                return
            self.players.append(player)
            await player.send({"world": spec.name, "actions": spec.actions.names, "height": spec.frame_height,
                               "width": spec.frame_width, "fps": self.fps, "seed": player.seed})
            async with asyncio.TaskGroup() as both:
                both.create_task(self._listen(player, reader))
                both.create_task(player.send_frames())
        except* (ConnectionError, TimeoutError):
            pass
        finally:
            player.open = False
            writer.close()
            asyncio.get_running_loop().call_later(STALLED_S, writer.transport.abort)  # of whoever reads nothing

    async def _listen(self, player: Player, reader: asyncio.StreamReader) -> None:
        """Take what the player holds, line by line; raises `ConnectionError` at the end."""
        while True:
            try:
                if not (line := await reader.readline()):
                    raise ConnectionResetError("the client has left")
                player.held = self._held(line)
                player.tapped = np.maximum(player.tapped, player.held)
                player.inputs += 1
            except DreamloopError as error:
                await player.send({"error": " ".join(str(error).split())[:500]})
            except ValueError:  # no end of a line: where the next message begins nobody knows
                await player.send({"error": f"a line is longer than {MAX_LINE_BYTES} bytes; good bye"})
                raise ConnectionAbortedError("a line too long") from None

    def _held(self, line: bytes) -> np.ndarray:
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            raise DreamloopError("not a line of JSON") from None
        if not isinstance(said, dict) or set(said) != {"hold"} or not isinstance(said["hold"], list | dict) \
                or (isinstance(said["hold"], list) and not all(isinstance(name, str) for name in said["hold"])):
            raise DreamloopError('expected {"hold": [names]} or {"hold": {name: value}}')
        return self.world.spec.actions.vector(said["hold"])


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description="Serve dreams over TCP.")
    parser.add_argument("world", nargs="?", default="doom-arena", help="a world of the zoo or a folder")
    parser.add_argument("--seats", type=whole(1), default=4)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=whole(0), default=7007)
    args = parser.parse_args(argv)
    try:
        server = Server(load_world(args.world), args.seats)
        asyncio.run(server.serve(args.host, args.port, lambda port: print(f"port {port} of {args.host}", flush=True)))
    except DreamloopError as error:
        parser.exit(2, f"server: {error}\n")
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
