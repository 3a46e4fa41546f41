"""`pocketnest init`: write a commented recipe for a device."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from pipeline.base.errors import InputError
from pipeline.base.safe_files import refuse_to_write


def init(arguments: argparse.Namespace) -> None:
    """Write a commented recipe; what the arguments leave open is asked for at a terminal.

    Raises:
        InputError: the file is there already, or nobody can be asked.
    """
    from rich.prompt import Prompt

    from pipeline.recipe.first import DEVICES, Answers, recipe_text

    file: Path = arguments.file
    if os.path.lexists(file):
        raise InputError(f"{file}: is there already; give another name")
    device, train, test = arguments.device, arguments.train, arguments.test
    asks = sys.stdin.isatty() and sys.stdout.isatty()
    if device is None:
        if not asks:
            raise InputError(f"--device: not given; must be one of {', '.join(DEVICES)}")
        device = Prompt.ask("For which device?", choices=list(DEVICES), default="android")
        if train is None and test is None:
            said = Prompt.ask("Folder of training images (empty: embedded digits)", default="")
            train = Path(said) if said else None
            test = Path(Prompt.ask("Folder of test images")) if said else None
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
    refuse_to_write(file)
    file.write_text(recipe_text(answers, file.parent), encoding="utf-8")
    print(f"wrote {file}; next: pocketnest check {file}")
