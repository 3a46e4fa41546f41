"""Files of other tools, made once for a network and kept."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from pipeline.base.console import Advance
from pipeline.base.machine import tool_versions
from pipeline.base.passing import is_passing
from pipeline.base.safe_files import json_of
from pipeline.commands.bench.peers.make import Peer, make
from pipeline.commands.bench.peers.plans import KEPT, PLANS
from pipeline.measure.timing import sha256_of
from pipeline.networks.checkpoints import WEIGHTS
from pipeline.networks.families import family_of
from pipeline.stages.finished_run import Finished
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.images.pixels import normalize


def peer_files(
    run: Finished,
    model: nn.Module,
    dataset: Dataset,
    folder: Path,
    tracked: Callable[[str, int], AbstractContextManager[Advance]],
) -> list[Peer]:
    """What other tools make of a run's float network, calibrated with the run's own images.

    Files that `folder` holds of the same network, images and tools are taken as they are.

    Args:
        run: whose float network it is.
        model: that network.
        dataset: of the run's recipe.
        folder: of the files.
        tracked: a progress bar.
    """
    networks = family_of(run.recipe.model).given_to_others(model)
    plans = [plan for plan in PLANS if plan.code in networks]
    wanted = {
        "weights": sha256_of(run.stage("train", WEIGHTS)),
        "data": dataset.sha256,
        "images": len(dataset.calibration),
        "side": dataset.calibration.shape.sides,
        "peers": [plan.name for plan in plans],
        "tools": tool_versions(),
    }
    if (kept := _kept(folder, wanted)) is not None:
        return kept
    every = torch.arange(len(dataset.calibration))
    images = normalize(dataset.calibration.pixels(every), dataset.mean, dataset.std)
    with tracked("files of other tools", len(plans)) as advance:
        done = 0

        def progress(line: str) -> None:
            nonlocal done
            done += 1
            advance(done, line)

        peers = make(networks, images, folder, processes=os.cpu_count() or 1, progress=progress)
    records = [asdict(peer) | {"path": peer.path and peer.path.name} for peer in peers]
    content = json.dumps({"made_of": wanted, "peers": records}, indent=1)
    (folder / KEPT).write_text(content, encoding="utf-8")
    return peers


def _kept(folder: Path, wanted: dict[str, object]) -> list[Peer] | None:
    """The peers that are there, if they are those that are wanted."""
    try:
        content = json_of(folder / KEPT)
        if content["made_of"] != wanted:
            return None
        names = [record["path"] for record in content["peers"]]
        paths = [None if name is None else folder / name for name in names]
        peers = [
            Peer(**record | {"path": path})
            for record, path in zip(content["peers"], paths, strict=True)
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        if is_passing(error):
            raise
        return None
    return peers if all(path is None or path.exists() for path in paths) else None
