"""Runs on a Mac, by itself: Core ML packages on each compute unit, checked first and then timed.

It needs Python 3.9 or later with coremltools and numpy, and nothing of PocketNest. Its text comes
through standard input, and behind it a line of JSON, the bytes of a tar archive, and then a byte
every few seconds: once they end, whoever asked is gone, and everything is removed.

What it finds it says line by line on standard output, as JSON. Every package is run in a process of
its own, for each unit: some crash, and this one must stay to clean up.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

PREFIX = "pocketnest-apple-"
SILENCE_SECONDS = 120.0
CHILD_SECONDS = 900.0
LARGEST = 1e30
REMOVALS = 50
UNITS = {"cpu": "CPU_ONLY", "gpu": "CPU_AND_GPU", "ne": "CPU_AND_NE"}
DEVICES = {
    "MLCPUComputeDevice": "cpu",
    "MLGPUComputeDevice": "gpu",
    "MLNeuralEngineComputeDevice": "ne",
}
PLATFORM = "IOPlatformExpertDevice"
THERMAL = ("nominal", "fair", "serious", "critical")


def say(event: str, **content: Any) -> None:
    """Tell whoever asked, in one line."""
    sys.stdout.write(json.dumps({"pocketnest": event, **content}) + "\n")
    sys.stdout.flush()


class Place:
    """The folder of this call, and the process that works in it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
        self.child: subprocess.Popen[bytes] | None = None
        self.heard = time.monotonic()
        self.gone = False
        self._lock = threading.Lock()

    def start(self, command: list[str], log: Path) -> subprocess.Popen[bytes]:
        """Start a process that works here, unless the end has begun."""
        with self._lock:
            if self.gone:
                raise OSError("is being removed")
            scratch = self.folder / "tmp"
            scratch.mkdir(exist_ok=True)
            with log.open("wb") as file:
                self.child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    # What Core ML compiles a package to lies there, and is removed with it.
                    env={**os.environ, "TMPDIR": str(scratch)},
                    start_new_session=True,
                )
            return self.child

    def remove(self) -> bool:
        """End the process and remove the folder; whether nothing is left."""
        with self._lock:
            self.gone = True
            if self.child is not None and self.child.poll() is None:
                with contextlib.suppress(OSError):
                    os.killpg(self.child.pid, signal.SIGKILL)
                self.child.wait()
            # Again where something was written meanwhile, such as by a process of the one killed.
            for _ in range(REMOVALS):
                shutil.rmtree(self.folder, ignore_errors=True)
                if not self.folder.exists():
                    return True
                time.sleep(0.1)
            return False

    def give_up(self) -> None:
        """Remove everything and end: nobody listens any more."""
        self.remove()
        os._exit(1)

    def listen(self) -> None:
        """Wait for the bytes that say that somebody still listens."""
        incoming: Any = sys.stdin.buffer
        while incoming.read1(4096):
            self.heard = time.monotonic()
        self.give_up()

    def watch(self) -> None:
        """Give up once they stay away, as where a network is gone and nobody says so."""
        while time.monotonic() - self.heard < SILENCE_SECONDS:
            time.sleep(1)
        self.give_up()


