"""Float baselines: measured on one machine, read on another, and never taken for something else."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import jsonschema
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

from pipeline.__main__ import main
from pipeline.base.children import Children
from pipeline.base.errors import InputError
from pipeline.base.store import Result
from pipeline.measure.baseline import calls, files, forms, measuring, record, speed
from pipeline.measure.baseline.clocks import cpu_clocks, gpu_clocks
from pipeline.measure.baseline.record import BASELINES, Baseline, ClocksFound, FloatBaseline
from pipeline.measure.latency import latency_of
from pipeline.networks.checkpoints import WEIGHTS, load_checkpoint, save_checkpoint
from pipeline.networks.count import count
from pipeline.networks.resnest.family import FAMILY
from pipeline.networks.resnest.network import ResNeSt
from pipeline.recipe.input_shape import square
from pipeline.recipe.recipe import Recipe, load_recipes
from pipeline.report import html, markdown
from pipeline.report.records import Report
from pipeline.report.write import combine, json_schema
from pipeline.stages import publish, run
from pipeline.stages.baseline import BaselineFacts
from pipeline.stages.context import Context
from pipeline.stages.schedule import RecipeRun
from pipeline.stages.train import TrainFacts
from pipeline.tasks import classification
from pipeline.tasks.classification import accuracies
from pipeline.tasks.evaluation import network_logits
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.predictions import Predictions
from tests.making import markup, networks, reports
from tests.making.documented import DIGITS
from tests.making.networks import same_state
from tests.making.recipes import DEVICE_RECIPES, NARROW_MODEL
from tests.making.recipes import settings as set_values

pytestmark = pytest.mark.slow

GPU = "NVIDIA H100 80GB HBM3"
DAY = "2026-11-20T10:11:12Z"
NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory")


def silent(title: str, total: int) -> Any:
    return nullcontext(lambda done, text: None)


@cache
def recipe() -> Recipe:
    (found,) = load_recipes(
        [DEVICE_RECIPES["onnx"]], [*NARROW_MODEL, "measure.rounds=3", "measure.warmup=0"]
    )
    return found


@cache
def network() -> ResNeSt:
    return networks.small()


@cache
def dataset() -> Dataset:
    return networks.dataset()


@cache
def here() -> FloatBaseline:
    """What this machine's CPU makes of a small network."""
    return measuring.measured(recipe(), network(), dataset(), 1000, silent)


def of_gpu(device: str = GPU, **changes: Any) -> FloatBaseline:
    """The same, as if a GPU had said so."""
    host = here().host.model_copy(update={"gpu": device, "cpu": "Another CPU"})
    parts = {"device": device, "device_kind": "gpu", "host": host, "measured_at": DAY}
    return FloatBaseline(**dict(here()) | parts | changes)


def newest(
    *folders: Path, data: Dataset | None = None
) -> tuple[files.KeptBaseline | None, list[str]]:
    model = files.model_sha256(network(), FAMILY.shape(network()), square(networks.SIDE))
    return files.newest_of_gpu(folders, model, data or dataset(), classification)


# --- What is measured here


def test_a_cpu_is_measured_in_what_it_multiplies() -> None:
    found = here()
    wanted = {"fp32", "bf16"} if forms.has_bfloat16() else {"fp32"}
    assert set(found.accuracy) == {timing.precision for timing in found.timings} == wanted
    assert set(found.not_measured) == {"fp32", "tf32", "bf16"} - wanted
    assert [t.batch for t in found.timings if t.precision == "fp32"] == [1, 32]
    for timing in found.timings:
        assert (timing.latency_ms.runs, timing.latency_ms.threads) == (3, 1)
        assert not timing.cuda_graph
        assert timing.other_missing == "only a GPU runs CUDA graphs"
    assert found.accuracy["fp32"] == accuracies(
        network_logits(network(), dataset(), "test"), dataset()
    )
    assert (found.device, found.device_kind) == (found.host.cpu, "cpu")
    assert found.model.params == sum(p.numel() for p in network().parameters())
    assert found.recipe.name == recipe().name
    assert found.data.sha256 == dataset().sha256


class Watched(nn.Module):
    """A network that writes down how kernels are chosen whenever it is called."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.seen = model, set[tuple[bool, ...]]()

    def __deepcopy__(self, memo: object) -> Watched:
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.add(kernels())
        answer: torch.Tensor = self.model(images)
        return answer


def kernels() -> tuple[bool, ...]:
    """Deterministic kernels, cuDNN's fastest, and products rounded to tf32."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return (
        torch.are_deterministic_algorithms_enabled(),
        cudnn.benchmark,
        cudnn.allow_tf32 or matmul.allow_tf32,
    )


