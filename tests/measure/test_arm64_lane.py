"""The lanes of emulated processors, on a stand-in for QEMU: what runs there runs here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.base.errors import InputError
from pipeline.formats.formats import FORMATS
from pipeline.measure.lanes.arm64 import jobs, lane, machine
from pipeline.measure.lanes.arm64.machine import Machine
from pipeline.measure.lanes.lane import ModelFile, Rounds
from pipeline.measure.lanes.lanes import HOST, LANES
from tests.making import networks, programs
from tests.making.arm64 import asked, native_machine

NAMES = [name for name, form in FORMATS.items() if form.elsewhere is not None]


@pytest.fixture
def native(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return native_machine(tmp_path)


def test_every_processor_is_a_lane() -> None:
    assert set(LANES) == {HOST, *(f"arm64-{cpu}" for cpu in lane.CPUS)}


@pytest.mark.slow
@pytest.mark.parametrize("pixels", [False, True])
def test_files_answer_as_on_this_machine(native: Machine, pixels: bool) -> None:
    files = {n: ModelFile(path=programs.file_of(n, pixels=pixels), format=n) for n in NAMES}
    images = (networks.images(5) * 60 + 120).clamp(0, 255).round() if pixels else networks.images(5)
    done: list[int] = []
    found = LANES["arm64-cortex-a76"].answers(files, iter(images.split([3, 2])), 1, done.append)
    wanted = LANES[HOST].answers(files, [images], 1)
    assert {name: tuple(of.shape) for name, of in found.items()} == dict.fromkeys(files, (5, 5))
    for name in files:
        assert torch.equal(found[name], wanted[name])
    assert done[-1] == 5
    (command,) = asked(native)
    assert "-cpu cortex-a76" in command


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_inner_tensors_are_those_of_this_machine(native: Machine, name: str) -> None:
    file = ModelFile(path=programs.file_of(name), format=name)
    images = networks.images(3).numpy()
    found = lane.traced("max", file, images)
    wanted = FORMATS[name].module().trace(file.path, images)
    assert list(found) == list(wanted)
    assert len(found) > 10
    for layer, values in wanted.items():
        assert np.array_equal(found[layer], values), layer


def test_core_ml_is_refused_by_name() -> None:
    file = ModelFile(path=Path("model.mlpackage"), format="coreml")
    words = "model.mlpackage: Core ML has no runtime for ARM64 Linux; files of ONNX and TFLite can"
    with pytest.raises(InputError, match=words):
        LANES["arm64-max"].answers({"file": file}, [networks.images(1)], 1)
    assert jobs.cannot_run("onnx") is None


def test_what_it_takes_is_no_time() -> None:
    of = LANES["arm64-max"]
    assert of.cannot_time("onnx") == lane.NO_TIME
    assert not of.takes_calls
    rounds = Rounds(warmup=0, count=1)
    assert of.times({}, {}, 1, rounds) == {}
    file = ModelFile(path=Path("model.onnx"), format="onnx")
    with pytest.raises(InputError, match=r"model.onnx: the processor is emulated"):
        of.times({"file": file}, {"file": networks.images(1)}, 1, rounds)


def test_the_machine_says_that_it_is_emulated(native: Machine) -> None:
    said = LANES["arm64-cortex-a53"].machine()
    assert said.cpu.startswith("cortex-a53, emulated by QEMU 7.2 on ")
    assert said.gpu is None


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_cannot_be_run_is_named(native: Machine, tmp_path: Path, name: str) -> None:
    broken = tmp_path / f"model{FORMATS[name].suffix}"
    broken.write_bytes(b"no model")
    with pytest.raises(InputError, match=str(broken)):
        LANES["arm64-max"].answers(
            {"file": ModelFile(path=broken, format=name)}, [networks.images(1)], 1
        )


def test_what_the_child_says_last_is_told(native: Machine, tmp_path: Path) -> None:
    task = jobs.Task(path=tmp_path / "none.onnx", format="onnx", outputs=tmp_path / "out")
    task.give(np.zeros((1, 3, 8, 8), np.float32))
    (native.folder / "qemu" / machine.LOADER).write_text(
        "#!/bin/sh\necho one >&2; echo 'RuntimeError: two' >&2; exit 3\n"
    )
    words = r"none.onnx: cannot be run on an emulated max: RuntimeError: two"
    with pytest.raises(InputError, match=words):
        jobs.do("answer", [task], native, "max", tmp_path)


def test_a_child_is_ended_with_what_asked_for_it(native: Machine, tmp_path: Path) -> None:
    (native.folder / "qemu" / machine.LOADER).write_text(
        f"#!/bin/sh\necho $$ > {tmp_path}/pid; echo done; exec sleep 600\n"
    )

    def interrupted(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jobs.do("answer", [], native, "max", tmp_path, advance=interrupted)
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()
