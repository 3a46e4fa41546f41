"""device.json: written whole, read, and added to."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.base.errors import InputError
from pipeline.base.machine import code_info, host_info
from pipeline.base.safe_files import content_of, write_whole
from pipeline.measure.device.record import DEVICE, DeviceRecord, OnDevice

_MOST_BYTES = 64 * 2**20


def read(folder: Path) -> DeviceRecord | None:
    """The device.json of a folder; None where there is none.

    Raises:
        InputError: it cannot be read, or is of another version.
    """
    path = folder / DEVICE
    try:
        return DeviceRecord.model_validate_json(content_of(path, _MOST_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: not measurements of this version; move it elsewhere, or measure again"
        ) from error


def with_newer(known: DeviceRecord | None, found: OnDevice) -> DeviceRecord:
    """What is known, with a measurement in the place of the same device's earlier ones.

    Measurements of one device by several sources stand beside each other.
    """
    before = () if known is None else known.machines
    machines = (*(one for one in before if not _same(one, found)), found)
    return DeviceRecord(code=code_info(), host=host_info(), machines=machines)


def _same(one: OnDevice, other: OnDevice) -> bool:
    if (one.source.kind, one.source.tool) != (other.source.kind, other.source.tool):
        return False
    if {file.sha256 for file in one.files} != {file.sha256 for file in other.files}:
        return False
    return one.device == other.device


def write(record: DeviceRecord, folder: Path) -> Path:
    """Write device.json into a folder that is there, and return its path.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    path = folder / DEVICE
    text = json.dumps(record.model_dump(mode="json"), indent=1, ensure_ascii=False)
    write_whole(path, text + "\n")
    return path
