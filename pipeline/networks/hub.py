"""Checkpoints that are named and lie elsewhere: timm's on the Hugging Face Hub, torchvision's.

local_file("timm:resnest50d.in1k")  # its model.safetensors, fetched once
local_file("torchvision:MobileNet_V2_Weights.IMAGENET1K_V1")  # its .pth, fetched once
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse

from pipeline.base.errors import InputError
from pipeline.recipe.tree import HUB, TORCHVISION

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

_FILE = "model.safetensors"
"""What timm calls the weights in each of its repositories."""


def local_file(checkpoint: str) -> Path:
    """The file of a checkpoint: a path as it is, a name by its file in a cache.

    A file that was fetched before is found without a network.

    Args:
        checkpoint: a path, `timm:` and the name of one of timm's models with its tag, or
            `torchvision:` and the name of weights of torchvision's.

    Raises:
        InputError: there is none of that name, or it is not in the cache and cannot be fetched.
    """
    if checkpoint.startswith(TORCHVISION):
        return _of_torchvision(checkpoint)
    if not checkpoint.startswith(HUB):
        return Path(checkpoint)
    return _of_timm(checkpoint)


def _of_timm(checkpoint: str) -> Path:
    # Imported late: only whoever names a model of the hub needs it.
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    name = checkpoint.removeprefix(HUB)
    repository = f"timm/{name}"
    by_hand = (
        f"fetch {_FILE} of https://huggingface.co/{repository} where there is a network, and give "
        "model.checkpoint its path"
    )
    try:
        return Path(hf_hub_download(repository, _FILE))
    except RepositoryNotFoundError as error:
        raise InputError(
            f"model.checkpoint: got {checkpoint!r}; the hub has no {repository}; names are such as "
            f"{HUB}resnest50d.in1k"
        ) from error
    except LocalEntryNotFoundError as error:
        raise InputError(
            f"model.checkpoint: {checkpoint} is not in the cache, and the hub cannot be reached "
            f"(offline?); {by_hand}"
        ) from error
    except Exception as error:  # of the network, the hub or the disk, in any library's words
        words = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(
            f"model.checkpoint: {checkpoint} could not be fetched ({words}); {by_hand}"
        ) from error


def torchvision_weights(checkpoint: str) -> WeightsEnum:
    """Weights that torchvision publishes, by `torchvision:` and their name.

    Raises:
        InputError: there are none of that name.
    """
    from torchvision import models

    name = checkpoint.removeprefix(TORCHVISION)
    known = [
        str(weights)
        for model in models.list_models(module=models)
        for weights in models.get_model_weights(model)
    ]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3) or known[:3]
        raise InputError(
            f"model.checkpoint: got {checkpoint!r}; this torchvision has no weights of that name; "
            f"near are {', '.join(TORCHVISION + one for one in near)}"
        )
    return models.get_weight(name)


def _of_torchvision(checkpoint: str) -> Path:
    from torch.hub import get_dir

    weights = torchvision_weights(checkpoint)
    path = Path(get_dir(), "checkpoints", Path(urlparse(weights.url).path).name)
    if path.is_file():
        return path
    try:
        weights.get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # of the network or the disk, in any library's words
        words = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(
            f"model.checkpoint: {checkpoint} is not in {path.parent} and could not be fetched "
            f"({words}; offline?); fetch {weights.url} where there is a network, and give "
            "model.checkpoint its path"
        ) from error
    return path
