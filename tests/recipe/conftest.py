"""A folder to write recipes in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.making.recipe_texts import WHOLE


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory that holds whole.yaml."""
    monkeypatch.chdir(tmp_path)
    Path("whole.yaml").write_text(WHOLE)
    return tmp_path
