"""Which networks go through the command line, pruned and untrained: the table of docs/networks.md.

    python -m tests.networks.table torchvision:resnet18 timm:tresnet_m
    python -m tests.networks.table --prune torchvision:densenet121

Weights are random, statistics of batch normalisation those of two batches of noise, ranges those of
32 images of noise. `pocketnest run` prunes a network to SHARE of its multiply-accumulates, with the
gate of the masked network, quantizes it and writes it in every format, also where a file does not
pass its gates; the table says which. What cannot be pruned is written whole. With --prune networks
are pruned alone, and it says by how much they differ from the masked ones.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from pipeline.base.errors import InputError
from pipeline.compress.pruning.kept import by_reason
from pipeline.compress.pruning.prune import goal_of, plan_of, prune_to
from pipeline.compress.pruning.widths import choose
from pipeline.formats.formats import FORMATS
from pipeline.networks.count import count
from pipeline.networks.families import family_of
from pipeline.networks.family import AnyFamily
from pipeline.recipe.compression import PruneConfig
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.models import ALONE, kind_of
from pipeline.recipe.training import TrainConfig
from pipeline.report.records import Report, TargetResult

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
SIDE, CLASSES, IMAGES, TESTED = 64, 10, 32, 20
SHARE = 0.7
PRUNE = PruneConfig(macs=SHARE, finetune=TrainConfig(epochs=1, batch_size=2, learning_rate=0.1))
"""As a recipe has it that says nothing else; the training does not take place."""


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


def pruned(name: str) -> str:
    """How a network of random weights was pruned.

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
    return ", ".join(parts)


def work_folder(name: str, folder: Path) -> Path:
    """Write what a run of a network needs: its checkpoint, images and a recipe without a target."""
    config = config_of(name)
    model = settled(family_of(config), config)
    path = folder / "network.safetensors"
    save_file(model.state_dict(), path)
    _, _, height, width = config.input_shape.batch(1)
    noise = np.random.default_rng(1)
    for part, images in (("train", 2 * IMAGES), ("test", TESTED)):
        for index in range(images):
            image = folder / part / f"class{index % CLASSES}" / f"{index}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            pixels = noise.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(image)
    recipe = {
        "model": {
            "name": name,
            "input_size": SIDES.get(name, SIDE),
            "checkpoint": "network.safetensors",
        },
        "data": {
            "kind": "image_folder",
            "path": ".",
            "calibration_images": IMAGES,
            "mean": [0.5] * 3,
            "std": [0.29] * 3,
        },
        "train": {"epochs": 0},
        "qat": {"train": {"epochs": 0}},
        "measure": {"rounds": 5, "warmup": 1},
    }
    base = folder / "base.yaml"
    base.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return base


def why(stderr: str) -> str:
    """The gates that a run missed, or what it stopped at."""
    lines = stderr.strip().splitlines()
    misses = [line.strip(" -") for line in lines if line.startswith("  - ")]
    refused = [line.partition(";")[0] for line in lines if line.startswith("error: ")]
    return "; ".join(misses or refused or lines[-1:])


def run(base: Path, prune: object) -> tuple[dict[str, TargetResult], str]:
    """What `pocketnest run` makes of a network, by format, and why it stopped."""
    folder = base.parent
    recipes = []
    for form in FORMATS:
        recipes.append(folder / f"{form}.yaml")
        target = {"device": "any", "format": form, "precision": "int8"}
        own = {"extends": base.name, "prune": prune, "target": target}
        recipes[-1].write_text(yaml.safe_dump(own), encoding="utf-8")
    out = folder / "runs"
    command = [sys.executable, "-m", "pipeline", "run", *map(str, recipes), "--out", str(out)]
    command.append("--allow-mismatch")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = {}
    for form in FORMATS:
        path = out / form / "report.json"
        if path.is_file():
            (found[form],) = Report.model_validate_json(path.read_text(encoding="utf-8")).targets
    return found, why(done.stderr)


def cell(target: TargetResult) -> tuple[str, bool]:
    """What a file is, and whether all of it is as it must be; its run passed the gates."""
    parts = list(target.parity.misses)
    scales = target.scales_exact
    if scales is None or scales.same != scales.total:
        parts.append("scales not exact")
    if target.int8_coverage != 1:
        parts.append(f"{target.int8_coverage} of the MACs in int8")
    if target.partitions not in (None, 1):
        parts.append(f"{target.partitions} partitions")
    passed = not parts
    moved = sum(n for op, n in target.ops.items() if op.lower() == "transpose")
    return ", ".join(parts + ["passed"] * passed + [f"{moved} transposes"] * bool(moved)), passed


def cells(name: str) -> tuple[list[str], bool]:
    """A row of the table, and whether all in it passed."""
    with tempfile.TemporaryDirectory() as scratch:
        base = work_folder(name, Path(scratch))
        found, words = run(base, {"macs": SHARE, "finetune": {"epochs": 0}})
        how, passed = words, bool(found)
        if not found:
            found, words = run(base, None)
        else:
            pruning = next(iter(found.values())).pruning
            assert pruning is not None
            how = f"{pruning.reached:.3f}" + f", {len(pruning.kept)} layers whole" * bool(
                pruning.kept
            )
    done = [cell(found[form]) if form in found else (words, False) for form in FORMATS]
    return [how, *(text for text, _ in done)], passed and all(fine for _, fine in done)


def main(arguments: list[str]) -> int:
    """Print the table; 1 where a network or a file does not pass."""
    prune_only = "--prune" in arguments
    names = [name for name in arguments if name != "--prune"] or NETWORKS
    titles = [] if prune_only else [one.title for one in FORMATS.values()]
    print(f"| network | pruned to {SHARE} | " + "".join(f"{title} | " for title in titles))
    print("| --- " * (2 + len(titles)) + "|")
    failed = False
    for name in names:
        try:
            row, passed = ([pruned(name)], True) if prune_only else cells(name)
        except (InputError, RuntimeError) as error:
            row, passed = [str(error)], False
        failed |= not passed
        print(f"| {name} | " + " | ".join(row) + " |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
