"""Shards through the command line: what folders of the same photos give, to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import InputError
from pipeline.recipe.data import WebDatasetData
from pipeline.recipe.places import data_in
from pipeline.recipe.recipe import load_recipes
from pipeline.stages.known import KNOWN
from tests.making.cli import pocketnest
from tests.making.shards import samples_of, write_shards
from tests.tasks.test_binary import NET, RECIPE, photos

FOLDERS = "data: {kind: image_folder, path: photos, calibration_images: 16}"
SHARDS = """\
data:
  kind: webdataset
  train: shards/x-train-*.tar
  test: {test: shards/x-test-*.tar}
  calibration_images: 16
"""


def project(folder: Path) -> Path:
    """Photos, the same as shards of one folder, and a recipe of each."""
    photos(folder / "photos")
    for part in ("train", "test"):
        samples = samples_of(folder / "photos" / part, names=True)
        write_shards(folder / "shards", samples, each=9, first=f"x-{part}-")
    (folder / "net.py").write_text(NET)
    text = RECIPE.replace("FORMAT", "onnx")
    assert FOLDERS in text
    (folder / "folders.yaml").write_text(text)
    (folder / "shards.yaml").write_text(text.replace(FOLDERS, SHARDS))
    return folder


@pytest.mark.slow
def test_a_run_on_shards_is_one_on_folders(tmp_path: Path) -> None:
    place = project(tmp_path / "here")
    done = pocketnest("check", place / "shards.yaml", place / "folders.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    out = place / "out"
    done = pocketnest("run", place / "folders.yaml", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    done = pocketnest("run", place / "shards.yaml", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    reports: list[dict[str, Any]] = [
        json.loads((out / name / "report.json").read_text()) for name in ("folders", "shards")
    ]
    files = [next((out / name).glob("*.onnx")).read_bytes() for name in ("folders", "shards")]
    assert files[0].replace(b"folders", b"shards") == files[1].replace(b"folders", b"shards")
    same = [{**report["data"], "name": ""} for report in reports]
    assert same[0] == same[1]
    assert reports[1]["data"]["name"] == "webdataset"
    stages = [
        json.loads((out / name / "stages.json").read_text()) for name in ("folders", "shards")
    ]
    assert stages[0]["train"].split("/")[-1] == stages[1]["train"].split("/")[-1], "trained once"

    # gc knows whose hashes and pixels these are.
    done = pocketnest("gc", out, "--older-than", "0", "--dry-run")
    assert done.returncode == 0, done.stderr
    kept = [line for line in done.stdout.splitlines() if ": hashes of images" in line]
    assert len(kept) == 2 + 2 * 2
    assert all("stays" in line for line in kept), done.stdout


def test_shards_that_were_moved_are_found_by_their_names(tmp_path: Path) -> None:
    place = tmp_path / "new"
    write_shards(place, [[("1.png", b"")]], first="a-train-")
    write_shards(place, [[("1.png", b"")]], first="a-val-")
    data = WebDatasetData(
        train="/old/s/a-train-*.tar", test={"v": "/old/s/a-val-*.tar", "w": "/old/s/a-val-0000.tar"}
    )
    found = data_in(data, place)
    assert isinstance(found, WebDatasetData)
    assert found.train == place / "a-train-*.tar"
    assert found.test == {"v": place / "a-val-*.tar", "w": place / "a-val-0000.tar"}
    one = WebDatasetData(train="/old/s/a-train-*.tar", test={"v": "/old/s/a-train-*.tar"})
    assert data_in(one, place).train == place / "a-train-*.tar"
    (place / "a-val-0000.tar").unlink()
    with pytest.raises(InputError, match=r"not there: .*a-val-\*\.tar \(data\.test\.v\)"):
        data_in(data, place)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("task: {kind: multilabel}", "data.kind must be image_folder, not webdataset"),
        ("data: {label: txt}", "data.label: got 'txt'; must be cls, folder, or json: and the name"),
        ("data: {labels: x.csv}", "data.labels: unknown key 'labels'; did you mean 'label'?"),
        ("data: {train: null}", "data.train: removed by null, but needed"),
        ("data: {path: x}", "data.path says where the images are; remove one of them"),
    ],
)
def test_what_shards_cannot_be_is_refused_by_check(change: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        RECIPE.replace("FORMAT", "onnx")
        .replace(FOLDERS, SHARDS)
        .replace("task: {kind: binary}\n", "")
    )
    (tmp_path / "it.yaml").write_text(f"extends: base.yaml\n{change}\n")
    with pytest.raises(InputError) as caught:
        load_recipes([tmp_path / "it.yaml"], known=KNOWN)
    assert words in str(caught.value)
