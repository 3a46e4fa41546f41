"""LiteRT's `benchmark_model` on the phone: its command lines, and whether it fits the phone."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.base.errors import InputError
from pipeline.base.safe_files import open_file
from pipeline.measure.device.benchmark_model import Delegation, Printed

_MACHINES = {3: ("x86",), 40: ("armeabi-v7a", "armeabi"), 62: ("x86_64",), 183: ("arm64-v8a",)}
"""Android's names for what an ELF file's `e_machine` says."""
_OUR_INPUT = "image"
"""The tool takes any name for a file's input, and has its own signs in names."""


@dataclass(frozen=True, kw_only=True)
class UnitFlags:
    """How a unit is asked for, and what the tool calls its delegate."""

    flags: tuple[str, ...]
    delegate: str


UNITS = {
    "cpu": UnitFlags(flags=("--use_xnnpack=true",), delegate="XNNPACK"),
    "gpu": UnitFlags(flags=("--use_gpu=true",), delegate="GPU"),
    "npu": UnitFlags(flags=("--use_nnapi=true", "--disable_nnapi_cpu=true"), delegate="NNAPI"),
}
"""By the name that commands and records have. Android reaches an NPU through NNAPI alone, unless
its maker's own delegate is there."""


def refuse_other_machine(runner: Path, abi: str | None) -> None:
    """Refuse a program that is made for another processor than the phone's.

    Raises:
        InputError: it is; or it is no file.
    """
    try:
        with open_file(runner) as file:
            head = file.read(20)
    except OSError as error:
        raise InputError(
            f"--runner {runner}: {error.strerror}; give LiteRT's benchmark_model for the phone"
        ) from error
    if abi is None or len(head) < 20 or head[:4] != b"\x7fELF":
        return
    order = "<" if head[5] == 1 else ">"
    (machine,) = struct.unpack(f"{order}H", head[18:20])
    known = _MACHINES.get(machine, (f"machine {machine}",))
    if abi not in known:
        raise InputError(
            f"--runner {runner}: is a program for {known[0]}, and the phone's are {abi}; give "
            f"benchmark_model for {abi}"
        )


def golden_words(
    folder: str, file: str, unit: str, shape: Sequence[int], image: str, answer: str
) -> str:
    """One inference of one image, with the answer written into a file.

    Args:
        folder: path on the phone.
        file: name of the model there.
        unit: of `UNITS`.
        shape: of the file's input.
        image: name of the file with its bytes.
        answer: name of the file for the output's bytes.
    """
    flags = (
        "--num_runs=1",
        "--min_secs=0",
        "--warmup_runs=0",
        "--warmup_min_secs=0",
        f"--input_layer={_OUR_INPUT}",
        f"--input_layer_shape={','.join(map(str, shape))}",
        f"--input_layer_value_files={_OUR_INPUT}:{folder}/{image}",
        f"--output_filepath={folder}/{answer}",
        *UNITS[unit].flags,
    )
    return _words(folder, file, flags)


def timing_words(
    folder: str,
    file: str,
    unit: str,
    threads: int | None,
    *,
    runs: int,
    warmup: int,
    profiled: bool = False,
) -> str:
    """A number of inferences of noise, after some that do not count.

    Args:
        folder: path on the phone.
        file: name of the model there.
        unit: of `UNITS`.
        threads: of the CPU; None where the unit has none.
        runs: that count.
        warmup: that do not.
        profiled: also print the time of each operation, which takes time itself.
    """
    flags = (
        f"--num_runs={runs}",
        "--min_secs=0",
        f"--warmup_runs={warmup}",
        "--warmup_min_secs=0",
        *([] if threads is None else [f"--num_threads={threads}"]),
        *(["--enable_op_profiling=true"] if profiled else []),
        *UNITS[unit].flags,
    )
    return _words(folder, file, flags)


class RunnerFailed(InputError):
    """The tool did not come to its end with a file on a unit."""


RUNNER = "runner"
"""Name of the tool in the folder on the phone."""


def _words(folder: str, file: str, flags: Sequence[str]) -> str:
    return " ".join([f"{folder}/{RUNNER}", f"--graph={folder}/{file}", *flags])


def too_old(found: Printed) -> str | None:
    """Which flag a version of the tool lacks that the golden images need; None where it has all."""
    needed = ("--input_layer_value_files", "--output_filepath", "--min_secs", "--warmup_min_secs")
    for flag in found.unknown_flags:
        if flag.startswith(needed):
            return f"this runner knows no {flag.split('=')[0]}: give a newer benchmark_model"
    return None


def delegation(found: Printed, unit: str) -> Delegation | None:
    """What the unit's delegate took of the graph; None where the tool does not say."""
    return found.delegations.get(UNITS[unit].delegate)


def fell_back(found: Printed, unit: str) -> str | None:
    """Why work that was asked of a unit ran on the CPU, all or part of it; None where none did."""
    if unit == "cpu":
        return None
    known, name = UNITS[unit], UNITS[unit].delegate
    asked = {flag.split("=")[0] for flag in known.flags}
    if asked & {flag.split("=")[0] for flag in found.unknown_flags}:
        return f"this runner knows no {name} delegate: all ran on the CPU"
    if name in found.unsupported:
        return f"the phone has no {name} delegate that can be used: all ran on the CPU"
    taken = delegation(found, unit)
    if taken is None:
        return (
            f"benchmark_model does not say that {name} took anything: all may have run on the CPU"
        )
    if taken.extent == "none":
        return f"{name} took nothing of the graph: all ran on the CPU"
    if taken.extent == "part":
        kernels = "" if taken.kernels is None else f", in {taken.kernels} pieces"
        return f"{name} took a part of the graph{kernels}: the rest ran on the CPU"
    return None
