"""The command line, nothing else.

torch and tensorflow load only in the commands that need them: `--help` and `check` answer at once.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Iterable, Sequence

import shtab

from pipeline.base.disk import refusal
from pipeline.base.errors import InputError, MismatchError, printable
from pipeline.base.signals import Interrupted, cleanly_interruptible
from pipeline.commands.apple.command import APPLE_COMMAND
from pipeline.commands.arm64.command import ARM64_COMMAND
from pipeline.commands.baseline.command import BASELINE
from pipeline.commands.bench.command import BENCH
from pipeline.commands.bundle.command import BUNDLE
from pipeline.commands.check import CHECK
from pipeline.commands.command import BAD_INPUT, EXIT_CODES, INTERNAL_ERROR, Command
from pipeline.commands.compare.command import COMPARE
from pipeline.commands.debug.command import DEBUG
from pipeline.commands.device.command import DEVICE_COMMAND
from pipeline.commands.gc import GC
from pipeline.commands.init import INIT
from pipeline.commands.inspect.command import INSPECT
from pipeline.commands.predict.command import PREDICT
from pipeline.commands.run.command import RUN
from pipeline.commands.verify import VERIFY

COMMANDS: dict[str, Command] = {
    "init": INIT,
    "run": RUN,
    "check": CHECK,
    "inspect": INSPECT,
    "baseline": BASELINE,
    "bench": BENCH,
    "arm64": ARM64_COMMAND,
    "device": DEVICE_COMMAND,
    "apple": APPLE_COMMAND,
    "predict": PREDICT,
    "debug": DEBUG,
    "compare": COMPARE,
    "bundle": BUNDLE,
    "verify": VERIFY,
    "gc": GC,
}
"""In the order of the help."""


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    whole = argparse.ArgumentParser(
        prog="pocketnest",
        description="Compress trained convolutional networks for phones: ONNX, TFLite, Core ML.",
        epilog=f"{EXIT_CODES}\n\n{_examples(c.examples[0] for c in COMMANDS.values())}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shtab.add_argument_to(
        whole,
        "--print-completion",
        help="print a completion script for this shell; see the README",
    )
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.add_arguments(
            commands.add_parser(
                name,
                help=command.help,
                epilog=_examples(command.examples),
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
        )
    return whole


def _examples(lines: Iterable[str]) -> str:
    return "\n".join(["examples:", *(f"  {line}" for line in lines)])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors of the user print without a traceback."""
    arguments = parser().parse_args(argv)
    try:
        with cleanly_interruptible():
            return COMMANDS[arguments.command].run(arguments)
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
