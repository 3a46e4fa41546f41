"""Where the libraries' output goes, and where it must not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.base.console import third_party_output_to
from pipeline.base.errors import InputError


def test_what_libraries_print_goes_to_the_log(tmp_path: Path) -> None:
    for text in ("one", "two"):
        with third_party_output_to(tmp_path / "new" / "run.log"):
            os.write(1, f"{text}\n".encode())
    assert (tmp_path / "new" / "run.log").read_text() == "one\ntwo\n"


def test_nothing_is_logged_through_a_link_or_into_a_pipe(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("as it was")
    (tmp_path / "link").symlink_to(outside)
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with (
            pytest.raises(InputError, match="so nothing is written there"),
            third_party_output_to(tmp_path / name),
        ):
            os.write(1, b"changed")
    assert outside.read_text() == "as it was"
