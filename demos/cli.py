"""The command line.

    dreamloop play doom-arena --headless --frames 600 --json

Every verb has `--json`: the last line of standard output is then one JSON object. What the user
can put right is one line on standard error and exit status 2; anything else is a defect of ours
and shows its traceback. The verbs themselves are in verbs/; each imports what it needs when it runs,
so playing needs no torch.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence

from dreamloop.demos.verbs import judging, making, playing
from dreamloop.demos.verbs.common import Parser, Verb
from dreamloop.models.core.errors import DreamloopError

VERBS = (  # in the order of `dreamloop --help`
    playing.add_play, playing.add_profile, judging.add_bench, judging.add_evaluate, playing.add_replay,
    making.add_record, making.add_train, making.add_study, playing.add_bindings, making.add_worlds, making.add_pack,
    making.add_unpack, making.add_export, judging.add_engines, judging.add_doctor)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="dreamloop", description="Game worlds that a neural network dreams, in real time.",
                    epilog="Begin with: dreamloop play")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)

    def verb(name: str, run: Verb, text: str, example: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".",
                                 epilog=f"Example: {example}", formatter_class=argparse.RawDescriptionHelpFormatter)
        added.add_argument("--json", action="store_true", help="end with one line of JSON on standard output")
        added.set_defaults(run=run)
        return added

    for add in VERBS:
        add(verb)
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
    except OSError as error:  # a folder where a file should be, a full disk
        if error.filename is None:
            raise
        print(f"dreamloop {args.verb}: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0 if report.get("equal", True) and report.get("ok", True) else 1


if __name__ == "__main__":
    raise SystemExit(main())
