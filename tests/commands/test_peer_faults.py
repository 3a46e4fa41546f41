"""Tools that fail, networks that travel to another process, and children that end."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.commands.bench.peers import make as make_module
from pipeline.commands.bench.peers.make import make
from pipeline.commands.bench.peers.naive import load_network, save_network
from pipeline.commands.bench.peers.plans import (
    CALIBRATION,
    NAIVE,
    report_of,
)
from pipeline.formats.write import child_environment
from pipeline.networks.libraries.build import load
from tests.making import programs
from tests.making.networks import images
from tests.making.peers import (
    COREML,
    NO_TOOL,
    STATIC,
    networks,
    planned,
    with_plans,
)

pytestmark = pytest.mark.slow


def test_a_network_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    model = programs.network("radix4").train()
    save_network(model, tmp_path / "network.pt")
    loaded = load_network(tmp_path / "network.pt")
    assert loaded.config == model.config
    assert not loaded.training
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


OWN = """
from torch import nn

def net(num_classes):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(num_classes))
    model[0].register_forward_pre_hook(halved)
    return model

def halved(layer, given):
    return (given[0] / 2,)
"""


def test_a_network_of_a_users_own_code_comes_back_in_another_process(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(OWN)
    model = load(tmp_path / "nets.py").net(5)
    model(torch.zeros(1, 3, 8, 8))
    save_network(model, tmp_path / "network.pt")
    code = (
        "import sys, torch; from pathlib import Path; "
        "from pipeline.commands.bench.peers.naive import load_network; "
        "print(load_network(Path(sys.argv[1]))(torch.ones(1, 3, 8, 8)).tolist())"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "network.pt")],
        check=True,
        capture_output=True,
        text=True,
        env=child_environment(),
    )
    wanted = model(torch.ones(1, 3, 8, 8)).tolist()
    assert json.loads(found.stdout)[0] == pytest.approx(wanted[0], abs=1e-5)


def test_a_damaged_source_is_reported_in_a_line(tmp_path: Path) -> None:
    (tmp_path / planned(NAIVE).file).write_bytes(b"no ONNX file")
    np.save(tmp_path / CALIBRATION, images(2).numpy())
    result = subprocess.run(
        [
            sys.executable,
            "-P",
            "-m",
            "pipeline.commands.bench.peers.child",
            STATIC,
            tmp_path,
            tmp_path,
        ],
        env=child_environment(),
        cwd=tmp_path,
        capture_output=True,
    )
    assert result.returncode == 1
    assert not (tmp_path / planned(STATIC).file).exists()
    report = json.loads(report_of(planned(STATIC), tmp_path).read_text())
    assert report["error"].startswith("google.protobuf.message.DecodeError: Error parsing message")
    assert report["error"] in result.stderr.decode()
    assert report["peak_bytes"] > 50e6


def test_children_end_with_an_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_plans(monkeypatch, NO_TOOL, planned(COREML))
    started, start = [], make_module._start

    def noting(*arguments: Any) -> Any:
        started.append(start(*arguments))
        return started[-1]

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(make_module, "_start", noting)
    with pytest.raises(KeyboardInterrupt):
        make(networks(), images(2), tmp_path, progress=interrupt)
    assert [child.process.returncode for child in started] == [1, -9]
    assert {path.suffix for path in tmp_path.iterdir()} == {".log"}


def test_peak_memory_is_the_childs_own() -> None:
    """What the parent held when it started the child does not count."""
    held = np.ones(400 << 20, np.uint8)
    code = "from pipeline.commands.bench.peers.child import _peak_bytes; print(_peak_bytes())"
    result = subprocess.run(
        [sys.executable, "-P", "-c", code], env=child_environment(), capture_output=True, check=True
    )
    assert held[-1] == 1
    assert 10e6 < int(result.stdout) < 200e6
