"""The same files in another environment's runtimes: this one's Python stands for it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.base.errors import InputError
from pipeline.commands.bench.benchmark import Benchmark, _time, _upgrades, as_json
from pipeline.commands.bench.contestants import Contestant
from pipeline.commands.bench.newer import Newer, _differs, opened
from pipeline.measure.lanes.lane import ModelFile
from pipeline.measure.lanes.lanes import HOST, LANES
from pipeline.recipe.input_shape import square
from tests.making import programs
from tests.making.baselines import silent
from tests.making.networks import SIDE

FORMS = {"onnx": "onnxruntime", "tflite": "ai-edge-litert"}


def contestant(form: str, pixels: bool = False) -> Contestant:
    path = programs.file_of(form, pixels=pixels)
    drawn = torch.rand(1, 3, SIDE, SIDE, generator=torch.manual_seed(0))
    return Contestant(
        name=f"{form}{' of pixels' * pixels}",
        tool="PocketNest",
        runtime=f"the {form} of here",
        precision="int8",
        path=path,
        size_bytes=path.stat().st_size,
        made_in_s=None,
        accuracy=None,
        file=ModelFile(path=path, format=form),
        image=(255 * drawn).round() if pixels else drawn,
    )


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Newer]:
    with opened([Path(sys.executable)], tmp_path_factory.mktemp("newer")) as (found,):
        yield found


def test_it_says_which_runtimes_it_has(newer: Newer) -> None:
    assert newer.versions == {form: version(package) for form, package in FORMS.items()}


@pytest.mark.parametrize("pixels", [False, True], ids=["normalised", "pixels"])
@pytest.mark.parametrize("form", FORMS)
def test_a_file_answers_as_here_and_is_timed_in_turn(newer: Newer, form: str, pixels: bool) -> None:
    one = contestant(form, pixels)
    (other,) = newer.contestants([one, replace(one, name="torch eager", file=None)])
    assert (other.note, other.missing, other.same_as) == (None, None, one.name)
    assert other.name == f"{one.name} in {other.runtime}"
    assert other.runtime.endswith(version(FORMS[form]))
    assert other.accuracy is None, "that is not known of one image"
    timed = _time(LANES[HOST], [one, other], 1, 3, silent)
    assert timed.latencies[other.name].runs == timed.latencies[one.name].runs == 3
    assert other.clock is not None
    assert timed.latencies[other.name].samples_ms[-1] == other.clock(), "by its own clock"
    found = Benchmark(
        lane=HOST,
        shape=square(SIDE),
        contestants=(one, other),
        timed=(timed,),
        counted={},
        within=(),
        upgrades=_upgrades([one, other], timed.latencies),
        rooflines={},
        outcomes=(),
    )
    told = json.loads(json.dumps(as_json(found)))
    assert told["contestants"][1]["same_as"] == one.name
    assert set(told["upgrades"]) == {other.name}
    assert set(_upgrades([one, other], timed.latencies)) == {other.name}
    assert _upgrades([other], timed.latencies).keys() == {other.name}
    assert _upgrades([one], timed.latencies) == {}


def test_a_file_that_answers_otherwise_or_not_at_all_says_so(
    newer: Newer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = contestant("onnx")
    assert one.file is not None
    assert one.image is not None
    here = LANES[HOST].answers({"": one.file}, [one.image], 1)[""].flatten()
    assert _differs(here, one.file, one.image) is None
    said = _differs(here + 1, one.file, one.image)
    assert "of the largest logit" in str(said)
    np.save(tmp_path / "image.npy", one.image.numpy())
    asked = {"format": "onnx", "path": str(tmp_path / "gone"), "threads": 1, "exact": False}

    def opened(name: str, file: ModelFile, image: Tensor, threads: int) -> Tensor:
        newer._asked({"open": name, "image": str(tmp_path / "image.npy")} | asked)
        raise AssertionError("it opened nothing")

    monkeypatch.setattr(newer, "_opened", opened)
    (gone,) = newer.contestants([one])
    assert gone.call is None
    assert str(gone.missing).startswith("ONNX Runtime")
    monkeypatch.undo()
    (other,) = newer.contestants([one])
    assert other.missing is None, "the process goes on"


def test_an_interpreter_without_runtimes_is_refused(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    with pytest.raises(InputError, match="its process ended: ModuleNotFoundError"):
        Newer(tmp_path / "bare" / "bin" / "python", tmp_path)
    with pytest.raises(InputError, match="nowhere: No such file"):
        Newer(tmp_path / "nowhere", tmp_path)


def test_its_process_ends_with_the_benchmark(tmp_path: Path) -> None:
    with opened([Path(sys.executable)], tmp_path) as (found,):
        process = found._process
        assert process.poll() is None
    assert process.poll() is not None
