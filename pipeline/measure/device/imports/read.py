"""A file of another tool's making, told by what it holds and read.

reading = read(Path("profile.json"))
reading.tool, reading.timings[0].typical_ms
"""

from __future__ import annotations

import base64
from pathlib import Path

from pydantic import ValidationError

from pipeline.base.errors import InputError
from pipeline.base.safe_files import content_of, parsed
from pipeline.measure.device.imports import (
    ai_hub,
    benchmark_result,
    benchmark_text,
    onnxruntime_profile,
)
from pipeline.measure.device.imports.reading import NotRead, Reading
from pipeline.measure.device.record import RawOutput

KNOWN = (
    "the JSON of a profile job of Qualcomm AI Hub, the text or the result file of LiteRT's "
    "benchmark_model, or a profile of ONNX Runtime"
)
_MOST_BYTES = 64 * 2**20
_XCODE = ".mlperf"


def read(path: Path) -> Reading:
    """Read a file of one of the sources that are known.

    Raises:
        InputError: it is of none of them, damaged, or of a version that is not known.
    """
    if path.suffix == _XCODE:
        raise InputError(
            f"{path}: a performance report of Xcode, whose format Apple has not published; "
            "measure with 'pocketnest apple' on a Mac, which writes the same figures"
        )
    try:
        content = content_of(path, _MOST_BYTES)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give {KNOWN}") from error
    try:
        return _of(path.name, content)
    except NotRead as error:
        raise InputError(f"{path}: {error}") from error
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
        cause = _first_fault(error)
        raise InputError(
            f"{path}: damaged, or of a version that is not known ({cause}); download or write it "
            "again"
        ) from error


def _of(name: str, content: bytes) -> Reading:
    """Read what a file holds.

    Raises:
        NotRead: it is of no known source, or of one but cannot be used.
        ValueError: it is damaged; likewise LookupError, TypeError, AttributeError, OverflowError.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = None
    if text is not None and text.lstrip()[:1] in {"{", "["}:
        raw, found = RawOutput(name=name, text=text), parsed(text)
        if ai_hub.is_profile(found):
            return ai_hub.read(found, raw)
        if onnxruntime_profile.is_profile(found):
            return onnxruntime_profile.read(found, raw)
    elif text is not None and benchmark_text.is_text(text):
        return benchmark_text.read(text, RawOutput(name=name, text=text))
    elif (message := benchmark_result.parsed(content)) is not None:
        packed = base64.b64encode(content).decode("ascii")
        return benchmark_result.read(message, RawOutput(name=name, text=packed, encoding="base64"))
    raise NotRead(f"of no source that is known; give {KNOWN}")


def _first_fault(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, ValidationError):
        fault = error.errors()[0]
        return f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
    words = " ".join(str(error).split())[:120]
    return f"no {words}" if isinstance(error, KeyError) else words
