"""Where figures come from: code, machine and tools."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.records import CodeInfo, HostInfo

TOOLS = (
    "torch",
    "torchvision",
    "torchao",
    "torch-pruning",
    "neural-compressor",
    "onnx",
    "onnxruntime",
    "onnx2tf",
    "tensorflow",
    "ai-edge-litert",
    "coremltools",
    "scikit-learn",
    "numpy",
)
"""Packages whose version can change a result."""


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
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return HostInfo(cpu=_cpu_name(), cores=cores or 1, gpu=gpu)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def tool_versions() -> dict[str, str]:
    """Version of every package in `TOOLS`."""
    return {name: version(name) for name in TOOLS}
