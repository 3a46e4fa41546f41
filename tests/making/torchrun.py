"""A training as `torchrun` runs it, in as many processes as there are; test_torchrun.py calls it.

python -m tests.making.torchrun FILE
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.base import torchrun
from pipeline.compress.quantization import qat
from pipeline.compress.quantization.fake_quantize import ActivationFakeQuantize
from pipeline.compress.training.hooks import Hooks
from pipeline.recipe.compression import Milestones
from pipeline.recipe.training import AugmentConfig, TrainConfig
from pipeline.tasks.evaluation import network_logits
from tests.making.graphs import calibrated
from tests.making.networks import ONE_BLOCK, dataset, small
from tests.making.training import fit

# 2 batches and 21 images, which 2 processes share as 11 and 10. With smaller batches or larger
# steps a difference of 1e-7 becomes one of 1e-3 within an epoch, whatever the processes do.
IMAGES, BATCH, RATE = 69, 24, 0.003


def config(**changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "epochs": 2,
        "batch_size": BATCH,
        "learning_rate": RATE,
        "precision": "float32",
        "clip_norm": 5.0,
        "augment": AugmentConfig(shift=0.1, rotate_deg=10, scale=0.1, flip=True),
    }
    return TrainConfig(**settings | changes)


def trained(graph: bool, **changes: Any) -> dict[str, Any]:
    """Curve, weights and logits after a training of a network or an exported graph."""
    images = dataset(IMAGES)
    model: nn.Module
    if graph:
        model = calibrated()
        # Rounding begins with the second epoch: from then on, any difference grows.
        phases = Milestones(fake_quantize=0.5, freeze_observers=0.8, freeze_bn=0.9)
        schedule = qat.Schedule(model, phases)  # type: ignore[arg-type]
        hooks = Hooks(
            before_step=schedule.before_step,
            set_training=schedule.set_training,
            load=qat.load_state,
        )
    else:
        torch.manual_seed(0)
        model, hooks = small(layers=ONE_BLOCK), Hooks()
    curve = fit(model, images, config(**changes), 3, hooks)
    return {
        "curve": [[row["loss"], row["accuracy"], row["learning_rate"]] for row in curve],
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "scales": [
            (float(module.scale), int(module.zero_point))
            for module in model.modules()
            if isinstance(module, ActivationFakeQuantize)
        ],
        "logits": network_logits(model, images, "test")["test"],
    }


def main(file: Path) -> None:
    """Train in every way, and write what came of it in every process."""
    torch.set_num_threads(1)
    with torchrun.together():
        found = {
            "float": trained(False, ema=0.5),
            "own statistics": trained(False, sync_bn=False),
            "accumulated": trained(False, accumulate=2),
            "graph": trained(True),
        }
        seen = (torchrun.count(), torchrun.rank(), torchrun.own_rows(7).tolist())
        words = torchrun.said_by_all((seen, found))
        told = torchrun.told_by_first(lambda: torchrun.count())
    if torchrun.is_first():
        torch.save({"words": words, "told": told, "apart": torchrun.count()}, file)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
