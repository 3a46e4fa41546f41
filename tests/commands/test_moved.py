"""Runs that were moved: every command works where the folder lies now, its original gone."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.base.checksums import MANIFEST, seal
from pipeline.recipe.recipe import load_recipes, resolved_yaml
from pipeline.stages.kept_images import KEPT_IMAGES
from pipeline.stages.kept_layers import LAYERS_FILE
from pipeline.stages.known import KNOWN
from tests.making.cli import pocketnest
from tests.making.projects import CALIBRATION, NAME, make_project

pytestmark = pytest.mark.slow

MORE = str(CALIBRATION)
"""Images to debug on, more than a run carries."""
Done = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Project:
    """A project whose recipe was run, as it was before it was moved; nobody changes it.

    Attributes:
        folder: where it lay, and lies no more.
        kept: a copy of it, elsewhere.
        told: what commands said of the run there, by the name of the command.
        written: the folder of what they wrote.
    """

    folder: Path
    kept: Path
    told: dict[str, str]
    written: Path


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    place = tmp_path_factory.mktemp("moved")
    folder, written = place / "original", place / "written"
    recipe = make_project(folder)
    written.mkdir()
    done = pocketnest("run", recipe, "--out", folder / "artifacts")
    assert done.returncode == 0, done.stdout + done.stderr
    told = {}
    for name, done in commands(folder / "artifacts", folder / "photos", written).items():
        assert done.returncode == 0, (name, done.stderr)
        told[name] = done.stdout
    done = debug(folder / "artifacts", written / "more.csv", "--images", MORE)
    assert done.returncode == 0, done.stderr
    folder.rename(place / "kept")
    return Project(folder=folder, kept=place / "kept", told=told, written=written)


def commands(artifacts: Path, photos: Path, out: Path) -> dict[str, Done]:
    """Every command that reads a run, each of which writes to `out` if it writes."""
    run = artifacts / NAME
    return {
        "bundle": pocketnest("bundle", run, "--out", out),
        "debug": debug(artifacts, out / "debug.csv"),
        "sensitivity": debug(artifacts, out / "sensitivity.csv", "--sensitivity"),
        "inspect": pocketnest("inspect", run, "--rounds", "2", "--csv", out / "inspect.csv"),
        "predict": pocketnest("predict", run, photos / "day" / "ant" / "0.png"),
        "compare": pocketnest("compare", run, run),
        "verify": pocketnest("verify", run),
        "bench": pocketnest("bench", run, "--rounds", "3", "--out", out),
    }


def debug(artifacts: Path, table: Path, *more: str | Path) -> Done:
    return pocketnest("debug", artifacts / NAME, "--csv", table, *more)


def sizes(table: Path) -> list[list[str]]:
    """The rows of `inspect` without the times."""
    with table.open(newline="") as file:
        return [row[:-2] for row in csv.reader(file)]


def moved(project: Project, place: Path, *parts: str) -> Path:
    """A copy of parts of the project at `place`."""
    for part in parts:
        shutil.copytree(project.kept / part, place / part)
    return place


def probabilities(told: str) -> list[str]:
    """What `predict` says, without the image's path, which is another one."""
    return [line for line in told.splitlines() if not line.startswith("/")]


def test_every_command_works_where_the_whole_folder_was_moved(
    project: Project, tmp_path: Path
) -> None:
    there = moved(project, tmp_path / "a" / "b", "artifacts")
    out = tmp_path / "out"
    out.mkdir()
    # A photo has to be given to `predict`; the run's own are nowhere.
    found = commands(there / "artifacts", project.kept / "photos", out)
    for name, done in found.items():
        if name in {"predict", "bench"}:
            continue  # they need the network's own code, too, which is not in the folder
        assert done.returncode == 0, (name, done.stderr)
    for name in (f"{NAME}.zip", "debug.csv", "sensitivity.csv"):
        assert (out / name).read_bytes() == (project.written / name).read_bytes(), name
    assert sizes(out / "inspect.csv") == sizes(project.written / "inspect.csv")
    assert found["compare"].stdout == project.told["compare"]
    assert found["verify"].stdout == project.told["verify"]
    # Files answer alone where the code of the network is gone.
    assert found["predict"].returncode == found["bench"].returncode == 0
    for name in ("predict", "bench"):
        assert "the code of its network is not here (../../nets.py, " in found[name].stdout


