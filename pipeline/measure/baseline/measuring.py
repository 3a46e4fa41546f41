"""The float network measured on the machine at hand: accuracy, latency, throughput."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.base.console import Advance
from pipeline.base.machine import code_info, host_info
from pipeline.base.torchrun import device, has_bfloat16
from pipeline.measure.baseline.clocks import clocks_of
from pipeline.measure.baseline.files import model_sha256, tested_images
from pipeline.measure.baseline.record import (
    EXACT,
    Clocks,
    ClocksFound,
    FloatBaseline,
    Precision,
    Timing,
    images_per_second,
)
from pipeline.measure.baseline.speed import WARMUP, captured, is_out_of_memory, largest_batch
from pipeline.measure.latency import latency_of
from pipeline.measure.timing import Way, in_turn, wall_clock
from pipeline.networks.count import count
from pipeline.networks.family import model_info
from pipeline.networks.resnest.network import ResNeSt
from pipeline.recipe.recipe import Recipe, recipe_info
from pipeline.tasks.accuracy import Accuracy
from pipeline.tasks.classification import accuracies
from pipeline.tasks.evaluation import network_logits
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.images.pixels import normalize
from pipeline.tasks.ranking import first_class

_BATCHES = (1, 32)
_LARGEST = {"cuda": 256, "cpu": 32}
"""The batch that throughput is taken at; a CPU gains nothing from more."""

_TF32_SINCE = (8, 0)
"""Compute capability of the first GPUs with tf32, Ampere."""

_NO_GRAPHS = "only a GPU runs CUDA graphs"
_NO_GRAPH_OF_MANY = "not tried: a graph saves the time to start kernels, and many images hide it"

Tracked = Callable[[str, int], AbstractContextManager[Advance]]


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a precision is computed.

    Attributes:
        dtype: of images and of the weights, but for those of batch normalisation.
        memory_format: tensor cores want channels last, plain float32 does not.
        tf32: whether float32 products are rounded to tf32.
    """

    dtype: torch.dtype
    memory_format: Literal["contiguous", "channels_last"]
    tf32: bool


FORMS: dict[Precision, Form] = {
    "fp32": Form(dtype=torch.float32, memory_format="contiguous", tf32=False),
    "tf32": Form(dtype=torch.float32, memory_format="channels_last", tf32=True),
    "bf16": Form(dtype=torch.bfloat16, memory_format="channels_last", tf32=False),
}


_LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Formed(nn.Module):
    """A copy of a network that computes in one form: float32 images to float32 logits."""

    def __init__(self, model: nn.Module, form: Form, place: torch.device) -> None:
        super().__init__()
        self.form, self.layout = form, _LAYOUTS[form.memory_format]
        self.network = copy.deepcopy(model).to(place, form.dtype)
        self.network.to(memory_format=self.layout)  # type: ignore[call-overload]
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.float()  # statistics of eight bits would cost accuracy, and save no time

    def take(self, images: Tensor) -> Tensor:
        """Images as the network computes with them."""
        return images.to(self.form.dtype).contiguous(memory_format=self.layout)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 3, side, side) to logits (batch, classes)."""
        logits: Tensor = self.network(self.take(images)).float()
        return logits


@contextmanager
def _fastest(place: torch.device) -> Iterator[None]:
    """Let the GPU take its fastest kernels, whatever the stages have set; put back afterwards."""
    if place.type != "cuda":
        yield
        return
    deterministic = torch.are_deterministic_algorithms_enabled()
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32)
    torch.use_deterministic_algorithms(False)
    cudnn.benchmark = True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before
        torch.use_deterministic_algorithms(deterministic, warn_only=True)


def _round_products(place: torch.device, on: bool) -> None:
    """Whether the GPU rounds the float32 numbers that it multiplies to tf32."""
    if place.type == "cuda":
        torch.backends.cudnn.allow_tf32 = on
        torch.backends.cuda.matmul.allow_tf32 = on


def precisions(place: torch.device) -> tuple[list[Precision], dict[str, str]]:
    """What a device multiplies in hardware, and why not the others."""
    left_out: dict[str, str] = {}
    if place.type != "cuda":
        left_out["tf32"] = "a CPU has no tf32"
    elif (capability := torch.cuda.get_device_capability(place)) < _TF32_SINCE:
        found, least = (".".join(map(str, pair)) for pair in (capability, _TF32_SINCE))
        left_out["tf32"] = f"it needs compute capability {least}, this GPU has {found}"
    if not has_bfloat16():
        left_out["bf16"] = "this device does not multiply bfloat16 in hardware"
    return [precision for precision in FORMS if precision not in left_out], left_out


def measured(
    recipe: Recipe, model: ResNeSt, dataset: Dataset, size_bytes: int, tracked: Tracked
) -> FloatBaseline:
    """Measure a float network on the GPU, or on the CPU where there is none.

    Args:
        recipe: gives rounds, warm-up runs and threads.
        model: in evaluation mode.
        dataset: of the recipe.
        size_bytes: of the file of its weights.
        tracked: a progress bar.

    Raises:
        InputError: logits are not finite.
    """
    place, host, measured_at = device(), host_info(), datetime.now(UTC)
    counts = count(model, recipe.model.input_size)
    chosen, left_out = precisions(place)
    with _fastest(place):
        formed = {p: Formed(model, FORMS[p], place).eval() for p in chosen}
        accuracy, answers = _accuracies(formed, dataset, place, tracked)
        before = clocks_of(place)
        timings, untimed = _timings(recipe, formed, dataset, place, tracked)
        after = clocks_of(place)
    gpu = place.type == "cuda"
    return FloatBaseline(
        model_sha256=model_sha256(model, recipe.model.input_size),
        model=model_info(recipe, len(dataset.classes), counts.params, counts.macs),
        data=tested_images(dataset),
        recipe=recipe_info(recipe),
        code=code_info(),
        host=host,
        tools=_tools(gpu),
        device=host.gpu if gpu and host.gpu else host.cpu,
        device_kind="gpu" if gpu else "cpu",
        clocks=_found(before, after),
        measured_at=f"{measured_at:%Y-%m-%dT%H:%M:%SZ}",
        size_bytes=size_bytes,
        accuracy=accuracy,
        named=answers,
        timings=timings,
        not_measured=left_out | untimed,
    )


def _found(before: Clocks | str, after: Clocks | str) -> ClocksFound:
    if isinstance(before, str):
        return ClocksFound(before=None, after=None, missing=before)
    if isinstance(after, str):
        return ClocksFound(before=before, after=None, missing=after)
    return ClocksFound(before=before, after=after)


def _tools(gpu: bool) -> dict[str, str]:
    versions: dict[str, Any] = {"torch": torch.__version__}
    if gpu:
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        versions |= {"cuda": torch.version.cuda, "cudnn": cudnn}
    return {name: str(version) for name, version in versions.items() if version is not None}


def _accuracies(
    formed: Mapping[Precision, Formed], dataset: Dataset, place: torch.device, tracked: Tracked
) -> tuple[dict[Precision, dict[str, Accuracy]], dict[str, tuple[int, ...]]]:
    """Accuracy in every precision, and the classes that the exact one names."""
    found: dict[Precision, dict[str, Accuracy]] = {}
    answers: dict[str, tuple[int, ...]] = {}
    with tracked("test images", len(formed)) as advance:
        for precision, model in formed.items():
            _round_products(place, model.form.tf32)
            logits = network_logits(model, dataset, f"baseline in {precision}")
            found[precision] = accuracies(logits, dataset)
            if precision == EXACT:
                answers = {
                    name: tuple(first_class(logits[name]).tolist()) for name in dataset.tests
                }
            advance(len(found), precision)
    return found, answers


def _images(dataset: Dataset, batch: int) -> Tensor:
    """The first test images, normalised, over again where there are fewer."""
    images = next(iter(dataset.tests.values()))
    rows = torch.arange(batch) % len(images)
    return normalize(images.pixels(rows), dataset.mean, dataset.std)


def _timings(
    recipe: Recipe,
    formed: Mapping[Precision, Formed],
    dataset: Dataset,
    place: torch.device,
    tracked: Tracked,
) -> tuple[tuple[Timing, ...], dict[str, str]]:
    """Every batch in every precision, with and without CUDA graphs; and what could not be timed."""
    most = _LARGEST[place.type]
    images = _images(dataset, most)

    def attempt(batch: int) -> None:
        for model in formed.values():
            _round_products(place, model.form.tf32)
            _call(model, images[:batch].to(place))()
        if place.type == "cuda":
            torch.cuda.synchronize()

    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.target.threads)
    try:
        fits = largest_batch(attempt, most)
        timings: list[Timing] = []
        for batch in sorted({*(one for one in _BATCHES if one <= fits), fits}):
            timings += _timed(recipe, formed, images[:batch].to(place), tracked)
    finally:
        torch.set_num_threads(threads)
    larger = sorted({one for one in (*_BATCHES, most) if one > fits})
    return tuple(timings), {f"batch {batch}": "out of memory" for batch in larger}


def _call(model: Formed, images: Tensor) -> Callable[[], Tensor]:
    """A call on images that lie on the device as the network takes them."""
    given = model.take(images)

    def run() -> Tensor:
        with torch.inference_mode():
            answer: Tensor = model.network(given)
            return answer

    return run


def _timed(
    recipe: Recipe, formed: Mapping[Precision, Formed], images: Tensor, tracked: Tracked
) -> list[Timing]:
    """One batch in every precision, all ways in turn."""
    place, batch = images.device, len(images)
    ways: dict[tuple[Precision, bool], Way] = {}
    no_graph: dict[Precision, str] = {}
    for precision, model in formed.items():
        ready = partial(_round_products, place, model.form.tf32)
        run = _call(model, images)
        ways[precision, False] = Way(run=run, ready=ready)
        ready()
        try:
            ways[precision, True] = Way(run=_graph(run, images), ready=ready)
        except RuntimeError as error:
            why = "out of memory" if is_out_of_memory(error) else " ".join(str(error).split())
            no_graph[precision] = why[:200] or "no cause given"
    wait = torch.cuda.synchronize if place.type == "cuda" else (lambda: None)
    rounds = recipe.measure.rounds
    with tracked(f"batch {batch}", rounds) as advance:
        samples = in_turn(
            ways,
            warmup=max(recipe.measure.warmup, WARMUP),
            rounds=rounds,
            timer=wall_clock(wait),
            advance=lambda done: advance(done, ""),
        )
    del ways
    gc.collect()  # graphs hold memory that the next batch may need
    return [
        timing_of(
            p,
            {graph: samples[p, graph] for graph in (False, True) if (p, graph) in samples},
            threads=recipe.target.threads,
            batch=batch,
            no_graph=no_graph.get(p),
        )
        for p in formed
    ]


def _graph(run: Callable[[], Tensor], images: Tensor) -> Callable[[], Any]:
    """The call as a CUDA graph.

    Raises:
        RuntimeError: there is none; says why.
    """
    if not images.is_cuda:
        raise RuntimeError(_NO_GRAPHS)
    if len(images) > max(_BATCHES):
        raise RuntimeError(_NO_GRAPH_OF_MANY)
    return captured(run)


def timing_of(
    precision: Precision,
    samples: Mapping[bool, list[float]],
    *,
    threads: int,
    batch: int,
    no_graph: str | None,
) -> Timing:
    """The faster way by its median, and the other beside it.

    Args:
        precision: that was timed.
        samples: milliseconds, without (False) and with (True) a CUDA graph.
        threads: of torch.
        batch: images of a call.
        no_graph: why there is no graph.
    """
    taken = {graph: latency_of(ms, threads, batch) for graph, ms in samples.items()}
    best = min(taken, key=lambda graph: taken[graph].median)
    return Timing(
        precision=precision,
        batch=batch,
        memory_format=FORMS[precision].memory_format,
        cuda_graph=best,
        latency_ms=taken[best],
        images_per_second=images_per_second(taken[best]),
        other_ms=taken.get(not best),
        other_missing=no_graph,
    )
