"""What the emulated machine is made of: Debian packages and wheels, by version and SHA-256.

Pinned in `packages.json`. What decides answers are the wheels, whose versions never leave their
registry. Debian's mirrors keep the newest version of a package alone; see `apt.fetch`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PINNED = Path(__file__).with_name("packages.json")


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package of Debian.

    Attributes:
        name: in the archive.
        architecture: arm64 for the emulated machine, amd64 for the emulator.
        version: with its epoch, such as 1:1.2.13.dfsg-1.
        sha256: of the file.
    """

    name: str
    architecture: str
    version: str
    sha256: str

    @property
    def place(self) -> str:
        """As apt names it without a version, such as libc6:arm64."""
        return f"{self.name}:{self.architecture}"


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A wheel for aarch64 and Python 3.11, or for every machine."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Packages:
    """All of them.

    Attributes:
        suite: of Debian, whose Python and libraries they are.
        debian: packages for both architectures.
        wheels: runtimes, and what they import.
    """

    suite: str
    debian: tuple[Package, ...]
    wheels: tuple[Wheel, ...]

    @property
    def key(self) -> str:
        """Short hash of them all, the name of the folder that is made of them."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def versions(self) -> dict[str, str]:
        """By name, with the architecture where a package is Debian's."""
        found = {package.place: package.version for package in self.debian}
        return found | {wheel.name: wheel.version for wheel in self.wheels}


def packages(content: Mapping[str, Any]) -> Packages:
    """Read what `packages.json` holds, or what was written of a machine that was made.

    Raises:
        KeyError: a key is missing.
        TypeError: a package has others.
    """
    return Packages(
        suite=content["suite"],
        debian=tuple(Package(**one) for one in content["debian"]),
        wheels=tuple(Wheel(**one) for one in content["wheels"]),
    )


def pinned() -> Packages:
    """What this version of PocketNest is checked with."""
    return packages(json.loads(PINNED.read_text(encoding="utf-8")))
