"""Files of baselines: their names, and which of them is of a network and its test images."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import nn

from pipeline.base.errors import InputError, listed
from pipeline.base.record import short_lists
from pipeline.base.safe_files import content_of, refuse_link, write_whole
from pipeline.measure.baseline.record import (
    BASELINES,
    EXACT,
    Baseline,
    FloatBaseline,
    Origin,
    TestedImages,
)
from pipeline.recipe.input_shape import InputShape
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.predictions import Predictions
from pipeline.tasks.task import TaskModule

SHIPPED = Path(__file__).parents[3] / "artifacts" / BASELINES
"""Of a checkout: baselines that were committed. Not there where the package is installed."""

_MOST_BYTES = 64 * 2**20
_HASH_DIGITS = 16
_MOST_LETTERS = 60
"""Of a device in the name of a file."""

_AGAIN = "measure it again with `pocketnest baseline`"


@dataclass(frozen=True, kw_only=True)
class KeptBaseline:
    """A baseline that was read back.

    Attributes:
        found: what the file says.
        path: of the file.
        sha256: of its content.
    """

    found: FloatBaseline
    path: Path
    sha256: str

    def baseline(self, dataset: Dataset, task: TaskModule) -> Baseline:
        """The baseline of a report; `dataset` holds the very images it was measured with."""
        found = self.found
        labels = {name: images.labels for name, images in dataset.tests.items()}
        named = {name: torch.tensor(found.named[name]) for name in labels}
        counted = task.counted(
            {
                name: Predictions(labels=labels[name], float_model=named[name], file=named[name])
                for name in labels
            }
        )
        timing = found.timing(EXACT, 1)
        return Baseline(
            device=found.device,
            device_kind=found.device_kind,
            measured_here=False,
            accuracy={name: found.accuracy[EXACT][name] for name in dataset.tests},
            latency_ms=timing.latency_ms,
            size_bytes=found.size_bytes,
            confusion=counted.float_model,
            confusion_missing=counted.missing,
            origin=Origin(
                file=self.path.name,
                sha256=self.sha256,
                measured_at=found.measured_at,
                cpu=found.host.cpu,
                code=found.code,
                torch=found.tools["torch"],
                cuda_graph=timing.cuda_graph,
            ),
        )

    def answering(self, answers: Mapping[str, Predictions]) -> dict[str, Predictions]:
        """The answers of this machine, those of the float model replaced by the baseline's."""
        return {
            name: replace(found, float_model=torch.tensor(self.found.named[name]))
            for name, found in answers.items()
        }


def model_sha256(model: nn.Module, network: Mapping[str, object], shape: InputShape) -> str:
    """SHA-256 of a network: its family's `shape` of it, that of its images, and every tensor.

    Of the tensors' names, types, shapes and bytes in the order of the names, so that it does not
    depend on the kind of file they came from.
    """
    outline = {"network": network, "input_size": shape.sides}
    whole = hashlib.sha256(json.dumps(outline, sort_keys=True).encode())
    for name, value in sorted(model.state_dict().items()):
        whole.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        plain = value.detach().cpu().contiguous().reshape(-1)
        whole.update(plain.view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def tested_images(dataset: Dataset) -> TestedImages:
    """What accuracy on a dataset depends on beside the network."""
    return TestedImages(
        name=dataset.name,
        sha256=dataset.sha256,
        mean=dataset.mean,
        std=dataset.std,
        test_sets={name: len(images) for name, images in dataset.tests.items()},
    )


def file_name(model: str, device: str) -> str:
    """Name of the file of a network's hash on a device."""
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower())[:_MOST_LETTERS].strip("-")
    return f"{model[:_HASH_DIGITS]}-{slug or 'device'}.json"


def save(found: FloatBaseline, out: Path) -> Path:
    """Write a baseline below `out`, in place of an older one of the same network and device.

    Raises:
        InputError: the folder is a link.
    """
    folder = out / BASELINES
    refuse_link(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name(found.model_sha256, found.device)
    content = json.dumps(found.model_dump(mode="json"), indent=1, ensure_ascii=False)
    write_whole(path, short_lists(content) + "\n")
    return path


def read(path: Path) -> KeptBaseline:
    """Read a baseline back.

    Raises:
        InputError: in one line, if it cannot be read or is no baseline.
    """
    try:
        content = content_of(path, _MOST_BYTES)
        found = FloatBaseline.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        why = " ".join(f"{place}: {first['msg']}".removeprefix(": ").split())[:200]
        raise InputError(f"{path}: is no baseline, or damaged ({why}); {_AGAIN}") from None
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) else None
        raise InputError(f"{path}: cannot be read ({cause or error}); {_AGAIN}") from None
    return KeptBaseline(found=found, path=path, sha256=hashlib.sha256(content).hexdigest())


def any_in(folders: Sequence[Path]) -> bool:
    """Whether there is any file that could be a baseline."""
    return any(True for folder in folders for _ in folder.glob("*.json"))


def newest_of_gpu(
    folders: Sequence[Path], model: str, dataset: Dataset, task: TaskModule
) -> tuple[KeptBaseline | None, list[str]]:
    """The newest baseline that a GPU gave for a network and its test images.

    Args:
        folders: where baselines may lie; one that is not there holds none.
        model: hash of the network.
        dataset: that the accuracy must be of.
        task: that the network learned.

    Returns:
        The baseline, None where there is none; and a line for every file that is named as one of
        this network and cannot be used.
    """
    pattern = f"{model[:_HASH_DIGITS]}-*.json"
    paths = {path.resolve(): path for folder in folders for path in sorted(folder.glob(pattern))}
    usable, notes = [], []
    for path in paths.values():
        try:
            kept = read(path)
        except InputError as error:
            notes.append(f"{error}; not used")
            continue
        if (fault := _fault(kept.found, model, dataset, task)) is not None:
            notes.append(f"{path}: {fault}; not used")
        elif kept.found.device_kind == "gpu":
            usable.append(kept)
    newest = max(usable, key=lambda kept: (kept.found.measured_at, kept.path.name), default=None)
    return newest, notes


def _fault(found: FloatBaseline, model: str, dataset: Dataset, task: TaskModule) -> str | None:
    """Why a baseline is not of a network and its test images; None where it is."""
    if found.model_sha256 != model:
        return "is named as a baseline of this network, but is of another"
    ours, theirs = tested_images(dataset).model_dump(), found.data.model_dump()
    if differing := [name for name, value in ours.items() if theirs[name] != value]:
        return f"was measured with other images, or otherwise prepared ({listed(differing)} differ)"
    for name, images in dataset.tests.items():
        if not task.confirms(found.named[name], images.labels, found.accuracy[EXACT][name]):
            return f"gives another accuracy on {name} than its answers do"
    return None
