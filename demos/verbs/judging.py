"""The verbs that judge: `bench`, `evaluate`, `engines`, `doctor`."""

from __future__ import annotations

import argparse
from typing import Any

from dreamloop.demos.verbs.common import (
    DEFAULT_WORLD,
    AddVerb,
    add_engine,
    add_policy,
    figure,
    minutes,
    packages,
    progress_bar,
    whole,
    windows,
)


def _bench(args: argparse.Namespace) -> dict[str, Any]:
    from dreamloop.models.core.errors import EngineError
    from dreamloop.models.core.world import load_world
    if args.device == "cuda" or args.toy:
        if args.sparse or args.engines != "all":
            raise EngineError(f"bench {'--toy' if args.toy else '--device cuda'} takes neither --engines nor --sparse: "
                              "its own --sections say what it measures")
        try:
            from dreamloop.runtime.bench_cuda import SECTIONS, bench_cuda
        except ImportError as error:
            raise EngineError(f"bench --device cuda needs torch ({error}); pip install 'dreamloop[gpu]'") from error
        from dreamloop.runtime.bench_cuda_plots import show
        report = bench_cuda(load_world(args.world), args.out, args.device, args.toy, 60 * args.minutes, args.frames,
                            args.preset, args.sections.split(",") if args.sections else SECTIONS)
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


def add_bench(verb: AddVerb) -> None:
    bench = verb("bench", _bench, "compare the engines on a world: verified, then timed",
                 "dreamloop bench doom-arena --engines native,torch-eager --json")
    bench.add_argument("world", nargs="?", default=DEFAULT_WORLD, metavar="WORLD",
                       help=f"a world of the zoo, a folder or hub:owner/name (default: {DEFAULT_WORLD})")
    bench.add_argument("--engines", default="all", metavar="A,B", help="engines or variants, or all (default: all)")
    bench.add_argument("--frames", type=whole(1), metavar="N", help="frames to time (default: 300; --sparse: 30)")
    bench.add_argument("--preset", metavar="NAME", help="a network of random weights instead of WORLD, for its times "
                       "alone: cpu-300; with --device cuda: wan-1.3b, waypoint-1b (default there: both, and WORLD)")
    bench.add_argument("--device", choices=("cpu", "cuda"), default="cpu",
                       help="cuda: kernels, engine and presets on the GPU that is here (default: cpu)")
    bench.add_argument("--out", metavar="OUT", default="bench-cuda",
                       help="with --device cuda: folder of report.json and plots (default: bench-cuda)")
    bench.add_argument("--minutes", type=minutes, default=8.0, metavar="M",
                       help="with --device cuda: begin nothing after so many (default: 8)")
    bench.add_argument("--sections", metavar="A,B", help="with --device cuda: only these of limits, kernels, sweep, "
                       "splits, rows, presets, players, latency_ms, steps (default: all)")
    bench.add_argument("--toy", action="store_true",
                       help="the sections of --device cuda at toy size, on a CPU too: a rehearsal, no figures")
    bench.add_argument("--sparse", action="store_true",
                       help="the plans against each other on worlds of random weights, over longer and longer memories")
    bench.add_argument("--windows", type=windows, metavar="N,N", default=(16, 32, 64, 128, 256, 512),
                       help="with --sparse: frames of memory (default: 16,32,64,128,256,512)")
    bench.add_argument("--threads", type=whole(1), default=2, metavar="N", help="threads of every engine (default: 2)")


def _evaluate(args: argparse.Namespace) -> dict[str, Any]:
    from dreamloop.models.core.world import load_world
    world = load_world(args.world)
    with packages("evaluating", "games"), progress_bar("dreaming") as progress:
        from dreamloop.demos.making import scripted
        from dreamloop.runtime.evaluate import evaluate
        report = evaluate(world, engine=args.engine, precision=args.precision, form=args.form, threads=args.threads,
                          frames=args.frames, episodes=args.episodes, plot=args.plot, video=args.video,
                          strip=args.strip, judge=args.judge, game_name=args.game, progress=progress,
                          drift_frames=args.drift_frames, lpips=args.lpips, fvd=args.fvd, primed=args.primed,
                          policy=scripted(args.policy))
    for name, value in report.items():
        shown = "  ".join(f"{k}: {figure(v)}" for k, v in value.items()) if isinstance(value, dict) else figure(value)
        print(f"{name:<28}{shown}")
    return report


def add_evaluate(verb: AddVerb) -> None:
    evaluate = verb("evaluate", _evaluate, "judge a world against the real game",
                    "dreamloop evaluate doom-arena --strip strip.png")
    add_engine(evaluate)
    evaluate.add_argument("--frames", type=whole(1), default=1000,
                          metavar="N", help="length of a dream (default: 1000)")
    evaluate.add_argument("--episodes", type=whole(1), default=16, metavar="N", help="how many (default: 16)")
    evaluate.add_argument("--primed", type=whole(1), metavar="N", help="real frames that a dream is given (default: as "
                          "many as the world remembers, 16 at least)")
    add_policy(evaluate, "idle, random, sticky or module:function")
    evaluate.add_argument("--game", metavar="GAME", help="the game, where the world's word for it is not enough")
    evaluate.add_argument("--judge", metavar="FOLDER", help="judge and probes of a run, RUN/judges/GAME "
                          "(default: the zoo's of this game)")
    evaluate.add_argument("--drift-frames", type=whole(1), metavar="N", help="measure drift again after N frames, "
                          "such as 10000")
    evaluate.add_argument("--lpips", metavar="F.pt", help="network that LPIPS is measured with (TorchScript; yours)")
    evaluate.add_argument("--fvd", metavar="F.pt", help="network that FVD is measured with (TorchScript; yours)")
    evaluate.add_argument("--plot", metavar="F.png", help="draw quality and drift against the horizon")
    evaluate.add_argument("--strip", metavar="F.png", help="write a strip of pictures, game over dream")
    evaluate.add_argument("--video", metavar="F.mp4", help="write game and dream side by side")


def _engines(args: argparse.Namespace) -> dict[str, Any]:
    from dreamloop.runtime.engines import AUTO_ORDER, ENGINE_NAMES, engine_status
    statuses = [engine_status(name) for name in ENGINE_NAMES]
    auto = next((name for name in AUTO_ORDER if any(s.name == name and s.available for s in statuses)), None)
    for status in statuses:
        print(f"{status.name:<14}{'can run' if status.available else 'cannot run':<12}{status.reason}")
    print(f"auto picks {auto or 'none of them'}")
    return {"auto": auto, "available": [s.name for s in statuses if s.available],
            "unavailable": {s.name: s.reason for s in statuses if not s.available}}


def add_engines(verb: AddVerb) -> None:
    verb("engines", _engines, "list the engines, and why one cannot run", "dreamloop engines")


def _doctor(args: argparse.Namespace) -> dict[str, Any]:
    from dreamloop.demos.doctor import doctor
    report = doctor(tuple(args.worlds))
    wide = max(len(check["name"]) for check in report["checks"]) + 2
    for check in report["checks"]:
        print(f"{check['status']:<9}{check['name']:<{wide}}{check['detail']}")
        if check["advice"]:
            print(f"{'':<{9 + wide}}-> {check['advice']}")
    return report


def add_doctor(verb: AddVerb) -> None:
    doctor = verb("doctor", _doctor, "check the machine, the engines, the display and the worlds", "dreamloop doctor")
    doctor.add_argument("worlds", nargs="*", metavar="WORLD", help="folders of worlds to check, besides the zoo's")
