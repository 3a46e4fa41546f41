"""Words for how many bytes a file is when it is sent, shared by the forms of the report."""

from __future__ import annotations

from pipeline.measure.downloads import COMPRESSORS, Compressor
from pipeline.report import words
from pipeline.report.records import Report, TargetResult

NAMES: dict[Compressor, str] = {"deflate": "deflate", "lzma": "LZMA", "zstd": "zstd"}
_WAYS = (
    "Deflate, level 9: APKs and IPAs are zip archives, and every web server has it as gzip. LZMA: "
    "xz, preset 9, of packages. Zstd: level 12, as HTTP's content coding. Of a Core ML package it "
    "is the package that is compressed; a store sends what Xcode compiles of it."
)


def section(report: Report) -> list[str]:
    """The section of report.md; nothing where an older report has one figure alone."""
    header = ["target", *(f"{NAMES[name]} MB" for name in COMPRESSORS)]
    return words.section("Downloads", header, _rows(report), _WAYS, ())


def _rows(report: Report) -> list[list[str]]:
    rows = []
    for target in report.targets:
        found = {one.compressor: words.figure(one.bytes / 1e6) for one in target.downloads}
        if found:
            cells = [found.get(name, words.NOT_APPLICABLE) for name in COMPRESSORS]
            rows.append([target.name, *cells])
    return rows


def in_short(target: TargetResult) -> str:
    """The download as stores send it, and beside it what other compressors make of the file."""
    text = f"{words.figure(target.download_mb)} MB"
    others = [
        f"{words.figure(one.bytes / 1e6)} by {NAMES[one.compressor]}"
        for one in target.downloads
        if one.compressor != "deflate"
    ]
    return f"{text} ({', '.join(others)})" if others else text
