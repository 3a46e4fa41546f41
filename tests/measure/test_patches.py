"""Updates: each patch makes the new file of the old one, and costs what changed."""

from __future__ import annotations

from pathlib import Path

import bsdiff4
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.errors import InputError, MismatchError
from pipeline.measure import patches as measured
from pipeline.measure.downloads import download_bytes
from pipeline.measure.patches import PATCHERS, patches

NOISE = np.random.default_rng(0).bytes(100_000)


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def update(folder: Path, old: bytes, new: bytes) -> dict[str, int]:
    return patches(written(folder / "old.tflite", old), written(folder / "new.tflite", new))


def test_the_same_file_needs_none(tmp_path: Path) -> None:
    assert update(tmp_path, NOISE, NOISE) == dict.fromkeys(PATCHERS, 0)


def test_a_few_bytes_cost_little_and_other_content_all_of_it(tmp_path: Path) -> None:
    changed = NOISE[:40_000] + b"few new weights" + NOISE[40_000:]
    assert max(update(tmp_path, NOISE, changed).values()) < 500
    other = np.random.default_rng(1).bytes(100_000)
    assert min(update(tmp_path, NOISE, other).values()) > 99_000


def test_parts_that_moved_are_found_far_away(tmp_path: Path) -> None:
    found = update(tmp_path, NOISE, NOISE[50_000:] + NOISE[:50_000])
    assert max(found.values()) < 500


def test_codes_that_moved_by_one_cost_less_than_the_file(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    codes = np.clip(draw.laplace(0, 12, 200_000).round(), -126, 126).astype(np.int8)
    moved = codes + draw.choice([-1, 0, 0, 0, 0, 0, 0, 0, 0, 1], codes.size).astype(np.int8)
    found = update(tmp_path, codes.tobytes(), moved.tobytes())
    assert found["bsdiff"] < 0.3 * download_bytes(tmp_path / "new.tflite")


def test_only_the_changed_files_of_a_package_are_sent(tmp_path: Path) -> None:
    for name, end in (("old", b"1"), ("new", b"2")):
        written(tmp_path / name / "m.mlpackage" / "Data" / "weight.bin", NOISE)
        written(tmp_path / name / "m.mlpackage" / "Manifest.json", b'{"version": ' + end + b"}")
    written(tmp_path / "old" / "m.mlpackage" / "gone.bin", NOISE)
    old, new = (tmp_path / name / "m.mlpackage" for name in ("old", "new"))
    assert 0 < max(patches(old, new).values()) < 300
    written(new / "come.bin", NOISE[::-1])
    assert min(patches(old, new).values()) > len(NOISE)


@given(old=st.binary(max_size=300), new=st.binary(max_size=300))
def test_any_file_can_be_made_of_any_other(old: bytes, new: bytes) -> None:
    for make in measured._PATCHERS.values():
        assert make(old, new)[1] == new


def test_a_patch_that_makes_another_file_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bsdiff4, "patch", lambda old, patch: old)
    with pytest.raises(MismatchError, match=r"new.tflite: the bsdiff patch of \d+ bytes does not"):
        update(tmp_path, NOISE, NOISE[1:])


def test_a_large_file_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = tmp_path / "large.tflite"
    with large.open("wb") as file:
        file.truncate(measured.MOST_BYTES + 1)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
    for old, new in ((large, tmp_path / "x"), (tmp_path / "x", large)):
        (tmp_path / "x").touch()
        with pytest.raises(InputError, match="has 134 MB; patches are made of files of at most"):
            patches(old, new)
