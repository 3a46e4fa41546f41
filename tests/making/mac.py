"""A stand-in for a Mac: an `ssh` that runs what it is told here, and a Core ML that asks us.

    with mac(tmp_path, monkeypatch) as there:
        there.faults["ne"] = "both factors are given the product's scale"
        ...
        assert there.left() == []

The script of the lane runs as it would there, in processes of its own. In the place of coremltools
it finds a package of that name which sends every image to the reference evaluator here.
"""

from __future__ import annotations

import json
import os
import socketserver
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.formats.coreml import faults
from pipeline.formats.coreml import package as coreml_package
from pipeline.formats.coreml.file import ReferenceRunnable

SSH = """\
#!/bin/sh
# As ssh does it: options, --, the host, and one command for the shell of the other side.
echo "$$" > "{folder}/ssh.pid"
echo "$@" >> "{folder}/ssh.txt"
while [ "$1" != "--" ]; do shift; done
shift 2
{before}
export TMPDIR="{tmp}" PYTHONPATH="{stub}" POCKETNEST_TEST_MAC="{socket}"
{noise}
exec sh -c "$1"
"""
COREMLTOOLS = '''\
"""The part of coremltools that the script uses; what computes is at the other end of a socket."""
import json, os, signal, socket, time
from types import SimpleNamespace as Some
import numpy as np

if os.environ.get("POCKETNEST_TEST_NO_COREMLTOOLS"):
    raise ImportError("No module named 'coremltools'")


def ask(**question):
    with socket.socket(socket.AF_UNIX) as there:
        there.connect(os.environ["POCKETNEST_TEST_MAC"])
        file = there.makefile("rwb")
        file.write(json.dumps(question).encode() + b"\\n")
        file.flush()
        answer = json.loads(file.readline())
    if "signal" in answer:
        print("Assertion failed: in the compiler", flush=True)
        os.kill(os.getpid(), answer["signal"])
        time.sleep(60)
    return answer


class ComputeUnit:
    CPU_ONLY, CPU_AND_GPU, CPU_AND_NE = "cpu", "gpu", "ne"


class MLModel:
    def __init__(self, path, compute_units):
        self.path, self.unit = path, compute_units
        ask(what="open", path=path, unit=compute_units)

    def predict(self, given):
        ((_, image),) = given.items()
        image = np.asarray(image)
        answer = ask(what="predict", path=self.path, unit=self.unit, dtype=str(image.dtype),
                     shape=image.shape, image=image.ravel().tolist())
        found = np.array(answer["logits"], np.float32)
        if answer.get("labels"):
            named = dict(zip(answer["labels"], map(float, found[0])))
            return {"classLabel": max(named, key=named.get), "classLabel_probs": named}
        return {answer.get("output", "logits"): found}

    def get_compiled_model_path(self):
        return self.path


models = Some(MLModel=MLModel)
'''
COMPUTE_PLAN = """\
from types import SimpleNamespace as Some
from coremltools import ask

DEVICES = {n: type(f"ML{n}ComputeDevice", (), {}) for n in ("CPU", "GPU", "NeuralEngine")}


class MLComputePlan:
    @classmethod
    def load_from_path(cls, path, compute_units):
        plan = cls()
        answer = ask(what="plan", path=path, unit=compute_units)
        plan.found = answer["operations"]
        operations = [Some(outputs=[Some(name=n)], operator_name=k) for n, k, _ in plan.found]
        block = Some(operations=operations)
        plan.model_structure = Some(program=Some(functions={"main": Some(block=block)}))
        plan.devices = {n: d for n, _, d in plan.found}
        return plan

    def get_compute_device_usage_for_mlprogram_operation(self, operation):
        device = self.devices[operation.outputs[0].name]
        return None if device is None else Some(preferred_compute_device=DEVICES[device]())

    def get_estimated_cost_for_mlprogram_operation(self, operation):
        return Some(weight=0.5)
"""
Answer = Callable[[dict[str, Any]], dict[str, Any] | None]


@dataclass
class Mac:
    """What stands for the Mac.

    Attributes:
        folder: of everything.
        faults: that a unit's answers have, of `faults.FAULTS`.
        before: what is done before a question is answered; its answer is taken where it gives one.
        asked: every question, but for the images.
    """

    folder: Path
    faults: dict[str, str] = field(default_factory=dict)
    before: Answer = lambda question: None
    asked: list[dict[str, Any]] = field(default_factory=list)
    opened: dict[tuple[str, str], ReferenceRunnable] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def tmp(self) -> Path:
        return self.folder / "tmp"

    def left(self) -> list[str]:
        """What lies in the folder of temporary files there."""
        return sorted(os.listdir(self.tmp))

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        self.asked.append({k: v for k, v in question.items() if k != "image"})
        if (said := self.before(question)) is not None:
            return said
        with self.lock:
            if question["what"] == "plan":
                return {"operations": self._plan(question)}
            if question["what"] == "predict":
                return self._predict(question)
            return {}

    def _plan(self, question: dict[str, Any]) -> list[list[str | None]]:
        network = coreml_package.read(Path(question["path"]))
        return [
            [op.outputs[0].name, f"ios17.{op.type}", _device(op.type, question["unit"])]
            for op in network.operations
        ]

    def _predict(self, question: dict[str, Any]) -> dict[str, Any]:
        path, unit = question["path"], question["unit"]
        network = coreml_package.read(Path(path))
        if (path, unit) not in self.opened:
            if unit in self.faults:
                network = faults.with_fault(network, self.faults[unit])
            self.opened[path, unit] = ReferenceRunnable(Path(path), network)
        runnable = self.opened[path, unit]
        image = np.array(question["image"], question["dtype"]).reshape(question["shape"])
        if image.dtype == np.uint8:
            image = np.atleast_3d(image).transpose(2, 0, 1)[None].astype(np.float32)
        runnable.set_input(image)
        runnable.invoke()
        made = {"output": network.outputs[0], "labels": network.labels}
        return {"logits": runnable.output().tolist(), **made}


def _device(operation: str, unit: str) -> str | None:
    if operation == "const":
        return None
    if operation == "conv":
        return {"cpu": "CPU", "gpu": "GPU", "ne": "NeuralEngine"}[unit]
    return "CPU"


@contextmanager
def mac(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, before: str = "", noise: str = ""
) -> Iterator[Mac]:
    """The stand-in, with its `ssh` the first in PATH.

    Args:
        folder: for all that it needs; a short path, since sockets have short names.
        monkeypatch: for PATH.
        before: lines of shell that `ssh` does before it runs anything.
        noise: and right before the command, as a shell's own files do.
    """
    found = Mac(folder)
    stub, programs, socket = folder / "stub", folder / "bin", folder / "s"
    for path in (stub / "coremltools" / "models", programs, found.tmp):
        path.mkdir(parents=True)
    (stub / "coremltools" / "__init__.py").write_text(COREMLTOOLS)
    (stub / "coremltools" / "models" / "__init__.py").write_text("")
    (stub / "coremltools" / "models" / "compute_plan.py").write_text(COMPUTE_PLAN)
    _program(
        programs / "ssh",
        SSH.format(
            folder=folder, tmp=found.tmp, stub=stub, socket=socket, before=before, noise=noise
        ),
    )
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    # What `python3` is on a Mac is not what runs the tests.
    _program(programs / "python3", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            question = json.loads(self.rfile.readline())
            self.wfile.write(json.dumps(found.answer(question)).encode() + b"\n")

    server = socketserver.ThreadingUnixStreamServer(str(socket), Handler)
    server.daemon_threads, server.block_on_close = True, False
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()


def _program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
