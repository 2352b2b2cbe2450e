"""The verbs of who plays: `play`, `profile`, `replay`, `bindings`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dreamloop.demos.verbs.common import DEFAULT_WORLD, AddVerb, add_engine, add_pipelined, add_seed, whole
from dreamloop.models.core.errors import DreamloopError


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
        engine=args.engine, precision=args.precision, form=args.form, threads=args.threads, seed=args.seed,
        start=args.start, frames=args.frames, headless=args.headless, record=args.record, actions=args.actions,
        scale=args.scale, watch=args.watch, reanchor=args.reanchor, late=args.late, pipelined=args.pipelined,
        side_by_side=args.side_by_side, bindings=args.bindings,
        hold=None if args.hold is None else tuple(filter(None, args.hold.split(","))))


def add_play(verb: AddVerb) -> None:
    play = verb("play", _play, "play a world in a window", "dreamloop play doom-arena --record out.mp4")
    add_engine(play)
    add_seed(play)
    play.add_argument("--start", default="0", metavar="I|IMAGE", help="a start frame by index, or any image")
    play.add_argument("--headless", action="store_true", help="no window, scripted input, as fast as it can")
    play.add_argument("--frames", type=whole(1), metavar="N", help="stop after N frames")
    play.add_argument("--record", metavar="F.mp4", help="write what is shown to a video")
    play.add_argument("--actions", metavar="F.ndjson", help="write a log of every input")
    play.add_argument("--hold", metavar="A,B", help="headless: hold these actions instead of random ones")
    play.add_argument("--scale", type=whole(1), metavar="N", help="screen pixels per pixel (default: about 800 wide)")
    play.add_argument("--side-by-side", action="store_true", help="the real game on the left, under the same keys")
    play.add_argument("--bindings", metavar="F.toml", help="what keys mean (default: your own file; "
                      "see `dreamloop bindings`)")
    play.add_argument("--late", choices=("slow", "repeat", "degrade"), default="slow",
                      help="when a frame is late: slow the game down, let the old picture stand, or also do less: "
                           "look less far back, then skip decoding")
    add_pipelined(play)
    play.add_argument("--watch", action="store_true", help="say where the dream drifts or the engine errs")
    play.add_argument("--reanchor", action="store_true", help="watch, and start over at an alarm")


def _profile(args: argparse.Namespace) -> dict[str, Any]:
    from dreamloop.demos.profile import compare_profiles, profile
    if args.compare:
        if args.trace or args.plot or args.players is not None:
            raise DreamloopError("--compare plays nothing: leave --trace, --plot and --players out")
        return compare_profiles(*args.compare)
    from dreamloop.demos.play import PlayOptions
    from dreamloop.models.core.world import load_world
    options = PlayOptions(engine=args.engine, precision=args.precision, form=args.form, threads=args.threads,
                          seed=args.seed, frames=args.frames, headless=not args.window, pipelined=args.pipelined)
    if args.players is not None:
        if args.trace or args.plot:
            raise DreamloopError("--players has neither a trace nor a plot")
        from dreamloop.demos.profile_players import profile_players
        return profile_players(load_world(args.world), args.players, options)
    return profile(load_world(args.world), options, args.trace, args.plot)


def add_profile(verb: AddVerb) -> None:
    profile = verb("profile", _profile, "say where the milliseconds of a frame go",
                   "dreamloop profile doom-arena --trace trace.json --plot profile.png")
    add_engine(profile)
    add_seed(profile)
    profile.add_argument("--frames", type=whole(1), default=300, metavar="N", help="frames to time (default: 300)")
    profile.add_argument("--window", action="store_true", help="with the window and its pace (default: headless)")
    add_pipelined(profile)
    profile.add_argument("--players", type=whole(2), metavar="N", help="instead: N players in one pass, who come "
                         "and go, and what that costs those who stay")
    profile.add_argument("--compare", nargs=2, metavar=("A.json", "B.json"),
                         help="play nothing: compare two outputs of `dreamloop profile --json`")
    profile.add_argument("--trace", metavar="F.json", help="write a trace for https://ui.perfetto.dev")
    profile.add_argument("--plot", metavar="F.png", help="write a picture of stages and latency over time")


def _replay(args: argparse.Namespace) -> dict[str, Any]:
    if args.verify and args.record:
        raise DreamloopError("--verify compares the frames, --record writes them: one at a time")
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


def add_replay(verb: AddVerb) -> None:
    replay = verb("replay", _replay, "play an action log again, and say where a frame differs",
                  "dreamloop replay log.ndjson --verify")
    replay.add_argument("log", metavar="LOG", help="written by `dreamloop play --actions`")
    replay.add_argument("--verify", action="store_true", help="compare every frame; status 1 where one differs")
    replay.add_argument("--world", metavar="WORLD", help="the log's world, where it is not one of the zoo")
    replay.add_argument("--engine", metavar="E", help="another engine than the log's; frames may then differ")
    replay.add_argument("--state", metavar="F", help="the state file that was loaded, where one was")
    replay.add_argument("--record", metavar="F.mp4", help="write the frames to a video")


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
    rows = [*bindings.action_rows(), *bindings.command_rows()]
    wide, keys_wide = (max(len(row[column]) for row in rows) + 2 for column in (2, 0))
    for keys, pad, does in rows:
        print(f"{does:<{wide}}{keys:<{keys_wide}}{pad}")
    print(f"from {bindings.path}" if bindings.path else f"from the defaults; --write makes {path} to edit")
    return {"world": world.name, "file": str(path), "exists": path.is_file(), "actions": bindings.actions,
            "commands": bindings.commands}


def add_bindings(verb: AddVerb) -> None:
    bindings = verb("bindings", _bindings, "show what keys, gamepad and mouse do, and write the file that changes it",
                    "dreamloop bindings --write")
    bindings.add_argument("world", nargs="?", default=DEFAULT_WORLD, metavar="WORLD",
                          help=f"a world of the zoo or a folder (default: {DEFAULT_WORLD})")
    bindings.add_argument("--file", metavar="F.toml", help="instead of your own file, dreamloop/bindings.toml in the "
                          "folder for settings (XDG_CONFIG_HOME, or ~/.config)")
    bindings.add_argument("--write", action="store_true", help="write the defaults there, to edit; never over a file")
