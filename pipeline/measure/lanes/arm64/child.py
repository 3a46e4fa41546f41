"""What runs on the emulated machine: files of models, on inputs that are ready for them.

A script of its own: there is numpy there, LiteRT and ONNX Runtime, and nothing of PocketNest.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = list[NDArray[Any]]
WARM = 3
"""Inferences before any is counted: runtimes pack weights and find their buffers in the first."""
COUNTED = (1, 11)
"""Inferences between two marks; the difference, by ten, is one."""


class TFLite:
    """A file in LiteRT, with XNNPACK, its default delegate."""

    def __init__(self, path: str, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(model_path=path, num_threads=threads)
        self._interpreter.allocate_tensors()
        self._inputs = [found["index"] for found in self._interpreter.get_input_details()]
        self._outputs = [found["index"] for found in self._interpreter.get_output_details()]
        self.invoke: Callable[[], object] = self._interpreter.invoke

    def set_input(self, image: NDArray[Any]) -> None:
        """Take the file's input."""
        self._interpreter.set_tensor(self._inputs[0], image)

    def clear(self) -> None:
        """Set every input to zero, where only the work counts."""
        for found in self._interpreter.get_input_details():
            self._interpreter.set_tensor(found["index"], np.zeros(found["shape"], found["dtype"]))

    def outputs(self) -> Arrays:
        """Of the last run, in the file's order."""
        return [np.array(self._interpreter.get_tensor(index)) for index in self._outputs]


class Onnx:
    """A file in ONNX Runtime on the CPU."""

    def __init__(self, path: str, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Of x86 alone: where this script is tried without an emulator, it is exact there, too.
        options.add_session_config_entry("session.x64quantprecision", "1")
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self._fed: dict[str, NDArray[Any]] = {}
        self._found: Arrays = []

    def set_input(self, image: NDArray[Any]) -> None:
        """Take the file's input."""
        self._fed = {self._session.get_inputs()[0].name: image}

    def invoke(self) -> None:
        """Run the network."""
        self._found = self._session.run(None, self._fed)

    def outputs(self) -> Arrays:
        """Of the last run, in the file's order."""
        return self._found


RUNTIMES: dict[str, type[TFLite] | type[Onnx]] = {"tflite": TFLite, "onnx": Onnx}


def answer(job: dict[str, Any]) -> None:
    """Run each file on its images, one at a time, and save every output; tell of each image."""
    done = 0
    for file in job["files"]:
        opened = RUNTIMES[file["format"]](file["path"], job["threads"])
        found: list[Arrays] = []
        for batch in file["inputs"]:
            images = np.load(batch)
            for start in range(len(images)):
                opened.set_input(images[start : start + 1])
                opened.invoke()
                found.append(opened.outputs())
                done += 1
                print("done", done, flush=True)
        for number, parts in enumerate(zip(*found, strict=True)):
            np.save(f"{file['outputs']}-{number}.npy", np.concatenate(parts))


def count(job: dict[str, Any]) -> None:
    """Run each file several times between marks, at which the emulator notes what it counted."""
    gc.disable()
    for file in job["files"]:
        opened = RUNTIMES[file["format"]](file["path"], job["threads"])
        if file["inputs"]:
            opened.set_input(np.load(file["inputs"][0])[:1])
        elif isinstance(opened, TFLite):
            opened.clear()
        between(opened.invoke, (WARM, *COUNTED))
        print("done", flush=True)


def between(invoke: Callable[[], object], times: tuple[int, ...]) -> None:
    """Call so often, then mark, for each number of times; the same code for all of them."""
    for number in times:
        for _ in range(number):
            invoke()
        os.getppid()  # the mark: a call of the kernel that nothing else here makes


def main(path: Path) -> None:
    """Do the job that a JSON file asks for."""
    job = json.loads(path.read_text(encoding="utf-8"))
    {"answer": answer, "count": count}[job["do"]](job)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
