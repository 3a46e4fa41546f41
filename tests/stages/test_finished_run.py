"""Finished runs, read back: what is there, and what is said of what is not."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from pipeline.base import errors
from pipeline.base.checksums import MANIFEST, seal
from pipeline.base.errors import InputError, following, reading
from pipeline.base.store import STAGES_FILE
from pipeline.recipe.recipe import resolved_yaml
from pipeline.report.write import combine, write_report
from pipeline.stages.finished_run import open_run, open_runs
from pipeline.tasks.images.files import image_files
from tests.making.recipes import device_recipe
from tests.making.reports import report, target
from tests.making.runs import left_behind

NAMES = {"tflite": "android-litert-int8", "onnx": "linux-arm-onnxruntime-int8"}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Directories as runs of two recipes leave them, with empty model files."""
    store = tmp_path / ".store" / "train-1"
    store.mkdir(parents=True)
    (store / "weights.safetensors").touch()
    for form, name in NAMES.items():
        left_behind(
            tmp_path / name, device_recipe(form=form), stages={"train": "../.store/train-1"}
        )
    reports = [report(target(name), name=name) for name in NAMES.values()]
    write_report(combine(reports), tmp_path / "combined")
    return tmp_path


def test_one_run(out: Path) -> None:
    run = open_run(out / NAMES["onnx"], None)
    assert run.file == out / NAMES["onnx"] / "model.onnx"
    assert run.classes == ("zero", "one")
    assert run.recipe.target.format == "onnx"
    assert run.format.runtime == "onnxruntime"
    assert run.stage("train", "weights.safetensors").samefile(
        out / ".store" / "train-1" / "weights.safetensors"
    )
    assert open_run(out / NAMES["onnx"], NAMES["onnx"]) == run


def test_a_combined_report_leads_to_its_runs(out: Path) -> None:
    runs = open_runs(out / "combined")
    assert [run.recipe.name for run in runs] == list(NAMES.values())
    assert open_run(out / "combined", NAMES["tflite"]) == runs[0]


def test_the_target_must_be_named_among_several(out: Path) -> None:
    listed = ", ".join(NAMES.values())
    with pytest.raises(InputError, match=rf"no target given; \S*combined has {listed}"):
        open_run(out / "combined", None)
    with pytest.raises(InputError, match=r"target: got 'iphone'; \S*combined has"):
        open_run(out / "combined", "iphone")


def test_what_is_missing_is_named(out: Path) -> None:
    directory = out / NAMES["onnx"]
    with pytest.raises(InputError, match=r"not the directory of a run"):
        open_runs(out)
    run = open_run(directory, None)
    shutil.rmtree(out / ".store")
    with pytest.raises(InputError, match=r"weights\.safetensors: missing; .* run the recipe again"):
        open_run(directory, None).stage("train", "weights.safetensors")
    with pytest.raises(InputError, match=r"does not say where stage fold is"):
        open_run(directory, None).stage("fold", "program.pt2")
    (directory / STAGES_FILE).write_text("{")
    with pytest.raises(InputError, match=r"does not say where stage train is"):
        run.stage("train", "weights.safetensors")
    with pytest.raises(InputError, match=r"does not say where its stages are"):
        run.stages()
    with pytest.raises(InputError, match=r"stages\.json is not what was written; run the recipe"):
        open_run(directory, None)
    for name in ("labels.txt", "model.onnx"):
        (directory / name).unlink()
        seal(directory)
        with pytest.raises(InputError, match=rf"{name}.*; run the recipe again"):
            open_run(directory, None)
    (directory / "recipe.yaml").unlink()
    with pytest.raises(InputError, match=r"recipe\.yaml: missing"):
        open_runs(out / "combined")


def test_an_older_report_is_refused(out: Path) -> None:
    path = out / "combined" / "report.json"
    tree = json.loads(path.read_text())
    del tree["targets"][0]["parity"]
    path.write_text(json.dumps(tree))
    with pytest.raises(InputError, match=r"report\.json: not a report of this version"):
        open_runs(out / "combined")


@pytest.mark.parametrize("leads_to", ["/dev/zero", "/dev/null", "../pipe"])
def test_a_model_that_is_no_file_is_refused(out: Path, leads_to: str) -> None:
    directory = out / NAMES["tflite"]
    os.mkfifo(out / "pipe")
    (directory / "model.tflite").unlink()
    (directory / MANIFEST).unlink()
    seal(directory)
    (directory / "model.tflite").symlink_to(leads_to)
    with pytest.raises(InputError, match=r"model\.tflite: is neither file nor folder"):
        open_run(directory, None)


def test_a_package_with_a_device_is_refused(out: Path) -> None:
    directory = out / NAMES["tflite"]
    recipe = device_recipe(form="coreml")
    (directory / "recipe.yaml").write_text(resolved_yaml(recipe))
    (directory / "model.mlpackage" / "Data").mkdir(parents=True)
    seal(directory)
    (directory / "model.mlpackage" / "Data" / "weight.bin").symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"weight\.bin: is neither file nor folder"):
        open_run(directory, None)


