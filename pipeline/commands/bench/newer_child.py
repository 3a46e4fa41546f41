"""Run files in the runtimes of another environment, one at a time, as a line on stdin asks.

    PYTHON -I newer_child.py

Runs where nothing but numpy and a runtime is installed, so that it imports nothing of PocketNest.
Every answer is one line of JSON; what a runtime prints goes to stderr.

The first line names the package of each format: `{"tflite": "ai-edge-litert", ...}`; the answer has
the versions that are there. Then a line opens a file, with its image and threads, or runs one that
is open; the answer says how long it took.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def versions(packages: dict[str, str]) -> dict[str, str]:
    """Of the packages that are installed here, by format."""
    found = {}
    for form, package in packages.items():
        try:
            found[form] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def open_onnx(path: str, image: Any, threads: int, exact: bool) -> Callable[[], Any]:
    """A run of an ONNX file, which gives its answer; opened as PocketNest opens it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: image}
    names = [session.get_outputs()[0].name]
    return lambda: session.run(names, given)[0]


def open_tflite(path: str, image: Any, threads: int, exact: bool) -> Callable[[], Any]:
    """A run of a TFLite file, which gives its answer."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=threads)
    interpreter.allocate_tensors()
    taken, given = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    interpreter.set_tensor(taken["index"], image)

    def run() -> Any:
        interpreter.invoke()
        return interpreter.tensor(given["index"])()

    return run


OPENERS = {"onnx": open_onnx, "tflite": open_tflite}


def main() -> None:
    """Answer every line until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(**answer: object) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    say(versions=versions(json.loads(sys.stdin.readline())))
    runs = {}
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if "open" in asked:
                opener = OPENERS[asked["format"]]
                image = np.load(asked["image"])
                run = opener(asked["path"], image, asked["threads"], asked["exact"])
                runs[asked["open"]] = run
                say(answer=np.asarray(run(), np.float32).ravel().tolist())
            else:
                began = time.perf_counter()
                runs[asked["run"]]()
                say(ms=1e3 * (time.perf_counter() - began))
        except Exception as error:  # of a runtime, of which any may come
            say(error=" ".join(f"{type(error).__name__}: {error}".split())[:300])


if __name__ == "__main__":
    main()
