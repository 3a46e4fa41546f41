"""`compare --delta`: what an update costs, in the table and in JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.base.errors import InputError
from pipeline.commands.compare import table
from pipeline.commands.compare.change import Allowances
from pipeline.commands.compare.changes import changes_between
from pipeline.commands.compare.updates import markdown, updates_between
from pipeline.measure.downloads import downloads
from pipeline.measure.patches import patches
from pipeline.report.write import write_report
from pipeline.stages.finished_run import open_runs
from tests.making import reports
from tests.making.cli import pocketnest
from tests.making.markup import rows
from tests.making.recipes import device_recipe
from tests.making.runs import left_behind

NAME = "android-litert-int8"


def run(folder: Path, seed: int, **changes: object) -> Path:
    """A run whose file is of 20,000 letters, of which a twentieth is the seed's own."""
    letters = np.random.default_rng(0).integers(65, 91, 20_000)
    letters[: len(letters) // 20] = np.random.default_rng(seed).integers(65, 91, 1000)
    content = bytes(letters.astype(np.uint8)).decode()
    whole = reports.report(reports.target(NAME, size_bytes=len(content), **changes), name=NAME)
    write_report(whole, folder)
    return left_behind(folder, device_recipe(form="tflite"), content=content)


def test_each_target_has_its_patches_beside_the_whole(tmp_path: Path) -> None:
    old, new = run(tmp_path / "old", 1), run(tmp_path / "new", 2)
    (found,) = updates_between(open_runs(old), open_runs(new))
    assert (found.target, found.file_bytes) == (NAME, 20_000)
    file = new / "model.tflite"
    assert found.whole == {one.compressor: one.bytes for one in downloads(file)}
    assert found.patches == patches(old / "model.tflite", file)
    assert 0 < found.share < 0.2
    row = rows(markdown([found]))[NAME]
    assert row["file MB"] == "0.0200"
    assert row["patch to whole"].endswith(" %")


def test_a_report_that_has_the_downloads_is_believed(tmp_path: Path) -> None:
    new = run(tmp_path / "new", 2, downloads=reports.sent(6_100_000, 5_000_000, 5_500_000))
    (found,) = updates_between(open_runs(run(tmp_path / "old", 1)), open_runs(new))
    assert found.whole == {"deflate": 6_100_000, "lzma": 5_000_000, "zstd": 5_500_000}


def test_the_same_file_is_said_to_be_the_same(tmp_path: Path) -> None:
    (found,) = updates_between(*(open_runs(run(tmp_path / name, 1)) for name in ("old", "new")))
    assert set(found.patches.values()) == {0}
    assert rows(markdown([found]))[NAME]["patch to whole"] == "the same file"


@pytest.mark.slow
def test_the_command_prints_both_tables_and_one_object(tmp_path: Path) -> None:
    old, new = run(tmp_path / "old", 1), run(tmp_path / "new", 2)
    done = pocketnest("compare", old, new, "--delta")
    assert done.returncode == 0, done.stdout + done.stderr
    before, _, after = done.stdout.partition("## Updates")
    changes = changes_between(open_runs(old), open_runs(new), Allowances())
    assert before == table.markdown(changes) + "\n"
    assert NAME in rows(after)
    told = json.loads(pocketnest("compare", old, new, "--delta", "--json").stdout)
    assert told["changes"] == json.loads(table.as_json(changes))
    (update,) = told["updates"]
    assert update["target"] == NAME
    assert set(update["patches"]) == {"bsdiff", "zstd"}


def test_a_run_without_its_file_is_refused(tmp_path: Path) -> None:
    old = run(tmp_path / "old", 1)
    (old / "model.tflite").unlink()
    with pytest.raises(InputError, match=r"model\.tflite.*run the recipe again"):
        open_runs(old)