def sweep() -> list[str]:
    """Remove the folders of calls that were killed; their process is gone."""
    found = []
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        number = folder.name[len(PREFIX) :].split("-")[0]
        try:
            os.kill(int(number), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
            found.append(folder.name)
        except (OSError, ValueError):
            pass  # another user's, or no folder of ours
    return found


def sha256_of(package: Path) -> str:
    """SHA-256 of the names and contents of a package's files."""
    digest = hashlib.sha256()
    for file in sorted(p for p in package.rglob("*") if p.is_file()):
        digest.update(str(file.relative_to(package)).encode() + b"\0")
        digest.update(file.read_bytes())
    return digest.hexdigest()


def told(*command: str) -> str:
    """What a program prints; nothing where it is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def machine() -> dict[str, Any]:
    """What this machine is."""
    name = platform.mac_ver()[0]
    return {
        "model": told("sysctl", "-n", "hw.model") or None,
        "soc": told("sysctl", "-n", "machdep.cpu.brand_string") or None,
        "os": "macOS" if name else platform.system(),
        "os_version": name or platform.release(),
        **{"abi": platform.machine() or None, "page_size": resource.getpagesize()},
        "cores": os.cpu_count(),
        "identity": identity(),
    }


def identity() -> str | None:
    """What tells this machine from others of its model, and does not say its number."""
    number = re.search(r'"IOPlatformUUID" = "([^"]+)"', told("ioreg", "-rd1", "-c", PLATFORM))
    return hashlib.sha256(number[1].encode()).hexdigest()[:12] if number else None


def conditions() -> dict[str, Any]:
    """Charge, power and heat, as far as the system says."""
    battery = told("pmset", "-g", "batt")
    charge = re.search(r"(\d+)%", battery)
    thermal = told(sys.executable, str(Path(sys.argv[0]).resolve()), "thermal")
    return {
        "battery_percent": int(charge[1]) if charge else None,
        "powered": "AC Power" in battery if battery else None,
        "thermal": thermal or None,
    }


def thermal() -> None:
    """Print the thermal state, as Foundation has it. In a process of its own: this calls C."""
    import ctypes

    ctypes.CDLL("/System/Library/Frameworks/Foundation.framework/Foundation")
    objc = ctypes.CDLL("/usr/lib/libobjc.dylib")
    objc.objc_getClass.restype = objc.sel_registerName.restype = ctypes.c_void_p
    objc.objc_getClass.argtypes = objc.sel_registerName.argtypes = [ctypes.c_char_p]
    pointer = ctypes.c_void_p
    send = ctypes.CFUNCTYPE(pointer, pointer, pointer)(("objc_msgSend", objc))
    info = send(objc.objc_getClass(b"NSProcessInfo"), objc.sel_registerName(b"processInfo"))
    state = send(info, objc.sel_registerName(b"thermalState")) or 0
    sys.stdout.write(THERMAL[state] if state < len(THERMAL) else "")


def model_of(job: dict[str, Any], file: dict[str, Any], unit: str) -> tuple[Any, list[Any], float]:
    """A package, opened for a unit; its inputs; and the milliseconds that opening took."""
    import coremltools as ct
    import numpy as np

    images = np.load(str(Path(job["folder"], file["inputs"])), allow_pickle=False)
    if file["kind"] == "image":
        from PIL import Image

        given = [{file["input"]: Image.fromarray(image)} for image in images]
    else:
        given = [{file["input"]: image[None]} for image in images]
    began = time.perf_counter()
    path = str(Path(job["folder"], file["package"]))
    model = ct.models.MLModel(path, compute_units=getattr(ct.ComputeUnit, UNITS[unit]))
    return model, given, (time.perf_counter() - began) * 1e3


def checked(job: dict[str, Any], unit: str, file: dict[str, Any]) -> dict[str, Any]:
    """What a package answers on a unit, and where its operations are planned to run."""
    import numpy as np

    model, inputs, load_ms = model_of(job, file, unit)
    answers, first_ms = [], None
    for given in inputs:
        began = time.perf_counter()
        answer = model.predict(given)[file["output"]]
        first_ms = first_ms or (time.perf_counter() - began) * 1e3
        if file["labels"]:  # a classifier gives numbers by name
            answer = [answer[label] for label in file["labels"]]
        answers.append([float(value) for value in np.asarray(answer, np.float32).ravel()])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    expected = np.load(str(Path(job["folder"], file["expected"])), allow_pickle=False)
    apart = np.abs(np.asarray(answers, np.float64) - expected.reshape(len(answers), -1))
    # What is not a number, or without end, is as far off as can be.
    apart = np.nan_to_num(apart, nan=LARGEST, posinf=LARGEST)
    found = {
        "answers": [[str(value) for value in answer] for answer in answers],
        "largest": float(apart.max()),
        "load_ms": load_ms,
        "first_ms": first_ms,
        "peak_bytes": peak if sys.platform == "darwin" else peak * 1024,
    }
    try:
        found["plan"] = planned(model, unit)
    except Exception as error:
        # Of macOS 14.4 and later; nothing else needs it.
        found["no_plan"] = f"{type(error).__name__}: {error}"
    return found


def planned(model: Any, unit: str) -> list[list[Any]]:
    """Every operation of a package: its output, its kind, the unit it prefers, and its weight."""
    import coremltools as ct
    from coremltools.models.compute_plan import MLComputePlan

    plan = MLComputePlan.load_from_path(
        path=str(model.get_compiled_model_path()),
        compute_units=getattr(ct.ComputeUnit, UNITS[unit]),
    )
    found, program = [], plan.model_structure.program
    for operation in program.functions["main"].block.operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        if usage is None or operation.operator_name.endswith("const"):
            continue  # nothing is computed
        preferred = type(usage.preferred_compute_device).__name__
        cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
        output = operation.outputs[0].name if operation.outputs else ""
        weight = cost and float(cost.weight)
        found.append([output, operation.operator_name, DEVICES.get(preferred), weight])
    return found


def timed(job: dict[str, Any], unit: str) -> dict[str, Any]:
    """Milliseconds of inferences of all packages on a unit, which take turns."""
    opened = []
    for file in job["files"]:
        model, inputs, _ = model_of(job, file, unit)
        opened.append((file["name"], model, inputs[0]))
    samples: dict[str, list[float]] = {name: [] for name, _, _ in opened}
    for turn in range(job["warmup"] + job["rounds"]):
        for name, model, given in opened:
            began = time.perf_counter()
            model.predict(given)
            if turn >= job["warmup"]:
                samples[name].append((time.perf_counter() - began) * 1e3)
    return {"samples": samples}


def child(folder: str, out: str, what: str, unit: str, number: str) -> None:
    """Do one part of the work and write what came of it."""
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    job = json.loads(Path(folder, "job.json").read_text(encoding="utf-8"))
    job["folder"] = folder
    done = timed(job, unit) if what == "time" else checked(job, unit, job["files"][int(number)])
    Path(out).write_text(json.dumps(done), encoding="utf-8")


def end_with_parent(parent: int) -> None:
    """End this process once the one that started it is gone, were it killed."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def in_child(place: Place, what: str, unit: str, number: int = 0) -> dict[str, Any]:
    """One part of the work in a process of its own; `failed` says how it ended where it failed."""
    out, log = place.folder / "result.json", place.folder / "log.txt"
    out.unlink(missing_ok=True)
    command = [sys.executable, str(place.folder / "on_mac.py"), "child", str(place.folder)]
    process = place.start([*command, str(out), what, unit, str(number)], log)
    try:
        status = process.wait(CHILD_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
    text = log.read_bytes().decode("utf-8", "replace")[-20_000:]
    if status == 0 and out.exists():
        return {"log": text, **json.loads(out.read_text(encoding="utf-8"))}
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    ended = f"ended by {signal.Signals(-status).name}" if status < 0 else f"failed ({status})"
    return {"log": text, "failed": f"{ended}: {lines[-1][:300]}" if lines else ended}


def missing() -> str | None:
    """What of Python is not here; None where nothing is missing."""
    try:
        import numpy  # noqa: F401

        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            import coremltools  # noqa: F401
    except ImportError as error:
        return f"{sys.executable}: {error}"
    return None


def unpack(place: Place) -> dict[str, Any]:
    """Read the archive and give back what is asked for."""
    sent = json.loads(sys.stdin.buffer.readline())
    content = sys.stdin.buffer.read(sent["bytes"])
    if hashlib.sha256(content).hexdigest() != sent["sha256"]:
        raise ValueError("the archive did not arrive whole")
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        safe: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(place.folder, **safe)
    job: dict[str, Any] = json.loads((place.folder / "job.json").read_text(encoding="utf-8"))
    return job


def work(place: Place, job: dict[str, Any]) -> None:
    """Check every package on every unit; time them where all of them answer as they should."""
    sys.argv[0] = str(place.folder / "on_mac.py")
    versions = {name: version(name) for name in ("coremltools", "numpy")}
    say("machine", machine=machine(), versions=versions, conditions=conditions())
    say("files", sha256={f["name"]: sha256_of(place.folder / f["package"]) for f in job["files"]})
    sound, units = True, []
    for unit in job["units"]:
        failed = False
        for number, file in enumerate(job["files"]):
            done = in_child(place, "check", unit, number)
            say("checked", unit=unit, file=file["name"], **done)
            failed = failed or "failed" in done
            sound = sound and done.get("largest", 0.0) <= file["tolerance"]
        units += [] if failed else [unit]
    for unit in units if sound else []:
        before = conditions()
        done = in_child(place, "time", unit)
        say("timed", unit=unit, before=before, after=conditions(), **done)


def serve() -> int:
    """Do all that is asked for; leave nothing."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(1))
    absent = missing()
    if absent is not None:
        say("missing", what=absent)
        return 1
    swept = sweep()
    place = Place()
    try:
        say("folder", path=str(place.folder), swept=swept)
        job = unpack(place)
        for loop in (place.listen, place.watch):
            threading.Thread(target=loop, daemon=True).start()
        work(place, job)
    except OSError as error:
        while place.gone:  # what is missing is what another thread removes; it ends this process
            time.sleep(1)
        say("failed", what=f"{error.strerror or error}")
    finally:
        removed = place.remove()
    say("done", removed=removed)
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(*sys.argv[2:])
    elif sys.argv[1:2] == ["thermal"]:
        thermal()
    else:
        sys.exit(serve())
