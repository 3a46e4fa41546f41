"""What files say of themselves: read back where each format's own tools look for it."""

from __future__ import annotations

import io
import json
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import encode, number_types
from flatbuffers.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.compress.quantization import program
from pipeline.formats.coreml import package as coreml_package
from pipeline.formats.description import Description, labels_text, read_description
from pipeline.formats.formats import FORMATS
from pipeline.formats.onnx import describe as onnx_describe
from pipeline.formats.tflite.metadata import LABELS, NAME, metadata
from pipeline.formats.write import export
from tests.making import programs
from tests.making.cli import python_for_writers

pytestmark = pytest.mark.slow

CLASSES = ('a "cat"', "dög\nx", "<b>&", "\N{CAT FACE}", *(f"class {n}" for n in range(6)))
ABOUT = Description(
    name="resnest50",
    text="Tells cats from dogs.",
    classes=CLASSES,
    pixels=False,
    mean=(0.1, 0.2, 0.3),
    std=(0.4, 0.5, 0.6),
    meaning="A number for every class; softmax makes probabilities of them.",
    author="Müller & Co",
    licence="Apache-2.0",
)


def test_a_description_comes_back(tmp_path: Path) -> None:
    ABOUT.write(tmp_path / "about.json")
    assert read_description(tmp_path / "about.json") == ABOUT


def test_labels_are_a_line_each() -> None:
    assert labels_text(CLASSES[:3]) == 'a "cat"\ndög x\n<b>&\n'


def described(plain: Path, path: Path, form: str) -> Path:
    """A copy of a file, with the description."""
    shutil.copytree(plain, path) if plain.is_dir() else shutil.copy(plain, path)
    FORMATS[form].module().describe(path, ABOUT)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """By format: a file without a description, and the same one with it."""
    folder = tmp_path_factory.mktemp("described")
    found = {}
    for form, known in FORMATS.items():
        plain = programs.file_of(form)
        found[form] = plain, described(plain, folder / f"said{known.suffix}", form)
    return found


