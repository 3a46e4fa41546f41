"""The report's files: report.json for programs, report.md and report.html for people, the schema.

paths = write_report(combine(reports), Path("artifacts"))
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.base.record import short_lists
from pipeline.base.safe_files import write_whole
from pipeline.recipe.recipe import RecipeInfo
from pipeline.report import html
from pipeline.report.markdown import render
from pipeline.report.pictures import Pictures, joined, read_pictures
from pipeline.report.records import COMBINED, Report, StageRecord


def combine(reports: Sequence[Report]) -> Report:
    """Join the reports of several recipes for one float model; a single one comes back as it is.

    Targets follow in order. A stage that several recipes share stands once: the first time it
    was done, or else the first time it was reused. The float model's latencies are the first
    report's; every target keeps the speedup of its own run. The recipe's hash is the SHA-256 of
    the recipes' hashes, one a line.

    Raises:
        ValueError: without reports, or when they differ in model, data, baseline, host, code or
            the version of a tool; the message names each difference.
    """
    if not reports:
        raise ValueError("no report to combine; give at least 1")
    first, *others = reports
    if not others:
        return first
    tools: dict[str, str] = {}
    for report in reports:
        differences = _differences(_common(first), _common(report))
        shared = {name: report.tools[name] for name in tools.keys() & report.tools.keys()}
        differences += _differences({name: tools[name] for name in shared}, shared, "tools.")
        if differences:
            raise ValueError(
                f"reports {first.recipe.name!r} and {report.recipe.name!r} cannot be combined: "
                + "; ".join(differences)
            )
        tools |= report.tools
    hashes = "\n".join(report.recipe.sha256 for report in reports)
    sha256 = hashlib.sha256(hashes.encode()).hexdigest()
    return Report(
        recipe=RecipeInfo(name=COMBINED, sha256=sha256),
        code=first.code,
        host=first.host,
        tools=tools,
        model=first.model,
        data=first.data,
        baseline=first.baseline,
        float_cpu=first.float_cpu,
        stages=_merged(reports),
        targets=tuple(target for report in reports for target in report.targets),
        passed=all(report.passed for report in reports),
    )


def _common(report: Report) -> dict[str, Any]:
    """Return what one report can say only once; latencies may differ, they are timed anew."""
    parts = report.model_dump(include={"model", "data", "baseline", "host", "code"})
    for latency in ("latency_ms", "latency_missing"):
        del parts["baseline"][latency]
    return parts


def _differences(left: dict[str, Any], right: dict[str, Any], path: str = "") -> list[str]:
    found = []
    for key in sorted(left.keys() | right.keys()):
        one, two = left.get(key), right.get(key)
        if isinstance(one, dict) and isinstance(two, dict):
            found += _differences(one, two, f"{path}{key}.")
        elif one != two:
            found.append(f"{path}{key} is {one!r} and {two!r}")
    return found


def _merged(reports: Sequence[Report]) -> tuple[StageRecord, ...]:
    stages: dict[str, StageRecord] = {}
    for report in reports:
        for stage in report.stages:
            known = stages.setdefault(stage.name, stage)
            if known.status == "reused" and stage.status == "done":
                stages[stage.name] = stage
    return tuple(stages.values())


FILES = ("report.json", "report.md", "report.html")
"""What `write_report` leaves, in the order in which it does."""


def write_report(report: Report, directory: Path) -> list[Path]:
    """Write report.json, report.md and report.html into `directory`, made if it is not there.

    The page shows the pictures of that folder, or of the folders of runs beside it.

    A reader sees each file whole, the old one or the new one, even if the machine stops.

    Returns:
        The paths, in that order.
    """
    content = json.dumps(report.model_dump(mode="json"), indent=2, ensure_ascii=False)
    page = html.render(report, _pictures(report, directory))
    texts = (f"{short_lists(content)}\n", render(report), page)
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in zip(FILES, texts, strict=True):
        write_whole(directory / name, text)
    return [directory / name for name in FILES]


def _pictures(report: Report, directory: Path) -> Pictures:
    """Of the run in a folder; of a report of several runs, those of their folders beside it."""
    if report.recipe.name != COMBINED:
        return read_pictures(directory)
    return joined([read_pictures(directory.parent / target.name) for target in report.targets])


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of report.json, shipped as report.schema.json beside this module."""
    schema = Report.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema
