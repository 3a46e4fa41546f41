"""How long it takes to verify ResNeSt-50 at 224 x 224 in three formats on thousands of photos.

    python -m tests.scale verify            # 5000 photos
    python -m tests.scale verify 100 400

The stages `judge_fold` and `verify` themselves run, on a network of random weights that is
quantized on 32 of the photos. Those are a thousand of ImageNet, again and again, where their
archive is there, else noise; they are decoded already. Seconds of the processor stand beside those
of the clock, so that other work on the machine shows.
"""

from __future__ import annotations

import argparse
import io
import os
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.base.memory import keep_freed_memory
from pipeline.compress.quantization import program as saved
from pipeline.compress.quantization import qat
from pipeline.compress.quantization.fold import quantized_program
from pipeline.compress.quantization.running import rounding_at_once
from pipeline.formats.formats import FORMATS
from pipeline.networks.families import family_of
from pipeline.recipe.data import IMAGENET_MEAN, IMAGENET_STD
from pipeline.recipe.input_shape import InputShape, square
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.models import ALONE, kind_of
from pipeline.recipe.recipe import load_recipes
from pipeline.stages.context import PROGRAM, Context
from pipeline.stages.judge import judge_program
from pipeline.stages.known import KNOWN
from pipeline.stages.verify import verify
from pipeline.tasks.evaluation import evaluation_batch
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.images.pixels import Images, normalize
from pipeline.tasks.images.preparation import Preparation, prepared
from tests.making.recipes import DEVICE_RECIPES
from tests.making.runs import context
from tests.scale.report import Found

ROOT = Path(__file__).parents[2]
ARCHIVE = "imagenet-samples.tar.xz"
IMAGES, CALIBRATION, CLASSES = 5000, 32, 1000
MINUTES, SHARE, CORES = 15.0, 0.6, 2
"""Bars: to verify IMAGES in three formats on CORES; of the float network's images a second."""
SHAPE = square(224)


def photos(archive: Path, shape: InputShape) -> Tensor:
    """Up to a thousand photos, or as many images of noise: uint8 [N, 3, height, width]."""
    if not archive.is_file():
        draw = torch.Generator().manual_seed(0)
        return torch.randint(0, 256, shape.batch(100), generator=draw, dtype=torch.uint8)
    found = []
    with tarfile.open(archive) as packed:
        for member in packed:
            if member.name.endswith(".jpg") and (content := packed.extractfile(member)):
                with Image.open(io.BytesIO(content.read())) as photo:
                    found.append(prepared(photo, Preparation(shape=shape)))
    return torch.from_numpy(np.stack(found))


def dataset(pixels: Tensor, images: int) -> Dataset:
    """So many test images, each photo as often as need be."""
    rows = torch.arange(images) % len(pixels)
    calibration = torch.arange(CALIBRATION) % len(pixels)
    whole = Images(
        labels=torch.arange(len(pixels)) % CLASSES, shape=SHAPE, source=pixels.contiguous()
    )
    return Dataset(
        name="photos",
        classes=tuple(map(str, range(CLASSES))),
        train=whole.take(calibration),
        calibration=whole.take(calibration),
        tests={"test": whole.take(rows)},
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        sha256="0" * 64,
        training_sha256="0" * 64,
    )


def network(photos: Tensor, folder: Path) -> nn.Module:
    """The float network; its quantized program and the three files are written to `folder`."""
    config: ModelConfig = kind_of("resnest50", ALONE).model_validate(
        {"name": "resnest50", "input_size": SHAPE.height}
    )
    family = family_of(config)
    torch.manual_seed(0)
    model: nn.Module = family.build(config, CLASSES).train()
    with torch.no_grad():
        for part in photos.split(8)[:2]:  # what batch normalisation divides by
            model(part)
    model.eval()
    graph = qat.prepare(family.deploy(family.prunable(model), None), SHAPE)
    qat.calibrate(graph, lambda: photos.split(8))
    program = quantized_program(graph, torch.zeros(SHAPE.batch(2)))
    saved.save(program, folder / PROGRAM)
    for form in FORMATS.values():
        form.module().write(program, folder / f"model{form.suffix}")
    return model


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - processor


def beside_float(model: nn.Module, folder: Path, images: Tensor) -> Found:
    """The program's seconds as a multiple of the float network's, in turn, on one thread.

    Raises:
        SystemExit: the program, as it is run, gives other numbers than as it was saved.
    """
    program = saved.load(folder / PROGRAM)
    run = rounding_at_once(program)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            if not torch.equal(program.module(check_guards=False)(images), run(images)):
                raise SystemExit("the program gives other numbers than as it was saved")
            ratios = [
                timed(lambda: run(images))[1] / timed(lambda: model(images))[1] for _ in range(6)
            ]
    finally:
        torch.set_num_threads(before)
    return Found(
        what="the program in torch, seconds of the float network's",
        value=median(ratios[1:]),
        unit="x",
        limit=1 / SHARE,
    )


def of_format(name: str, images: Dataset) -> Context:
    """What a stage is told of a run of one format."""
    (recipe,) = load_recipes([DEVICE_RECIPES[name]], [f"threads={CORES}"], KNOWN)
    return replace(context(recipe), dataset=images)


def verified(images: Dataset, folder: Path) -> list[Found]:
    """What the stages take that verify three files."""
    count = len(images.tests["test"])
    every, found = [], []
    inputs = dict.fromkeys(("fold", "export", "judge_fold"), folder)
    contexts = {name: of_format(name, images) for name in FORMATS}
    with tempfile.TemporaryDirectory() as scratch:
        first = next(iter(contexts.values()))
        every.append(timed(lambda: judge_program(first, inputs, folder)))
        found.append(_seconds("judge_fold (a sample)", every[-1]))
        for name, about in contexts.items():
            every.append(timed(lambda: verify(about, inputs, Path(scratch))))  # noqa: B023
            found.append(_seconds(f"verify, {name}", every[-1]))
    clock, processor = map(sum, zip(*every, strict=True))
    limit = MINUTES if count == IMAGES else None
    return [
        *found,
        Found(what="of the processor, an image", value=1e3 * processor / count, unit="ms"),
        Found(what="all", value=clock / 60, unit="minutes", limit=limit),
    ]


def _seconds(what: str, taken: tuple[float, float]) -> Found:
    return Found(what=f"{what}, {taken[1]:.1f} s of the processor", value=taken[0], unit="s")


def main(arguments: list[str]) -> int:
    """Print every measurement; 1 where a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.scale verify")
    parser.add_argument("images", nargs="*", type=int, default=[IMAGES])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    given = parser.parse_args(arguments)
    keep_freed_memory()  # as stages do
    pixels = photos(given.data / ARCHIVE, SHAPE)
    every = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        some = normalize(pixels[:CALIBRATION], IMAGENET_MEAN, IMAGENET_STD)
        model = network(some, folder)
        print(f"{len(pixels)} photos, {os.cpu_count()} cores, {CORES} threads")
        every.append(beside_float(model, folder, some[: evaluation_batch(SHAPE)]))
        print(every[-1].line(), flush=True)
        for count in given.images:
            found = verified(dataset(pixels, count), folder)
            print(f"{count} test images, {len(FORMATS)} formats")
            print("".join(f"  {one.line()}\n" for one in found), end="", flush=True)
            every += found
    return int(any(one.limit is not None and one.value > one.limit for one in every))
