"""The archive of one target: put together in a folder, sealed, packed, and given its name whole."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import torch

from pipeline.base.checksums import flush, seal
from pipeline.base.errors import InputError, reading
from pipeline.commands.bundle import float16, golden, photos
from pipeline.commands.bundle.card import model_card
from pipeline.commands.bundle.contract import CONTRACT, Contract, Golden, contract_of
from pipeline.commands.bundle.snippets import snippets
from pipeline.formats.description import labels_text
from pipeline.measure.probabilities import logits_of
from pipeline.report.records import Report, TargetResult
from pipeline.stages.finished_run import Finished
from pipeline.tasks.tasks import TASKS, link_of, task_of


def write_bundle(run: Finished, path: Path, *, half: bool = False) -> None:
    """Write the bundle of a run.

    Args:
        run: finished.
        path: of the archive, in a folder that is there. In the run's own folder the next run
            removes it with the file that it is of.
        half: put a float16 file of the same weights in, where the run's is an int8 one.

    Raises:
        InputError: a bundle has no code for the task; the run has no report of this version, or its
            file is not its program; or, of an older run, its test images are not those it was
            judged on, or a stage is gone; or a float16 file cannot be made.
    """
    kind = run.recipe.task.kind
    if not TASKS[kind].bundled:
        raise InputError(
            f"{run.directory}: a bundle has no code yet for task.kind {kind}; hand over "
            f"{run.file.name} and labels.txt, and what docs/detection.md says of the maps"
        )
    report = run.report()
    (target,) = report.targets
    if not target.sound:
        raise InputError(
            f"{run.directory}: its file does not answer as its program ({target.misses[0]}) "
            "and was written with --allow-mismatch; nothing to hand over"
        )
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".bundle-") as scratch:
        root = Path(scratch, run.recipe.name)
        root.mkdir()
        _fill(root, run, report, target, half=half)
        seal(root)
        packed = Path(scratch, path.name)
        _pack(root, packed)
        flush(packed)
        os.replace(packed, path)
    flush(path.parent)


def _fill(root: Path, run: Finished, report: Report, target: TargetResult, *, half: bool) -> None:
    """Put everything that a bundle holds into a folder."""
    copy = root / run.file.name
    if run.file.is_dir():
        shutil.copytree(run.file, copy)
    else:
        shutil.copy2(run.file, copy)
    found = golden.vectors(run, target)
    folder = root / Golden.model_fields["folder"].default
    golden.write(found, folder, task_of(run.recipe))
    photos.write(folder, run.preparation)
    sibling = _float16(root, folder, run, found) if half and not float16.why_none(run) else None
    with reading(run.file):
        interface = run.format.module().interface(run.file)
        contract = contract_of(run, report, interface, found, sibling)
    texts = {
        CONTRACT: f"{contract.model_dump_json(indent=2)}\n",
        "labels.txt": labels_text(run.classes),
    }
    # Neither reads the file, but both write from figures that somebody may have changed in it.
    with reading(run.directory / "report.json"):
        threshold = task_of(run.recipe).meaning().threshold
        texts["model_card.md"] = model_card(report, run.recipe.card, threshold)
        texts |= snippets(contract, report.tools)
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


def _float16(root: Path, folder: Path, run: Finished, found: golden.Vectors) -> float16.Float16:
    """Write the float16 file of a run, and what it answers to the golden images."""
    made, answers = float16.write(run, root, torch.from_numpy(found.pixels))
    link = link_of(run.recipe)
    logits = logits_of(answers, link).numpy()
    given = None if link is None else answers.numpy()
    golden.write_expected(
        replace(found, logits=logits, probabilities=given),
        folder / made.expected,
        task_of(run.recipe),
    )
    return made


def _pack(root: Path, path: Path) -> None:
    """Pack a folder under its own name; the same content gives the same archive."""
    with zipfile.ZipFile(path, "x", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(file for file in root.rglob("*") if file.is_file()):
            name = file.relative_to(root.parent).as_posix()
            entry = zipfile.ZipInfo(name)  # of 1980, always: the same content, the same bytes
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, file.read_bytes())


def contract_in(folder: Path) -> Contract:
    """The contract of a bundle that was unpacked."""
    return Contract.model_validate_json((folder / CONTRACT).read_bytes())
