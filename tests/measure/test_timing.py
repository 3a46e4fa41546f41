"""Figures of anything that runs, on cases worked out by hand."""

import hashlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.measure import timing
from pipeline.measure.downloads import files_of
from pipeline.measure.lanes import host
from pipeline.measure.lanes.lane import ModelFile
from pipeline.measure.lanes.lanes import HOST, LANES
from pipeline.measure.lanes.sets import answers_to_tests
from pipeline.recipe.data import DigitsData
from pipeline.recipe.input_shape import square
from pipeline.tasks.classification import accuracies
from pipeline.tasks.evaluation import evaluation_batch
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.images.load import load_dataset
from pipeline.tasks.images.pixels import normalize


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(DigitsData(kind="digits"), square(32))


class Recorder:
    """Stands for an opened file: class = the brightest channel; keeps what it was given."""

    def __init__(self, batch: int | None) -> None:
        self.batch = batch
        self.sizes: list[int] = []
        self._given = np.zeros(0, np.float32)
        self._buffer = np.zeros(0, np.float32)

    def set_input(self, images: NDArray[np.float32]) -> None:
        self.sizes.append(len(images))
        self._given = images

    def invoke(self) -> None:
        found = self._given.mean((2, 3))
        if self._buffer.shape != found.shape:
            self._buffer = found.copy()
        self._buffer[:] = found

    def output(self) -> NDArray[np.float32]:
        return self._buffer  # a runtime's own memory, used again by the next run


@pytest.mark.parametrize("batch", [None, 1])
def test_logits_of_every_image_in_order(
    batch: int | None, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(batch)
    progress: list[int] = []
    monkeypatch.setattr(host, "_opened", lambda file, threads: recorder)
    file = ModelFile(path=Path("model"), format="onnx")
    found = answers_to_tests(LANES[HOST], file, digits, 1, progress.append)
    assert set(found) == set(digits.tests)
    for name, images in digits.tests.items():
        pixels = images.pixels(torch.arange(len(images)))
        wanted = normalize(pixels, digits.mean, digits.std).mean((2, 3))
        torch.testing.assert_close(found[name], wanted)
    total = sum(len(images) for images in digits.tests.values())
    assert progress == sorted(progress)
    assert progress[-1] == sum(recorder.sizes) == total
    assert max(recorder.sizes) == (batch or evaluation_batch(square(32)))


def test_accuracies_of_each_test_set(digits: Dataset) -> None:
    (name,) = digits.tests
    labels = digits.tests[name].labels
    found = accuracies({name: torch.nn.functional.one_hot(labels, 10).float()}, digits)
    assert (found[name].top1, found[name].top5, found[name].images) == (1.0, 1.0, len(labels))
    rank = torch.arange(10.0).expand(len(labels), 10)  # 9 first, 5 fifth
    found = accuracies({name: rank}, digits)
    assert found[name].top1 == pytest.approx((labels == 9).double().mean().item())
    assert found[name].top5 == pytest.approx((labels >= 5).double().mean().item())


def test_calls_alternate_after_the_warmup() -> None:
    order: list[str] = []
    runs = {name: lambda name=name: order.append(name) for name in "ABC"}
    found = timing.interleaved(runs, warmup=2, rounds=3, threads=1)
    rounds = len(order) // 3
    assert rounds >= 2 + 3
    assert "".join(order) == "ABC" * rounds
    assert list(found) == ["A", "B", "C"]
    assert {latency.runs for latency in found.values()} == {3}
    assert {latency.batch for latency in found.values()} == {1}


def test_milliseconds_of_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)

    def taking(seconds: float) -> None:
        nonlocal now
        now += seconds

    runs = {"slow": lambda: taking(0.25), "fast": lambda: taking(0.125)}
    found = timing.interleaved(runs, warmup=1, rounds=4, threads=1)
    assert found["slow"].samples_ms == (250.0,) * 4
    assert found["fast"].samples_ms == (125.0,) * 4
    assert found["slow"].median / found["fast"].median == 2.0


