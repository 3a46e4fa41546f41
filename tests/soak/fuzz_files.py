"""Damaged and hostile files of every kind that the program reads, given to its commands.

python -m tests.soak.fuzz_files --count 5000 --seed 1
python -m tests.soak.fuzz_files --replay "hostile pickle" 1000017
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.soak import base, checkpoints, driver, pictures, runs, sandbox, stores
from tests.soak.driver import Found, Kind, Share

_MODULE = "tests.soak.fuzz_files"
_WORK = Path("artifacts/soak/fuzz_files")

KINDS = {
    "checkpoint bytes": Kind(make=checkpoints.damaged_bytes, share=10),
    "checkpoint header": Kind(make=checkpoints.damaged_header, share=5),
    "checkpoint archive": Kind(make=checkpoints.damaged_archive, share=6),
    "checkpoint tensors": Kind(make=checkpoints.other_tensors, share=6),
    "hostile pickle": Kind(make=checkpoints.hostile_pickle, share=4),
    "checkpoint place": Kind(make=checkpoints.odd_file, share=2),
    **{
        f"{form} damaged": Kind(make=runs.model(form, sealed=False), share=1, quick=False)
        for form in base.FORMATS
    },
    **{
        f"{form} sealed": Kind(make=runs.model(form, sealed=True), share=8, quick=False)
        for form in base.FORMATS
    },
    "run file": Kind(make=runs.run_file, share=6, quick=False),
    "report": Kind(make=runs.report, share=6, quick=False),
    "program": Kind(make=runs.program, share=5, quick=False),
    "bars": Kind(make=runs.bars, share=2, quick=False),
    "float weights": Kind(make=runs.float_weights, share=3, quick=False),
    "run place": Kind(make=runs.odd_place, share=6, quick=False),
    "image": Kind(make=pictures.predicted, share=10, quick=False),
    "image folder": Kind(make=pictures.in_a_folder, share=6),
    "store result": Kind(make=stores.result, share=8, quick=False),
    "store state": Kind(make=stores.partial, share=5),
    "store lock": Kind(make=stores.lock, share=4, quick=False),
    "store place": Kind(make=stores.odd_place, share=7, quick=False),
}


def prepare(work: Path, quick: bool) -> None:
    """Make the runs that the files are taken from."""
    base.make(work / "base", quick=quick)


def warm(quick: bool) -> None:
    """Import what the commands need."""
    if quick:
        sandbox.warm_run()
    else:
        sandbox.warm()


def run(
    count: int, seed: int, workers: int = 2, work: Path = _WORK, *, quick: bool = False
) -> Found:
    """Fuzz `count` files; `work` keeps the outcomes, so that a second call goes on."""
    share = Share(module=_MODULE, count=count, seed=seed, quick=quick)
    return driver.run(share, workers, work.absolute())


if __name__ == "__main__":
    sys.exit(driver.command_line(_MODULE))
