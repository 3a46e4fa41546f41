"""The bundle: interfaces read from files, contracts, golden vectors, cards and code."""

from __future__ import annotations

import csv
import dataclasses
import io
import random
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tree_sitter_cpp
import tree_sitter_kotlin
import tree_sitter_swift
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from tree_sitter import Language, Parser

from pipeline.commands.bundle.contract import _rounded_up, oldest_runtime
from pipeline.commands.bundle.golden import Vectors, write
from pipeline.commands.bundle.snippets import INTERPRETER, SOURCES, snippets
from pipeline.formats.formats import FORMATS
from pipeline.formats.ports import Port
from pipeline.measure.probabilities import most_apart, probabilities_of
from pipeline.recipe.task import Link
from pipeline.tasks import classification
from pipeline.tasks.golden import clearest, spread
from pipeline.tasks.images.preparation import Preparation
from pipeline.tasks.multilabel import logit_of
from tests.making import networks, programs
from tests.making.bundles import VERSIONS, contract, contract_for
from tests.making.photo_sizes import PREPARATIONS
from tests.making.recipes import device_recipe

pytestmark = pytest.mark.slow

GRAMMARS = {
    ".kt": Parser(Language(tree_sitter_kotlin.language())),
    ".kts": Parser(Language(tree_sitter_kotlin.language())),
    ".swift": Parser(Language(tree_sitter_swift.language())),
    ".hpp": Parser(Language(tree_sitter_cpp.language())),
    ".cpp": Parser(Language(tree_sitter_cpp.language())),
}


# What files take and give


@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("form", FORMATS)
def test_the_interface_is_read_from_the_file(form: str, pixels: bool) -> None:
    file = programs.file_of(form, pixels=pixels)
    module = FORMATS[form].module()
    batch = None if form == "onnx" else 1
    shape: tuple[int | None, ...] = (batch, 3, 32, 32)
    if pixels or form == "tflite":
        shape = (batch, 32, 32, 3)
    real = "float16" if form == "coreml" else "float32"
    found = module.interface(file)
    assert found.input == Port(
        name="image",
        shape=shape,
        dtype="uint8" if pixels else real,
        kind="image" if pixels and form == "coreml" else "tensor",
        channels_last=True if form == "tflite" else None,
    )
    assert found.input.layout == ("NHWC" if shape[3] == 3 else "NCHW")
    assert (found.input.height, found.input.width) == (32, 32)
    assert found.output == Port(name="logits", shape=(batch, networks.CLASSES), dtype=real)


# Golden vectors


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60))
def test_images_of_all_classes_come_first(labels: list[int]) -> None:
    rows = spread(torch.tensor(labels)).tolist()
    assert sorted(rows) == list(range(len(labels)))
    classes = len(set(labels))
    assert {labels[row] for row in rows[:classes]} == set(labels)
    for label in set(labels):
        mine = [row for row in rows if labels[row] == label]
        assert mine == sorted(mine)


def test_images_whose_class_is_clear_come_first() -> None:
    logits = torch.tensor([[1.0, 0.0], [5.0, 0.0], [0.0, 2.0], [0.0, 2.1]])
    assert clearest(logits, 1.0).tolist() == [1, 3, 0, 2]


def vectors(**changes: Any) -> Vectors:
    draw = np.random.default_rng(0)
    whole = {
        "pixels": draw.integers(0, 256, (3, 3, 32, 32), np.uint8),
        "labels": (4, 0, 1),
        "logits": draw.normal(size=(3, 5)).astype(np.float32),
        "tolerance": 0.25,
        "why": "two steps",
    }
    return Vectors(**(whole | changes))


