"""device.json: what may stand in it, and how it is kept."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.base.errors import InputError
from pipeline.measure.device import kept, record
from pipeline.measure.device.record import Device, GoldenCheck, Timing, timing_of
from tests.making.devices import a_file, on_device


def test_a_timing_is_of_its_samples() -> None:
    timing = timing_of("cpu", [3.0, 1.0, 2.0], threads=2)
    assert (timing.typical, timing.typical_ms, timing.mean_ms) == ("median", 2.0, 2.0)
    with pytest.raises(ValidationError, match="timing_of"):
        Timing(unit="cpu", samples_ms=(1.0, 2.0), median_ms=2.0, p10_ms=1.0, p90_ms=2.0)


def test_a_timing_without_samples_has_the_sources_own_sums() -> None:
    assert Timing(unit="npu", mean_ms=1.5).typical == "mean"
    with pytest.raises(ValidationError, match="median_ms or mean_ms"):
        Timing(unit="npu", min_ms=1.0)


def test_a_golden_check_says_what_it_saw_or_why_it_saw_nothing() -> None:
    GoldenCheck(unit="cpu", images=0, missing="the service runs inputs of its own")
    with pytest.raises(ValidationError, match="missing"):
        GoldenCheck(unit="cpu", images=0)
    with pytest.raises(ValidationError, match="against largest"):
        GoldenCheck(unit="cpu", images=1, tolerance=0.1, largest=0.2, passed=True)


def test_a_unit_stands_once() -> None:
    twice = (timing_of("cpu", [1.0], threads=1), timing_of("cpu", [2.0], threads=1))
    with pytest.raises(ValidationError, match="may stand once"):
        a_file(timings=twice)


def test_of_several_files_one_is_found_by_its_bytes() -> None:
    found = on_device(files=(a_file(), a_file(sha256="b" * 64, name="float")))
    alone = found.only("b" * 64)
    assert alone is not None
    assert [file.name for file in alone.files] == ["float"]
    assert found.only("c" * 64) is None


def test_a_measurement_replaces_the_same_devices_earlier_one(tmp_path: Path) -> None:
    assert kept.read(tmp_path) is None
    first, other = on_device(), on_device(device=Device(name="Google Pixel 9"))
    again = on_device(measured_at="2026-11-30T13:00:00Z")
    found = kept.with_newer(kept.with_newer(kept.with_newer(None, first), other), again)
    kept.write(found, tmp_path)
    back = kept.read(tmp_path)
    assert back == found
    assert back is not None
    assert back.machines == (other, again)


def test_what_is_no_device_json_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / record.DEVICE).write_text('{"schema_version": 2}')
    with pytest.raises(InputError, match=r"device\.json: not measurements of this version"):
        kept.read(tmp_path)


def test_the_shipped_schema_is_current() -> None:
    schema = Path(record.__file__).parent / "device.schema.json"
    assert json.loads(schema.read_text()) == record.json_schema(), (
        "run: python -c 'import json; from pipeline.measure.device.record import json_schema; "
        f"print(json.dumps(json_schema(), indent=2))' > {schema}"
    )
