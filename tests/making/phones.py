"""Phones of tests: Android's own daemon `adbd` on this machine, where nobody else reaches it.

    with phones(tmp_path) as made:
        phone = made.start("127.0.0.1:5601")
        os.environ["PATH"] = made.path
        ...
        phone.files()      # of its /data/local/tmp, which is a file system of its own

Daemons and adb's server run in a network namespace of the test's own, each daemon's files in a
mount namespace. `adb` in `made.path` is the real one, run there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.making import HOUR, ROOT

FOLDER = os.environ.get("POCKETNEST_ADB")
"""With Debian's packages adb and adbd unpacked, as `nox -s device` makes it."""
PLACE = Path("/data/local/tmp")
_LOOPBACK = """\
import fcntl, socket, struct, sys
up = struct.pack("16sh14x", b"lo", 0x41)
fcntl.ioctl(socket.socket(), 0x8914, up)
print("ready", flush=True)
sys.stdin.read()
"""
PROPERTIES = {
    "ro.product.manufacturer": "Nobody",
    "ro.product.model": "Phone 1",
    "ro.soc.manufacturer": "Nobody",
    "ro.soc.model": "SoC 7",
    "ro.build.version.release": "15",
    "ro.product.cpu.abi": "x86_64",
}


def missing() -> str | None:
    """Why there can be no phone here; None where there can."""
    if FOLDER is None or not (Path(FOLDER) / "usr").is_dir():
        return "no adbd here: `nox -s device` fetches it"
    if os.geteuid() != 0:
        return "adbd in namespaces of its own needs root"
    done = subprocess.run(
        ["unshare", "--net", "--mount", "true"], capture_output=True, text=True, check=False
    )
    return f"namespaces cannot be made here: {done.stderr}" if done.returncode else None


