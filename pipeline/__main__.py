"""The command line, nothing else.

torch and tensorflow load only in the commands that need them: `--help` and `check` answer at once.
"""

from __future__ import annotations

import argparse
import math
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path

import shtab

from pipeline.base.disk import refusal
from pipeline.base.errors import InputError, MismatchError, printable
from pipeline.base.signals import Interrupted, cleanly_interruptible

OK, INTERNAL_ERROR, BAD_INPUT, BUDGET_MISSED = 0, 1, 2, 3

EXIT_CODES = """\
exit codes: 0 all budgets met, 1 internal error, 2 bad input, 3 a budget is missed or, of
compare, a regression"""

EXAMPLES = {
    "init": (
        "pocketnest init my-phone.yaml",
        "pocketnest init my-phone.yaml --device android --train photos/train --test photos/test",
    ),
    "run": (
        "pocketnest run recipes/resnest50/android-litert-int8.yaml --set budgets.size_mb=14",
        "pocketnest run my-phone.yaml my-tablet.yaml --out artifacts",
        "pocketnest run my-phone.yaml --explain",
    ),
    "check": ("pocketnest check recipes/resnest50/android-litert-int8.yaml",),
    "inspect": (
        "pocketnest inspect my-phone.yaml",
        "pocketnest inspect artifacts/android-litert-int8 --csv layers.csv",
    ),
    "bench": (
        "pocketnest bench artifacts/android-litert-int8",
        "pocketnest bench artifacts/android-litert-int8 --peers --rounds 100",
    ),
    "baseline": (
        "pocketnest baseline recipes/resnest50/android-litert-int8.yaml",
        "pocketnest baseline my-phone.yaml --set measure.rounds=100",
    ),
    "predict": (
        "pocketnest predict artifacts/combined photo.jpg",
        "pocketnest predict artifacts/android-litert-int8 - < photo.jpg",
    ),
    "debug": ("pocketnest debug artifacts/android-litert-int8",),
    "compare": (
        "pocketnest compare artifacts-main/combined artifacts/combined > comment.md",
        "pocketnest compare old new --accuracy-drop 0.3 --json",
    ),
    "bundle": ("pocketnest bundle artifacts/combined --out hand-over",),
    "verify": ("pocketnest verify artifacts/combined",),
    "gc": ("pocketnest gc artifacts --dry-run",),
}
"""Of every command; the first stands in the help of all."""


def _examples(lines: Iterable[str]) -> str:
    return "\n".join(["examples:", *(f"  {line}" for line in lines)])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pocketnest",
        description="Compress a trained ResNeSt for phones: ONNX, TFLite and Core ML.",
        epilog=f"{EXIT_CODES}\n\n{_examples(lines[0] for lines in EXAMPLES.values())}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shtab.add_argument_to(
        parser,
        "--print-completion",
        help="print a completion script for this shell; see the README",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    init = commands.add_parser(
        "init", help="write a commented recipe for a device; asks for what is not given"
    )
    _file(init.add_argument("file", type=Path, metavar="FILE", help="such as my-phone.yaml"))
    init.add_argument("--device", choices=("android", "iphone", "linux-arm"))
    _folder(init.add_argument("--train", type=Path, metavar="DIR", help="one folder per class"))
    _folder(init.add_argument("--test", type=Path, metavar="DIR", help="of other images"))
    _file(init.add_argument("--checkpoint", type=Path, metavar="FILE"))
    init.add_argument("--input-size", type=_positive, metavar="PIXELS", help="default 224")
    init.add_argument("--size-mb", type=_number, metavar="MB", help="most that the file may hold")
    init.add_argument("--pixels", action="store_true", help="the file takes 8-bit RGB pixels")
    run = commands.add_parser("run", help="run recipes; finished stages are reused")
    _file(run.add_argument("recipes", nargs="+", type=Path, metavar="RECIPE"))
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
    output = run.add_mutually_exclusive_group()
    output.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    output.add_argument(
        "--json", action="store_true", help="print a summary of the files as JSON, nothing else"
    )
    check = commands.add_parser("check", help="validate recipes; prints every problem at once")
    _file(check.add_argument("recipes", nargs="+", type=Path, metavar="RECIPE"))
    inspect = commands.add_parser(
        "inspect", help="list the layers of a recipe's network, or of a run before and after"
    )
    _file(inspect.add_argument("target", type=Path, metavar="RECIPE|RUN_DIR"))
    inspect.add_argument(
        "name", nargs="?", metavar="TARGET", help="name of a recipe, where RUN_DIR has several"
    )
    inspect.add_argument("--rounds", type=_positive, default=20, metavar="N", help="timed rounds")
    inspect.add_argument("--csv", type=Path, metavar="FILE", help="write all figures there too")
    baseline = commands.add_parser(
        "baseline",
        help="measure the float model here, on the GPU if there is one, and keep it for reports",
    )
    _file(baseline.add_argument("recipe", type=Path, metavar="RECIPE"))
    _folder(
        baseline.add_argument(
            "--out",
            type=Path,
            default=Path("artifacts"),
            metavar="DIR",
            help="the file lies in DIR/baselines; default artifacts",
        )
    )
    for command in (run, check, inspect, baseline):
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
    _folder(bench.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR"))
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
    _folder(predict.add_argument("run_dir", type=Path, metavar="RUN_DIR"))
    predict.add_argument(
        "image", type=Path, metavar="IMAGE", help="an image file, a directory of them, or - (stdin)"
    )
    predict.add_argument("--top", type=_positive, default=5, metavar="K", help="classes to show")
    debug = commands.add_parser(
        "debug", help="compare a file with its program and the float model, layer by layer"
    )
    _folder(debug.add_argument("run_dir", type=Path, metavar="RUN_DIR"))
    debug.add_argument(
        "target", nargs="?", metavar="TARGET", help="name of a recipe, where RUN_DIR has several"
    )
    debug.add_argument("--images", type=_positive, default=32, metavar="N", help="images to run")
    debug.add_argument("--rows", type=_positive, default=20, metavar="N", help="layers to show")
    debug.add_argument("--csv", type=Path, metavar="FILE", help="default: debug.csv in the run")
    compare = commands.add_parser(
        "compare", help="what changed between two runs, worst first; exit code 3 on a regression"
    )
    for name, says in (
        ("old", "directory of a run, or combined"),
        ("new", "of a later run of the same recipes"),
    ):
        _folder(compare.add_argument(name, type=Path, metavar=name.upper(), help=says))
    compare.add_argument(
        "--accuracy-drop",
        type=_number,
        default=0.5,
        metavar="POINTS",
        help="of top-1 that may be lost; a loss that chance explains is none (default 0.5)",
    )
    compare.add_argument(
        "--size-growth", type=_number, default=2.0, metavar="PERCENT", help="default 2"
    )
    compare.add_argument(
        "--latency-growth",
        type=_number,
        default=10.0,
        metavar="PERCENT",
        help="of the median, where the runs' intervals do not overlap (default 10)",
    )
    compare.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    bundle = commands.add_parser(
        "bundle", help="pack what app teams need: model, contract, golden vectors, code; as a zip"
    )
    _folder(bundle.add_argument("run_dir", type=Path, metavar="RUN_DIR"))
    _folder(
        bundle.add_argument(
            "--out", type=Path, metavar="DIR", help="for the archives; default: each run's folder"
        )
    )
    verify = commands.add_parser(
        "verify", help="hash every file of a run and of its stages again: is it as it was written?"
    )
    _folder(verify.add_argument("run_dir", type=Path, metavar="RUN_DIR"))
    gc = commands.add_parser(
        "gc", help="remove stage results that no run needs, left-overs and damaged results"
    )
    gc.add_argument("out", type=Path, nargs="?", default=Path("artifacts"), metavar="DIR")
    gc.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    for name, command in commands.choices.items():
        command.epilog = _examples(EXAMPLES[name])
        command.formatter_class = argparse.RawDescriptionHelpFormatter
    return parser


def _file(argument: argparse.Action) -> None:
    """Have shells complete names of files."""
    argument.complete = shtab.FILE  # type: ignore[attr-defined]


def _folder(argument: argparse.Action) -> None:
    """Have shells complete names of folders."""
    argument.complete = shtab.DIRECTORY  # type: ignore[attr-defined]


def _positive(text: str) -> int:
    """A whole number above 0.

    Raises:
        argparse.ArgumentTypeError: it is not.
    """
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"got {text!r}; must be a whole number above 0")
    return int(text)


