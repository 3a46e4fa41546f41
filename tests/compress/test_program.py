"""Programs on disk: what comes back is what was saved, and nothing in a file runs."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.base.errors import InputError
from pipeline.compress.quantization import program
from tests.making import HOUR
from tests.making.cli import environment

Members = dict[str, bytes]
_SAMPLES = "archive/data/sample_inputs/model.pt"
_WEIGHTS = "archive/data/weights/model_weights_config.json"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "program.pt2"
    program.save(torch.export.export(nn.Linear(3, 2), (torch.ones(1, 3),)), path)
    return path


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_what_was_saved_comes_back(saved: Path) -> None:
    loaded = program.load(saved)
    assert loaded.module()(torch.ones(4, 3)[:1]).shape == (1, 2)
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_a_program_is_read_once_and_anew_where_its_file_was_replaced(saved: Path) -> None:
    loaded = program.load(saved)
    graph = loaded.module().graph
    for node in graph.nodes:
        node.meta["changed"] = True
    assert program.load(saved) is loaded
    assert not any("changed" in node.meta for node in loaded.graph.nodes)
    program.save(torch.export.export(nn.Linear(3, 5), (torch.ones(1, 3),)), saved)
    assert program.load(saved).module()(torch.ones(1, 3)).shape == (1, 5)


def rewrite(path: Path, change: Callable[[Members], None]) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def as_samples(members: Members, pickled: bytes) -> None:
    members[_SAMPLES] = pickled


def as_old_weights(members: Members, pickled: bytes) -> None:
    members["archive/data/weights/model.pt"] = pickled


def as_a_weight(members: Members, pickled: bytes) -> None:
    tree = json.loads(members[_WEIGHTS])
    entry = next(iter(tree["config"].values()))
    entry["use_pickle"] = True
    members[f"archive/data/weights/{entry['path_name']}"] = pickled
    members[_WEIGHTS] = json.dumps(tree).encode()


@pytest.mark.parametrize("put", [as_samples, as_old_weights, as_a_weight])
def test_a_hostile_pickle_never_runs(
    saved: Path, tmp_path: Path, put: Callable[[Members, bytes], None]
) -> None:
    content = io.BytesIO()
    torch.save({"x": Hostile(tmp_path / "ran")}, content)
    rewrite(saved, lambda members: put(members, content.getvalue()))
    with pytest.raises(Exception, match=r"."):
        program.load(saved)
    assert not (tmp_path / "ran").exists()
    with suppress(Exception):
        torch.export.load(saved)
    assert (tmp_path / "ran").exists(), "the test itself is sound: torch's own loader runs it"


@pytest.mark.parametrize(
    "name",
    [
        "archive/data/aotinductor/model/x.so",
        "archive/data/constants/custom_obj_0",
        "program/extra/x",
        "serialized_example_inputs.pt",
    ],
)
def test_what_is_no_part_of_a_program_is_refused(saved: Path, name: str) -> None:
    rewrite(saved, lambda members: members.update({name: b"x"}))
    with pytest.raises(InputError, match=r"program\.pt2: holds .* no part of a program"):
        program.load(saved)


@pytest.mark.slow
def test_a_disk_that_refuses_ends_nothing_but_the_saving(tmp_path: Path) -> None:
    """In a process of its own: torch's writer would end it when it is collected."""
    code = (
        "import resource, sys, torch\n"
        "from pathlib import Path\n"
        "from pipeline.compress.quantization import program\n"
        "linear = torch.export.export(torch.nn.Linear(300, 300), (torch.ones(1, 300),))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n    program.save(linear, Path(sys.argv[1]))\n"
        "except OSError as error:\n    print(error.strerror)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "program.pt2")],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=HOUR,
    )
    assert (done.returncode, done.stdout) == (0, "File too large\n"), done.stderr
