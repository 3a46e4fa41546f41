"""Checkpoints that are named, not lying on this disk: timm's, on the Hugging Face Hub.

local_file("timm:resnest50d.in1k")  # its model.safetensors, fetched once
"""

from __future__ import annotations

from pathlib import Path

from pipeline.base.errors import InputError
from pipeline.recipe.tree import HUB

_FILE = "model.safetensors"
"""What timm calls the weights in each of its repositories."""


def local_file(checkpoint: str) -> Path:
    """The file of a checkpoint: a path as it is, a name of the hub by its file in the cache.

    A file that was fetched before is found without a network.

    Args:
        checkpoint: a path, or `timm:` and the name of one of timm's models with its tag.

    Raises:
        InputError: it is not in the cache and cannot be fetched.
    """
    if not checkpoint.startswith(HUB):
        return Path(checkpoint)
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
