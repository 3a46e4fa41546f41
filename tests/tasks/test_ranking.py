"""One rule for ties, wherever a class is named: of equal logits the lower class."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.commands.bundle.golden import Vectors, write
from pipeline.commands.bundle.snippets import snippets
from pipeline.tasks import classification
from pipeline.tasks.classification import accuracy
from pipeline.tasks.classified import classified
from pipeline.tasks.golden import clearest
from pipeline.tasks.ranking import first_class, ranked
from tests.making.bundles import VERSIONS, contract
from tests.making.training import compare_logits

IMAGES, CLASSES, STEP = 400, 100, 0.125


def tied() -> NDArray[np.float32]:
    """Logits as an int8 file gives them, of so few levels that every image has ties.

    The largest is shared in nine images of ten; some logits are -0 beside 0, which are equal.
    """
    levels = np.random.default_rng(0).integers(-3, 4, (IMAGES, CLASSES))
    logits = (levels * STEP).astype(np.float32)
    logits[::3] = np.where(logits[::3] == 0, np.float32(-0.0), logits[::3])
    logits[:, 50:] = np.where(logits[:, 50:] == 0, np.float32(0.0), logits[:, 50:])
    logits[1::4] = np.minimum(logits[1::4], 0)  # whose first are zeros of both signs
    return logits


LOGITS = tied()
FIRST = LOGITS.argmax(1)
ORDER = np.lexsort((np.broadcast_to(np.arange(CLASSES), LOGITS.shape), -LOGITS))
"""By the logit, then by the class."""


def test_the_logits_tie() -> None:
    shared = (LOGITS.max(1, keepdims=True) == LOGITS).sum(1)
    assert (shared > 1).mean() > 0.9
    assert (np.sign(LOGITS) == 0).any()
    assert np.signbit(LOGITS[LOGITS == 0]).any()
    assert not np.signbit(LOGITS[LOGITS == 0]).all()


@pytest.mark.parametrize("layout", ["plain", "transposed", "double", "single rows"])
def test_the_lower_class_comes_first(layout: str) -> None:
    logits = torch.from_numpy(LOGITS)
    if layout == "transposed":
        logits = logits.t().contiguous().t()
    if layout == "double":
        logits = logits.double()
    rows = [logits[n] for n in range(IMAGES)] if layout == "single rows" else [logits]
    named = torch.stack([first_class(row) for row in rows]).flatten()
    order = torch.stack([ranked(row) for row in rows]).reshape(IMAGES, CLASSES)
    assert named.tolist() == FIRST.tolist()
    assert order.tolist() == ORDER.tolist()
    assert order[:, 0].tolist() == FIRST.tolist()


def test_accuracy_follows_the_rule() -> None:
    logits = torch.from_numpy(LOGITS)
    for place in (0, 4, 5):
        found = accuracy(logits, torch.from_numpy(ORDER[:, place].copy()))
        assert (found.top1, found.top5) == (float(place == 0), float(place < 5))


def test_parity_follows_the_rule() -> None:
    """A file that puts the first of equal ones in front in any other way agrees all the same."""
    logits = torch.from_numpy(LOGITS)
    clear = logits.clone()
    clear[torch.arange(IMAGES), torch.from_numpy(FIRST)] += STEP
    compared = compare_logits({"test": clear}, {"test": logits}, STEP)
    assert (compared.results.share, compared.results.leads) == (1, ())
    back = compare_logits({"test": logits}, {"test": clear}, STEP)
    assert (back.results.share, back.results.leads) == (1, ())


def test_predict_follows_the_rule() -> None:
    classes = [f"class {n}" for n in range(CLASSES)]
    for row in range(0, IMAGES, 7):
        logits = torch.from_numpy(LOGITS[row])
        given = {"float": logits, "file": logits.flip(0)}
        found = classified("image", given, classes, 5)
        assert list(found.classes) == [classes[n] for n in ORDER[row, :5]]
        assert found.best["float"] == classes[FIRST[row]]
        assert found.best["file"] == classes[LOGITS[row, ::-1].argmax()]


def test_probabilities_that_are_all_zero_do_not_change_the_order() -> None:
    """Logits far below the largest: their probabilities tie at 0 though they do not."""
    logits = torch.tensor([0.0, 200.0, 400.0, 600.0])
    found = classified("image", {"float": logits}, ["a", "b", "c", "d"], 4)
    assert found.classes == ("d", "c", "b", "a")
    assert found.scores["float"] == (1, 0, 0, 0)


def test_golden_vectors_follow_the_rule(tmp_path: Path) -> None:
    pixels = np.zeros((IMAGES, 3, 2, 2), np.uint8)
    labels = tuple(FIRST.tolist())
    write(
        Vectors(pixels=pixels, labels=labels, logits=LOGITS, tolerance=1.0, why="so"),
        tmp_path / "golden",
        classification,
    )
    lines = (tmp_path / "golden" / "expected.csv").read_text().splitlines()[1:]
    assert [int(line.split(",")[2]) for line in lines] == FIRST.tolist()
    clear = int(((LOGITS.max(1, keepdims=True) == LOGITS).sum(1) == 1).sum())
    chosen = clearest(torch.from_numpy(LOGITS), 0)[:clear]
    lead = np.sort(LOGITS[chosen], axis=1)
    assert (lead[:, -1] > lead[:, -2]).all(), "images without a tie come first"


@pytest.mark.parametrize("form", ["onnx", "tflite", "coreml"])
def test_python_of_a_bundle_follows_the_rule(form: str, tmp_path: Path) -> None:
    code: dict[str, object] = {"__file__": str(tmp_path / "python" / "classify.py")}
    exec(snippets(contract(form, pixels=False), VERSIONS)["python/classify.py"], code)
    order = code["ranked"]
    assert callable(order)
    assert [order(row).tolist() for row in LOGITS] == ORDER.tolist()


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here")
def test_cpp_of_a_bundle_follows_the_rule(tmp_path: Path) -> None:
    """The function that ranks, compiled by itself: it needs no runtime."""
    header = snippets(contract("onnx", pixels=False), VERSIONS)["cpp/classifier.hpp"]
    function = re.search(r"  static std::vector<std::size_t> Ranked.*?\n  }\n", header, re.DOTALL)
    includes = re.findall(r"#include <[a-z]+>", header)
    assert function is not None
    assert includes
    source = [*includes, "#include <cstdio>", "struct Classifier {", function[0], "};"]
    source.append(
        f"""int main() {{
  std::vector<float> logits({CLASSES});
  while (std::fread(logits.data(), sizeof(float), logits.size(), stdin) == logits.size())
    for (const std::size_t one : Classifier::Ranked(logits)) std::printf("%zu\\n", one);
}}
"""
    )
    (tmp_path / "ranked.cpp").write_text("\n".join(source))
    strict = ("-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror")
    program = tmp_path / "ranked"
    subprocess.run(["c++", *strict, tmp_path / "ranked.cpp", "-o", program], check=True)
    found = subprocess.run([program], input=LOGITS.tobytes(), capture_output=True, check=True)
    assert [int(line) for line in found.stdout.split()] == ORDER.flatten().tolist()


def test_kotlin_and_swift_of_a_bundle_state_the_rule() -> None:
    """Compiled by `nox -s snippets`, and parsed in tests/commands/test_bundle.py."""
    kotlin = snippets(contract("tflite", pixels=False), VERSIONS)[
        "kotlin/src/litert/kotlin/Classifier.kt"
    ]
    assert "logits.indices.sortedByDescending { logits[it] + 0f }" in kotlin
    swift = snippets(contract("coreml", pixels=False), VERSIONS)["swift/Classifier.swift"]
    assert "logits[$0] == logits[$1] ? $0 < $1 : logits[$0] > logits[$1]" in swift


def test_the_contract_states_the_rule() -> None:
    meaning = contract("onnx", pixels=False).output.meaning
    assert "the largest names the class, the first of equal ones" in meaning
