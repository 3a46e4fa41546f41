"""`pocketnest init`: write a commented recipe for a device."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from pipeline.base.errors import InputError
from pipeline.base.safe_files import refuse_outputs
from pipeline.commands.arguments import completes_files, completes_folders, number, positive
from pipeline.commands.command import OK, Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take the file to write and what its recipe depends on."""
    completes_files(
        parser.add_argument("file", type=Path, metavar="FILE", help="such as my-phone.yaml")
    )
    parser.add_argument("--device", choices=("android", "iphone", "linux-arm"))
    completes_folders(
        parser.add_argument(
            "--train", type=Path, metavar="DIR", help="one folder per class, or shards"
        )
    )
    completes_folders(
        parser.add_argument("--test", type=Path, metavar="DIR", help="of other images")
    )
    completes_files(parser.add_argument("--checkpoint", type=Path, metavar="FILE"))
    parser.add_argument("--input-size", type=positive, metavar="PIXELS", help="default 224")
    parser.add_argument("--size-mb", type=number, metavar="MB", help="most that the file may hold")
    parser.add_argument("--pixels", action="store_true", help="the file takes 8-bit RGB pixels")


def run(arguments: argparse.Namespace) -> int:
    """Write a commented recipe; what the arguments leave open is asked for at a terminal.

    Raises:
        InputError: the file is there already, or nobody can be asked.
    """
    from pipeline.recipe.first import Answers, recipe_text

    file: Path = arguments.file
    if os.path.lexists(file):
        raise InputError(f"{file}: is there already; give another name")
    refuse_outputs(files=[file])
    device, train, test = _asked(arguments.device, arguments.train, arguments.test)
    if (train is None) is not (test is None):
        raise InputError("--train and --test: give both, or neither for the embedded digits")
    answers = Answers(
        device=device,
        train=train,
        test=test,
        checkpoint=arguments.checkpoint,
        input_size=arguments.input_size or (32 if train is None else 224),
        size_mb=arguments.size_mb,
        pixels=arguments.pixels,
    )
    with file.open("x", encoding="utf-8") as new:  # it may have come while somebody was asked
        new.write(recipe_text(answers, file.parent))
    print(f"wrote {file}; next: pocketnest check {file}")
    return OK


def _asked(
    device: str | None, train: Path | None, test: Path | None
) -> tuple[str, Path | None, Path | None]:
    """Device and folders of images as they were given, or else as somebody at a terminal says.

    Raises:
        InputError: no device is given, and this is no terminal.
    """
    from pipeline.recipe.first import DEVICES

    if device is not None:
        return device, train, test
    # A stream that was closed before Python began is None.
    if not all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout)):
        raise InputError(f"--device: not given; must be one of {', '.join(DEVICES)}")
    try:
        return _prompted(train, test)
    except EOFError as error:
        raise InputError("the questions were not answered; give --device") from error


def _prompted(train: Path | None, test: Path | None) -> tuple[str, Path | None, Path | None]:
    """As `_asked`, by somebody at a terminal.

    Raises:
        EOFError: who closes it.
    """
    from rich.prompt import Prompt

    from pipeline.recipe.first import DEVICES

    device = Prompt.ask("For which device?", choices=list(DEVICES), default="android")
    if train is None and test is None:
        said = Prompt.ask("Folder of training images (empty: embedded digits)", default="")
        train = Path(said) if said else None
        test = Path(Prompt.ask("Folder of test images")) if said else None
    return device, train, test


INIT = Command(
    help="write a commented recipe for a device; asks for what is not given",
    examples=(
        "pocketnest init my-phone.yaml",
        "pocketnest init my-phone.yaml --device android --train photos/train --test photos/test",
    ),
    add_arguments=add_arguments,
    run=run,
)
