"""`pocketnest predict`: classify images with the float network and every exported file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.base.errors import InputError, printable
from pipeline.commands.arguments import completes_folders, positive
from pipeline.commands.command import OK, Command

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.console import Console

    from pipeline.stages.finished_run import Finished

_NAMED = 10
"""Of the images that cannot be read."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take the folder of a run, and images."""
    completes_folders(parser.add_argument("run_dir", type=Path, metavar="RUN_DIR"))
    parser.add_argument(
        "image", type=Path, metavar="IMAGE", help="an image file, a directory of them, or - (stdin)"
    )
    parser.add_argument(
        "--top",
        type=positive,
        default=5,
        metavar="K",
        help="classes to show; of labels, all that are named",
    )
    parser.add_argument(
        "--pictures",
        type=Path,
        default=Path("predicted"),
        metavar="DIR",
        help="where a picture of every image is written, what each file makes of it side by side, "
        "where answers can be drawn; ./predicted where left out",
    )


def run(arguments: argparse.Namespace) -> int:
    """Show the classes of an image, of every image in a directory, or of one from stdin (`-`).

    Images that cannot be read do not keep those that can from being shown.

    Raises:
        InputError: no finished run, or images that cannot be read, after the others were shown.
    """
    from rich.markup import escape

    from pipeline.base.console import LOG, third_party_output_to
    from pipeline.stages.finished_run import open_runs
    from pipeline.tasks.images.files import image_files, passed_over

    runs = open_runs(arguments.run_dir)
    stdin = str(arguments.image) == "-"
    files, others = ([arguments.image], []) if stdin else image_files(arguments.image)
    with third_party_output_to(arguments.run_dir / LOG) as console:
        problems = _shown(runs, files, arguments.top, console, arguments.pictures)
        for line in passed_over(others):
            console.print(escape(printable(line)), highlight=False)
    if problems:
        more = [f"... and {len(problems) - _NAMED} more"] if len(problems) > _NAMED else []
        raise InputError("\n".join(problems[:_NAMED] + more))
    return OK


def _shown(
    runs: Sequence[Finished], files: Sequence[Path], top: int, console: Console, pictures: Path
) -> list[str]:
    """Print what is made of every image, and return what is wrong with the others.

    What can be drawn is, into the folder `pictures`.
    """
    import torch
    from rich.markup import escape

    from pipeline.commands.predict.classify import AT_ONCE, Classifier
    from pipeline.commands.predict.table import show

    classifier = Classifier(runs)
    if classifier.missing is not None:
        told = f"{classifier.missing}; the files answer alone"
        console.print(escape(printable(told)), highlight=False)
    problems = []
    for begin in range(0, len(files), AT_ONCE):
        pixels = {}
        for file in files[begin : begin + AT_ONCE]:
            try:
                pixels[str(file)] = classifier.pixels(_content(file), file)
            except InputError as error:
                problems.append(str(error))
        if pixels:
            names, images = list(pixels), torch.stack(list(pixels.values()))
            for found, image in zip(classifier.classify(names, images, top), images, strict=True):
                show(found, runs, console)
                if (picture := found.drawn(image)) is not None:
                    told = f"drawn: {_kept(picture, Path(found.image), pictures)}"
                    console.print(escape(printable(told)), highlight=False)
    return problems


def _kept(picture: Image, image: Path, folder: Path) -> Path:
    """Write the picture of an image, and say where."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = "stdin" if str(image) == "-" else image.stem
    path = folder / f"{stem}.png"
    picture.save(path, "PNG")
    return path


def _content(file: Path) -> bytes:
    """The bytes of an image file, `-` being standard input.

    Raises:
        InputError: they cannot be read.
    """
    from pipeline.tasks.images.files import MOST_BYTES
    from pipeline.tasks.images.stored import bytes_of

    if str(file) == "-":
        if sys.stdin is None:  # closed before Python began
            raise InputError("-: standard input is closed; give it an image, or name a file")
        return sys.stdin.buffer.read(MOST_BYTES)
    return bytes_of(file)


PREDICT = Command(
    help="classify images with the float model and every exported file",
    examples=(
        "pocketnest predict artifacts/combined photo.jpg",
        "pocketnest predict artifacts/android-litert-int8 - < photo.jpg",
    ),
    add_arguments=add_arguments,
    run=run,
)
