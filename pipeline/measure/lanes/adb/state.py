"""What a phone is, and how it is just now."""

from __future__ import annotations

import hashlib
import re

from pipeline.measure.device.record import Conditions, Device
from pipeline.measure.lanes.adb.adb import Adb

THERMAL = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
"""Android's thermal states, in the order of their numbers; from moderate on, clocks are lower."""
_PROPERTIES = {
    "maker": "ro.product.manufacturer",
    "brand": "ro.product.brand",
    "model": "ro.product.model",
    "soc_maker": "ro.soc.manufacturer",
    "soc": "ro.soc.model",
    "board": "ro.board.platform",
    "version": "ro.build.version.release",
    "abi": "ro.product.cpu.abi",
}


def device(phone: Adb) -> Device:
    """What the phone is; what it does not tell is None.

    Raises:
        Disconnected: it is gone.
    """
    asked = [f'echo "{key}=$(getprop {name})"' for key, name in _PROPERTIES.items()]
    asked += ['echo "page=$(getconf PAGE_SIZE)"', 'echo "cores=$(nproc)"']
    lines = phone.shell("\n".join(asked)).out.splitlines()
    told = {key: value.strip() for key, _, value in (line.partition("=") for line in lines)}
    return from_told(told, phone.serial)


def from_told(told: dict[str, str], serial: str) -> Device:
    """From what the phone said, by the keys of `device`."""

    def known(key: str) -> str | None:
        value = told.get(key, "")
        return None if value in ("", "unknown") else value

    maker, model = known("maker") or known("brand"), known("model")
    words = [maker, model] if maker and maker.lower() not in (model or "").lower() else [model]
    name = " ".join(filter(None, words)) or f"phone {serial}"
    soc = " ".join(filter(None, [known("soc_maker"), known("soc")])) or known("board")
    version = known("version")
    return Device(
        name=name[:1].upper() + name[1:],
        model=model,
        soc=soc,
        os=None if version is None else "Android",
        os_version=version,
        abi=known("abi"),
        page_size=_number(told.get("page")),
        cores=_number(told.get("cores")),
        identity=hashlib.sha256(serial.encode()).hexdigest()[:12],
    )


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() and int(text) > 0 else None


def conditions(phone: Adb) -> Conditions:
    """How the phone is just now.

    Raises:
        Disconnected: it is gone.
    """
    return from_dumps(phone.shell("dumpsys thermalservice; dumpsys battery").out)


def from_dumps(text: str) -> Conditions:
    """From what `dumpsys` prints of its thermal service and its battery."""
    status = re.search(r"^\s*Thermal Status: (\d+)", text, re.M)
    level = re.search(r"^\s*level: (\d+)", text, re.M)
    tenths = re.search(r"^\s*temperature: (-?\d+)", text, re.M)
    powered = re.findall(r"^\s*\w+ powered: (true|false)", text, re.M)
    number = len(THERMAL) if status is None else int(status[1])
    return Conditions(
        thermal=THERMAL[number] if number < len(THERMAL) else None,
        battery_percent=None if level is None else min(100, int(level[1])),
        battery_celsius=None if tenths is None else int(tenths[1]) / 10,
        powered="true" in powered if powered else None,
    )


def hot(found: Conditions) -> bool:
    """Whether the phone runs slower than it could, to cool down."""
    return found.thermal in THERMAL[2:]
