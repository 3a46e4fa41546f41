"""Freed memory stays with the process."""

import platform
import subprocess
import sys

import pytest

from pipeline.base.memory import keep_freed_memory

COUNT_FAULTS = """
import resource, sys
import torch
from pipeline.base.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for step in range(40):
    if step == 5:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    parts = [torch.ones(12_000_000) for _ in range(3)]  # more than glibc ever keeps by itself
    del parts
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_large_tensors_are_made_of_memory_that_is_there_already() -> None:
    faults = {
        mode: int(subprocess.check_output([sys.executable, "-c", COUNT_FAULTS, mode]))
        for mode in ("keep", "default")
    }
    assert faults["keep"] * 20 < faults["default"]


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1.2"))
    assert keep_freed_memory() is False
