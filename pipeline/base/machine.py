"""Where figures come from: recipe, network, code, machine and tools."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.base.record import MeasuredRecord, Positive, Text

TOOLS = (
    "torch",
    "torchvision",
    "torchao",
    "torch-pruning",
    "neural-compressor",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnx2tf",
    "tensorflow",
    "ai-edge-litert",
    "coremltools",
    "scikit-learn",
    "numpy",
    "pillow",
    "zstandard",
)
"""Packages whose version can change a result."""


def utc_now() -> str:
    """The time, as records hold it: 2026-11-21T14:05:00Z."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def code_info() -> CodeInfo:
    """Version and commit of PocketNest; the commit is None outside a checkout."""
    try:
        number = version("pocketnest")
    except PackageNotFoundError:
        number = "unknown"
    return CodeInfo(version=number, commit=_commit())


def _commit() -> str | None:
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def host_info() -> HostInfo:
    """This machine: CPU model, usable cores, GPU."""
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return HostInfo(cpu=_cpu_name(), cores=cores(), gpu=gpu)


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_flags() -> frozenset[str] | None:
    """What the CPU can do, in Linux' words (`avx512_vnni`, `amx_bf16`); None where not known."""
    flags = _cpuinfo("flags") or _cpuinfo("Features")
    return None if flags is None else frozenset(flags.split())


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(key: str) -> str | None:
    """The first value of `key` in /proc/cpuinfo; None where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    found = (line.split(":", 1)[1].strip() for line in lines if line.startswith(key))
    return next(found, None)


def tool_versions() -> dict[str, str]:
    """Version of every package in `TOOLS`."""
    return {name: version(name) for name in TOOLS}


class CodeInfo(MeasuredRecord):
    """The PocketNest that ran; `commit` is None outside a git checkout."""

    version: Text
    commit: Text | None


class HostInfo(MeasuredRecord):
    """The machine that ran; `gpu` is None where there is none."""

    cpu: Text
    cores: Positive
    gpu: Text | None
