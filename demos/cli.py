"""The command line.

    dreamloop play doom-arena --headless --frames 600 --json

Every verb has `--json`: the last line of standard output is then one JSON object. What the user
can put right is one line on standard error and exit status 2; anything else is a defect of ours
and shows its traceback. A verb imports what it needs when it runs, so playing needs no torch.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from dreamloop.models.core.errors import DreamloopError

DEFAULT_WORLD = "doom-arena"
Verb = Callable[[argparse.Namespace], dict[str, Any]]


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _whole(lowest: int) -> Callable[[str], int]:
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


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of minutes") from None
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text} must be above 0")
    return value


def _windows(text: str) -> tuple[int, ...]:
    values = tuple(_whole(1)(part) for part in text.split(","))
    if max(values) > 4096:
        raise argparse.ArgumentTypeError(f"{max(values)} must be 4096 or less")
    return values


# -- verbs ---------------------------------------------------------------------------------------------


def _play(args: argparse.Namespace) -> dict[str, Any]:
    from dreamloop.demos.play import WARMUP_FRAMES, play
    from dreamloop.models.core.world import load_world
    report = play(load_world(args.world), _play_options(args))
    if report["frames"]:
        print(f"{report['frames']} frames after {WARMUP_FRAMES} of warm-up: {report['fps']} frames a second; "
              f"step and decode {report['p50_ms']} ms p50, {report['p95_ms']} p95, {report['p99_ms']} p99; "
              f"{report['late_frames']} late; {report['peak_rss_mb']} MB")
    return report


def _play_options(args: argparse.Namespace) -> Any:
    from dreamloop.demos.play import PlayOptions
    return PlayOptions(
        engine=args.engine, precision=args.precision, threads=args.threads, seed=args.seed, start=args.start,
        frames=args.frames, headless=args.headless, record=args.record, actions=args.actions, scale=args.scale,
        watch=args.watch, reanchor=args.reanchor, late=args.late, pipelined=args.pipelined,
        side_by_side=args.side_by_side, bindings=args.bindings,
        hold=None if args.hold is None else tuple(filter(None, args.hold.split(","))))


def _profile(args: argparse.Namespace) -> dict[str, Any]:
    from dreamloop.demos.profile import compare_profiles, profile
    if args.compare:
        return compare_profiles(*args.compare)
    from dreamloop.demos.play import PlayOptions
    from dreamloop.models.core.world import load_world
    options = PlayOptions(engine=args.engine, precision=args.precision, threads=args.threads, seed=args.seed,
                          frames=args.frames, headless=not args.window, pipelined=args.pipelined)
    return profile(load_world(args.world), options, args.trace, args.plot)


def _bench(args: argparse.Namespace) -> dict[str, Any]:
    from dreamloop.models.core.errors import EngineError
    from dreamloop.models.core.world import load_world
    if args.device == "cuda" or args.toy:
        try:
            from dreamloop.runtime.bench_cuda import bench_cuda
        except ImportError as error:
            raise EngineError(f"bench --device cuda needs torch ({error}); pip install 'dreamloop[gpu]'") from error
        from dreamloop.runtime.bench_cuda_plots import show
        report = bench_cuda(load_world(args.world), args.out, args.device, args.toy, 60 * args.minutes, args.frames,
                            args.preset)
        show(report)
        print(f"wrote {args.out}/report.json and its plots")
        return report
    if args.sparse:
        from dreamloop.runtime.bench_sparse import bench_sparse, table as sparse_table
        report = bench_sparse(args.windows, frames=args.frames or 30, threads=args.threads)
        print(sparse_table(report))
        return report
    from dreamloop.runtime.bench import bench, table
    from dreamloop.runtime.bench_worlds import preset
    world = preset(args.preset) if args.preset else load_world(args.world)
    report = bench(world, engines=args.engines, frames=args.frames or 300, threads=args.threads)
    print(table(report))
    return report


def _evaluate(args: argparse.Namespace) -> dict[str, Any]:
    from dreamloop.models.core.world import load_world
    world = load_world(args.world)
    with _packages("evaluating", "games"), _progress("dreaming") as progress:
        from dreamloop.runtime.evaluate import evaluate
        report = evaluate(world, engine=args.engine, precision=args.precision, threads=args.threads,
                          frames=args.frames, episodes=args.episodes, plot=args.plot, video=args.video,
                          strip=args.strip, game_name=args.game, progress=progress)
    for name, value in report.items():
        shown = "  ".join(f"{k}: {_figure(v)}" for k, v in value.items()) if isinstance(value, dict) else _figure(value)
        print(f"{name:<28}{shown}")
    return report


def _replay(args: argparse.Namespace) -> dict[str, Any]:
    from dreamloop.demos.replay import replay_log
    report = replay_log(args.log, verify=args.verify, world=args.world, engine=args.engine, record=args.record,
                        state=args.state)
    cut = ", up to a last line that was cut off" if report["truncated"] else ""
    if args.verify and report["difference"] is None:
        print(f"{args.log}: all {report['frames']} frames are equal{cut}")
    elif args.verify:
        print(f"{args.log}: {report['difference']}")
    else:
        print(f"{args.log}: {report['frames']} frames played again{cut}")
    return report


def _record(args: argparse.Namespace) -> dict[str, Any]:
    with _packages("recording", "games"), _progress("recording") as progress:
        from dreamloop.demos import making
        report = making.record(args.game, args.out, args.frames, args.seed, args.policy, args.held_out, progress)
    print(f"{args.out}: " + ", ".join(f"{k} {_figure(v)}" for k, v in report.items() if k not in ("game", "out")))
    return report


def _train(args: argparse.Namespace) -> dict[str, Any]:
    with _packages("training", "train,games,eval"):
        from dreamloop.demos import making
        folder, game = making.train(args.recipe, args.game, args.minutes, args.device, args.resume, args.run_folder,
                                    args.policy, args.recordings)
        from dreamloop.models.core.world import load_world
        from dreamloop.models.training import packing
        from dreamloop.runtime.evaluate import evaluate
        world = load_world(folder)
        with _progress("dreaming") as progress:
            report = evaluate(world, judge=folder.parent / "judges" / world.spec.game, game_name=game,
                              progress=progress)
    packing.write_card(folder, world.spec, report)
    print(f"wrote {folder}")
    return {"recipe": args.recipe or world.name, "path": str(folder), **report}


def _figure(value: Any) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


@contextlib.contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error where that is a terminal; gives a function of (done, all)."""
    from rich.console import Console
    from rich.progress import Progress
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bars:
        bar = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)