def test_a_run_that_a_report_names_is_missed(out: Path) -> None:
    path = out / "combined" / "report.json"
    for name in ("gone", "a" * 300):
        tree = json.loads(path.read_text())
        tree["targets"][0]["name"] = name
        path.write_text(json.dumps(tree))
        with pytest.raises(InputError, match=rf"{name}/recipe\.yaml: missing, but \S*report\.json"):
            open_runs(out / "combined")


def test_a_report_cannot_lead_elsewhere(out: Path) -> None:
    path = out / "combined" / "report.json"
    tree = json.loads(path.read_text())
    tree["targets"][0]["name"] = "../elsewhere"
    path.write_text(json.dumps(tree))
    with pytest.raises(InputError, match=r"names a run '\.\./elsewhere', which is not the name"):
        open_runs(out / "combined")


def test_a_changed_file_is_refused_before_it_is_opened(out: Path) -> None:
    directory = out / NAMES["onnx"]
    (directory / "model.onnx").write_bytes(b"other")
    (directory / "debug.csv").write_text("added since, and no damage")
    with pytest.raises(InputError, match=r"model\.onnx is not what was written; run the recipe"):
        open_runs(directory)
    (directory / MANIFEST).unlink()
    with pytest.raises(InputError, match=r"SHA256SUMS is missing; run the recipe"):
        open_runs(directory)


def test_images_of_a_path(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "c.webp", "notes.txt", "e.gif", "Thumbs.db", ".hidden.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "d.png").mkdir()
    found, others = image_files(tmp_path)
    assert [p.name for p in found] == ["a.jpg", "b.PNG", "c.webp"]
    assert [p.name for p in others] == ["e.gif", "notes.txt"]
    assert image_files(tmp_path / "notes.txt") == ([tmp_path / "notes.txt"], [])
    with pytest.raises(InputError, match="no images in it"):
        image_files(tmp_path / "d.png")
    with pytest.raises(InputError, match="no such file or directory"):
        image_files(tmp_path / "e.png")


@pytest.mark.parametrize("name", ["..", "."])
def test_a_report_cannot_lead_above_its_runs(out: Path, name: str) -> None:
    path = out / "combined" / "report.json"
    tree = json.loads(path.read_text())
    tree["targets"][0]["name"] = name
    path.write_text(json.dumps(tree))
    with pytest.raises(InputError, match=r"which is not the name of a folder beside it"):
        open_runs(out / "combined")


def test_a_report_of_nothing_and_one_that_is_no_text_are_refused(out: Path) -> None:
    path = out / "combined" / "report.json"
    tree = json.loads(path.read_text())
    for content in (json.dumps(tree | {"targets": []}).encode(), b"\xff", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"report\.json: not a report of this version"):
            open_runs(out / "combined")


@pytest.mark.parametrize("content", ["[" * 100_000, '{"train": "\\u0000"}', "3", '{"train": 3}'])
def test_stages_that_are_nowhere(out: Path, content: str) -> None:
    run = open_run(out / NAMES["onnx"], None)
    (run.directory / STAGES_FILE).write_text(content)
    with pytest.raises(InputError, match=r"run the recipe again"):
        run.stage("train", "weights.safetensors")


def test_a_pipe_is_no_file_of_a_run(out: Path) -> None:
    directory = out / NAMES["onnx"]
    (directory / "labels.txt").unlink()
    os.mkfifo(directory / "labels.txt")
    with pytest.raises(InputError, match=r"labels\.txt is not what was written"):
        open_runs(directory)


@pytest.mark.parametrize("mistake", [AttributeError, TypeError, AssertionError, KeyError])
def test_a_mistake_of_ours_is_not_the_files_fault(
    mistake: type[Exception],
) -> None:
    """Here raised by a line of the package that looks into what a file holds."""

    class Odd:
        def __len__(self) -> int:
            raise mistake("a bug")

    def reader(error: type[Exception]) -> None:
        # As if a line of the package had raised it: by the name of its file.
        code = compile("raise error('a bug')", errors.__file__, "exec")
        exec(code, {"error": error})

    with pytest.raises(mistake, match="a bug"), reading(Path("a/model.onnx")):
        reader(mistake)
    # A line of ours that says what it missed in the file, and a library that met the same.
    with pytest.raises(InputError, match="ValueError: a bug"), reading(Path("a/model.onnx")):
        reader(ValueError)
    with pytest.raises(InputError, match=mistake.__name__), reading(Path("a/model.onnx")):
        len(Odd())


def test_what_a_library_says_becomes_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with (
        pytest.raises(InputError, match=r"^a/model\.onnx: cannot be used, .* \(KeyError: 'x y'\)"),
        reading(Path("a/model.onnx")),
    ):
        raise KeyError("x y")
    assert "Traceback" in capfd.readouterr().err, "for the log"
    with pytest.raises(InputError, match=r"^as it was$"), reading(Path("a")):
        raise InputError("as it was")


def test_parts_that_do_not_lead_to_each_other_are_the_files_fault() -> None:
    @following("a graph")
    def walk(graph: dict[str, list[int]]) -> int:
        return graph["nodes"][0]

    assert walk({"nodes": [3]}) == 3
    for graph, cause in (({}, "KeyError"), ({"nodes": []}, "IndexError"), (None, "TypeError")):
        with (
            pytest.raises(InputError, match=rf"a graph do not fit together \({cause}: "),
            reading(Path("a/model.onnx")),
        ):
            walk(graph)  # type: ignore[arg-type]
