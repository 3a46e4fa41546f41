"""Checkpoints of networks: our own, the paper's, timm's, and those of whoever trains with torch.

Names of parameters are the network's; what differs is the file, the dicts around them, and what
stands before them (`checkpoint_files`, `checkpoint_choice`, `checkpoint_names`). A checkpoint is
data: no code in it ever runs.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch
from torch import Tensor, nn

from pipeline.base.errors import InputError, listed
from pipeline.networks.checkpoint_choice import Kind, choose, plain_tensors
from pipeline.networks.checkpoint_classes import said_of
from pipeline.networks.checkpoint_files import file_in, opened
from pipeline.networks.checkpoint_fit import REPLACE, is_counter, mismatch, surplus
from pipeline.networks.checkpoint_names import Found, Wanted
from pipeline.networks.family import Checkpoint
from pipeline.networks.own_state import take_state
from pipeline.networks.sanity import not_finite

WEIGHTS = "weights.safetensors"
"""Name of the file that a stage leaves its network in."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, on the CPU, by name, where the network is not known.

    The dicts around them are taken off, and what torch's wrappers put before every name.

    Raises:
        InputError: in one line, if the file cannot be read, holds no tensors by name, or an object
            among them.
    """
    with opened(file_in(Path(path))) as file:
        found, _ = choose(file, Wanted(), "ema")
        return plain_tensors(file, found, Wanted())


def load_checkpoint(
    model: nn.Module,
    path: Path,
    known: Checkpoint,
    classes: Sequence[str] | None = None,
    *,
    head: bool = True,
    weights: Kind = "ema",
) -> tuple[str, ...]:
    """Load every weight of `model` from a file; on an error the model is as it was.

    Args:
        model: its names and shapes decide what is taken of the file.
        path: a file, or a folder of the Hugging Face Hub.
        known: of the checkpoints of such networks.
        classes: of the data, in the order of the logits. If the file names its classes, they must
            be the same.
        head: whether the classifier is read, too. Without it that of `model` stays, and the file
            may be of any classes, or have none.
        weights: `ema` takes averaged weights where there are any, `raw` those of the last step.

    Returns:
        What was chosen, taken off and passed over, a phrase each, for people.

    Raises:
        InputError: if the file cannot be read, does not fit, holds values that are not finite,
            or names other classes.
    """
    given, path = Path(path), file_in(Path(path))
    own = model.state_dict()
    kept = {} if head else {key: own[key] for key in known.head}
    wanted = Wanted(
        names=own.keys(), needed=[key for key in own if key not in kept and not is_counter(key)]
    )
    with opened(path) as file:
        found, others = choose(file, wanted, weights)
        state = plain_tensors(file, found, wanted) | kept
    passed = surplus(state, found.others, own)
    if problem := mismatch(state, own, known, classes, passed):
        raise InputError(f"{path}: {problem}")
    cast = {key: state.get(key, value).to(value.dtype) for key, value in own.items()}
    if broken := not_finite(cast):
        raise InputError(f"{path}: {broken}; train again or take an earlier one")
    said = said_of(path, given if given.is_dir() else None)
    if head and classes is not None and (other := said.other_than(classes)):
        raise InputError(f"{path}: {other}, or {REPLACE}")
    take_state(model, cast)
    return (*_told(found, others, passed), *said.notes)


def _told(found: Found, others: Sequence[Found], passed: Sequence[str]) -> list[str]:
    """What was chosen, taken off and passed over."""
    notes = []
    whole = [one for one in others if one.whole]
    if found.averaged:
        raw = [one.place for one in whole if not one.averaged]
        more = f" (model.weights: raw takes {listed(raw)})" if raw else ""
        notes.append(f"averaged weights, {listed([found.place])}{more}")
    elif whole:
        places = listed(one.place for one in whole)
        notes.append(f"weights of {listed([found.place])}, not of {places}")
    if parts := [one.place for one in others if one.averaged and not one.whole]:
        notes.append(f"averaged weights of {listed(parts)} not taken, they are not all of them")
    if found.prefix:
        notes.append(f"prefix {listed([found.prefix])} taken off")
    if found.around:
        notes.append(f"{listed(found.around)} taken out of names")
    if passed:
        notes.append(f"passed over {listed(passed)}")
    return notes


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