@contextlib.contextmanager
def _packages(what: str, extra: str) -> Iterator[None]:
    """Turn a package that is not installed into a line that says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("dreamloop"):
            raise
        raise DreamloopError(f"{what} needs {error.name}: pip install 'dreamloop[{extra}]'") from error


def _bindings(args: argparse.Namespace) -> dict[str, Any]:
    from dreamloop.demos.bindings import default_actions, default_path, load_bindings, write_bindings
    from dreamloop.models.core.world import load_world, zoo_names
    world, path = load_world(args.world), Path(args.file) if args.file else default_path()
    if args.write:
        worlds = {spec.name: default_actions(spec.actions)
                  for spec in (*(load_world(name).spec for name in zoo_names()), world.spec)}
        write_bindings(path, worlds)
        print(f"wrote {path}; edit it, and the next game has its keys")
    bindings = load_bindings(world.spec, args.file)
    for keys, pad, does in (*bindings.action_rows(), *bindings.command_rows()):
        print(f"{does:<40}{keys:<28}{pad}")
    print(f"from {bindings.path}" if bindings.path else f"from the defaults; --write makes {path} to edit")
    return {"world": world.name, "file": str(path), "exists": path.is_file(), "actions": bindings.actions,
            "commands": bindings.commands}


def _export(args: argparse.Namespace) -> dict[str, Any]:
    from dreamloop.models.core.world import load_world
    world = load_world(args.world)
    with _packages("exporting", "onnx"):
        from dreamloop.runtime import export, export_check
        target, out = args.to
        options = export.choose(world, target, args.form, args.precision, tuple(filter(None, args.arch.split(","))))
        if args.check:
            export_check.require(options)
        with _progress("exporting") as progress:
            report = export.export(world, options, out, progress)
        for line in export.lines(report):
            print(line)
        if args.check:
            with _progress("checking") as progress:
                report["check"] = export_check.check(world, options, Path(out), args.frames, progress)
            print(export_check.line(report["check"]))
            report["ok"] = report["check"]["ok"]
    print(f"wrote {out}; its README.md says how to run it")
    return report


def _worlds(args: argparse.Namespace) -> dict[str, Any]:
    from dreamloop.demos import zoo
    return zoo.worlds(args.sheet)


def _pack(args: argparse.Namespace) -> dict[str, Any]:
    from dreamloop.demos import zoo
    return zoo.pack(args.world, args.file)


def _unpack(args: argparse.Namespace) -> dict[str, Any]:
    from dreamloop.demos import zoo
    return zoo.unpack(args.file, args.out, args.sha256)


def _engines(args: argparse.Namespace) -> dict[str, Any]:
    from dreamloop.runtime.engines import AUTO_ORDER, ENGINE_NAMES, engine_status
    statuses = [engine_status(name) for name in ENGINE_NAMES]
    auto = next((name for name in AUTO_ORDER if any(s.name == name and s.available for s in statuses)), None)
    for status in statuses:
        print(f"{status.name:<14}{'can run' if status.available else 'cannot run':<12}{status.reason}")
    print(f"auto picks {auto or 'none of them'}")
    return {"auto": auto, "available": [s.name for s in statuses if s.available],
            "unavailable": {s.name: s.reason for s in statuses if not s.available}}


def _doctor(args: argparse.Namespace) -> dict[str, Any]:
    from dreamloop.demos.doctor import doctor
    report = doctor(tuple(args.worlds))
    for check in report["checks"]:
        print(f"{check['status']:<9}{check['name']:<20}{check['detail']}")
        if check["advice"]:
            print(f"{'':<29}-> {check['advice']}")
    return report


# -- parsing -------------------------------------------------------------------------------------------


def _add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("world", nargs="?", default=DEFAULT_WORLD, metavar="WORLD",
                        help=f"a world of the zoo, a folder or hub:owner/name (default: {DEFAULT_WORLD})")
    parser.add_argument("--engine", default="auto", metavar="E", help="see `dreamloop engines` (default: auto)")
    parser.add_argument("--precision", metavar="P", help="see `dreamloop engines` (default: the engine's own)")
    parser.add_argument("--threads", type=_whole(1), metavar="N", help="threads of the engine")


def _add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=_whole(0), default=0, metavar="N", help="seed of the noise (default: 0)")


def _add_pipelined(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pipelined", action="store_true",
                        help="make a frame while the one before is presented; costs up to a frame of latency")


def _add_policy(parser: argparse.ArgumentParser, which: str) -> None:
    parser.add_argument("--policy", metavar="P", help=f"who plays: {which} (default: the game's own players)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="dreamloop", description="Game worlds that a neural network dreams, in real time.",
                     epilog="Begin with: dreamloop play")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)

    def verb(name: str, run: Verb, text: str, example: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".",
                                 epilog=f"Example: {example}", formatter_class=argparse.RawDescriptionHelpFormatter)
        added.add_argument("--json", action="store_true", help="end with one line of JSON on standard output")
        added.set_defaults(run=run)
        return added

    play = verb("play", _play, "play a world in a window", "dreamloop play doom-arena --record out.mp4")
    _add_engine(play)
    _add_seed(play)
    play.add_argument("--start", default="0", metavar="I|IMAGE", help="a start frame by index, or any image")
    play.add_argument("--headless", action="store_true", help="no window, scripted input, as fast as it can")
    play.add_argument("--frames", type=_whole(1), metavar="N", help="stop after N frames")
    play.add_argument("--record", metavar="F.mp4", help="write what is shown to a video")
    play.add_argument("--actions", metavar="F.ndjson", help="write a log of every input")
    play.add_argument("--hold", metavar="A,B", help="headless: hold these actions instead of random ones")
    play.add_argument("--scale", type=_whole(1), metavar="N", help="screen pixels per pixel (default: about 800 wide)")
    play.add_argument("--side-by-side", action="store_true", help="the real game on the left, under the same keys")
    play.add_argument("--bindings", metavar="F.toml", help="what keys mean (default: your own file; "
                      "see `dreamloop bindings`)")
    play.add_argument("--late", choices=("slow", "repeat", "degrade"), default="slow",
                      help="when a frame is late: slow the game down, let the old picture stand, or also do less: "
                           "look less far back, then skip decoding")
    _add_pipelined(play)
    play.add_argument("--watch", action="store_true", help="say where the dream drifts or the engine errs")
    play.add_argument("--reanchor", action="store_true", help="watch, and start over at an alarm")

    profile = verb("profile", _profile, "say where the milliseconds of a frame go",
                   "dreamloop profile doom-arena --trace trace.json --plot profile.png")
    _add_engine(profile)
    _add_seed(profile)
    profile.add_argument("--frames", type=_whole(1), default=300, metavar="N", help="frames to time (default: 300)")
    profile.add_argument("--window", action="store_true", help="with the window and its pace (default: headless)")
    _add_pipelined(profile)
    profile.add_argument("--compare", nargs=2, metavar=("A.json", "B.json"),
                         help="play nothing: compare two outputs of `dreamloop profile --json`")
    profile.add_argument("--trace", metavar="F.json", help="write a trace for https://ui.perfetto.dev")
    profile.add_argument("--plot", metavar="F.png", help="write a picture of stages and latency over time")

    bench = verb("bench", _bench, "compare the engines on a world: verified, then timed",
                 "dreamloop bench doom-arena --engines native,torch-eager --json")
    bench.add_argument("world", nargs="?", default=DEFAULT_WORLD, metavar="WORLD",
                       help=f"a world of the zoo, a folder or hub:owner/name (default: {DEFAULT_WORLD})")
    bench.add_argument("--engines", default="all", metavar="A,B", help="engines or variants, or all (default: all)")
    bench.add_argument("--frames", type=_whole(1), metavar="N", help="frames to time (default: 300; --sparse: 30)")
    bench.add_argument("--preset", metavar="NAME", help="a network of random weights instead of WORLD, for its times "
                       "alone: cpu-300; with --device cuda: wan-1.3b, waypoint-1b (default there: both, and WORLD)")
    bench.add_argument("--device", choices=("cpu", "cuda"), default="cpu",
                       help="cuda: kernels, engine and presets on the GPU that is here (default: cpu)")
    bench.add_argument("--out", metavar="OUT", default="bench-cuda",
                       help="with --device cuda: folder of report.json and plots (default: bench-cuda)")
    bench.add_argument("--minutes", type=_minutes, default=8.0, metavar="M",
                       help="with --device cuda: begin nothing after so many (default: 8)")
    bench.add_argument("--toy", action="store_true",
                       help="the sections of --device cuda at toy size, on a CPU too: a rehearsal, no figures")
    bench.add_argument("--sparse", action="store_true",
                       help="the plans against each other on worlds of random weights, over longer and longer memories")
    bench.add_argument("--windows", type=_windows, metavar="N,N", default=(16, 32, 64, 128, 256, 512),
                       help="with --sparse: frames of memory (default: 16,32,64,128,256,512)")
    bench.add_argument("--threads", type=_whole(1), default=2, metavar="N", help="threads of every engine (default: 2)")

    evaluate = verb("evaluate", _evaluate, "judge a world against the real game",
                    "dreamloop evaluate doom-arena --strip strip.png")
    _add_engine(evaluate)
    evaluate.add_argument("--frames", type=_whole(1), default=1000,
                          metavar="N", help="length of a dream (default: 1000)")
    evaluate.add_argument("--episodes", type=_whole(1), default=16, metavar="N", help="how many (default: 16)")
    evaluate.add_argument("--game", metavar="GAME", help="the game, where the world's word for it is not enough")
    evaluate.add_argument("--plot", metavar="F.png", help="draw quality and drift against the horizon")
    evaluate.add_argument("--strip", metavar="F.png", help="write a strip of pictures, game over dream")
    evaluate.add_argument("--video", metavar="F.mp4", help="write game and dream side by side")

    replay = verb("replay", _replay, "play an action log again, and say where a frame differs",
                  "dreamloop replay log.ndjson --verify")
    replay.add_argument("log", metavar="LOG", help="written by `dreamloop play --actions`")
    replay.add_argument("--verify", action="store_true", help="compare every frame; status 1 where one differs")
    replay.add_argument("--world", metavar="WORLD", help="the log's world, where it is not one of the zoo")
    replay.add_argument("--engine", metavar="E", help="another engine than the log's; frames may then differ")
    replay.add_argument("--state", metavar="F", help="the state file that was loaded, where one was")
    replay.add_argument("--record", metavar="F.mp4", help="write the frames to a video")

    record = verb("record", _record, "record a real game", "dreamloop record doom-arena recordings/arena")
    record.add_argument("game", metavar="GAME", help="a game's name, gymnasium:ENV_ID or folder:PATH")
    record.add_argument("out", metavar="OUT", help="folder to write to")
    record.add_argument("--frames", type=_whole(1), default=10_000,
                        metavar="N", help="how many frames (default: 10000)")
    record.add_argument("--seed", type=_whole(0), default=0, metavar="N", help="seed of the game and the players")
    record.add_argument("--held-out", action="store_true", help="record episodes that training does not see")
    _add_policy(record, "human, random, sticky or module:function")

    train = verb("train", _train, "make a world", "dreamloop train doom-arena --minutes 60 --resume")
    train.add_argument("recipe", nargs="?", metavar="RECIPE", help="name of the recipe, such as doom-arena")
    train.add_argument("--game", metavar="GAME", help="instead: any game, gymnasium:ENV_ID or folder:PATH")
    train.add_argument("--minutes", type=_minutes, metavar="M", help="time for all stages (default: the recipe's)")
    train.add_argument("--device", metavar="D", help="cpu or cuda (default: what is there)")
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    _add_policy(train, "random, sticky or module:function")
    train.add_argument("--recordings", metavar="FOLDER", help="learn from what `dreamloop record` put there")
    train.add_argument("--run-folder", metavar="OUT", help="where checkpoints lie (default: the recipe's)")

    bindings = verb("bindings", _bindings, "show what keys, gamepad and mouse do, and write the file that changes it",
                    "dreamloop bindings --write")
    bindings.add_argument("world", nargs="?", default=DEFAULT_WORLD, metavar="WORLD",
                          help=f"a world of the zoo or a folder (default: {DEFAULT_WORLD})")
    bindings.add_argument("--file", metavar="F.toml", help="instead of your own file, dreamloop/bindings.toml in the "
                          "folder for settings (XDG_CONFIG_HOME, or ~/.config)")
    bindings.add_argument("--write", action="store_true", help="write the defaults there, to edit; never over a file")

    worlds = verb("worlds", _worlds, "list the worlds that came with the package", "dreamloop worlds --sheet zoo.png")
    worlds.add_argument("--sheet", metavar="F.png", help="draw thumbnails of them")

    pack = verb("pack", _pack, "write a world to one file", "dreamloop pack doom-arena")
    pack.add_argument("world", metavar="WORLD", help="a world of the zoo, a folder or hub:owner/name")
    pack.add_argument("file", nargs="?", metavar="F", help="file to write (default: NAME.dreamworld)")
    unpack = verb("unpack", _unpack, "write the world of a pack to a folder", "dreamloop unpack doom-arena.dreamworld")
    unpack.add_argument("file", metavar="F", help="written by `dreamloop pack`")
    unpack.add_argument("out", nargs="?", metavar="OUT", help="folder to write to (default: the world's name)")
    unpack.add_argument("--sha256", metavar="HEX", help="refuse a file that has another")

    export = verb("export", _export, "write a world as graphs or engines for another program",
                  "dreamloop export doom-arena --to onnx out --check")
    export.add_argument("world", nargs="?", default=DEFAULT_WORLD, metavar="WORLD",
                        help=f"a world of the zoo or a folder (default: {DEFAULT_WORLD})")
    export.add_argument("--to", required=True, nargs=2, metavar=("T", "OUT"),
                        help="onnx, tensorrt or tensorrt-rtx; and the folder to write to: new, or an earlier export")
    export.add_argument("--form", metavar="F", help="portable, sparse or in_place (default: the target's own)")
    export.add_argument("--precision", metavar="P", help="such as fp32, fp16, int8 (default: the target's own)")
    export.add_argument("--arch", default="", metavar="A,B", help="TensorRT: GPUs to build for, such as sm_89,sm_120")
    export.add_argument("--check", action="store_true", help="run it beside a reference; status 1 where it differs")
    export.add_argument("--frames", type=_whole(1), default=300, metavar="N", help="frames of --check (default: 300)")

    verb("engines", _engines, "list the engines, and why one cannot run", "dreamloop engines")
    doctor = verb("doctor", _doctor, "check the machine, the engines, the display and the worlds", "dreamloop doctor")
    doctor.add_argument("worlds", nargs="*", metavar="WORLD", help="folders of worlds to check, besides the zoo's")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 2 for what the user can put right, 1 for a replay that
    differs or a doctor that found a problem."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # so that a pipe sees each line when it is said
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # its greeting is no line of any verb
    args = _parser().parse_args(argv)
    try:
        report = args.run(args)
        if args.json:
            print(json.dumps(report))
    except DreamloopError as error:
        print(f"dreamloop {args.verb}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our lines has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0 if report.get("equal", True) and report.get("ok", True) else 1


if __name__ == "__main__":
    raise SystemExit(main())
