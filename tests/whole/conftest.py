"""The run that several files here look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.making.runs import narrow_runs


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one run of all three device recipes."""
    return narrow_runs(tmp_path_factory.mktemp("run") / "artifacts")
