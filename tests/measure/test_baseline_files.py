"""Files of float baselines: read back, never taken for something else, and named where damaged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.base.errors import InputError
from pipeline.measure.baseline import calls, files, measuring, record
from pipeline.measure.baseline.record import BASELINES, ClocksFound
from pipeline.measure.latency import latency_of
from pipeline.networks.checkpoints import load_checkpoint, save_checkpoint
from pipeline.networks.resnest.family import FAMILY
from pipeline.recipe.input_shape import square
from pipeline.tasks import classification
from pipeline.tasks.images.dataset import Dataset
from tests.making import networks
from tests.making.baselines import GPU, dataset, here, network, of_gpu

pytestmark = pytest.mark.slow


def newest(
    *folders: Path, data: Dataset | None = None
) -> tuple[files.KeptBaseline | None, list[str]]:
    model = files.model_sha256(network(), FAMILY.shape(network()), square(networks.SIDE))
    return files.newest_of_gpu(folders, model, data or dataset(), classification)


def test_the_hash_is_of_the_network_not_of_its_file(tmp_path: Path) -> None:
    model, side = network(), networks.SIDE
    whole = files.model_sha256(model, FAMILY.shape(model), square(side))
    save_checkpoint(model, tmp_path / "a.safetensors", {"classes": "[]"})
    torch.save({"state_dict": model.state_dict()}, tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pt"):
        read = networks.small(seed=1)
        assert files.model_sha256(read, FAMILY.shape(read), square(side)) != whole
        load_checkpoint(read, tmp_path / name, FAMILY.checkpoint(read))
        assert files.model_sha256(read, FAMILY.shape(read), square(side)) == whole
    last = networks.small().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert files.model_sha256(last, FAMILY.shape(last), square(side)) == whole
    assert files.model_sha256(model, FAMILY.shape(model), square(64)) != whole
    model = networks.small()
    model.config = replace(model.config, avd_first=True)  # has no weights of its own
    assert files.model_sha256(model, FAMILY.shape(model), square(side)) != whole


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_every_number_of_the_network_counts(data: st.DataObject) -> None:
    model = networks.small(layers=networks.SHALLOW)
    whole = files.model_sha256(model, FAMILY.shape(model), square(networks.SIDE))
    name = data.draw(st.sampled_from(sorted(model.state_dict())))
    flat = model.state_dict()[name].view(-1)
    index = data.draw(st.integers(0, len(flat) - 1))
    before = flat[index].item()
    flat[index] = before + 1
    assert files.model_sha256(model, FAMILY.shape(model), square(networks.SIDE)) != whole
    flat[index] = before
    assert files.model_sha256(model, FAMILY.shape(model), square(networks.SIDE)) == whole


@given(device=st.text())
def test_any_device_gives_a_plain_name_of_a_file(device: str) -> None:
    name = files.file_name("0123456789abcdef" * 4, device)
    assert name.startswith("0123456789abcdef-")
    assert set(name.removesuffix(".json")) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert len(name) <= 90
    assert Path(name).name == name


def test_the_name_says_network_and_device(tmp_path: Path) -> None:
    path = files.save(of_gpu(), tmp_path)
    assert path.parent == tmp_path / BASELINES
    assert path.name == f"{here().model_sha256[:16]}-nvidia-h100-80gb-hbm3.json"


def test_what_is_saved_reads_back_and_fits_its_schema(tmp_path: Path) -> None:
    for found in (here(), of_gpu(GPU + " [  1 ]")):
        path = files.save(found, tmp_path)
        assert files.read(path).found == found
        tree = json.loads(path.read_text())
        jsonschema.validate(tree, record.json_schema())
        assert tree["schema_version"] == 1
    assert {file.name for file in path.parent.iterdir()} == {
        files.file_name(found.model_sha256, found.device) for found in (here(), found)
    }


def test_the_shipped_schema_is_current() -> None:
    schema = Path(record.__file__).parent / "baseline.schema.json"
    assert json.loads(schema.read_text()) == record.json_schema(), (
        "run: python -c 'import json; from pipeline.measure.baseline.record import json_schema; "
        f"print(json.dumps(json_schema(), indent=2))' > {schema}"
    )


def test_a_later_measurement_replaces_the_earlier_one(tmp_path: Path) -> None:
    first = files.save(of_gpu(), tmp_path)
    assert files.save(of_gpu(measured_at="2026-11-21T00:00:00Z"), tmp_path) == first
    assert list(first.parent.iterdir()) == [first]
    assert files.read(first).found.measured_at == "2026-11-21T00:00:00Z"


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / BASELINES).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="baselines: is a link"):
        files.save(of_gpu(), tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device_kind": "cpu"}, "is not the host's"),
        ({"accuracy": {"bf16": {}}}, "fp32 is missing"),
        ({"named": {"test": (0,)}}, "not every image"),
        ({"named": {"test": (99,) * 16}}, "the network has 5 classes"),
        ({"timings": ()}, "must have fp32 of one image"),
        ({"tools": {}}, "torch is missing"),
        ({"measured_at": "yesterday"}, "measured_at"),
    ],
)
def test_a_baseline_refuses_to_contradict_itself(changes: dict[str, Any], message: str) -> None:
    if "named" in changes and message.startswith("the network"):
        model = here().model.model_copy(update={"num_classes": 5})
        changes = changes | {"model": model}
    with pytest.raises(ValueError, match=message):
        of_gpu(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"other_ms": None}, "give other_ms or other_missing"),
        ({"batch": 2}, "got 2, but timed 1"),
        ({"images_per_second": 7.0}, "is not that of latency_ms"),
        ({"other_ms": latency_of([0.5], 1, 1)}, "is the faster"),
    ],
)
def test_a_timing_refuses_to_contradict_itself(changes: dict[str, Any], message: str) -> None:
    samples = {False: [2.0], True: [1.0]}
    whole = calls.timing_of("fp32", samples, threads=1, batch=1, no_graph=None)
    with pytest.raises(ValueError, match=message):
        record.Timing(**dict(whole) | changes)


def test_clocks_are_there_or_their_reason_is() -> None:
    with pytest.raises(ValueError, match="the reason why not"):
        ClocksFound(before=None, after=None)
    found = measuring._found(here().clocks.before or "no", "it broke")
    assert (found.missing, found.after) == ("it broke", None)


def test_the_newest_of_a_gpu_is_taken(tmp_path: Path) -> None:
    assert newest(tmp_path / "not-there") == (None, [])
    files.save(here(), tmp_path)
    assert newest(tmp_path / BASELINES) == (None, []), "a CPU's is none to compare with elsewhere"
    days = {"Old GPU": "2026-01-31T00:00:00Z", "New GPU": "2026-02-01T00:00:00Z"}
    for device, day in days.items():
        files.save(of_gpu(device, measured_at=day), tmp_path / device)
    for order in (list(days), list(days)[::-1]):
        kept, notes = newest(*(tmp_path / device / BASELINES for device in order))
        assert kept is not None
        assert (kept.found.device, notes) == ("New GPU", [])


def test_a_folder_that_is_named_twice_is_read_once(tmp_path: Path) -> None:
    files.save(of_gpu(), tmp_path).write_text("{")
    (tmp_path / "link").symlink_to(tmp_path / BASELINES)
    assert len(newest(tmp_path / BASELINES, tmp_path / "link")[1]) == 1


def test_baselines_of_other_networks_are_passed_over(tmp_path: Path) -> None:
    path = files.save(of_gpu(model_sha256="f" * 64), tmp_path)
    assert newest(path.parent) == (None, [])
    renamed = path.rename(path.with_name(files.file_name(here().model_sha256, "x")))
    kept, (note,) = newest(path.parent)
    assert kept is None
    assert note == f"{renamed}: is named as a baseline of this network, but is of another; not used"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"sha256": "1" * 64}, "sha256"),
        ({"mean": (0.0, 0.0, 0.0)}, "mean"),
        ({"name": "x"}, "name"),
    ],
)
def test_accuracy_on_other_images_is_not_taken(
    change: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    path = files.save(of_gpu(), tmp_path)
    kept, (note,) = newest(path.parent, data=replace(dataset(), **change))
    assert kept is None
    assert f"measured with other images, or otherwise prepared ({expected} differ)" in note


def test_accuracy_that_was_edited_is_not_taken(tmp_path: Path) -> None:
    accuracy = {
        precision: {"test": found["test"].model_copy(update={"top1": 0.0})}
        for precision, found in here().accuracy.items()
    }
    named = {"test": tuple(dataset().tests["test"].labels.tolist())}
    path = files.save(of_gpu(accuracy=accuracy, named=named), tmp_path)
    assert newest(path.parent) == (
        None,
        [f"{path}: gives another accuracy on test than its answers do; not used"],
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is no baseline, or damaged (Invalid JSON"),
        (b"[1, 2]", "is no baseline, or damaged (Input should be"),
        (b"{}", "is no baseline, or damaged (model_sha256: Field required"),
        (b"\xff\xfe", "is no baseline, or damaged"),
        (b"[" * 100_000, "is no baseline, or damaged"),
    ],
)
def test_a_damaged_file_is_named_in_a_line(content: bytes, expected: str, tmp_path: Path) -> None:
    path = files.save(of_gpu(), tmp_path)
    path.write_bytes(content)
    kept, (note,) = newest(path.parent)
    assert kept is None
    assert note.startswith(f"{path}: {expected}")
    assert note.endswith("; measure it again with `pocketnest baseline`; not used")
    assert "\n" not in note


def test_what_is_no_file_is_named_in_a_line(tmp_path: Path) -> None:
    path = files.save(of_gpu(), tmp_path)
    path.unlink()
    path.mkdir()
    kept, (note,) = newest(path.parent)
    assert kept is None
    assert f"{path}: cannot be read (is not a file)" in note


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(at=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), cut=st.booleans())
def test_no_damage_is_a_traceback(at: float, byte: int, cut: bool, tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    if not path.exists():
        files.save(of_gpu(), tmp_path).rename(path)
    content = bytearray(path.read_bytes())
    place = int(at * len(content))
    damaged = content[:place] if cut else content[:place] + bytes([byte]) + content[place + 1 :]
    other = tmp_path / "damaged.json"
    other.write_bytes(damaged)
    said = refusal(other)
    assert said is None or (said.startswith(f"{other}: ") and "\n" not in said)


def refusal(path: Path) -> str | None:
    """Why a file is refused; None where it is read."""
    try:
        files.read(path)
    except InputError as error:
        return str(error)
    return None
