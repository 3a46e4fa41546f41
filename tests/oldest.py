"""The oldest runtimes that files run in with the same answers: `nox -s runtimes`.

    python -m tests.oldest FOLDER

Installs what `FORMATS` names as the oldest of each format into FOLDER, apart from everything else,
and has bundles of a small network check their golden vectors with it; also of one with weights of
few bits, where a format has them.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.formats.format import Format, Option
from pipeline.formats.formats import FORMATS
from tests.making.bundles import golden_with, unpacked
from tests.making.recipes import DEVICE_RECIPES, PLAIN_MODEL, settings

OTHERS = ("numpy<2", "pillow", "protobuf", "flatbuffers", "coloredlogs", "sympy", "packaging")
"""What runtimes import, in versions that old ones take."""
QUICK = (
    PLAIN_MODEL,
    *("prune=null", "train.epochs=1", "qat.train.epochs=1"),
    *("measure.rounds=1", "measure.warmup=0", "budgets.speedup=null"),
    "budgets.accuracy_drop_pt=null",
)


CHANGES: dict[Option, str] = {
    "opset17": "target.opset=17",
    "few_bits": "qat.weights={forms: [int4], layers: {blocks.0.*: palette16}}",
}
"""What a recipe says for files to have an option."""


def cases(about: Format) -> Iterator[tuple[frozenset[Option], str]]:
    """Options of files, and the version of the runtime that has them all."""
    for option, version in about.oldest.items():
        options: frozenset[Option] = frozenset([option] if option else [])
        yield options, version
        if "few_bits" in about.options and "few_bits" not in about.oldest:
            yield options | {"few_bits"}, version


def packages(name: str, version: str, folder: Path) -> Path:
    """A folder with a runtime of a version and what it needs."""
    place = folder / f"{name}-{version}"
    if not place.is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-warn-conflicts"]
        pip += ["--target", str(place)]
        subprocess.run([*pip, "--no-deps", f"{name}=={version}"], check=True)
        subprocess.run([*pip, "--upgrade", *OTHERS], check=True)
    return place


def bundle(form: str, options: frozenset[Option], work: Path) -> Path:
    """The bundle of a small network in a format."""
    out = work / "-".join([form, *sorted(options)])
    changes = [*QUICK, *(CHANGES[option] for option in options)]
    recipe = DEVICE_RECIPES[form]
    pocketnest = [sys.executable, "-m", "pipeline"]
    subprocess.run(
        [*pocketnest, "run", str(recipe), *settings(*changes), "--out", str(out)], check=True
    )
    subprocess.run([*pocketnest, "bundle", str(out / recipe.stem), "--out", str(out)], check=True)
    return unpacked(out / f"{recipe.stem}.zip", out / "unpacked")


def main(folder: Path) -> int:
    """Print what each runtime said; 1 where one gave other answers."""
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        for form, about in FORMATS.items():
            for options, version in cases(about):
                made = bundle(form, options, Path(scratch))
                done = golden_with(made, packages(about.package, version, folder))
                said = (done.stdout or done.stderr).strip().rpartition("\n")[2]
                print(", ".join([form, *sorted(options)]), about.package, version, said, sep=": ")
                failed |= done.returncode != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute()))
