"""What was measured before a stage was stopped is read again, and kept where it cannot be now."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.base import safe_files
from pipeline.measure.width_times import Attempt
from pipeline.stages.prune import _remembered

MEASURED = [Attempt(widths={"conv1": 8}, predicted=0.5, measured=0.6)]


def remembered(folder: Path, measure: Callable[[], list[Attempt]]) -> list[Attempt]:
    context: Any = SimpleNamespace(partial=folder)
    return _remembered(context, "attempts.json", measure)


def never() -> list[Attempt]:
    raise AssertionError("measured again")


def test_measured_attempts_are_read_again(tmp_path: Path) -> None:
    folder = tmp_path / "partial"
    assert remembered(folder, lambda: MEASURED) == MEASURED
    assert remembered(folder, never) == MEASURED
    for content in ("{", "[{}]", "3", "[" * 100_000):
        (folder / "attempts.json").write_text(content)
        assert remembered(folder, lambda: MEASURED) == MEASURED
        assert remembered(folder, never) == MEASURED


def test_measured_attempts_that_cannot_be_read_now_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered(tmp_path, lambda: MEASURED)

    def fails(path: Path) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(safe_files, "open_file", fails)
    with pytest.raises(OSError, match="Input/output error"):
        remembered(tmp_path, never)
    monkeypatch.undo()
    assert remembered(tmp_path, never) == MEASURED