def test_the_network_s_code_at_the_same_relative_place_is_found(
    project: Project, tmp_path: Path
) -> None:
    there = moved(project, tmp_path, "artifacts")
    shutil.copy(project.kept / "nets.py", tmp_path)
    photo = project.kept / "photos" / "day" / "ant" / "0.png"
    done = pocketnest("predict", there / "artifacts" / NAME, photo)
    assert done.returncode == 0, done.stderr
    assert probabilities(done.stdout) == probabilities(project.told["predict"])
    assert "largest difference from float" in done.stdout


def test_one_folder_alone_does_what_it_can(project: Project, tmp_path: Path) -> None:
    there = moved(project, tmp_path / "there", f"artifacts/{NAME}") / "artifacts"
    shutil.copy(project.kept / "nets.py", tmp_path / "there")
    out = tmp_path / "out"
    out.mkdir()
    found = commands(there, project.kept / "photos", out)
    codes = {name: done.returncode for name, done in found.items()}
    assert codes == dict.fromkeys(found, 0) | {"debug": 2, "sensitivity": 2}
    assert (out / f"{NAME}.zip").read_bytes() == (project.written / f"{NAME}.zip").read_bytes()
    assert sizes(out / "inspect.csv") == sizes(project.written / "inspect.csv")
    assert found["compare"].stdout == project.told["compare"]
    note = f"note: {there}/.store: not there, so that the results of the stages are not looked at"
    assert note in found["verify"].stdout
    assert "1 of 1 directories are as they were written" in found["verify"].stdout
    for name in ("debug", "sensitivity"):
        assert "/program.pt2: missing; it is needed for this" in found[name].stderr
        fix = r"names it; copy \.store/fold-\w+ beside the run's folder, or run the recipe again"
        assert re.search(fix, found[name].stderr)
    assert "its float weights are not here (.store/train-" in found["predict"].stdout
    assert "; the files answer alone" in found["predict"].stdout
    assert "difference from" not in found["predict"].stdout, "there is nothing to differ from"
    before = project.told["predict"].splitlines()
    rows = {line.split()[0]: line.split()[-1] for line in before if line.startswith(("ant", "bee"))}
    for name, probability in rows.items():
        assert f"{name} " in found["predict"].stdout
        assert probability in found["predict"].stdout, "the file answers as it did"
    assert "torch eager: its float weights are not here" in found["bench"].stdout
    assert "timed with random ones, which take as long" in found["bench"].stdout
    timed = json.loads((out / "bench.json").read_text())["timed"]
    assert set(timed[0]["latency_ms"]) == {"torch eager", NAME}
    assert set(timed[0]["speedup_over_eager"]) == {"torch eager", NAME}


def test_what_is_not_carried_is_found_by_data(project: Project, tmp_path: Path) -> None:
    there = moved(project, tmp_path, "artifacts") / "artifacts"
    table = tmp_path / "more.csv"
    done = debug(there, table, "--images", MORE)
    assert done.returncode == 2
    assert f"data.train: {tmp_path}/photos/train does not exist" in done.stderr
    assert "where its images lie now, --data DIR says" in done.stderr
    assert "Traceback" not in done.stderr
    shutil.copytree(project.kept / "photos", tmp_path / "pictures")
    done = debug(there, table, "--images", MORE, "--data", tmp_path / "pictures")
    assert done.returncode == 0, done.stderr
    assert table.read_bytes() == (project.written / "more.csv").read_bytes()
    table.unlink()
    shutil.move(tmp_path / "pictures", tmp_path / "photos")
    assert debug(there, table, "--images", MORE).returncode == 0, "at the same relative place"
    assert table.read_bytes() == (project.written / "more.csv").read_bytes()


