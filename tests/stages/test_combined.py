"""The folder of the report of several recipes, and the names that no recipe can have."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.__main__ import main
from pipeline.base.console import LOG
from pipeline.base.errors import InputError
from pipeline.base.store import STORE
from pipeline.measure.baseline.record import BASELINES
from pipeline.recipe.recipe import Recipe, load_recipes
from pipeline.report.records import COMBINED, Report
from pipeline.report.write import FILES, combine, write_report
from pipeline.stages import graph, run
from pipeline.stages.combined import refuse_other_folder, withdraw, write_combined
from pipeline.stages.names import refuse_reserved
from pipeline.stages.stage import Stage, StageFacts
from tests.making import reports
from tests.making.recipes import DEVICE_RECIPES

NAMES = [DEVICE_RECIPES[form].stem for form in ("onnx", "tflite")]
TWO = [reports.report(reports.target(name), name=name) for name in NAMES]


def recipes(*forms: str, **changes: Any) -> list[Recipe]:
    loaded = load_recipes([DEVICE_RECIPES[form] for form in forms])
    return [recipe.model_copy(update=changes) for recipe in loaded]


# Names


@pytest.mark.parametrize("name", [COMBINED, BASELINES, STORE, LOG])
def test_what_lies_beside_runs_is_no_name_of_a_recipe(name: str, tmp_path: Path) -> None:
    (taken,) = recipes("onnx", name=name)
    for refuse in (refuse_reserved, lambda recipe: ran([recipe], tmp_path)):
        with pytest.raises(InputError, match=rf"^name: got '{name}', which is the .*; give the"):
            refuse(taken)
    assert not (tmp_path / name / "recipe.yaml").exists()
    refuse_reserved(recipes("onnx", name=f"{name}-too")[0])


def test_the_command_says_so_before_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(DEVICE_RECIPES["onnx"]), "--set", f"name={COMBINED}"]
    assert main(["check", *arguments]) == 2
    assert "name: got 'combined'" in capsys.readouterr().err
    assert main(["run", *arguments, "--out", str(tmp_path)]) == 2
    assert "name: got 'combined'" in capsys.readouterr().err


# The folder


def test_an_older_report_goes_when_a_run_of_it_is_made_anew(tmp_path: Path) -> None:
    said: list[str] = []
    whole = write_combined(TWO, tmp_path, said.append)
    assert whole is not None
    assert whole[1] == tmp_path / COMBINED
    assert not withdraw(tmp_path, "another")
    assert {path.name for path in whole[1].iterdir()} == set(FILES)
    (whole[1] / "own.txt").touch()
    assert withdraw(tmp_path, NAMES[1])
    assert [path.name for path in whole[1].iterdir()] == ["own.txt"], "what is not ours stays"
    assert not withdraw(tmp_path, NAMES[1])
    write_combined(TWO, tmp_path, said.append)
    (whole[1] / "own.txt").unlink()
    assert withdraw(tmp_path, NAMES[0])
    assert not whole[1].exists()
    assert said == []


def test_an_earlier_report_that_still_says_what_a_run_found_stays(tmp_path: Path) -> None:
    write_combined(TWO, tmp_path, lambda line: None)
    same = TWO[0]
    assert not withdraw(tmp_path, NAMES[0], same)
    assert (tmp_path / COMBINED / "report.json").is_file()
    data = same.data.model_copy(update={"sha256": "d" * 64})
    assert withdraw(tmp_path, NAMES[0], same.model_copy(update={"data": data}))


@pytest.mark.parametrize("content", ["{", "[]", '{"targets": 3}', '{"targets": [{}]}'])
def test_what_cannot_be_read_is_left(content: str, tmp_path: Path) -> None:
    (tmp_path / COMBINED).mkdir()
    (tmp_path / COMBINED / "report.json").write_text(content)
    assert not withdraw(tmp_path, NAMES[0])
    assert (tmp_path / COMBINED / "report.json").read_text() == content


def test_nothing_is_written_into_a_runs_folder(tmp_path: Path) -> None:
    """An older version let a recipe be called so; its folder is sealed."""
    folder = tmp_path / COMBINED
    write_report(combine(TWO), folder)
    (folder / "recipe.yaml").touch()
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert not withdraw(tmp_path, NAMES[0])
    with pytest.raises(InputError, match="is the folder of a run"):
        refuse_other_folder(tmp_path)
    with pytest.raises(InputError, match="is the folder of a run"):
        ran(recipes("onnx", "tflite"), tmp_path)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_link_leads_nothing_away(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    write_report(combine(TWO), tmp_path / "elsewhere")
    (tmp_path / COMBINED).symlink_to(tmp_path / "elsewhere")
    assert not withdraw(tmp_path, NAMES[0])
    with pytest.raises(InputError, match="is a link"):
        refuse_other_folder(tmp_path)
    assert len(list((tmp_path / "elsewhere").iterdir())) == len(FILES)


# In a run


def ran(wanted: list[Recipe], out: Path) -> str:
    shown = io.StringIO()
    run.run_recipes(wanted, out, Console(file=shown, width=200))
    return shown.getvalue()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Callable[[Report], None]:
    """A pipeline of one stage that does nothing, whose reports are given."""
    nothing = Stage(
        name="train",
        make=lambda *_: StageFacts(),
        facts=StageFacts,
        after=(),
        reads=("name",),
        code=(),
        packages=(),
    )
    by_name = {report.recipe.name: report for report in TWO}

    def reported(one: Any, out: Path, tell: object) -> tuple[Report, Path]:
        name = one.context.recipe.name
        return by_name[name], out / name

    monkeypatch.setattr(graph, "STAGES", (nothing,))
    monkeypatch.setattr(run, "reported", reported)
    return lambda report: by_name.update({report.recipe.name: report})


def test_the_report_of_several_is_that_of_the_last_runs(
    quick: Callable[[Report], None], tmp_path: Path
) -> None:
    both, file = recipes("onnx", "tflite"), tmp_path / COMBINED / "report.json"
    for _ in range(2):
        assert "removed" not in ran(both, tmp_path)
        assert [t["name"] for t in json.loads(file.read_text())["targets"]] == NAMES
    assert "removed" not in ran(both[:1], tmp_path)
    assert file.exists(), "that run is as it was"
    (target,) = TWO[0].targets
    changed = target.model_copy(update={"device": "another"})
    quick(TWO[0].model_copy(update={"targets": (changed,)}))
    shown = ran(both[:1], tmp_path)
    assert not file.parent.exists(), "it has what the run of one recipe no longer is"
    assert f"{tmp_path / COMBINED}: removed, it was of earlier runs" in " ".join(shown.split())
    ran(both, tmp_path)
    other = reports.report(reports.target(NAMES[1]), name=NAMES[1])
    data = other.data.model_copy(update={"sha256": "d" * 64})
    quick(other.model_copy(update={"data": data}))
    assert "no combined report: " in ran(both, tmp_path)
    assert not file.exists(), "nor does that of the data before stay"