@pytest.fixture
def as_in_a_stage() -> Iterator[None]:
    """Deterministic kernels, as the stages of a run have them."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.usefixtures("as_in_a_stage")
def test_the_float_network_is_timed_with_the_fastest_kernels_in_full_float32() -> None:
    """`pocketnest baseline` and the stage of a run alike: the one function they both call."""
    staged = kernels()
    assert staged == (True, False, True), "as torch and the stages set it"
    model = Watched(network())
    found = calls.timed_exact(recipe(), model, dataset(), torch.device("cpu"), silent)
    assert model.seen == {(False, True, False)}
    assert (found.precision, found.batch, found.latency_ms.runs) == ("fp32", 1, 3)
    assert kernels() == staged
    assert torch.is_deterministic_algorithms_warn_only_enabled()


@pytest.mark.usefixtures("as_in_a_stage")
def test_the_settings_of_the_stages_come_back_after_an_error() -> None:
    staged = kernels()

    def run() -> None:
        with forms.fastest_kernels():
            forms.round_products(False)
            assert kernels() == (False, True, False)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert kernels() == staged


def test_another_precision_changes_its_own_copy_alone() -> None:
    model = networks.small()
    before = networks.small()
    formed = forms.Formed(model, forms.FORMS["bf16"], torch.device("cpu")).eval()
    assert same_state(model, before)
    kinds = {type(m): m.weight.dtype for m in formed.modules() if hasattr(m, "weight")}
    assert kinds.pop(nn.BatchNorm2d) == torch.float32
    assert set(kinds.values()) == {torch.bfloat16}
    images = networks.images(4)
    with torch.inference_mode():
        rounded, exact = formed(images), model(images)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.1 * exact.abs().max()


@given(limit=st.integers(1, 300), batch=st.integers(1, 256))
def test_the_largest_batch_is_halved_until_it_fits(limit: int, batch: int) -> None:
    tried: list[int] = []

    def attempt(images: int) -> None:
        tried.append(images)
        if images > limit:
            raise NO_MEMORY

    found = speed.largest_batch(attempt, batch)
    assert found == tried[-1] <= limit
    assert tried == [batch >> n for n in range(len(tried))]
    assert all(images > limit for images in tried[:-1])


@pytest.mark.parametrize("error", [NO_MEMORY, RuntimeError("another fault")])
def test_what_no_smaller_batch_mends_is_raised(error: Exception) -> None:
    def attempt(images: int) -> None:
        raise error

    with pytest.raises(type(error), match=str(error)):
        speed.largest_batch(attempt, 4)


def test_a_batch_without_memory_is_left_out_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measuring, "largest_batch", lambda attempt, batch: 4)
    formed = {"fp32": forms.Formed(network(), forms.FORMS["fp32"], torch.device("cpu"))}
    timings, why = measuring._timings(recipe(), formed, dataset(), torch.device("cpu"), silent)
    assert [timing.batch for timing in timings] == [1, 4]
    assert why == {"batch 32": "out of memory"}


def test_both_ways_of_a_call_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(batch: int) -> record.Timing:
        images = networks.images(batch)
        (found,) = calls.timed(recipe(), formed, images, silent)
        return found

    def fail(run: object, images: torch.Tensor) -> Any:
        raise NO_MEMORY if len(images) == 1 else RuntimeError("not\nallowed " + "x" * 500)

    formed = {"fp32": forms.Formed(network(), forms.FORMS["fp32"], torch.device("cpu"))}
    monkeypatch.setattr(calls, "_graph", lambda run, images: run)
    found = timed(2)
    assert found.other_ms is not None
    assert found.other_ms.runs == found.latency_ms.runs == 3
    monkeypatch.setattr(calls, "_graph", fail)
    assert timed(1).other_missing == "out of memory"
    why = timed(2).other_missing
    assert why is not None
    assert why.startswith("not allowed xxx")
    assert len(why) == 200


def test_an_old_gpu_has_no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "has_bfloat16", lambda: True)
    for capability, expected in (((7, 5), ["fp32", "bf16"]), ((9, 0), ["fp32", "tf32", "bf16"])):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        chosen, left_out = forms.precisions(torch.device("cuda"))
        assert chosen == expected
        if "tf32" not in chosen:
            assert left_out == {"tf32": "it needs compute capability 8.0, this GPU has 7.5"}


@pytest.mark.parametrize(("graph_ms", "graph"), [(1.0, True), (3.0, False)])
def test_the_better_way_is_kept_and_named(graph_ms: float, graph: bool) -> None:
    samples = {False: [2.0, 2.0], True: [graph_ms] * 2}
    found = calls.timing_of("tf32", samples, threads=1, batch=32, no_graph=None)
    assert found.cuda_graph is graph
    assert found.latency_ms.median == min(2.0, graph_ms)
    assert found.other_ms is not None
    assert found.other_ms.median == max(2.0, graph_ms)
    assert found.images_per_second == pytest.approx(32_000 / min(2.0, graph_ms))
    assert found.memory_format == "channels_last"


def says(text: str, code: int = 0) -> list[str]:
    """A program that stands for nvidia-smi."""
    return [sys.executable, "-S", "-E", "-c", f"print({text!r}); raise SystemExit({code})"]


def test_clocks_are_read_as_found(tmp_path: Path) -> None:
    found = gpu_clocks("GPU-1", says("1980, 2619, 700.00"))
    assert not isinstance(found, str)
    assert list(found.model_dump().values()) == ["nvidia-smi", 1980, 2619, 700]
    found = gpu_clocks("GPU-1", says("1410, [N/A], [Not Supported]"))
    assert not isinstance(found, str)
    assert (found.core_mhz, found.memory_mhz, found.power_limit_w) == (1410, None, None)
    info = tmp_path / "cpuinfo"
    info.write_text("cpu MHz\t\t: 1000.5\nmodel name\t: x\ncpu MHz\t\t: 3000.5\n")
    assert cpu_clocks(info) == record.Clocks(
        source="/proc/cpuinfo", core_mhz=2000.5, memory_mhz=None, power_limit_w=None
    )


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (partial(gpu_clocks, "GPU-1", ["no-such-program"]), "nvidia-smi cannot be run (FileNotF"),
        (partial(gpu_clocks, "GPU-1", says("No devices", 6)), "exit code 6: No devices"),
        (partial(gpu_clocks, "GPU-1", says("[N/A], 1, 2")), "nvidia-smi gave no clocks: [N/A], 1"),
        (partial(gpu_clocks, "GPU-1", says("")), "nvidia-smi gave no clocks: nothing"),
        (partial(cpu_clocks, Path("/no-such")), "/no-such cannot be read (No such file"),
        (partial(cpu_clocks, Path("/dev/null")), "/dev/null gives no clocks on this machine"),
    ],
)
def test_clocks_that_are_not_known_have_a_reason(
    found: Callable[[], object], expected: str
) -> None:
    assert expected in str(found())


# --- What makes it the same network


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


# --- The file


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


# --- Which one a run takes


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


# --- In a run


def begun(tmp_path: Path, kind: Literal["cpu", "gpu"]) -> RecipeRun:
    """A run that has trained, on a machine whose baseline is of this kind of device."""
    save_checkpoint(network(), tmp_path / WEIGHTS)
    images, counts = dataset(), count(network(), square(networks.SIDE))
    facts = {
        "train": TrainFacts(),
        "baseline": BaselineFacts(
            device_kind=kind,
            accuracy=accuracies(network_logits(network(), images, "x"), images),
            latency_ms=latency_of([1.0], threads=1, batch=1),
            size_bytes=1,
            params=counts.params,
            macs=counts.macs,
        ),
    }
    results = {
        name: Result(
            stage=name, key="k", directory=tmp_path, facts=found, seconds=1.0, reused=False
        )
        for name, found in facts.items()
    }
    return RecipeRun(
        context=Context(recipe=recipe(), dataset=dataset(), tracked=silent, children=Children()),
        gate=lambda result: None,
        results=results,
    )


def test_a_run_without_a_gpu_takes_it_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "SHIPPED", tmp_path / "shipped")
    said: list[str] = []
    seen = partial(
        publish._of_a_gpu_elsewhere, begun(tmp_path, "cpu"), tmp_path / "out", said.append
    )
    assert seen() is None
    assert said == []
    path = files.save(of_gpu(), tmp_path)
    path.parent.rename(tmp_path / "shipped")
    kept = seen()
    assert kept is not None
    assert kept.found == of_gpu()
    own = files.save(of_gpu("Own [/GPU]", measured_at="2026-11-21T00:00:00Z"), tmp_path / "out")
    kept = seen()
    assert kept is not None
    assert kept.path == own
    own.write_text("{")
    kept = seen()
    assert kept is not None
    assert kept.found == of_gpu(), "the damaged one is named, and the next one taken"
    used = f"  float baseline of {GPU}, measured elsewhere: {tmp_path}/shipped/{path.name}"
    assert [said[0], said[-1]] == [used, used]
    assert said[1] == f"  float baseline of Own \\[/GPU], measured elsewhere: {own}"
    assert said[2].startswith(f"  {own}: is no baseline, or damaged (")
    Console(file=io.StringIO()).print(*said)  # no markup that is none


def test_a_run_with_a_gpu_measures_itself(tmp_path: Path) -> None:
    files.save(of_gpu(), tmp_path)
    assert publish._of_a_gpu_elsewhere(begun(tmp_path, "gpu"), tmp_path, lambda line: None) is None


def test_a_recipe_cannot_take_the_folder(tmp_path: Path) -> None:
    taken = recipe().model_copy(update={"name": BASELINES})
    with pytest.raises(InputError, match=r"name: got 'baselines'.* give the recipe another name"):
        run.run_recipes([taken], tmp_path, Console(file=io.StringIO()), until="train")


def test_the_command_measures_saves_and_shows(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    overrides = set_values(*DIGITS, "train.epochs=0")
    arguments = ["baseline", str(DEVICE_RECIPES["onnx"]), "--out", str(tmp_path / "out")]
    assert main([*arguments, *overrides]) == 0
    (path,) = (tmp_path / "out" / BASELINES).iterdir()
    (weights,) = tmp_path.glob("out/.store/train-*/weights.safetensors")
    found = files.read(path).found
    shown = capfd.readouterr().out
    assert f"weights: {weights}\nbaseline: {path}\n" in shown
    assert f"{found.device}, clocks before and after: " in shown
    assert "not measured: tf32: a CPU has no tf32" in shown
    assert {p.name for p in (tmp_path / "out").iterdir()} == {BASELINES, ".store", "run.log"}
    assert found.accuracy["fp32"]["test"].images == 64
    assert found.size_bytes == weights.stat().st_size
    assert main([*arguments, *overrides, "--set", "measure.rounds=4"]) == 0
    assert "reused" in capfd.readouterr().out
    assert files.read(path).found.timing("fp32", 32).latency_ms.runs == 4
    assert main(["baseline", str(tmp_path / "none.yaml")]) == 2


# --- In a report


def elsewhere(tmp_path: Path) -> Baseline:
    kept = files.read(files.save(of_gpu(), tmp_path))
    return kept.baseline(dataset(), classification)


def test_the_baseline_of_a_report_is_the_files(tmp_path: Path) -> None:
    found = elsewhere(tmp_path)
    assert (found.device, found.device_kind, found.measured_here) == (GPU, "gpu", False)
    assert found.accuracy == here().accuracy["fp32"]
    assert found.latency_ms == here().timing("fp32", 1).latency_ms
    assert found.origin is not None
    assert (found.origin.cpu, found.origin.measured_at) == ("Another CPU", DAY)
    assert found.origin.code == here().code
    assert Baseline.model_validate_json(found.model_dump_json()) == found
    with pytest.raises(ValueError, match="measured_here is True"):
        Baseline(**dict(found) | {"measured_here": True})


def test_the_float_models_answers_are_the_baselines(tmp_path: Path) -> None:
    kept = files.read(files.save(of_gpu(), tmp_path))
    labels = dataset().tests["test"].labels.tolist()
    ours = {"test": Predictions(labels=labels, float_model=[0] * 16, file=[1] * 16)}
    found = kept.answering(ours)["test"]
    assert asdict(found) == asdict(ours["test"]) | {"float_model": list(here().named["test"])}


def in_a_report(tmp_path: Path) -> Report:
    """A whole report against a baseline of another machine."""
    whole = reports.full(3)
    origin = elsewhere(tmp_path).origin
    changes = {"device": GPU, "device_kind": "gpu", "measured_here": False, "origin": origin}
    baseline = Baseline(**dict(whole.baseline) | changes)
    return Report(**dict(whole) | {"baseline": baseline})


def test_every_form_of_the_report_says_that_it_was_not_measured_here(tmp_path: Path) -> None:
    report = in_a_report(tmp_path)
    tree = report.model_dump(mode="json")
    jsonschema.validate(tree, json_schema())
    assert tree["baseline"]["origin"]["measured_at"] == DAY
    table = markup.rows(markdown.render(report))
    where = f"{GPU} (GPU, measured elsewhere on 2026-11-20)"
    assert table["float baseline"]["device"] == where
    assert "float on this CPU" in table
    said = f"not measured here, but on a machine with {GPU} and Another CPU, at 2026-11-20 10:11:12"
    assert said in markdown.render(report)
    page = html.render(report)
    assert page.count(said) == 2, "beside the cards, and under the setting"
    assert f"float baseline ({GPU}, measured elsewhere on 2026-11-20)" in page
    assert "float on this CPU" in page


def test_reports_of_one_baseline_combine_and_of_two_do_not(tmp_path: Path) -> None:
    one = in_a_report(tmp_path)
    (first, second, third) = (
        Report(**dict(one) | {"targets": (target,), "passed": target.passed})
        for target in one.targets
    )
    assert combine([first, second]).baseline == one.baseline
    here_too = Report(**dict(third) | {"baseline": reports.full(3).baseline})
    with pytest.raises(ValueError, match=r"baseline\.measured_here is False and True"):
        combine([first, here_too])


def test_a_timing_that_was_not_taken_is_named() -> None:
    with pytest.raises(KeyError, match="tf32, batch 1"):
        here().timing("tf32", 1)
