"""This machine as a lane: files run and timed through it are those that their formats open."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.base.errors import InputError
from pipeline.formats.onnx import file as onnx_file
from pipeline.measure.lanes import host
from pipeline.measure.lanes.lane import ModelFile, Rounds
from pipeline.measure.lanes.lanes import HOST, LANES
from pipeline.measure.timing import run_images
from tests.making import networks, programs

LANE = LANES[HOST]


@pytest.fixture(scope="module")
def written() -> ModelFile:
    return ModelFile(path=programs.file_of("onnx"), format="onnx")


@pytest.mark.slow
def test_files_answer_batch_after_batch_as_their_runtime_does(written: ModelFile) -> None:
    images = networks.images(10)
    done: list[int] = []
    found = LANE.answers(
        {"one": written, "same": written}, iter(torch.split(images, [4, 4, 2])), 1, done.append
    )
    wanted = run_images(onnx_file.open_file(written.path, 1), images)
    assert list(found) == ["one", "same"]
    assert torch.equal(found["one"], wanted)
    assert torch.equal(found["same"], wanted)
    assert done == [4, 8, 10]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "tflite", "coreml"])
def test_an_answer_depends_on_no_number_of_threads_and_in_runtimes_of_no_batch(form: str) -> None:
    file = ModelFile(path=programs.file_of(form), format=form)
    images = networks.images(31)
    found = {}
    # The evaluator of Core ML packages sums in float32, in an order that goes by the batch.
    others = () if form == "coreml" else ((1, 31), (4, 1))
    for threads, batch in ((1, 4), (3, 4), *others):
        before = torch.get_num_threads()
        inputs = iter(torch.split(images, batch))
        found[threads, batch] = LANE.answers({"file": file}, inputs, threads)["file"]
        assert torch.get_num_threads() == before
    wanted = found[1, 4]
    assert len(wanted) == 31
    for how, answers in found.items():
        assert torch.equal(answers, wanted), how


def test_batches_are_prepared_as_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead, done, given = [0], [0], []

    def inputs() -> Iterator[torch.Tensor]:
        for number in range(50):
            given.append(number)
            ahead.append(len(given) - done[-1])
            yield torch.full((1, 3, 2, 2), float(number))

    opened: list[Counting] = []

    def open_one(file: ModelFile, threads: int) -> Counting:
        assert threads == 1
        opened.append(Counting())
        return opened[-1]

    monkeypatch.setattr(host, "_opened", open_one)
    file = ModelFile(path=Path("model"), format="onnx")
    found = LANE.answers({"file": file}, inputs(), 3, done.append)["file"]
    assert found.flatten().tolist() == list(range(50)), "in their order"
    assert max(ahead) <= 4, "one more than are run at the same time"
    assert len(opened) <= 3
    assert sum(one.runs for one in opened) == 50


@pytest.mark.slow
@pytest.mark.parametrize("settled", [False, True])
def test_files_and_calls_take_turns(written: ModelFile, settled: bool) -> None:
    calls: list[int] = []
    done: list[int] = []
    found = LANE.times(
        {"file": written},
        {"file": networks.images(1)},
        1,
        Rounds(warmup=2, count=3, settled=settled),
        beside={"call": lambda: calls.append(1)},
        advance=done.append,
    )
    assert list(found) == ["call", "file"], "calls come first in every round"
    assert found["call"].runs == found["file"].runs
    if settled:
        assert found["file"].runs > 3
    else:
        assert (found["file"].runs, done) == (3, [1, 2, 3])
        assert len(calls) >= 2 + 3, "the warm-up goes on until nothing gets faster"


class Counting:
    """An opened file that counts its runs."""

    batch = None

    def __init__(self) -> None:
        self.runs = 0

    def set_input(self, images: NDArray[np.float32]) -> None:
        assert images.shape[0] == 1
        self._first = images[0, 0, 0, 0]

    def invoke(self) -> None:
        self.runs += 1

    def output(self) -> NDArray[np.float32]:
        return np.full((1, 1), self._first, np.float32)


def test_untimed_runs_come_before_each_that_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Counting()
    monkeypatch.setattr(host, "_opened", lambda file, threads: opened)
    rounds = Rounds(warmup=1, count=4, untimed=1)
    file = ModelFile(path=Path("model"), format="onnx")
    found = LANE.times({"file": file}, {"file": networks.images(1)}, 1, rounds)
    assert found["file"].runs == 4
    # One when it is opened, then warm-up and rounds, each of four with one before it; how many
    # there are of the warm-up is the clock's to say.
    assert opened.runs % 2 == 1
    assert opened.runs >= 1 + (1 + 1) + 4 * 2


def _ask_answers(file: ModelFile) -> object:
    return LANE.answers({"file": file}, [networks.images(2)], 1)


def _ask_times(file: ModelFile) -> object:
    return LANE.times({"file": file}, {"file": networks.images(1)}, 1, Rounds(warmup=0, count=1))


@pytest.mark.parametrize("ask", [_ask_answers, _ask_times])
def test_a_file_that_cannot_be_run_is_named(
    ask: Callable[[ModelFile], object], tmp_path: Path
) -> None:
    broken = tmp_path / "model.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(InputError, match=str(broken)):
        ask(ModelFile(path=broken, format="onnx"))


def test_what_cannot_be_timed_here_has_a_reason() -> None:
    assert LANE.cannot_time("onnx") is None
    assert LANE.cannot_time("tflite") is None
    assert LANE.takes_calls
