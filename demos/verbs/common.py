"""What the verbs share: the parser, kinds of values, common options, figures and a progress bar."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, Protocol

from dreamloop.models.core.errors import DreamloopError

DEFAULT_WORLD = "doom-arena"
Verb = Callable[[argparse.Namespace], dict[str, Any]]


class AddVerb(Protocol):
    """Adds a verb to the command line; returns its parser, which already has `--json`."""

    def __call__(self, name: str, run: Verb, text: str, example: str) -> argparse.ArgumentParser: ...


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def whole(lowest: int) -> Callable[[str], int]:
    """A parser of whole numbers from `lowest` up."""
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < lowest:
            raise argparse.ArgumentTypeError(f"{value} must be {lowest} or more")
        return value
    return parse


def minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of minutes") from None
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text} must be above 0")
    return value


def windows(text: str) -> tuple[int, ...]:
    values = tuple(whole(1)(part) for part in text.split(","))
    if max(values) > 4096:
        raise argparse.ArgumentTypeError(f"{max(values)} must be 4096 or less")
    return values


def add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("world", nargs="?", default=DEFAULT_WORLD, metavar="WORLD",
                        help=f"a world of the zoo, a folder or hub:owner/name (default: {DEFAULT_WORLD})")
    parser.add_argument("--engine", default="auto", metavar="E", help="see `dreamloop engines` (default: auto)")
    parser.add_argument("--precision", metavar="P", help="see `dreamloop engines` (default: the engine's own)")
    parser.add_argument("--form", metavar="F", help="of the graphs of onnxruntime and tensorrt: portable, sparse, "
                        "in_place (default: the engine's own)")
    parser.add_argument("--threads", type=whole(1), metavar="N", help="threads of the engine")


def add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="seed of the noise (default: 0)")


def add_pipelined(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pipelined", action="store_true",
                        help="make a frame while the one before is presented; costs up to a frame of latency")


def add_policy(parser: argparse.ArgumentParser, which: str) -> None:
    parser.add_argument("--policy", metavar="P", help=f"who plays: {which} (default: the game's own players)")


def figure(value: Any) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


@contextlib.contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error where that is a terminal; gives a function of (done, all)."""
    from rich.console import Console
    from rich.progress import Progress
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bars:
        bar = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)


@contextlib.contextmanager
def packages(what: str, extra: str) -> Iterator[None]:
    """Turn a package that is not installed into a line that says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("dreamloop"):
            raise
        raise DreamloopError(f"{what} needs {error.name}: pip install 'dreamloop[{extra}]'") from error
