"""Networks from recipes, and their checkpoints: our own, the paper's and timm's.

All three share parameter names, so there is nothing to translate; what differs is the wrapping.
A checkpoint is data: no code in it ever runs.
"""

from __future__ import annotations

import json
import os
import re
import uuid
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from pipeline.base.errors import InputError, listed
from pipeline.base.safe_files import parsed
from pipeline.networks.family import Checkpoint
from pipeline.networks.sanity import not_finite

WEIGHTS = "weights.safetensors"
"""Name of the file that a stage leaves its network in."""

SUFFIXES = (".safetensors", ".pt", ".pth")
_WRAPPERS = ("state_dict", "model")
_REPLACE = "set model.head: replace, which trains a new classifier"


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors, .pt or .pth file, on the CPU, by name.

    A `state_dict` or `model` entry around them and a `module.` before every name are taken off.

    Raises:
        InputError: in one line, if the file cannot be read, would run code, or is not a dict of
            tensors.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise InputError(
            f"{path}: a checkpoint ends in {', '.join(SUFFIXES)}; got {path.suffix or 'no suffix'}"
        )
    if not path.is_file():
        kind = "is not a file" if path.exists() else "no such file"
        raise InputError(f"{path}: {kind}; set model.checkpoint to a checkpoint or remove it")
    # Both readers raise whatever a damaged byte leads to: OSError, KeyError, RecursionError, ...
    try:
        content: object
        if path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path, device="cpu")
        else:
            with warnings.catch_warnings():
                # Of file formats that are refused a moment later.
                warnings.simplefilter("ignore")
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{path}: {_cause(error)}") from error
    return _tensors(content, path)


def _cause(error: Exception) -> str:
    """Why a checkpoint could not be read, in one line."""
    if named := re.search(r"GLOBAL (\S+)", str(error)):
        return (
            f"holds {named[1]}, which is no weight and could run code, so it was not loaded; save "
            "the weights alone: torch.save(model.state_dict(), path)"
        )
    if isinstance(error, PermissionError):
        return "no permission to read it"
    text = " ".join(str(error).split()) or type(error).__name__
    # torch's advice how to load it all the same is none to pass on.
    text = re.sub(r"^Weights only load failed.*WeightsUnpickler error: ", "", text)
    shown = re.split(r"\. | Check the documentation", text)[0][:160]
    return f"cannot be read; it is truncated, damaged or of another format ({shown})"


def _tensors(content: object, path: Path) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: holds a {type(content).__name__}, not a dict of tensors")
    if not content:
        raise InputError(f"{path}: holds no tensors")
    for key, value in content.items():
        usable = isinstance(value, Tensor) and value.layout is torch.strided
        if not isinstance(key, str) or not usable or value.is_quantized or value.is_meta:
            raise InputError(
                f"{path}: is not a dict of plain tensors by name: {str(key)[:80]!r} is a "
                f"{type(value).__name__}; save model.state_dict() alone"
            )
    prefix = "module." if all(key.startswith("module.") for key in content) else ""
    return {key.removeprefix(prefix): value.detach() for key, value in content.items()}


def load_checkpoint(
    model: nn.Module,
    path: Path,
    known: Checkpoint,
    classes: Sequence[str] | None = None,
    *,
    head: bool = True,
) -> None:
    """Load every weight of `model` from a file; on an error the model is as it was.

    Args:
        model: its names and shapes decide what the file must hold, no more and no less.
        path: .safetensors, .pt or .pth.
        known: of the checkpoints of such networks.
        classes: of the data, in the order of the logits. If the file names its classes
            (metadata `classes`, a JSON list), they must be the same.
        head: whether the classifier is read, too. Without it that of `model` stays, and the file
            may be of any classes, or have none.

    Raises:
        InputError: if the file cannot be read, does not fit, holds values that are not finite,
            or names other classes.
    """
    path = Path(path)
    state = read_checkpoint(path)
    wanted = model.state_dict()
    if not head:
        kept = {key: wanted[key] for key in known.head}
        state = {**{key: value for key, value in state.items() if key not in kept}, **kept}
    if problem := _mismatch(state, wanted, known, classes):
        raise InputError(f"{path}: {problem}")
    cast = {key: value.to(wanted[key].dtype) for key, value in state.items()}
    if broken := not_finite(cast):
        raise InputError(f"{path}: {broken}; train again or take an earlier one")
    saved = _saved_classes(path) if head else None
    if classes is not None and saved is not None and saved != list(classes):
        raise InputError(
            f"{path}: was trained on other classes: {_differences(saved, classes)}; use the "
            f"checkpoint of this data, or {_REPLACE}"
        )
    model.load_state_dict(cast)


