"""A float network timed on a device: by `pocketnest baseline` and by every run, in one way."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.base.console import Advance
from pipeline.measure.baseline.forms import FORMS, Formed, fastest_kernels, round_products
from pipeline.measure.baseline.record import EXACT, Precision, Timing, images_per_second
from pipeline.measure.baseline.speed import WARMUP, captured, is_out_of_memory
from pipeline.measure.latency import latency_of
from pipeline.measure.timing import Way, in_turn, wall_clock
from pipeline.recipe.recipe import Recipe
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.images.pixels import normalize

BATCHES = (1, 32)
_NO_GRAPHS = "only a GPU runs CUDA graphs"
_NO_GRAPH_OF_MANY = "not tried: a graph saves the time to start kernels, and many images hide it"

Tracked = Callable[[str, int], AbstractContextManager[Advance]]


def timed_exact(
    recipe: Recipe, model: nn.Module, dataset: Dataset, place: torch.device, tracked: Tracked
) -> Timing:
    """One image in full float32, as reports compare with it; as `timed`.

    Args:
        recipe: gives rounds, warm-up runs and threads.
        model: in evaluation mode.
        dataset: gives the image.
        place: where it is timed.
        tracked: a progress bar.
    """
    formed = {EXACT: Formed(model, FORMS[EXACT], place).eval()}
    with torch_threads(recipe.target.threads):
        (found,) = timed(recipe, formed, first_images(dataset, 1).to(place), tracked)
    return found


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """So many threads of torch, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def first_images(dataset: Dataset, batch: int) -> Tensor:
    """The first test images, normalised, over again where there are fewer."""
    images = next(iter(dataset.tests.values()))
    rows = torch.arange(batch) % len(images)
    return normalize(images.pixels(rows), dataset.mean, dataset.std)


def call(model: Formed, images: Tensor) -> Callable[[], Tensor]:
    """A call on images that lie on the device as the network takes them."""
    given = model.take(images)

    def run() -> Tensor:
        with torch.inference_mode():
            answer: Tensor = model.network(given)
            return answer

    return run


def timed(
    recipe: Recipe, formed: Mapping[Precision, Formed], images: Tensor, tracked: Tracked
) -> list[Timing]:
    """One batch in every precision, all ways in turn, with the fastest kernels.

    Args:
        recipe: gives rounds and warm-up runs; the threads are set already, and are recorded.
        formed: the network by precision, on the device of `images`.
        images: float32 (batch, 3, side, side).
        tracked: a progress bar.
    """
    with fastest_kernels():
        samples, no_graph = _samples(recipe, formed, images, tracked)
    return [
        timing_of(
            p,
            {graph: samples[p, graph] for graph in (False, True) if (p, graph) in samples},
            threads=recipe.target.threads,
            batch=len(images),
            no_graph=no_graph.get(p),
        )
        for p in formed
    ]


def _samples(
    recipe: Recipe, formed: Mapping[Precision, Formed], images: Tensor, tracked: Tracked
) -> tuple[dict[tuple[Precision, bool], list[float]], dict[Precision, str]]:
    """Milliseconds by precision and whether as a CUDA graph; and why there is no graph."""
    place, batch = images.device, len(images)
    ways: dict[tuple[Precision, bool], Way] = {}
    no_graph: dict[Precision, str] = {}
    for precision, model in formed.items():
        ready = partial(round_products, model.form.tf32)
        run = call(model, images)
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
    return samples, no_graph


def _graph(run: Callable[[], Tensor], images: Tensor) -> Callable[[], Any]:
    """The call as a CUDA graph.

    Raises:
        RuntimeError: there is none; says why.
    """
    if not images.is_cuda:
        raise RuntimeError(_NO_GRAPHS)
    if len(images) > max(BATCHES):
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