def _number(text: str) -> float:
    """A finite number of at least 0.

    Raises:
        argparse.ArgumentTypeError: it is not.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"got {text!r}; must be a number of at least 0")
    return number


def _run(arguments: argparse.Namespace) -> int:
    from pipeline.commands.run import run

    return OK if run(arguments.recipes, arguments) else BUDGET_MISSED


def _init(arguments: argparse.Namespace) -> int:
    from pipeline.commands.init import init

    init(arguments)
    return OK


def _check(arguments: argparse.Namespace) -> int:
    from pipeline.recipe.recipe import load_recipes

    for recipe in load_recipes(arguments.recipes, arguments.overrides):
        print(f"{recipe.name}: ok ({recipe.target.format}, {recipe.target.precision})")
    return OK


def _bench(arguments: argparse.Namespace) -> int:
    from pipeline.commands.bench.command import bench

    return OK if bench(arguments) else BUDGET_MISSED


def _baseline(arguments: argparse.Namespace) -> int:
    from pipeline.commands.baseline import baseline

    baseline(arguments)
    return OK


def _predict(arguments: argparse.Namespace) -> int:
    from pipeline.commands.predict import predict

    predict(arguments.run_dir, arguments.image, arguments.top)
    return OK


def _debug(arguments: argparse.Namespace) -> int:
    from pipeline.commands.debug import debug

    debug(arguments)
    return OK


def _inspect(arguments: argparse.Namespace) -> int:
    from pipeline.commands.inspect import inspect

    inspect(arguments)
    return OK


def _compare(arguments: argparse.Namespace) -> int:
    from pipeline.commands.compare import compare

    return OK if compare(arguments) else BUDGET_MISSED


def _bundle(arguments: argparse.Namespace) -> int:
    from pipeline.commands.bundle.command import bundle

    return OK if bundle(arguments.run_dir, arguments.out) else BUDGET_MISSED


def _verify(arguments: argparse.Namespace) -> int:
    from pipeline.commands.verify import verify

    return OK if verify(arguments.run_dir) else INTERNAL_ERROR


def _gc(arguments: argparse.Namespace) -> int:
    from pipeline.commands.gc import gc

    gc(arguments.out, dry_run=arguments.dry_run)
    return OK


_COMMANDS = {
    "init": _init,
    "run": _run,
    "check": _check,
    "bench": _bench,
    "baseline": _baseline,
    "predict": _predict,
    "debug": _debug,
    "inspect": _inspect,
    "compare": _compare,
    "bundle": _bundle,
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
