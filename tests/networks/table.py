"""Which networks go through, without training: the table of docs/networks.md.

    python -m tests.networks.table torchvision:resnet18 timm:tresnet_m
    python -m tests.networks.table --prune torchvision:densenet121

Weights are random, statistics of batch normalisation those of two batches of noise, ranges from 32
images of noise. Every file is held to the gates of a run: all scales, all MACs in int8, every layer
computed as the program does. Before that the network is pruned to SHARE of its
multiply-accumulates, and held to the gate of the masked network; with --prune that is all. What
cannot be pruned is written as it is.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from pipeline.base.errors import InputError
from pipeline.compress.pruning.kept import by_reason
from pipeline.compress.pruning.prune import goal_of, plan_of, prune_to
from pipeline.compress.pruning.widths import choose
from pipeline.compress.quantization import qat
from pipeline.compress.quantization.fold import quantized_program
from pipeline.formats.file_facts import learned_scales, scales_exact
from pipeline.formats.format import Format
from pipeline.formats.formats import FORMATS
from pipeline.measure.layers import compare_layers
from pipeline.measure.parity import file_misses, layer_misses
from pipeline.networks.count import count
from pipeline.networks.families import family_of
from pipeline.networks.family import AnyFamily
from pipeline.recipe.compression import PruneConfig
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.models import ALONE, kind_of
from pipeline.recipe.training import TrainConfig

NETWORKS = (
    *("torchvision:alexnet", "torchvision:vgg11", "torchvision:vgg11_bn", "torchvision:vgg16"),
    *("torchvision:vgg16_bn", "torchvision:googlenet"),
    *("torchvision:inception_v3", "torchvision:resnet18", "torchvision:resnet50"),
    *("torchvision:wide_resnet50_2", "torchvision:resnext50_32x4d", "timm:seresnet50"),
    *("timm:skresnet50", "torchvision:densenet121", "torchvision:squeezenet1_0"),
    *("torchvision:squeezenet1_1", "timm:mobilenetv1_100", "torchvision:mobilenet_v2"),
    *("torchvision:mobilenet_v3_small", "torchvision:mobilenet_v3_large"),
    *("torchvision:shufflenet_v2_x1_0", "torchvision:mnasnet1_0", "torchvision:efficientnet_b0"),
    *("timm:efficientnet_lite0", "timm:mixnet_s", "torchvision:regnet_y_400mf", "timm:tresnet_m"),
    *("timm:tresnet_l", "timm:tresnet_xl", "shufflenet_v1", "shiftresnet20"),
    *(f"resnest{depth}" for depth in (14, 26, 50, 101, 200, 269)),
)
SIDES = {"torchvision:inception_v3": 96, "torchvision:alexnet": 96}
"""What cannot take images of SIDE, and what it takes."""
SIDE, CLASSES, IMAGES = 64, 10, 32
SHARE = 0.7
PRUNE = PruneConfig(macs=SHARE, finetune=TrainConfig(epochs=1, batch_size=2, learning_rate=0.1))
"""As a recipe has it that says nothing else; the training does not take place."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A file of a network.

    Attributes:
        misses: gates that it does not pass; [] if none.
        partitions: of XNNPACK; None for other formats.
        outside: operations that move numbers between axes.
    """

    misses: list[str]
    partitions: int | None
    outside: int

    def cell(self) -> str:
        """For the table."""
        if self.misses:
            return "; ".join(self.misses)
        parts = ["passed"]
        parts += [f"{self.partitions} partitions"] if self.partitions not in (None, 1) else []
        parts += [f"{self.outside} transposes"] if self.outside else []
        return ", ".join(parts)


def config_of(name: str) -> ModelConfig:
    """The keys of a recipe's `model`."""
    side = SIDES.get(name, SIDE)
    return kind_of(name, ALONE).model_validate({"name": name, "input_size": side})


