"""`python -m pipeline.measure.lanes.arm64`: make the emulated machine, where it is not there."""

from __future__ import annotations

import sys

from pipeline.base.errors import InputError
from pipeline.measure.lanes.arm64 import machine


def main() -> int:
    """Make it, and say where it is and what it is made of."""
    try:
        made = machine.set_up(print)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{made.folder}: {made.emulator}")
    for name, version in made.made_of.versions.items():
        print(f"  {name} {version}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