def test_other_data_is_refused(project: Project, tmp_path: Path) -> None:
    there = moved(project, tmp_path, "artifacts", "photos") / "artifacts"
    for command in (["bundle"], ["bench"], ["debug"]):
        done = pocketnest(*command, there / NAME, "--data", tmp_path / "photos" / "train")
        assert done.returncode == 2
        assert "not there: " in done.stderr
        assert "(data.train)" in done.stderr
        assert "; give the folder that holds train, day, night" in done.stderr
    shutil.copy(
        tmp_path / "photos" / "day" / "ant" / "0.png", tmp_path / "photos" / "night" / "bee"
    )
    done = debug(there, tmp_path / "x.csv", "--images", MORE, "--data", tmp_path / "photos")
    assert done.returncode == 2
    assert "its data has changed since (SHA-256 " in done.stderr


def test_a_project_that_was_moved_is_trained_no_more(project: Project, tmp_path: Path) -> None:
    there = tmp_path / "elsewhere"
    shutil.copytree(project.kept, there)
    recipe = there / f"{NAME}.yaml"
    for given in (recipe, there / "artifacts" / NAME / "recipe.yaml"):
        done = pocketnest("run", given, "--out", there / "artifacts", "--explain")
        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stdout.splitlines() if line.startswith(" ")]
        assert len(lines) > 8
        assert [line for line in lines if " reused " not in line] == []


def test_nothing_that_is_handed_on_says_where_the_project_lay(
    project: Project, tmp_path: Path
) -> None:
    run = project.kept / "artifacts" / NAME
    with zipfile.ZipFile(project.written / f"{NAME}.zip") as packed:
        packed.extractall(tmp_path / "bundle")
    handed = [*run.rglob("*"), *(tmp_path / "bundle").rglob("*"), project.written / "bench.json"]
    files = [file for file in handed if file.is_file()]
    assert len(files) > 40
    machine = [str(project.folder).encode(), os.path.realpath(project.folder).encode()]
    assert [file for file in files if any(path in file.read_bytes() for path in machine)] == []
    said = json.loads((run / "report.json").read_text())
    assert said["model"]["name"] == "python:nets.py:plain"
    text = (run / "recipe.yaml").read_text()
    assert text.startswith("# Relative paths are relative to the folder that this file lies in.\n")
    assert "train: ../../photos/train\n" in text
    assert said["recipe"]["sha256"] == hashlib.sha256(text.encode()).hexdigest()


def as_older_versions_left_it(artifacts: Path, project: Path) -> None:
    """Absolute paths, and nothing carried."""
    run = artifacts / NAME
    (recipe,) = load_recipes([run / "recipe.yaml"], known=KNOWN)
    told = resolved_yaml(recipe)
    assert f"train: {project}/photos/train\n" in told
    (run / "recipe.yaml").write_text(told)
    for name in (KEPT_IMAGES, LAYERS_FILE, MANIFEST):
        (run / name).unlink()
    seal(run)
    for kept in artifacts.glob(f".store/*/{KEPT_IMAGES}"):
        kept.unlink()


def test_older_runs_are_read_from_their_photos(project: Project, tmp_path: Path) -> None:
    there, out = tmp_path / "older", tmp_path / "out"
    out.mkdir()
    shutil.copytree(project.kept, there)
    as_older_versions_left_it(there / "artifacts", there)
    run = there / "artifacts" / NAME
    done = pocketnest("inspect", run, "--rounds", "1", "--csv", out / "inspect.csv")
    assert done.returncode == 0, done.stderr
    assert sizes(out / "inspect.csv") == sizes(project.written / "inspect.csv")
    done = pocketnest("bench", run, "--rounds", "1", "--out", out)
    assert done.returncode == 0, done.stderr
    (there / "photos").rename(there / "pictures")
    asked: dict[str, list[str | Path]] = {
        f"{NAME}.zip": ["bundle", run, "--out", out],
        "debug.csv": ["debug", run, "--csv", out / "debug.csv"],
        "sensitivity.csv": ["debug", run, "--sensitivity", "--csv", out / "sensitivity.csv"],
    }
    for name, command in asked.items():
        done = pocketnest(*command)
        assert done.returncode == 2
        assert "where its images lie now, --data DIR says" in done.stderr
        done = pocketnest(*command, "--data", there / "pictures")
        assert done.returncode == 0, done.stderr
        assert (out / name).read_bytes() == (project.written / name).read_bytes(), name
