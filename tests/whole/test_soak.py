"""A few faults on the real command line, as `nox -s soak` has by the hundred; checks that fail."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.base.checksums import hash_of, seal
from tests.making import HOUR, ROOT
from tests.making.cli import environment
from tests.soak.__main__ import wanted
from tests.soak.attempts import Attempt
from tests.soak.campaign import Scene, Undisturbed, damaged, differences, wrong_end
from tests.soak.faults import Plan

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux" or shutil.which("cc") is None,
        reason="faults need Linux and a compiler",
    ),
]


def test_faults_change_nothing(tmp_path: Path) -> None:
    counts = ["--kills", "2", "--faults", "3", "--signals", "1", "--recipes", "0", "--files", "0"]
    narrow = ["--formats", "plain", "--workers", "2", "--work", tmp_path]
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak", *counts, *narrow],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=HOUR,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 of 6 faults have struck" in done.stdout
    (total,) = [line.split() for line in done.stdout.splitlines() if line.startswith("all ")]
    assert int(total[1]) == int(total[2]) >= 6


def test_every_kind_of_fault_has_its_share() -> None:
    whole = wanted(300, 100, 30)
    assert whole.total() == 430
    assert whole["killed at a moment"] == whole["killed at a file operation"] == 150
    assert whole["disk full"] + whole["disk full, suddenly"] == 40
    assert min(whole.values()) == 10


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """The output of a run: one result and one target, both whole."""
    out = tmp_path / "out"
    for name in (".store/train-1", "phone"):
        (out / name).mkdir(parents=True)
        (out / name / "model.onnx").write_text(name)
    (out / "phone" / "report.json").write_text("{}")
    for name in (".store/train-1", "phone"):
        seal(out / name)
    files = {
        name: hash_of(out / name) for name in ("phone/model.onnx", ".store/train-1/model.onnx")
    }
    return Scene(
        formats="onnx",
        out=out,
        folder=tmp_path,
        plan=Plan(tmp_path / "plan"),
        on_tmpfs=False,
        known=Undisturbed(files=files, seconds=1, writes=1, reads=1, opens=1, size_bytes=1),
        dice=random.Random(0),
        share=1,
    )


def test_what_is_whole_and_alike_is_no_problem(scene: Scene) -> None:
    assert damaged(scene.out) == set()
    assert differences(scene) == []


def test_half_written_files_are_seen(scene: Scene) -> None:
    (scene.out / ".store" / "fold-2").mkdir()
    (scene.out / "phone" / "model.onnx").write_text("pho")
    (scene.out / "combined").mkdir()
    (scene.out / "combined" / "report.json").write_text('{"passed": tr')
    assert {str(path.relative_to(scene.out)) for path in damaged(scene.out)} == {
        ".store/fold-2",
        "phone",
        "combined/report.json",
    }


def test_other_artifacts_are_seen(scene: Scene) -> None:
    (scene.out / "phone" / "model.onnx").write_text("another")
    (scene.out / ".store" / "train-1" / "model.onnx").unlink()
    assert differences(scene) == [
        "phone/model.onnx is another file",
        ".store/train-1/model.onnx is missing",
    ]


def ended(status: int, stderr: str = "", reaction: float | None = None) -> Attempt:
    return Attempt(status=status, seconds=1.0, reaction=reaction, stdout="", stderr=stderr)


@pytest.mark.parametrize(
    ("kind", "end"),
    [
        ("", ended(2, "error: no")),
        ("disk full", ended(1, "Traceback (most recent call last):\nOSError: no")),
        ("disk full", ended(2, "something")),
        ("EIO on a read", ended(-11)),
        ("EIO on a read", ended(-9)),
        ("SIGTERM", ended(130, "interrupted", 1.0)),
        ("SIGTERM", ended(143, "interrupted", 10.5)),
    ],
)
def test_wrong_ends_are_seen(kind: str, end: Attempt) -> None:
    assert len(wrong_end(kind, end)) == 1


@pytest.mark.parametrize(
    ("kind", "end"),
    [
        ("", ended(0)),
        ("killed at a moment", ended(-9)),
        ("disk full", ended(2, "error: no disk space left")),
        ("SIGINT", ended(130, "interrupted", 1.0)),
    ],
)
def test_right_ends_are_none(kind: str, end: Attempt) -> None:
    assert wrong_end(kind, end) == []
