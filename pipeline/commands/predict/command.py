"""`pocketnest predict`: classify images with the float network and every exported file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.commands.arguments import completes_folders, positive
from pipeline.commands.command import OK, Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take the folder of a run, and images."""
    completes_folders(parser.add_argument("run_dir", type=Path, metavar="RUN_DIR"))
    parser.add_argument(
        "image", type=Path, metavar="IMAGE", help="an image file, a directory of them, or - (stdin)"
    )
    parser.add_argument("--top", type=positive, default=5, metavar="K", help="classes to show")


def run(arguments: argparse.Namespace) -> int:
    """Show the classes of an image, of every image in a directory, or of one from stdin (`-`).

    Raises:
        InputError: no finished run, or no image that can be read.
    """
    from pipeline.base.console import LOG, third_party_output_to
    from pipeline.stages.finished_run import open_runs

    runs = open_runs(arguments.run_dir)
    images = _images(arguments.image)
    with third_party_output_to(arguments.run_dir / LOG) as console:
        from pipeline.commands.predict.classify import classify
        from pipeline.commands.predict.table import show

        for found in classify(runs, images, arguments.top):
            show(found, runs, console)
    return OK


def _images(image: Path) -> list[tuple[str, bytes]]:
    """Name and content of every image that is meant."""
    from pipeline.base.safe_files import content_of
    from pipeline.tasks.images.files import MOST_BYTES, image_files

    if str(image) == "-":
        return [("-", sys.stdin.buffer.read(MOST_BYTES))]
    return [(str(file), content_of(file, MOST_BYTES)) for file in image_files(image)]


PREDICT = Command(
    help="classify images with the float model and every exported file",
    examples=(
        "pocketnest predict artifacts/combined photo.jpg",
        "pocketnest predict artifacts/android-litert-int8 - < photo.jpg",
    ),
    add_arguments=add_arguments,
    run=run,
)