@pytest.mark.parametrize("slow_runs", [0, 7, 40])
def test_what_gets_faster_is_not_timed_yet(slow_runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first runs of a process took 60 ms, and all later ones 27."""
    now, done = 0.0, 0
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)

    def run() -> None:
        nonlocal now, done
        now += 0.027 * (1 + 1.5 * max(0.0, 1 - done / slow_runs) if slow_runs else 1)
        done += 1

    found = timing.interleaved({"float": run}, warmup=5, rounds=4, threads=1)
    assert found["float"].p90 == pytest.approx(27, rel=0.06)
    # Nothing is warmed up for longer than it needs.
    assert done <= max(slow_runs, 5) + 4 + 10


def test_what_never_settles_is_timed_after_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now, taken = 0.0, 100.0
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)

    def run() -> None:
        nonlocal now, taken
        taken *= 0.9
        now += max(taken, 0.5)

    timing.interleaved({"a": run}, warmup=1, rounds=1, threads=1)
    assert now < 3 * 100


@pytest.mark.parametrize("fails", [False, True])
def test_threads_of_torch_are_set_and_restored(fails: bool) -> None:
    before = torch.get_num_threads()
    seen: list[int] = []

    def run() -> None:
        seen.append(torch.get_num_threads())
        if fails:
            raise ValueError("no run")

    if fails:
        with pytest.raises(ValueError, match="no run"):
            timing.interleaved({"a": run}, warmup=0, rounds=1, threads=before + 1)
    else:
        found = timing.interleaved({"a": run}, warmup=0, rounds=1, threads=before + 1)
        assert found["a"].threads == before + 1
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_float_run_keeps_no_gradients() -> None:
    given: list[tuple[Tensor, bool]] = []

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            given.append((x, torch.is_grad_enabled()))
            return x

    image = torch.zeros(1, 3, 4, 4)
    run = timing.float_run(Model(), image)
    assert given == []
    run()
    run()
    assert [(x is image, grad) for x, grad in given] == [(True, False)] * 2


def test_first_image_is_a_normalised_test_image(digits: Dataset) -> None:
    image = timing.first_image(digits)
    assert image.shape == (1, 3, 32, 32)
    assert image.dtype == torch.float32
    pixels = next(iter(digits.tests.values())).pixels(torch.tensor([0]))
    torch.testing.assert_close(image, normalize(pixels, digits.mean, digits.std))


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "model.mlpackage"
    (folder / "Data" / "weights").mkdir(parents=True)
    (folder / "Manifest.json").write_bytes(b"{}")
    (folder / "Data" / "weights" / "weight.bin").write_bytes(b"\0" * 100_000)
    return folder


def test_size_of_a_file_and_of_a_package(package: Path) -> None:
    assert timing.size_bytes(package / "Manifest.json") == 2
    assert timing.size_bytes(package) == 100_002
    names = [file.name for file in files_of(package)]
    assert names == ["weight.bin", "Manifest.json"]


def test_sha256_of_a_file_is_that_of_its_content(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"content")
    two.write_bytes(b"content")
    assert timing.sha256_of(one) == hashlib.sha256(b"content").hexdigest()
    assert timing.sha256_of(one) == timing.sha256_of(two)
    two.write_bytes(b"contenT")
    assert timing.sha256_of(one) != timing.sha256_of(two)


def test_sha256_of_a_package_follows_content_and_names(package: Path) -> None:
    manifest = package / "Manifest.json"
    seen = {timing.sha256_of(package)}
    assert timing.sha256_of(package) in seen
    manifest.write_bytes(b"[]")
    seen.add(timing.sha256_of(package))
    manifest.rename(package / "Other.json")
    seen.add(timing.sha256_of(package))
    (package / "empty").touch()
    seen.add(timing.sha256_of(package))
    assert len(seen) == 4


def test_sha256_of_a_package_does_not_depend_on_its_place(package: Path) -> None:
    before = timing.sha256_of(package)
    assert timing.sha256_of(package.rename(package.parent / "moved")) == before


def test_ways_take_turns_and_are_made_ready_for_each_run() -> None:
    said: list[str] = []

    def timer(run: timing.TimedCall) -> float:
        run()
        return 1.0

    def way(name: str) -> timing.Way:
        return timing.Way(run=partial(said.append, name), ready=partial(said.append, name.upper()))

    done: list[int] = []
    found = timing.in_turn(
        {"a": way("a"), "b": way("b")}, warmup=3, rounds=2, timer=timer, advance=done.append
    )
    assert "".join(said) == "AaBb" * (10 + 2)  # ten rounds show that nothing gets faster
    assert found == {"a": [1.0, 1.0], "b": [1.0, 1.0]}
    assert done == [1, 2]


def test_a_timer_waits_for_the_device_on_both_sides() -> None:
    said: list[str] = []
    timed = timing.wall_clock(lambda: said.append("wait"))
    assert timed(lambda: said.append("run")) > 0
    assert said == ["wait", "run", "wait"]
