"""The command line, nothing else.

torch and tensorflow load only in the commands that need them: `--help` and `check` answer at once.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from pipeline.disk import refusal
from pipeline.errors import InputError, MismatchError, printable
from pipeline.interruption import Interrupted, cleanly_interruptible

OK, INTERNAL_ERROR, BAD_INPUT, BUDGET_MISSED = 0, 1, 2, 3

EPILOG = """\
exit codes: 0 all budgets met, 1 internal error, 2 bad input, 3 a budget is missed

examples:
  pocketnest check recipes/resnest50/android-litert-int8.yaml
  pocketnest run recipes/resnest50/android-litert-int8.yaml --set budgets.size_mb=14
  pocketnest predict artifacts/combined photo.jpg
  pocketnest debug artifacts/android-litert-int8
  pocketnest bench artifacts/android-litert-int8
  pocketnest inspect artifacts/android-litert-int8
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pocketnest",
        description="Compress a trained ResNeSt for phones: ONNX, TFLite and Core ML.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run recipes; finished stages are reused")
    run.add_argument("recipes", nargs="+", type=Path, metavar="RECIPE")
    run.add_argument("--out", type=Path, default=Path("artifacts"), metavar="DIR")
    run.add_argument("--fresh", action="store_true", help="compute every stage again")
    run.add_argument(
        "--allow-mismatch",
        action="store_true",
        help="go on where a file does not answer as its program; the report says so",
    )
    run.add_argument("--until", metavar="STAGE", help="stop after a stage, such as prune")
    run.add_argument(
        "--explain",
        action="store_true",
        help="run nothing: say which stages would be reused, and what changed for the others",
    )
    check = commands.add_parser("check", help="validate recipes; prints every problem at once")
    check.add_argument("recipes", nargs="+", type=Path, metavar="RECIPE")
    inspect = commands.add_parser(
        "inspect", help="list the layers of a recipe's network, or of a run before and after"
    )
    inspect.add_argument("target", type=Path, metavar="RECIPE|RUN_DIR")
    inspect.add_argument(
        "name", nargs="?", metavar="TARGET", help="name of a recipe, where RUN_DIR has several"
    )
    inspect.add_argument("--rounds", type=_positive, default=20, metavar="N", help="timed rounds")
    inspect.add_argument("--csv", type=Path, metavar="FILE", help="write all figures there too")
    for command in (run, check, inspect):
        command.add_argument(
            "--set",
            action="append",
            default=[],
            dest="overrides",
            metavar="KEY=VALUE",
            help="change a recipe value, such as train.epochs=3; can be given several times",
        )
    bench = commands.add_parser(
        "bench", help="time the files of runs again, in turn with the float model"
    )
    bench.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR")
    bench.add_argument("--rounds", type=_positive, default=50, metavar="N")
    bench.add_argument(
        "--peers",
        action="store_true",
        help="make and time what other tools make of the same network",
    )
    bench.add_argument(
        "--bars",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="YAML list of what must hold; exit code 3 where it does not",
    )
    bench.add_argument("--out", type=Path, metavar="DIR", help="for bench.json and bench.svg")
    predict = commands.add_parser(
        "predict", help="classify images with the float model and every exported file"
    )
    predict.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    predict.add_argument(
        "image", type=Path, metavar="IMAGE", help="an image file, a directory of them, or - (stdin)"
    )
    predict.add_argument("--top", type=_positive, default=5, metavar="K", help="classes to show")
    debug = commands.add_parser(
        "debug", help="compare a file with its program and the float model, layer by layer"
    )
    debug.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    debug.add_argument(
        "target", nargs="?", metavar="TARGET", help="name of a recipe, where RUN_DIR has several"
    )
    debug.add_argument("--images", type=_positive, default=32, metavar="N", help="images to run")
    debug.add_argument("--rows", type=_positive, default=20, metavar="N", help="layers to show")
    debug.add_argument("--csv", type=Path, metavar="FILE", help="default: debug.csv in the run")
    verify = commands.add_parser(
        "verify", help="hash every file of a run and of its stages again: is it as it was written?"
    )
    verify.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    gc = commands.add_parser(
        "gc", help="remove stage results that no run needs, left-overs and damaged results"
    )
    gc.add_argument("out", type=Path, nargs="?", default=Path("artifacts"), metavar="DIR")
    gc.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    return parser


def _positive(text: str) -> int:
    """A whole number above 0.

    Raises:
        argparse.ArgumentTypeError: it is not.
    """
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"got {text!r}; must be a whole number above 0")
    return int(text)


def _run(arguments: argparse.Namespace) -> int:
    from pipeline.commands import run

    return OK if run(arguments.recipes, arguments) else BUDGET_MISSED


def _check(arguments: argparse.Namespace) -> int:
    from pipeline.recipe import load_recipes

    for recipe in load_recipes(arguments.recipes, arguments.overrides):
        print(f"{recipe.name}: ok ({recipe.target.format}, {recipe.target.precision})")
    return OK


def _bench(arguments: argparse.Namespace) -> int:
    from pipeline.commands import bench

    return OK if bench(arguments) else BUDGET_MISSED


def _predict(arguments: argparse.Namespace) -> int:
    from pipeline.commands import predict

    predict(arguments.run_dir, arguments.image, arguments.top)
    return OK


def _debug(arguments: argparse.Namespace) -> int:
    from pipeline.commands import debug

    debug(arguments)
    return OK


def _inspect(arguments: argparse.Namespace) -> int:
    from pipeline.commands import inspect

    inspect(arguments)
    return OK


def _verify(arguments: argparse.Namespace) -> int:
    from pipeline.commands import verify

    return OK if verify(arguments.run_dir) else INTERNAL_ERROR


def _gc(arguments: argparse.Namespace) -> int:
    from pipeline.commands import gc

    gc(arguments.out, dry_run=arguments.dry_run)
    return OK


_COMMANDS = {
    "run": _run,
    "check": _check,
    "bench": _bench,
    "predict": _predict,
    "debug": _debug,
    "inspect": _inspect,
    "verify": _verify,
    "gc": _gc,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors of the user print without a traceback."""
    arguments = _parser().parse_args(argv)
    try:
        with cleanly_interruptible():
            return _COMMANDS[arguments.command](arguments)
    except InputError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return BAD_INPUT
    except MismatchError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return INTERNAL_ERROR
    except Interrupted as signal:
        print(
            f"interrupted by {signal}; what was done is kept, run the same command again",
            file=sys.stderr,
        )
        return 128 + signal.number
    except Exception as error:
        if (refused := refusal(error)) is not None:
            print(f"error: {printable(refused)}", file=sys.stderr)
            return BAD_INPUT
        traceback.print_exc()
        return INTERNAL_ERROR


if __name__ == "__main__":
    sys.exit(main())
