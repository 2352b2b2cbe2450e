"""The verbs that make worlds and carry them: `record`, `train`, `study`, `worlds`, `pack`, `unpack`, `export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dreamloop.demos.verbs.common import (
    DEFAULT_WORLD,
    AddVerb,
    add_policy,
    figure,
    minutes,
    packages,
    progress_bar,
    whole,
)


def _record(args: argparse.Namespace) -> dict[str, Any]:
    with packages("recording", "games"), progress_bar("recording") as progress:
        from dreamloop.demos import making
        report = making.record(args.game, args.out, args.frames, args.seed, args.policy, args.held_out, progress)
    print(f"{args.out}: " + ", ".join(f"{k} {figure(v)}" for k, v in report.items() if k not in ("game", "out")))
    return report


def add_record(verb: AddVerb) -> None:
    record = verb("record", _record, "record a real game", "dreamloop record doom-arena recordings/arena")
    record.add_argument("game", metavar="GAME", help="a game's name, gymnasium:ENV_ID or folder:PATH")
    record.add_argument("out", metavar="OUT", help="folder to write to")
    record.add_argument("--frames", type=whole(1), default=10_000,
                        metavar="N", help="how many frames (default: 10000)")
    record.add_argument("--seed", type=whole(0), default=0, metavar="N", help="seed of the game and the players")
    record.add_argument("--held-out", action="store_true", help="record episodes that training does not see")
    add_policy(record, "human, idle, random, sticky or module:function")


def _train(args: argparse.Namespace) -> dict[str, Any]:
    with packages("training", "train,games,eval"):
        from dreamloop.demos import making
        folder, game = making.train(args.recipe, args.game, args.minutes, args.device, args.resume, args.run_folder,
                                    args.policy, args.recordings, args.begin, args.only, args.batch)
        from dreamloop.models.core.world import load_world
        from dreamloop.models.training import packing
        from dreamloop.runtime.evaluate import evaluate
        world = load_world(folder)
        with progress_bar("dreaming") as progress:
            report = evaluate(world, judge=folder.parent / "judges" / world.spec.game, game_name=game,
                              progress=progress)
    packing.write_card(folder, world.spec, report)
    print(f"wrote {folder}")
    return {"recipe": args.recipe or world.name, "path": str(folder), **report}


def add_train(verb: AddVerb) -> None:
    train = verb("train", _train, "make a world", "dreamloop train doom-arena --minutes 60 --resume")
    train.add_argument("recipe", nargs="?", metavar="RECIPE", help="name of the recipe, such as doom-arena")
    train.add_argument("--game", metavar="GAME", help="instead: any game, gymnasium:ENV_ID or folder:PATH")
    train.add_argument("--minutes", type=minutes, metavar="M", help="time for all stages (default: the recipe's)")
    train.add_argument("--device", choices=("cpu", "cuda"), help="what trains (default: cuda where there is one)")
    train.add_argument("--batch", type=whole(1), default=1, metavar="N",
                       help="clips and frames of a step, as many times the recipe's: a GPU has room for more (default: "
                            "1)")
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    add_policy(train, "idle, random, sticky or module:function")
    train.add_argument("--recordings", metavar="FOLDER", help="learn from what `dreamloop record` put there")
    train.add_argument("--begin", metavar="WORLD",
                       help="begin from the weights of this world, of the same sizes (default: the recipe's, if any)")
    train.add_argument("--only", default="", metavar="A,B",
                       help="stages that get all the minutes, such as self_rollout; needs a world to begin from")
    train.add_argument("--run-folder", metavar="OUT", help="where checkpoints lie (default: the recipe's)")


def _study(args: argparse.Namespace) -> dict[str, Any]:
    with packages("a study", "train,games,eval"):
        from dreamloop.demos.study import study
        report = study(args.what, args.out, args.minutes, args.device, args.engine, args.frames, args.episodes,
                       only=args.only.split(",") if args.only else ())
    print((Path(args.out) / f"{args.what}.md").read_text("utf-8"))
    return report


def add_study(verb: AddVerb) -> None:
    study = verb("study", _study, "compare ways to train on a small world: trained alike, judged alike, a table",
                 "dreamloop study methods studies --minutes 20")
    study.add_argument("what", metavar="STUDY",
                       help="methods, exposure, recovery, memory or autoencoder: see docs/distillation.md")
    study.add_argument("out", metavar="OUT", help="folder to write to; the same command goes on where one was stopped")
    study.add_argument("--minutes", type=minutes, default=20.0, metavar="M",
                       help="of training for each variant and each shared stage (default: 20)")
    study.add_argument("--only", default="", metavar="A,B",
                       help="variants of the study, such as scoring (default: all of them)")
    study.add_argument("--device", choices=("cpu", "cuda"), help="what trains (default: cuda where there is one)")
    study.add_argument("--engine", default="auto", metavar="E", help="that judges them (default: auto)")
    study.add_argument("--frames", type=whole(1), default=1000, metavar="N", help="length of a dream (default: 1000)")
    study.add_argument("--episodes", type=whole(1), default=16, metavar="N", help="how many (default: 16)")


def _worlds(args: argparse.Namespace) -> dict[str, Any]:
    from dreamloop.demos import zoo
    return zoo.worlds(args.sheet)


def add_worlds(verb: AddVerb) -> None:
    worlds = verb("worlds", _worlds, "list the worlds that came with the package", "dreamloop worlds --sheet zoo.png")
    worlds.add_argument("--sheet", metavar="F.png", help="draw thumbnails of them")


def _pack(args: argparse.Namespace) -> dict[str, Any]:
    from dreamloop.demos import zoo
    return zoo.pack(args.world, args.file)


def add_pack(verb: AddVerb) -> None:
    pack = verb("pack", _pack, "write a world to one file", "dreamloop pack doom-arena")
    pack.add_argument("world", metavar="WORLD", help="a world of the zoo, a folder or hub:owner/name")
    pack.add_argument("file", nargs="?", metavar="F", help="file to write (default: NAME.dreamworld)")


def _unpack(args: argparse.Namespace) -> dict[str, Any]:
    from dreamloop.demos import zoo
    return zoo.unpack(args.file, args.out, args.sha256)


def add_unpack(verb: AddVerb) -> None:
    unpack = verb("unpack", _unpack, "write the world of a pack to a folder", "dreamloop unpack doom-arena.dreamworld")
    unpack.add_argument("file", metavar="F", help="written by `dreamloop pack`")
    unpack.add_argument("out", nargs="?", metavar="OUT", help="folder to write to (default: the world's name)")
    unpack.add_argument("--sha256", metavar="HEX", help="refuse a file that has another")


def _export(args: argparse.Namespace) -> dict[str, Any]:
    from dreamloop.models.core.world import load_world
    world = load_world(args.world)
    with packages("exporting", "onnx"):
        from dreamloop.runtime import export, export_check
        target, out = args.to
        options = export.choose(world, target, args.form, args.precision, tuple(filter(None, args.arch.split(","))))
        if args.check:
            export_check.require(options)
        with progress_bar("exporting") as progress:
            report = export.export(world, options, out, progress)
        for line in export.lines(report):
            print(line)
        if args.check:
            with progress_bar("checking") as progress:
                report["check"] = export_check.check(world, options, Path(out), args.frames, progress)
            print(export_check.line(report["check"]))
            report["ok"] = report["check"]["ok"]
    print(f"wrote {out}; its README.md says how to run it")
    return report


def add_export(verb: AddVerb) -> None:
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
    export.add_argument("--frames", type=whole(1), default=300, metavar="N", help="frames of --check (default: 300)")