def test_golden_files_hold_the_very_pixels_and_logits(tmp_path: Path) -> None:
    found = vectors()
    write(found, tmp_path / "golden", classification)
    with (tmp_path / "golden" / "expected.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [int(row["label"]) for row in rows] == [4, 0, 1]
    for row, pixels, logits in zip(rows, found.pixels, found.logits, strict=True):
        said = np.array([row[f"logit_{n}"] for n in range(5)], np.float32)
        assert np.array_equal(said, logits), "bit for bit"
        assert int(row["named"]) == logits.argmax()
        picture = np.asarray(Image.open(tmp_path / "golden" / f"{row['image']}.png"))
        raw = np.fromfile(tmp_path / "golden" / f"{row['image']}.rgb", np.uint8)
        assert np.array_equal(picture, pixels.transpose(1, 2, 0))
        assert np.array_equal(raw, picture.ravel())


@given(st.floats(1e-6, 1e3))
def test_a_tolerance_is_rounded_up_to_four_digits(value: float) -> None:
    assert value <= _rounded_up(value) <= value * 1.0011
    assert float(f"{_rounded_up(value):.4g}") == _rounded_up(value)


# Code


@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("form", FORMATS)
def test_code_can_be_parsed_and_says_what_the_contract_says(form: str, pixels: bool) -> None:
    found = snippets(contract(form, pixels=pixels), VERSIONS)
    assert set(found) == {"README.md", *(source.path for source in SOURCES[form])}
    for path, text in found.items():
        assert "{{" not in text, path
        assert "{%" not in text, path
        assert not any(line != line.rstrip() for line in text.split("\n")), path
        suffix = Path(path).suffix
        if suffix == ".py":
            compile(text, path, "exec")
        elif suffix in GRAMMARS:
            tree = GRAMMARS[suffix].parse(text.encode())
            assert not tree.root_node.has_error, f"{path}\n{text}"
        if "lassif" in path:
            assert "2e-05" in text, path
            assert ("0.485" in text) is not pixels, path
    for path in set(found) - {"README.md"}:
        assert f"`{path}`" in found["README.md"]
    package = FORMATS[form].package
    install = f"pip install numpy==1.26.4 pillow==12.0.0 {package}=={VERSIONS[package]}\n"
    assert install in found["README.md"]
    if form == "tflite":
        named = f'"com.google.ai.edge.litert:litert:{VERSIONS[package]}"'
        assert named in found["kotlin/src/litert/kotlin/Classifier.kt"]
        gradle = found["kotlin/build.gradle.kts"]
        assert f'if (interpreter) "{INTERPRETER}" else "{VERSIONS[package]}"' in gradle


@pytest.mark.parametrize("preparation", PREPARATIONS.values(), ids=PREPARATIONS)
@pytest.mark.parametrize("form", FORMATS)
def test_code_of_every_preparation_can_be_parsed(form: str, preparation: Preparation) -> None:
    by = preparation.interpolation
    for path, text in snippets(contract_for(preparation, form), VERSIONS).items():
        if (parser := GRAMMARS.get(Path(path).suffix)) is not None:
            assert not parser.parse(text.encode()).root_node.has_error, f"{path}\n{text}"
        if "hoto" in Path(path).name:
            assert f"The {by} filter" in text, path
            assert f"eight = {preparation.shape.height}" in text.replace("HEIGHT", "eight"), path


@pytest.mark.parametrize(("ios", "macos"), [(17, 14), (18, 15)])
def test_a_swift_package_is_for_the_systems_of_its_model(ios: int, macos: int) -> None:
    code = snippets(contract("coreml", pixels=False, oldest_ios=ios), VERSIONS)
    assert f'platforms: [.iOS("{ios}.0"), .macOS("{macos}.0")]' in code["Package.swift"]
    assert f"iOS {ios} and later" in code["swift/Classifier.swift"]
    assert f"It needs iOS {ios} or macOS {macos}, or later." in code["README.md"]
    assert "iOS" not in snippets(contract("onnx", pixels=False), VERSIONS)["README.md"]


@pytest.mark.parametrize("form", FORMATS)
def test_code_of_one_logit(form: str, tmp_path: Path) -> None:
    plain = contract(form, pixels=False)
    output = plain.output.model_copy(update={"shape": (1, 1), "classes": 2})
    found = snippets(plain.model_copy(update={"output": output}), VERSIONS)
    for path, text in found.items():
        if (parser := GRAMMARS.get(Path(path).suffix)) is not None:
            assert not parser.parse(text.encode()).root_node.has_error, f"{path}\n{text}"
        if "lassif" in path:
            assert "of no and yes" in text.lower(), path
    (tmp_path / "labels.txt").write_text("no\nyes\n")
    code: dict[str, Any] = {"__file__": str(tmp_path / "python" / "classify.py")}
    exec(compile(found["python/classify.py"], "classify.py", "exec"), code)
    code["open_model"] = lambda: lambda tensor: np.array([np.log(3.0)])
    file = tmp_path / "photo.png"
    Image.new("RGB", (40, 40)).save(file)
    said = io.StringIO()
    with redirect_stdout(said):
        assert code["main"]([str(file)]) == 0
    assert said.getvalue().split("\n  ")[1:] == ["yes: 75.0%", "no: 25.0%\n"]


@pytest.mark.parametrize("form", FORMATS)
def test_code_of_several_labels(form: str, tmp_path: Path) -> None:
    plain = contract(form, pixels=False)
    above = logit_of(0.2)
    labels = {"shape": (1, 4), "classes": 4, "threshold": 0.2, "above": above}
    output = plain.output.model_copy(update=labels)
    found = snippets(plain.model_copy(update={"output": output}), VERSIONS)
    for path, text in found.items():
        assert not any(line != line.rstrip() for line in text.split("\n")), path
        if (parser := GRAMMARS.get(Path(path).suffix)) is not None:
            assert not parser.parse(text.encode()).root_node.has_error, f"{path}\n{text}"
        if "lassif" in path:
            assert str(above) in text, path
            assert ("softmax" in text) is False, path
    (tmp_path / "labels.txt").write_text("ant\nbee\ncat\ndog\n")
    code: dict[str, Any] = {"__file__": str(tmp_path / "python" / "classify.py")}
    exec(compile(found["python/classify.py"], "classify.py", "exec"), code)
    answers = {
        "some": [0.0, -1000.0, np.log(3.0), above],
        "tied": [1.0, 2.0, 1.0, 2.0],
        "none": [-9.0, above, -1000.0, -2.0],
    }
    wanted = {
        "some": ["cat: 75.0%", "ant: 50.0%"],
        "tied": ["bee: 88.1%", "dog: 88.1%", "ant: 73.1%", "cat: 73.1%"],
        "none": ["no label"],
    }
    file = tmp_path / "photo.png"
    Image.new("RGB", (40, 40)).save(file)
    for name, logits in answers.items():
        code["open_model"] = lambda one=logits: lambda tensor: np.array(one, np.float32)
        said = io.StringIO()
        with redirect_stdout(said):
            assert code["main"]([str(file)]) == 0
        assert said.getvalue().strip().split("\n  ")[1:] == wanted[name], "on it is not above it"


@pytest.mark.parametrize("form", [*FORMATS, "classifier"])
@pytest.mark.parametrize("kind", ["classes", "yes", "labels"])
def test_code_of_probabilities_makes_no_second_softmax(
    kind: str, form: str, tmp_path: Path
) -> None:
    by_name = form == "classifier"
    plain = contract("coreml" if by_name else form, pixels=False)
    given: dict[str, Any] = {"gives": "probabilities", "name": "probabilities"}
    given |= (
        {"kind": "dictionary", "dtype": "float64", "class_name": "classLabel"} if by_name else {}
    )
    shapes: dict[str, dict[str, Any]] = {
        "classes": {"shape": (1, 4), "classes": 4},
        "yes": {"shape": (1, 1), "classes": 2},
        "labels": {"shape": (1, 4), "classes": 4, "threshold": 0.2, "above": 0.2},
    }
    output = plain.output.model_copy(update=given | shapes[kind])
    found = snippets(plain.model_copy(update={"output": output}), VERSIONS)
    for path, text in found.items():
        assert not any(line != line.rstrip() for line in text.split("\n")), path
        assert "{%" not in text, path
        if (parser := GRAMMARS.get(Path(path).suffix)) is not None:
            assert not parser.parse(text.encode()).root_node.has_error, f"{path}\n{text}"
        if "photo" not in path.lower():
            for word in ("exp(", "expf(", "softmax", "sigmoid", "logit"):
                assert word not in text.lower(), f"{path}: {word}"
    (tmp_path / "labels.txt").write_text("ant\nbee\ncat\ndog\n")
    code: dict[str, Any] = {"__file__": str(tmp_path / "python" / "classify.py")}
    exec(compile(found["python/classify.py"], "classify.py", "exec"), code)
    answers, wanted = {
        "classes": ([0.2, 0.1, 0.5, 0.2], ["cat: 50.0%", "ant: 20.0%", "dog: 20.0%", "bee: 10.0%"]),
        "yes": ([0.75], ["bee: 75.0%", "ant: 25.0%"]),
        "labels": ([0.2, 0.9, 0.3, 0.1], ["bee: 90.0%", "cat: 30.0%"]),
    }[kind]
    file = tmp_path / "photo.png"
    Image.new("RGB", (40, 40)).save(file)
    code["open_model"] = lambda: lambda tensor: np.array(answers, np.float32)
    said = io.StringIO()
    with redirect_stdout(said):
        assert code["main"]([str(file)]) == 0
    assert said.getvalue().strip().split("\n  ")[1:] == wanted


def test_golden_probabilities_are_those_of_the_file(tmp_path: Path) -> None:
    shares = np.array([[0.5, 0.25, 0.125, 0.0625, 0.0625]] * 3, np.float32)
    found = vectors(logits=np.log(shares), probabilities=shares)
    write(found, tmp_path / "golden", classification)
    with (tmp_path / "golden" / "expected.csv").open(newline="") as table:
        for row in csv.DictReader(table):
            assert [float(row[f"probability_{n}"]) for n in range(5)] == shares[0].tolist()
            assert row["named"] == "0"


@given(st.lists(st.floats(-9, 9), min_size=2, max_size=5), st.floats(0.001, 3), st.randoms())
def test_a_tolerance_of_probabilities_holds(
    logits: list[float], apart: float, draw: random.Random
) -> None:
    before = torch.tensor([logits], dtype=torch.float64)
    moves = torch.tensor([[draw.choice((-apart, apart)) for _ in logits]], dtype=torch.float64)
    links: tuple[Link, ...] = ("softmax", "sigmoid")
    for link in links:
        moved = probabilities_of(before + moves, link) - probabilities_of(before, link)
        assert float(moved.abs().max()) <= most_apart(apart, link) * (1 + 1e-9)


def test_the_grammars_see_errors() -> None:
    for suffix, parser in GRAMMARS.items():
        assert parser.parse(b"func class ( { \n").root_node.has_error, suffix


@pytest.mark.parametrize("name", ['a"b', "a\nb", "a$b", "a\\b", "é"])
def test_names_that_could_end_a_string_are_refused(name: str) -> None:
    found = contract("onnx", pixels=False)
    wrong = found.model_copy(update={"input": found.input.model_copy(update={"name": name})})
    with pytest.raises(ValueError, match="can stand in code"):
        snippets(wrong, VERSIONS)


def test_a_contract_refuses_what_it_cannot_mean() -> None:
    with pytest.raises(ValidationError):
        contract("onnx", pixels=False, format="caffe2")
    with pytest.raises(ValidationError):
        contract("onnx", pixels=False, surprise=1)


# The card


def test_the_oldest_runtime_is_that_of_the_files_options() -> None:
    older, few = "target.opset=17", "qat.weights.forms=[int4]"
    onnx = FORMATS["onnx"]
    assert onnx.oldest.keys() == {None, "opset17"}
    for changes, version in (((), None), ((few,), None), ((older,), "opset17")):
        found = oldest_runtime(onnx, device_recipe(*changes))
        assert found == f"onnxruntime {onnx.oldest[version]}"
    assert oldest_runtime(onnx, device_recipe(older, few)) == oldest_runtime(
        onnx, device_recipe(older)
    )
    moved = dataclasses.replace(onnx, oldest={None: "1.0", "few_bits": "2.0"})
    assert oldest_runtime(moved, device_recipe(few)) == "onnxruntime 2.0"
    assert oldest_runtime(moved, device_recipe()) == "onnxruntime 1.0"
    untried = dataclasses.replace(onnx, oldest={})
    assert oldest_runtime(untried, device_recipe(few)) is None


def test_a_grid_of_a_file_stands_in_the_contract(tmp_path: Path) -> None:
    """Ours take and give real numbers; a file of integers would say how to read them."""
    port = Port(name="x", shape=(1, 32, 32, 3), dtype="int8", scale=0.5, zero_point=-3)
    from pipeline.commands.bundle.contract import _grid

    found = _grid(port)
    assert found is not None
    assert (found.scale, found.zero_point) == (0.5, -3)
    assert _grid(dataclasses.replace(port, scale=None, zero_point=None)) is None