def images_of(config: ModelConfig) -> torch.Tensor:
    """Noise: (IMAGES, channels, height, width)."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(config.input_shape.batch(IMAGES), generator=generator)


def settled(family: AnyFamily, config: ModelConfig) -> nn.Module:
    """A network of random weights whose batch normalisations have seen the images twice."""
    torch.manual_seed(0)
    model: nn.Module = family.build(config, CLASSES)
    model.train()
    with torch.no_grad():
        for _ in range(2):
            model(images_of(config))
    return model.eval()


def pruned(name: str) -> tuple[nn.Module, str]:
    """A network of random weights, pruned, and how, for the table.

    Raises:
        InputError: it cannot be pruned so far.
        RuntimeError: it is not the masked network, or not as small as was planned.
    """
    config = config_of(name)
    family, shape = family_of(config), config.input_shape
    model = family.prunable(settled(family, config))
    goal = goal_of(family, model, shape, PRUNE, FORMATS["tflite"].bytes["int8"])
    plan = plan_of(model, shape, family.structure(model), goal, PRUNE, lambda: ())
    widths = choose(plan, goal.limit, PRUNE.scope)
    found = prune_to(model, shape, plan, widths)
    if count(found.model, shape).macs != goal.cost.of(widths):
        raise RuntimeError("the pruned network has other MACs than were planned")
    share = goal.cost.of(widths) / goal.whole
    parts = [f"{share:.3f} of the MACs", f"off by {found.difference:.0e}"]
    if plan.by_norm:
        parts.append(f"{len(plan.by_norm)} of {len(plan.groups)} groups judged by norm")
    parts += [f"{len(plan.kept)} layers whole" for _ in plan.kept[:1]]
    for told in by_reason(plan.kept):
        print(f"{name}: whole: {told}", file=sys.stderr, flush=True)
    return found.model, ", ".join(parts)


def rows(name: str, small: nn.Module | None, formats: dict[str, Format]) -> dict[str, Row]:
    """What the files of a network are, by format.

    Args:
        name: of the network.
        small: what pruning left of it; None writes the whole network.
        formats: to write.

    Raises:
        InputError: the network cannot be written.
    """
    config = config_of(name)
    family = family_of(config)
    if small is None:
        small = family.prunable(settled(family, config))
    graph = qat.prepare(family.deploy(small, None), config.input_shape)
    images = images_of(config)
    qat.calibrate(graph, lambda: list(images.split(8)))
    qat.set_training(graph, False)
    qat.refuse_bad_grids(graph)
    program = quantized_program(graph, images[:2])
    return {form: row(program, images[:4], one) for form, one in formats.items()}


def row(program: torch.export.ExportedProgram, images: torch.Tensor, form: Format) -> Row:
    """The file of one format, written and held to its gates."""
    module = form.module()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, f"model{form.suffix}")
        module.write(program, path)
        found = module.inspect(path)
        layers = compare_layers(program, None, partial(module.trace, path), images)
    misses = file_misses(found, scales_exact(program, found))
    misses += layer_misses(layers, learned_scales(program)[0])
    outside = sum(n for op, n in found.ops.items() if op.lower() == "transpose")
    return Row(misses=misses, partitions=found.partitions, outside=outside)


def cells(name: str, *, prune_only: bool) -> tuple[list[str], bool]:
    """A row of the table, and whether all in it passed."""
    done, passed, small = [], True, None
    try:
        small, how = pruned(name)
        done.append(how)
    except (InputError, RuntimeError) as error:
        done, passed = [str(error)], False
    if prune_only:
        return done, passed
    try:
        found = rows(name, small, dict(FORMATS))
        done += [one.cell() for one in found.values()]
        passed &= not any(one.misses for one in found.values())
    except (InputError, NotImplementedError) as error:
        done, passed = [*done, str(error), *[""] * (len(FORMATS) - 1)], False
    return done, passed


def main(arguments: list[str]) -> int:
    """Print the table; 1 where a network or a file does not pass."""
    prune_only = "--prune" in arguments
    names = [name for name in arguments if name != "--prune"] or NETWORKS
    titles = [] if prune_only else [one.title for one in FORMATS.values()]
    print(f"| network | pruned to {SHARE} | " + "".join(f"{title} | " for title in titles))
    print("| --- " * (2 + len(titles)) + "|")
    failed = False
    for name in names:
        row, passed = cells(name, prune_only=prune_only)
        failed |= not passed
        print(f"| {name} | " + " | ".join(row) + " |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