def test_export_describes_the_file(
    files: dict[str, tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", python_for_writers())
    source, path, about = (tmp_path / name for name in ("p.pt2", "model.onnx", "about.json"))
    program.save(programs.quantized("radix2").program, source)
    ABOUT.write(about)
    export(source, "onnx", path, description=about)
    assert path.read_bytes() == files["onnx"][1].read_bytes()


@pytest.mark.parametrize("name", FORMATS)
def test_a_description_changes_no_answer(name: str, files: dict[str, tuple[Path, Path]]) -> None:
    answers, facts = [], []
    for file in files[name]:
        runnable = FORMATS[name].module().open_file(file)
        found = []
        for image in programs.examples()[:2].numpy():
            runnable.set_input(image[None])
            runnable.invoke()
            found.append(runnable.output().copy())
        answers.append(np.concatenate(found))
        facts.append(FORMATS[name].module().inspect(file))
    assert np.array_equal(*answers)
    assert facts[0] == facts[1]


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_description_gives_the_same_bytes(
    name: str, files: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    plain, said = files[name]
    again = described(plain, tmp_path / said.name, name)
    for file in [said, *said.rglob("*")]:
        if file.is_file():
            assert (again / file.relative_to(said)).read_bytes() == file.read_bytes()


def test_onnx(files: dict[str, tuple[Path, Path]]) -> None:
    file = files["onnx"][1]
    onnx.checker.check_model(onnx.load(file))
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    said = session.get_modelmeta()
    assert said.description == ABOUT.text
    assert said.graph_name == "resnest50"
    found = said.custom_metadata_map
    assert json.loads(found["classes"]) == list(CLASSES)
    assert (json.loads(found["mean"]), json.loads(found["std"])) == (
        [0.1, 0.2, 0.3],
        [0.4, 0.5, 0.6],
    )
    assert found["model_author"] == "Müller & Co"
    assert found["model_license"] == "Apache-2.0"
    assert "Image.BitmapPixelFormat" not in found, "it takes no bitmap"
    assert session.get_inputs()[0].shape == ["batch", 3, 32, 32]
    (image,) = onnx.load(file).graph.input
    assert image.type.denotation == "IMAGE"
    assert [axis.denotation for axis in image.type.tensor_type.shape.dim] == [
        *("DATA_BATCH", "DATA_CHANNEL", "DATA_FEATURE", "DATA_FEATURE")
    ]


def test_onnx_of_pixels(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    shutil.copy(programs.file_of("onnx", pixels=True), file)
    onnx_describe.describe(file, Description(**{**vars(ABOUT), "pixels": True, "author": None}))
    model = onnx.load(file)
    onnx.checker.check_model(model)
    found = {one.key: one.value for one in model.metadata_props}
    assert found["Image.BitmapPixelFormat"] == "Rgb8"
    assert found["Image.NominalPixelRange"] == "NominalRange_0_255"
    assert "model_author" not in found
    axes = model.graph.input[0].type.tensor_type.shape.dim
    assert [axis.denotation.removeprefix("DATA_") for axis in axes] == [
        *("BATCH", "FEATURE", "FEATURE", "CHANNEL")
    ]


def test_core_ml(files: dict[str, tuple[Path, Path]]) -> None:
    said = coreml_package.specification(files["coreml"][1]).description
    assert said.metadata.shortDescription == ABOUT.text
    assert (said.metadata.author, said.metadata.license) == ("Müller & Co", "Apache-2.0")
    assert json.loads(said.metadata.userDefined["classes"]) == list(CLASSES)
    assert "mean" in said.input[0].shortDescription
    assert said.output[0].shortDescription


# TFLite. Read here by the numbers of the schema, which no package that fits has code for; the
# reader of tflite-support said the same of such a file (docs/measurements.md).


def field(table: Table, slot: int) -> int:
    """Where a field of a table lies; 0 where it is left out."""
    return int(table.Offset(4 + 2 * slot))


def text(table: Table, slot: int) -> str | None:
    at = field(table, slot)
    return bytes(table.String(at + table.Pos)).decode() if at else None


def number(table: Table, slot: int, kind: Any) -> int:
    return int(table.GetSlot(4 + 2 * slot, 0, kind))


def inner(table: Table, slot: int) -> Table:
    return Table(table.Bytes, table.Indirect(table.Pos + field(table, slot)))


def variant(table: Table, slot: int) -> Table:
    found = Table(bytearray(), 0)
    table.Union(found, field(table, slot))
    return found


def each(table: Table, slot: int) -> list[Table]:
    at = field(table, slot)
    start = table.Vector(at)
    count = table.VectorLen(at)
    return [Table(table.Bytes, table.Indirect(start + 4 * i)) for i in range(count)]


def floats(table: Table, slot: int) -> list[float]:
    vector = table.GetVectorAsNumpy(number_types.Float32Flags, field(table, slot))
    return [float(value) for value in vector]


def root(content: bytes) -> Table:
    assert content[4:8] == b"M001"
    buffer = bytearray(content)
    return Table(buffer, encode.Get(number_types.UOffsetTFlags.packer_type, buffer, 0))


def said_in(content: bytes) -> bytes:
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    (entry,) = [one for one in model.metadata if one.name == NAME.encode()]
    return bytes(model.buffers[entry.buffer].data)


def test_tflite(files: dict[str, tuple[Path, Path]]) -> None:
    content = files["tflite"][1].read_bytes()
    said = root(said_in(content))
    assert [text(said, slot) for slot in (0, 1, 4, 5)] == [
        *("resnest50", ABOUT.text, "Müller & Co", "Apache-2.0")
    ]
    (graph,) = each(said, 3)
    (image,), (logits,) = each(graph, 2), each(graph, 3)
    assert (text(image, 0), text(logits, 0)) == ("image", "logits")
    properties = inner(image, 3)
    assert number(properties, 0, number_types.Uint8Flags) == 2, "ImageProperties"
    assert number(variant(properties, 1), 0, number_types.Int8Flags) == 1, "RGB"
    size = inner(variant(properties, 1), 1)
    assert [number(size, slot, number_types.Uint32Flags) for slot in (0, 1)] == [32, 32]
    (unit,) = each(image, 4)
    assert number(unit, 0, number_types.Uint8Flags) == 1, "NormalizationOptions"
    assert floats(variant(unit, 1), 0) == pytest.approx([25.5, 51.0, 76.5])
    assert floats(variant(unit, 1), 1) == pytest.approx([102.0, 127.5, 153.0])
    (file,) = each(logits, 6)
    assert text(file, 0) == LABELS
    assert number(file, 2, number_types.Int8Flags) == 2, "TENSOR_AXIS_LABELS"
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        assert archive.read(LABELS).decode() == labels_text(CLASSES)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    words=st.tuples(*[st.text(st.characters(exclude_categories=["Cs"]), min_size=1)] * 3),
    side=st.integers(32, 1024),
)
def test_any_words_fit_into_tflite_metadata(words: tuple[str, str, str], side: int) -> None:
    name, sentence, author = words
    changed = {"name": name, "text": sentence, "author": author, "licence": None, "pixels": True}
    said = root(metadata(Description(**{**vars(ABOUT), **changed}), side, side))
    assert [text(said, slot) for slot in (0, 1, 4, 5)] == [name, sentence, author, None]
    (unit,) = each(each(each(said, 3)[0], 2)[0], 4)
    assert (floats(variant(unit, 1), 0), floats(variant(unit, 1), 1)) == ([0.0], [1.0])
