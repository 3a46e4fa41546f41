"""What a disk refused is told from other errors, however libraries wrap it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from pipeline.base.disk import is_full, refusal


def os_error(number: int, path: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), path)


def wrapped(cause: BaseException) -> BaseException:
    try:
        raise RuntimeError("the writer failed") from cause
    except RuntimeError as error:
        return error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk(number: int, tmp_path: Path) -> None:
    for error in (os_error(number), wrapped(os_error(number))):
        assert is_full(error, tmp_path)
        assert os.strerror(number) in str(refusal(error))


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EROFS, errno.ENOTDIR])
def test_what_else_a_disk_refuses(number: int, tmp_path: Path) -> None:
    error = os_error(number, "results/x")
    assert not is_full(error, tmp_path)
    assert refusal(error) == refusal(wrapped(error)) == f"results/x: {os.strerror(number)}"


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    error = os_error(errno.ELOOP, "artifacts/x")
    assert refusal(error) == f"artifacts/x: {os.strerror(errno.ELOOP)}"
    assert refusal(wrapped(error)) is None, "whoever caught it has more to say"


def test_other_errors_are_none_of_the_disks(tmp_path: Path) -> None:
    for error in (ValueError("no"), os_error(errno.ENOENT), wrapped(KeyError("x"))):
        assert not is_full(error, tmp_path)
        assert refusal(error) is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_torchs_own_errors(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    path.symlink_to("/dev/full")
    with pytest.raises(RuntimeError) as caught:
        torch.save({"x": torch.zeros(300_000)}, path)
    assert refusal(caught.value) is not None
    assert "\n" not in str(refusal(caught.value))


def test_safetensors_own_errors() -> None:
    error = SafetensorError("Error while serializing: I/O error: Input/output error (os error 5)")
    assert refusal(error) == str(error)
