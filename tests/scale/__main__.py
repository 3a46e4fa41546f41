"""Measure one part at scale, and fail where a bar is missed: python -m tests.scale NAME."""

from __future__ import annotations

import sys

from tests.scale import few_bits, few_bits_times, images, report, shards, verify

PARTS = {
    "few_bits": few_bits.main,
    "few_bits_times": few_bits_times.main,
    "images": images.main,
    "report": report.main,
    "shards": shards.main,
    "verify": verify.main,
}
"""By name; each takes the arguments behind it and returns an exit code."""


def main(arguments: list[str]) -> int:
    """Run the part that the first argument names."""
    part = PARTS.get(arguments[0]) if arguments else None
    if part is None:
        print(f"give one of {', '.join(PARTS)}", file=sys.stderr)
        return 2
    return part(arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
