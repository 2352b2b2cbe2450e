"""A player on a server of dreams (server.py).

    python -m dreamloop.demos.client --port 7007 --frames 350

Holds scripted keys, and says what came back.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from dreamloop.demos.scripted import ScriptedSource
from dreamloop.demos.verbs.common import Parser, whole
from dreamloop.models.core.errors import DreamloopError
from dreamloop.models.core.spec import ActionSpec, Button


class Client:
    """`async with Client(host, port) as game`. hello: what the server said first."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port

    async def __aenter__(self) -> Self:
        try:
            self.reader, self.writer = await asyncio.open_connection(self.host, self.port)
        except (OSError, OverflowError) as error:  # OverflowError: no such port
            reason = error.strerror if isinstance(error, OSError) else error
            raise DreamloopError(f"no server at {self.host}:{self.port} ({reason})") from error
        self.hello, _ = await self._read()
        known = {"world": str, "actions": list, "height": int, "width": int, "seed": int}
        if not all(isinstance(self.hello.get(key), kind) for key, kind in known.items()):
            raise self._stranger()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        self.writer.close()

    async def _read(self) -> tuple[dict[str, Any], bytes]:
        try:
            head = json.loads(await self.reader.readuntil(b"\n"))
            body = await self.reader.readexactly(head["size"])
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise DreamloopError("the server is gone") from error
        except (ValueError, RecursionError, KeyError, TypeError, asyncio.LimitOverrunError) as error:
            raise self._stranger() from error
        if "error" in head:
            raise DreamloopError(f"the server says: {head['error']}")
        return head, body

    def _stranger(self) -> DreamloopError:
        return DreamloopError(f"{self.host}:{self.port} is no server of dreams")

    async def hold(self, names: Iterable[str]) -> None:
        """From now on these are held."""
        self.writer.write(json.dumps({"hold": sorted(names)}).encode() + b"\n")
        await self.writer.drain()

    async def frame(self) -> tuple[dict[str, Any], np.ndarray]:
        """The next frame: what the server says of it, and its pixels (H, W, 3) uint8."""
        head, body = await self._read()
        shape = (self.hello["height"], self.hello["width"], 3)
        if len(body) != math.prod(shape):
            raise self._stranger()
        return head, np.frombuffer(body, np.uint8).reshape(shape)


async def play(host: str, port: int, frames: int) -> str:
    """Hold scripted keys for a number of frames; returns a line about it."""
    async with Client(host, port) as game:
        keys = ScriptedSource(ActionSpec(tuple(Button(name) for name in game.hello["actions"])))
        began, head = time.perf_counter(), {"skipped": 0}
        for _ in range(frames):
            action = keys.read().action
            assert isinstance(action, frozenset)
            await game.hold(action)
            head, _ = await game.frame()
        fps = frames / (time.perf_counter() - began)
        return f"{game.hello['world']}: {frames} frames, {fps:.1f} a second, {head['skipped']} skipped"


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description="Play on a server of dreams.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=whole(1), default=7007)
    parser.add_argument("--frames", type=whole(1), default=350)
    args = parser.parse_args(argv)
    try:
        print(asyncio.run(play(args.host, args.port, args.frames)))
    except DreamloopError as error:
        parser.exit(2, f"client: {error}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
