"""Changes between two runs, as Markdown for a pull request and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from pipeline.commands.compare import updates as of_files
from pipeline.commands.compare.change import Change
from pipeline.commands.compare.updates import Update
from pipeline.report import words


def markdown(changes: Sequence[Change], updates: Sequence[Update] | None = None) -> str:
    """The changes as a table for a pull request; what is the same is only counted.

    Below it the updates of the files, where they were asked for.
    """
    found = [one for one in changes if one.verdict == "regression"]
    same = sum(one.verdict == "same" for one in changes)
    verdict = f"**{words.plural(len(found), 'regression')}**" if found else "**No regression**"
    lines = [f"{verdict}; {words.plural(same, 'figure')} the same.", ""]
    rows = [one for one in changes if one.verdict != "same"]
    if rows:
        lines += ["| | target | figure | before | after | |", "| --- " * 6 + "|"]
        lines += [
            "| "
            + " | ".join(
                words.markdown_text(text)
                for text in (one.verdict, one.target, one.what, one.before, one.after, one.note)
            )
            + " |"
            for one in rows
        ]
    text = "\n".join(lines).rstrip() + "\n"
    return text if updates is None else f"{text}\n{of_files.markdown(updates)}"


def as_json(changes: Sequence[Change], updates: Sequence[Update] | None = None) -> str:
    """The changes as a JSON list, worst first; with updates an object of both."""
    found: object = [asdict(one) for one in changes]
    if updates is not None:
        found = {"changes": found, "updates": [asdict(one) for one in updates]}
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"
