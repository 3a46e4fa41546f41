"""Where a file runs: what is known of each accelerator and the operations of a file.

What is known is one of three things: a tool that runs here said so of this very file; a vendor's
own list of operations, kept here as it stood on a day, has them; or nothing is known, and that is
said. A list says which kinds of operations are taken, not with which shapes and types: only the
device shows what it does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal, Self

from pydantic import model_validator

from pipeline.base.record import Count, Positive, Record, Text


class Delegate(Record):
    """What is known of an accelerator and a file.

    Attributes:
        name: of what runs the file.
        verdict: all of the operations, some, or none; or not known.
        taken: operations that it takes; None where that is not known.
        operations: of the file, as the source counts them; None likewise.
        left: kinds of operations that it does not take.
        by: how that is known: a tool ran here, or a published list was looked up; in words, with
            the version of the tool or the day of the list. Of what is not known, why.
        source: address of the list or of the tool's documentation; None where there is none.
        note: what else the source says that matters here.
    """

    name: Text
    verdict: Literal["all", "some", "none", "not known"]
    taken: Count | None = None
    operations: Positive | None = None
    left: tuple[Text, ...] = ()
    by: Text
    source: Text | None = None
    note: Text | None = None

    @model_validator(mode="after")
    def _counted(self) -> Self:
        known = self.verdict != "not known"
        if known is (self.taken is None) or known is (self.operations is None):
            raise ValueError(f"verdict: got {self.verdict}; give counts where it is known")
        return self


def unknown(name: str, why: str, source: str | None = None, note: str | None = None) -> Delegate:
    """An accelerator of which nothing is known, or no more than `note` says."""
    return Delegate(name=name, verdict="not known", by=why, source=source, note=note)


def known(
    name: str,
    taken: int,
    operations: int,
    left: Iterable[str],
    by: str,
    source: str | None,
    note: str | None = None,
) -> Delegate:
    """An accelerator that takes some of a file's operations, as its source has it."""
    verdict: Literal["all", "some", "none"] = "some"
    if taken in (0, operations):
        verdict = "all" if taken else "none"
    return Delegate(
        name=name,
        verdict=verdict,
        taken=taken,
        operations=operations,
        left=tuple(sorted(left)),
        by=by,
        source=source,
        note=note,
    )


def listed(
    name: str,
    operations: Mapping[str, int],
    taken: frozenset[str],
    by: str,
    source: str,
    note: str | None = None,
) -> Delegate:
    """An accelerator whose vendor lists the kinds of operations that it takes.

    Args:
        name: of it.
        operations: of the file, by kind.
        taken: kinds of the list.
        by: whose list, and of which day.
        source: its address.
        note: see `Delegate`.
    """
    counts = Counter(operations)
    fitting = sum(count for kind, count in counts.items() if kind in taken)
    return known(name, fitting, counts.total(), set(counts) - taken, by, source, note)