@dataclass(kw_only=True)
class Phone:
    """One daemon."""

    serial: str
    process: subprocess.Popen[bytes]
    folder: Path

    def files(self) -> list[str]:
        """Names in its /data/local/tmp."""
        return sorted(os.listdir(self.place))

    @property
    def place(self) -> Path:
        """Its /data/local/tmp, seen from here."""
        return Path(f"/proc/{self.process.pid}/root{PLACE}")

    def set(self, program: str, text: str) -> None:
        """Have one of its programs print something from now on."""
        (self.folder / f"{program}.txt").write_text(text)

    def programs(self) -> list[str]:
        """Command lines of what works in its /data/local/tmp."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if Path(words[0]).name == "adb" or words[1:2] == ["-c"]:  # what waits for others
                continue
            if any(f"{PLACE}/pocketnest-" in word for word in words):
                found.append(" ".join(words))
        return found


@dataclass(kw_only=True)
class Phones:
    """A network of their own, with adb's server."""

    folder: Path
    network: subprocess.Popen[bytes]
    started: list[Phone] = field(default_factory=list)

    @property
    def path(self) -> str:
        """PATH, with an adb first that is run in their network."""
        return os.pathsep.join([str(self.folder / "bin"), os.environ["PATH"]])

    def adb(self, *words: str) -> str:
        """What adb says."""
        done = subprocess.run(
            [self.folder / "bin/adb", *words], capture_output=True, text=True, timeout=HOUR
        )
        return done.stdout + done.stderr

    def start(self, number: int = 1, *, megabytes: int = 500) -> Phone:
        """Start a daemon and connect it; its disk has so many megabytes."""
        port = 5600 + 2 * number
        folder = self.folder / f"phone{number}"
        _programs(folder)
        mounted = f"mount -t tmpfs -o size={megabytes}m tmpfs {PLACE} && exec {_program('adbd')}"
        apart = ["nsenter", "-t", str(self.network.pid), "-n", "unshare", "--mount"]
        process = subprocess.Popen(
            [*apart, "sh", "-c", mounted],
            env=_environment(self.folder)
            | {"ADBD_PORT": str(port), "PATH": f"{folder}:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            stdout=(self.folder / f"adbd{number}.log").open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        phone = Phone(serial=f"127.0.0.1:{port}", process=process, folder=folder)
        self.started.append(phone)
        self.connect(phone)
        return phone

    def connect(self, phone: Phone) -> None:
        """Connect a phone, and wait until adb says that it is there."""
        deadline = time.monotonic() + HOUR
        while time.monotonic() < deadline:
            self.adb("connect", phone.serial)
            if self.adb("-s", phone.serial, "get-state").strip() == "device":
                return
            time.sleep(0.1)
        raise AssertionError(self.adb("devices"))

    def end(self) -> None:
        self.adb("kill-server")
        for phone in self.started:
            phone.process.send_signal(signal.SIGKILL)
            phone.process.wait()
        assert self.network.stdin is not None
        self.network.stdin.close()
        self.network.wait()


@contextmanager
def phones(folder: Path) -> Iterator[Phones]:
    """A network for phones, that is gone with all of them at the end."""
    made = [path for path in (PLACE, *list(PLACE.parents)[:-1]) if not path.exists()]
    PLACE.mkdir(parents=True, exist_ok=True)
    network = subprocess.Popen(
        ["unshare", "--net", sys.executable, "-S", "-c", _LOOPBACK],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert network.stdout is not None
    assert network.stdout.readline() == b"ready\n"
    (folder / "bin").mkdir()
    (folder / "home").mkdir()
    variables = " ".join(f"{name}='{value}'" for name, value in _variables(folder).items())
    script = folder / "bin" / "adb"
    script.write_text(
        f'#!/bin/sh\n{variables} exec nsenter -t {network.pid} -n {_program("adb")} "$@"\n'
    )
    script.chmod(0o755)
    found = Phones(folder=folder, network=network)
    try:
        yield found
    finally:
        found.end()
        for path in made:
            path.rmdir()


def _program(name: str) -> Path:
    assert FOLDER is not None
    return Path(FOLDER) / "usr/lib/android-sdk/platform-tools" / name


def _variables(folder: Path) -> dict[str, str]:
    assert FOLDER is not None
    libraries = Path(FOLDER) / "usr/lib/x86_64-linux-gnu"
    return {
        "LD_LIBRARY_PATH": f"{libraries}:{libraries}/android",
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder),
    }


def _environment(folder: Path) -> dict[str, str]:
    return os.environ | _variables(folder)


def _programs(folder: Path) -> None:
    """What a phone's shell has and Linux has not, or otherwise: it prints the file of its name."""
    folder.mkdir()
    cases = "\n".join(f"{name}) echo '{value}';;" for name, value in PROPERTIES.items())
    scripts = {
        "getprop": f'case "$1" in\n{cases}\nesac',
        "getconf": 'case "$1" in PAGE_SIZE) echo 16384;; esac',
        "dumpsys": f'cat "{folder}/$1.txt"',
    }
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    (folder / "thermalservice.txt").write_text("IsStatusOverride: false\nThermal Status: 0\n")
    (folder / "battery.txt").write_text(
        "Current Battery Service state:\n  AC powered: false\n  USB powered: true\n"
        "  level: 84\n  scale: 100\n  temperature: 271\n"
    )


def runner(place: Path, **variables: str) -> Path:
    """The stand-in for `benchmark_model`, which runs files in LiteRT on this machine."""
    place.write_text(
        "#!/bin/sh\nunset LD_LIBRARY_PATH\n"
        + "".join(f"export {name}={value}\n" for name, value in variables.items())
        + f'exec "{sys.executable}" "{ROOT}/tests/making/benchmark_model.py" "$@"\n'
    )
    place.chmod(0o755)
    return place


def quick_runner(place: Path, answer: bytes, seconds: float = 0.0) -> Path:
    """A runner that answers everything with the same bytes, at once or after some seconds."""
    octal = "".join(f"\\{byte:03o}" for byte in answer)
    place.write_text(
        '#!/bin/sh\nfor word in "$@"; do case $word in --output_filepath=*) '
        f"printf '{octal}' > \"${{word#*=}}\";; esac; done\nsleep {seconds}\n"
        "echo 'INFO: count=1 curr=90 p5=90 median=90 p95=90'\n"
        "echo 'INFO: count=20 first=9 curr=8 min=7 max=9 avg=8 std=1 p5=7 median=8 p95=9'\n"
        "echo 'INFO: Inference timings in us: Init: 12, First inference: 90, Warmup (avg): 90, "
        "Inference (avg): 8'\n"
    )
    place.chmod(0o755)
    return place
