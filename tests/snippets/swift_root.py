"""Debian's Swift compiler in a folder of its own, for `nox -s swift`: python -m ... FOLDER.

Debian has it since 13 (trixie). Its packages are unpacked beside this machine's, which stays as it
is; `in_root` runs it there, as root, in a namespace that ends with it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SUITE = "trixie"
PACKAGES = ("swiftlang", "bash", "coreutils", "gcc", "libc6-dev", "libstdc++-14-dev")
LIBRARIES = "/usr/libexec/swift/lib/swift/linux"
DONE = "unpacked"
_CONFIGURATION = """\
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
APT::Architecture "amd64";
APT::Sandbox::User "root";
Acquire::Languages "none";
"""


def mirror() -> str:
    """The address of this machine's first Debian mirror."""
    asked = ["apt-get", "indextargets", "--format", "$(REPO_URI)"]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    return next(line for line in done.stdout.splitlines() if line.endswith("/debian/"))


def make(root: Path) -> None:
    """Unpack the compiler and all it needs into a folder (550 MB fetched, 2.5 GB); once."""
    if (root / DONE).exists():
        return
    shutil.rmtree(root, ignore_errors=True)
    apt = root / "apt"
    for name in ("state/lists/partial", "cache/archives/partial"):
        (apt / name).mkdir(parents=True)
    (apt / "status").touch()
    (apt / "sources.list").write_text(f"deb {mirror()} {SUITE} main\n")
    (apt / "apt.conf").write_text(_CONFIGURATION.format(folder=apt))
    environment = {**os.environ, "APT_CONFIG": str(apt / "apt.conf")}
    install = ["install", "--yes", "-qq", "--no-install-recommends", "--download-only", *PACKAGES]
    for command in (["update", "-qq"], install):
        subprocess.run(["apt-get", *command], env=environment, check=True)
    for archive in sorted((apt / "cache" / "archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "--extract", archive, root], check=True)
    shutil.rmtree(apt)
    subprocess.run(["mknod", "-m", "666", root / "dev" / "null", "c", "1", "3"], check=True)
    subprocess.run(["mknod", "-m", "666", root / "dev" / "urandom", "c", "1", "9"], check=True)
    (root / DONE).touch()


def in_root(root: Path, command: str, *, folder: str = "/") -> subprocess.CompletedProcess[str]:
    """Run a line of bash in the folder, with a /proc of its own; nothing stays mounted."""
    inside = ["unshare", "--mount", "--pid", "--fork", f"--root={root}", "--mount-proc"]
    variables = {
        "PATH": "/usr/libexec/swift/bin:/usr/bin",
        "LD_LIBRARY_PATH": f"{LIBRARIES}:/stubs",
        "HOME": "/tmp",
    }
    line = ["/usr/bin/bash", "-c", f"cd {folder} && {command}"]
    return subprocess.run([*inside, *line], env=variables, capture_output=True, text=True)


def archives(arguments: Sequence[str]) -> None:
    """Make the folder that is given."""
    (folder,) = arguments
    make(Path(folder).absolute())


if __name__ == "__main__":
    archives(sys.argv[1:])
