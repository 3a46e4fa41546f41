"""Float baselines: what is measured, by which kernels, at which clocks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline.measure.baseline import calls, forms, measuring, record, speed
from pipeline.measure.baseline.clocks import cpu_clocks, gpu_clocks
from pipeline.tasks.classification import accuracies
from pipeline.tasks.evaluation import network_logits
from tests.making import networks
from tests.making.baselines import dataset, here, network, recipe, silent
from tests.making.networks import same_state

pytestmark = pytest.mark.slow

NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory")


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
