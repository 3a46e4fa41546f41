"""Counting instructions: what is made of the marks, the least, and layers; QEMU is stood in for."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from pipeline.base.errors import InputError
from pipeline.commands.bench import contestants
from pipeline.commands.bench import table as bench_table
from pipeline.commands.bench.benchmark import Benchmark, CountedFile, as_json
from pipeline.commands.bench.contestants import Contestant
from pipeline.commands.bench.peers.make import Peer
from pipeline.formats.gemm import Work
from pipeline.measure.arm64.instructions import by_operation, call_cost, counted
from pipeline.measure.arm64.record import Counted
from pipeline.measure.lanes.arm64 import counting, jobs, machine
from pipeline.measure.lanes.arm64.machine import Machine
from pipeline.measure.lanes.lane import Instructions, Lane, ModelFile
from pipeline.measure.lanes.lanes import HOST, LANES
from pipeline.recipe.input_shape import square
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.tasks import task_of
from tests.making import networks, programs
from tests.making.arm64 import native_machine
from tests.making.recipes import device_recipe


@pytest.fixture
def native(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return native_machine(tmp_path)


def test_the_least_is_what_the_widest_instruction_would_take() -> None:
    found = {cpu: counting.least(cpu, 3200, 3200) for cpu in counting.PER_INSTRUCTION}
    assert found == {"cortex-a53": 400, "cortex-a76": 200, "max": 100}
    assert counting.least("max", 33, 33 + 5) == 2 + 2, "what is left takes an instruction, too"


def fake_counts(made: Machine, lines: str) -> counting.Counter:
    """A counter on a machine that writes these lines in place of counting."""
    (made.folder / "qemu" / machine.LOADER).write_text(
        '#!/bin/sh\nfor one in "$@"; do case $one in *,out=*) out=${one#*,out=};; esac; done\n'
        f'printf "{lines}" > "$out"\n'
    )
    return counting.Counter(machine=made, plugin=Path("plugin.so"))


def test_one_inference_is_a_tenth_of_ten(native: Machine, tmp_path: Path) -> None:
    made = fake_counts(native, "1000 50\\n1107 57\\n2157 127\\n5000 1\\n5020 2\\n5220 12\\n")
    tasks = [jobs.Task(path=Path(name), format="onnx", outputs=tmp_path / name) for name in "ab"]
    # 107 between the marks for one inference, 1050 for eleven.
    first, second = made.counted("max", tasks, tmp_path)
    assert first == Instructions(total=94, products=6)
    assert second == Instructions(total=18, products=1)


def test_marks_that_are_missing_are_told(native: Machine, tmp_path: Path) -> None:
    made = fake_counts(native, "1000 50\\n1107 57\\n")
    task = jobs.Task(path=Path("model.onnx"), format="onnx", outputs=tmp_path / "out")
    with pytest.raises(InputError, match=r"model.onnx: 2 marks were counted of 3"):
        made.counted("max", [task], tmp_path)


def test_without_a_compiler_it_is_told_what_to_install(
    native: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert counting.cannot_compile() is not None
    with pytest.raises(InputError, match=r"no gcc, .* `apt-get install gcc libc6-dev`"):
        counting.counter()


@pytest.mark.skipif(counting.cannot_compile() is not None, reason="there is no gcc")
def test_the_plugin_is_compiled_once(native: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    first = counting.counter()
    content = first.plugin.read_bytes()
    assert b"qemu_plugin_install" in content
    assert b"qemu_plugin_version" in content
    monkeypatch.setattr(counting, "_compile", lambda plugin: pytest.fail("compiled again"))
    assert counting.counter() == first
    assert sorted(path.name for path in native.folder.glob("*instructions*")) == [first.plugin.name]


def test_a_source_that_does_not_compile_is_told(
    native: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc")
    (tmp_path / "broken.c").write_text("no C")
    monkeypatch.setattr(counting, "SOURCE", tmp_path / "broken.c")
    with pytest.raises(InputError, match=r"cannot compile broken.c: "):
        counting.counter()


def test_a_call_costs_what_parts_take_more_than_the_whole() -> None:
    parts = {
        name: Instructions(total=total, products=0)
        for name, total in zip("ab", (70, 50), strict=True)
    }
    assert call_cost(100, parts) == 10
    assert call_cost(130, parts) == 0
    assert call_cost(130, {}) == 0


@pytest.mark.slow
def test_layers_have_the_network_s_names(monkeypatch: pytest.MonkeyPatch) -> None:
    file = ModelFile(path=programs.file_of("tflite"), format="tflite")
    one = Instructions(total=30_000, products=2_000)
    parts = {
        "conv": Instructions(total=21_000, products=2_000),
        "add": Instructions(total=11_000, products=0),
    }
    work = {"conv": Work(op="CONV_2D 3x3", shape="", macs=32_000)}
    monkeypatch.setattr(counting, "counts", lambda cpu, files, inputs: dict.fromkeys(files, one))
    monkeypatch.setattr(counting, "layer_counts", lambda cpu, file: parts)
    monkeypatch.setattr("pipeline.formats.tflite.gemm.layer_work", lambda content: work)
    found = counted("cortex-a76", file, networks.images(1), {"conv": "stem.conv"})
    assert (found.total, found.products, found.call) == (30_000, 2_000, 1_000)
    assert found.least == -(-found.macs // 16)
    conv, add = found.layers
    assert (conv.module, conv.operation, conv.macs, conv.instructions) == (
        "stem.conv", "CONV_2D 3x3", 32_000, 20_000
    )  # fmt: skip
    assert (add.module, add.operation, add.instructions) == (None, "unknown", 10_000)
    assert by_operation(found) == {"CONV_2D 3x3": (20_000, 32_000), "unknown": (10_000, 0)}


def test_every_operation_of_a_file_is_counted_by_itself(
    native: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[jobs.Task] = []

    def count(
        self: counting.Counter, cpu: str, tasks: list[jobs.Task], folder: Path
    ) -> list[Instructions]:
        seen.extend(tasks)
        assert all(task.path.is_file() and not task.inputs for task in tasks)
        return [Instructions(total=n, products=0) for n in range(1, len(tasks) + 1)]

    monkeypatch.setattr(counting.Counter, "counted", count)
    made = counting.Counter(machine=native, plugin=Path("plugin.so"))
    monkeypatch.setattr(counting, "counter", lambda: made)
    parts = [("one", b"a"), ("two", b"b")]
    monkeypatch.setattr("pipeline.formats.tflite.elsewhere.parts", lambda content: iter(parts))
    path = native.folder / "model.tflite"
    path.write_bytes(b"model")
    found = counting.layer_counts("max", ModelFile(path=path, format="tflite"))
    assert list(found) == ["one", "two"]
    assert len(seen) == 2
    assert counting.layer_counts("max", ModelFile(path=path, format="onnx")) == {}


# The benchmark


def contestant(name: str, missing: str | None = None) -> Contestant:
    return Contestant(
        name=name, tool="PocketNest", runtime="litert", precision="int8", path=None,
        size_bytes=10**6, made_in_s=None, accuracy=None, missing=missing,
    )  # fmt: skip


def benchmark() -> Benchmark:
    return Benchmark(
        lane="arm64-cortex-a76",
        shape=square(32),
        contestants=(contestant("ours"), contestant("a peer"), contestant("odd", "it is none")),
        timed=(),
        counted={
            "ours": CountedFile(total=5_969_154, products=3_479_978, least=3_456_163),
            "a peer": CountedFile(total=7_000_000, products=3_500_000, least=None),
        },
        within=(),
        upgrades={},
        rooflines={},
        outcomes=(),
    )


def test_a_benchmark_shows_instructions_and_no_times() -> None:
    shown = io.StringIO()
    bench_table.show(benchmark(), Console(file=shown, width=200))
    said = shown.getvalue()
    assert "5.969" in said
    assert "58 %" in said
    assert "an emulated cortex-a76: instructions of one inference on one thread, emulated; not" in (
        said
    )
    assert "odd: not counted: it is none" in said
    assert " ms " not in said


def test_a_benchmark_keeps_instructions() -> None:
    tree = as_json(benchmark())
    assert tree["instructions"]["ours"]["least"] == 3_456_163
    assert tree["timed"] == []
    assert tree["host"]["cpu"].startswith("cortex-a76, emulated by QEMU")


def test_a_lane_that_counts_runs_files_alone() -> None:
    lane = LANES["arm64-max"]
    assert lane.counting is not None
    assert LANES[HOST].counting is None
    assert lane.counting.cannot_count("tflite") is None
    assert "has no runtime for ARM64 Linux" in str(lane.counting.cannot_count("coreml"))


def test_the_accuracy_of_other_tools_files_is_taken_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Lane] = []

    def answers(lane: Lane, file: ModelFile, dataset: Dataset, threads: int) -> dict[str, Tensor]:
        asked.append(lane)
        return {name: torch.zeros(len(images), 2) for name, images in dataset.tests.items()}

    monkeypatch.setattr(contestants, "answers_to_tests", answers)
    path = tmp_path / "peer.tflite"
    path.write_bytes(b"a peer")
    peer = Peer(
        name="peer", tool="a tool", format="tflite", precision="int8", path=path, seconds=1.0,
        peak_bytes=None, missing=None,
    )  # fmt: skip
    task = task_of(device_recipe())
    found = contestants.of_peer(peer, networks.dataset(), task, LANES["arm64-max"])
    assert len(asked) == 1
    assert asked[0] is LANES[HOST]
    assert found.file == ModelFile(path=path, format="tflite")
    assert found.missing is None


def test_a_record_of_counts_says_its_share() -> None:
    found = Counted(total=200, products=100, macs=1600, least=100)
    assert found.share == 0.5