def _differences(saved: Sequence[str], classes: Sequence[str]) -> str:
    """Which classes only the checkpoint knows, which only the data has, or where the order is."""
    groups = {
        "only the checkpoint has": [name for name in saved if name not in set(classes)],
        "only the data has": [name for name in classes if name not in set(saved)],
    }
    found = [f"{words} {listed(names)}" for words, names in groups.items() if names]
    if not found:
        pairs = zip(saved, classes, strict=False)
        place = next((n for n, (one, two) in enumerate(pairs) if one != two), len(classes))
        named = " and ".join(
            listed(names[place : place + 1]) or "none" for names in (saved, classes)
        )
        found = [f"the same ones in another order, number {place + 1} is {named}"]
    return "; ".join(found)


def _saved_classes(path: Path) -> list[str] | None:
    if path.suffix != ".safetensors":
        return None
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get("classes", "null")
    try:
        saved = parsed(text)
    except ValueError:
        return None  # another program's key of the same name
    return [str(name) for name in saved] if isinstance(saved, list) else None


def _shape(value: Tensor) -> str:
    return str(list(value.shape)) + ("" if value.is_floating_point() else f" {value.dtype}")


def fits(found: Tensor, wanted: Tensor) -> bool:
    """Whether a tensor can take another's place.

    Of the same shape, and weights are real numbers; their precision may differ.
    """
    return (
        found.shape == wanted.shape and found.is_floating_point() == wanted.is_floating_point()
    ) and not found.is_complex()


def _mismatch(
    state: dict[str, Tensor],
    wanted: dict[str, Tensor],
    known: Checkpoint,
    classes: Sequence[str] | None,
) -> str:
    """What keeps `state` from loading, grouped, one group a line; empty if nothing does."""
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    wrong = [key for key in wanted if key in state and not fits(state[key], wanted[key])]
    if not (missing or unexpected or wrong):
        return ""
    if not missing and not unexpected and set(wrong) == set(known.head):
        found, need = (tuple(one[key].shape for key in known.head) for one in (state, wanted))
        if len(found[0]) == 2 and found[0][1] == need[0][1] and found[0][:1] == found[1]:
            names = f" ({listed(classes)})" if classes else ""
            return (
                f"was trained for {found[0][0]} classes, the data has {need[0][0]}{names}; all "
                f"else fits; use a checkpoint trained on this data's classes, or {_REPLACE}"
            )
    shapes = [f"{key} is {_shape(state[key])} not {_shape(wanted[key])}" for key in wrong]
    groups = {"missing": missing, "unexpected": unexpected, "wrong shape": shapes}
    lines = [f"{name} ({len(keys)}): {listed(keys)}" for name, keys in groups.items() if keys]
    lines += known.hints(state, wanted)
    return "\n  ".join(["does not fit the model of the recipe", *lines])


def save_checkpoint(
    model_or_state: nn.Module | Mapping[str, Tensor],
    path: Path,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write weights as safetensors; `path` is complete or untouched, never half written.

    The same weights and metadata give the same bytes. The folder must exist.

    Raises:
        InputError: if `path` does not end in .safetensors.
        OSError: if it cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: checkpoints are written as .safetensors; rename it")
    state = model_or_state.state_dict() if isinstance(model_or_state, nn.Module) else model_or_state
    # Copies, since safetensors refuses tensors that share memory.
    tensors = {key: value.detach().to("cpu", copy=True) for key, value in state.items()}
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    content = _with_metadata(safetensors.torch.save(tensors), metadata or {})
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            for part in content:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _with_metadata(content: bytes, metadata: dict[str, str]) -> tuple[bytes, memoryview]:
    """Header and body of a safetensors file, metadata in alphabetic order.

    The safetensors package writes metadata in the order of a randomised hash map, so that no two
    files of one run would be the same.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    if metadata:
        header = {"__metadata__": dict(sorted(metadata.items())), **header}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the body to 8 bytes
    return len(text).to_bytes(8, "little") + text, memoryview(content)[end:]
