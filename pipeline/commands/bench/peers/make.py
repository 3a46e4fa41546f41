"""Making every peer's file from one network and one set of images, each in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from pipeline.base.safe_files import remove
from pipeline.commands.bench.peers.naive import save_network
from pipeline.commands.bench.peers.plans import CALIBRATION, NETWORK, PLANS, PeerPlan, report_of
from pipeline.formats.write import child_environment

_POLL_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A file that another tool made of the network, or why there is none.

    Attributes:
        name: which tool, and how.
        tool: its name alone.
        format: of `FORMATS`.
        precision: float or int8.
        path: of the file; None where it could not be made.
        seconds: that making it took, imports included, beside whatever else was being made.
        peak_bytes: the most memory its process held; None where it did not come to say.
        missing: why there is no file, in a line, with the log's name; else None.
    """

    name: str
    tool: str
    format: str
    precision: str
    path: Path | None
    seconds: float
    peak_bytes: int | None
    missing: str | None


@dataclass(frozen=True, kw_only=True)
class _Child:
    """A running process and when it started."""

    plan: PeerPlan
    process: subprocess.Popen[bytes]
    started: float
    log: Path


def make(
    networks: Mapping[str, nn.Module],
    calibration: Tensor,
    folder: Path,
    processes: int = 2,
    progress: Callable[[str], None] = lambda line: None,
    plans: Sequence[PeerPlan] | None = None,
) -> list[Peer]:
    """Make the file of every peer in `folder`, in the order of `plans`.

    Peers that start from code which does not publish the network are left out.

    A tool that fails gives a peer without a file; the others go on. What each prints is in
    `<file>.log` beside its file.

    Args:
        networks: the trained float network in evaluation mode, by the code that publishes it so.
        calibration: float32 (N, 3, S, S), normalised; S is the side of the files' images.
        folder: where the files go; made if need be. Older files of the same names are replaced.
        processes: how many may run at a time.
        progress: is told of each peer as it is done, in a line.
        plans: which files there are to make, and what they are made from; all by default.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    plans = [plan for plan in (PLANS if plans is None else plans) if plan.code in networks]
    for plan in plans:
        for old in (folder / plan.file, _log(folder, plan)):
            remove(old)  # a link as well, which would lead what is written elsewhere
    with tempfile.TemporaryDirectory(prefix=".inputs-", dir=folder) as scratch:
        inputs = Path(scratch)
        for code, network in networks.items():
            save_network(network, inputs / NETWORK.format(code=code))
        np.save(inputs / CALIBRATION, calibration.detach().cpu().numpy())
        made = _make_all(plans, inputs, folder, processes, progress)
    return [made[plan.name] for plan in plans]


def _make_all(
    plans: Sequence[PeerPlan],
    inputs: Path,
    folder: Path,
    processes: int,
    progress: Callable[[str], None],
) -> dict[str, Peer]:
    """Every peer by its name."""
    waiting = sorted(plans, key=lambda plan: plan.start)
    running: list[_Child] = []
    made: dict[str, Peer] = {}

    def note(peer: Peer) -> None:
        made[peer.name] = peer
        progress(f"{peer.name}: {peer.missing or f'{peer.seconds:.1f} s'}")

    try:
        while waiting or running:
            ready = [plan for plan in waiting if plan.source is None or plan.source in made]
            for plan in ready[: processes - len(running)]:
                waiting.remove(plan)
                if plan.source is not None and made[plan.source].path is None:
                    note(_peer(plan, missing=f"it is made from '{plan.source}', which is missing"))
                else:
                    running.append(_start(plan, inputs, folder))
            for child in [child for child in running if child.process.poll() is not None]:
                running.remove(child)
                note(_ended(child, inputs, folder))
            time.sleep(_POLL_SECONDS)
    finally:
        for child in running:
            _end(child.process)
    return made


def _peer(
    plan: PeerPlan,
    *,
    path: Path | None = None,
    seconds: float = 0.0,
    peak_bytes: int | None = None,
    missing: str | None = None,
) -> Peer:
    return Peer(
        name=plan.name,
        tool=plan.tool,
        format=plan.format,
        precision=plan.precision,
        path=path,
        seconds=seconds,
        peak_bytes=peak_bytes,
        missing=missing,
    )


def _start(plan: PeerPlan, inputs: Path, folder: Path) -> _Child:
    """Start a process that makes the file, in a working directory of its own below `inputs`."""
    work = inputs / f"{plan.file}.work"
    work.mkdir()
    log = _log(folder, plan)
    # onnx2tf calls a program that is installed beside this Python.
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with log.open("wb") as output:
        process = subprocess.Popen(
            # -P: a folder named pipeline where the user stands must not take this package's place.
            [
                sys.executable,
                "-P",
                "-m",
                "pipeline.commands.bench.peers.child",
                plan.name,
                inputs,
                folder,
            ],
            cwd=work,
            env=child_environment() | {"PATH": programs, "TMPDIR": str(inputs)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A group of its own can be ended with all that it started.
            start_new_session=True,
        )
    return _Child(plan=plan, process=process, started=time.perf_counter(), log=log)


def _ended(child: _Child, inputs: Path, folder: Path) -> Peer:
    """What came of a process that has ended."""
    seconds = time.perf_counter() - child.started
    plan, code = child.plan, child.process.returncode
    report = report_of(plan, inputs)
    if report.exists():
        said = json.loads(report.read_text(encoding="utf-8"))
    else:
        killed = f"ended by {signal.Signals(-code).name}" if code < 0 else None
        said = {"peak_bytes": None, "error": killed or _last_line(child.log)}
    if said["error"] is None:
        path = folder / plan.file
        return _peer(plan, path=path, seconds=seconds, peak_bytes=said["peak_bytes"])
    missing = f"{said['error']} (more in {child.log.name})"
    return _peer(plan, seconds=seconds, peak_bytes=said["peak_bytes"], missing=missing)


def _log(folder: Path, plan: PeerPlan) -> Path:
    return folder / f"{plan.file}.log"


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it printed nothing"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
