"""Builds networks by the functions of others."""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.util
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from pipeline.base.errors import InputError
from pipeline.networks.libraries.imported import imported
from pipeline.networks.libraries.structure import remember, structure_of
from pipeline.recipe.libraries import (
    TIMM,
    TORCHVISION,
    LibraryModel,
    PythonModel,
    TimmModel,
    TorchvisionModel,
    plain_arguments,
)

_MODULE = "pocketnest_network_"
"""What the name of a user's file as a module begins with; its hash follows."""
_NO_AUXILIARY = {"googlenet": {"aux_logits": False}, "inception_v3": {"aux_logits": False}}
"""torchvision's networks with classifiers that only training has; built without, and without the
slow initialisation that comes with them."""


def from_torchvision(config: TorchvisionModel, outputs: int) -> nn.Module:
    """One of torchvision's classifiers, its weights random.

    Raises:
        InputError: torchvision has no such classifier, or does not take the arguments.
    """
    from torchvision import models

    name = config.name.removeprefix(TORCHVISION)
    known = models.list_models(module=models)
    refuse_unknown(name, known, "torchvision", TORCHVISION)
    arguments = _NO_AUXILIARY.get(name, {}) | plain_arguments(config)
    if name in _NO_AUXILIARY:
        arguments = {"init_weights": False} | arguments
    make = functools.partial(models.get_model, name, weights=None)
    return _built(config, make, outputs, arguments)


def from_timm(config: TimmModel, outputs: int) -> nn.Module:
    """One of timm's classifiers, its weights random.

    Raises:
        InputError: timm has no such network, or does not take the arguments.
    """
    import timm

    name = config.name.removeprefix(TIMM)
    if not timm.is_model(name):
        refuse_unknown(name, timm.list_models(), "timm", TIMM)
    make = functools.partial(timm.create_model, name, pretrained=False)
    return _built(config, make, outputs, plain_arguments(config))


def from_python(config: PythonModel, outputs: int) -> nn.Module:
    """A network of the user's own; the code of its file runs.

    Raises:
        InputError: there is no such file or function, it does not take the arguments, or returns
            no module.
    """
    module = load(Path(config.file))
    make = getattr(module, config.function, None)
    if not callable(make):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise InputError(
            f"model.name: {config.file} has no function {config.function}; it has "
            f"{', '.join(names[:10]) or 'none'}"
        )
    return _built(config, make, outputs, plain_arguments(config))


def _built(
    config: LibraryModel, make: Callable[..., Any], outputs: int, arguments: dict[str, Any]
) -> nn.Module:
    try:
        model = make(num_classes=outputs, **arguments)
    except TypeError as error:
        raise InputError(f"model.arguments: {config.name} was not built ({error})") from error
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model.name: {config.name} returns a {type(model).__name__}; it must return a "
            "torch.nn.Module"
        )
    if config.channels == 1:
        _take_grey(model)
    return remember(model, structure_of(model, config.input_shape))


def _take_grey(model: nn.Module) -> None:
    """Have the first convolution that reads three channels read one, its weights their sum."""
    for conv in model.modules():
        if isinstance(conv, nn.Conv2d) and conv.in_channels == 3 and conv.groups == 1:
            conv.weight = nn.Parameter(conv.weight.detach().sum(1, keepdim=True))
            conv.in_channels = 1
            return
        if isinstance(conv, nn.Conv2d) and conv.in_channels == 1:
            return
    raise InputError("model.channels: got 1, and no convolution of the network reads an image")


def refuse_unknown(
    name: str, known: list[str], library: str, form: str, *, key: str = "model.name"
) -> None:
    """Stop where a library has no network of a name.

    Raises:
        InputError: names those that are near.
    """
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=3) or known[:3]
    raise InputError(
        f"{key}: got {form}{name}; this {library} has no classifier of that name; near are "
        f"{', '.join(form + one for one in near)}"
    )


def load(path: Path) -> ModuleType:
    """Run a Python file as a module; once in a process, as long as it stays the same.

    Raises:
        InputError: there is no such file, or its code fails.
    """
    if not path.is_file():
        raise InputError(f"model.name: {path}: no such file; give python:FILE.py:FUNCTION")
    return _loaded(path.resolve(), hashlib.sha256(path.read_bytes()).hexdigest())


def loaded_files() -> tuple[Path, ...]:
    """The files of users that this process has run: what another one needs to read pickles."""
    found = [module for name, module in sys.modules.items() if name.startswith(_MODULE)]
    return tuple(Path(module.__file__) for module in found if module.__file__)


@functools.cache
def _loaded(path: Path, digest: str) -> ModuleType:
    name = f"{_MODULE}{digest[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # it may import what lies beside it
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"model.name: {path} cannot be imported ({text})") from error
    return module


def sources(config: PythonModel) -> dict[str, str]:
    """SHA-256 of the user's file and of all that it imports from its own folder, by path."""
    path = Path(config.file)
    try:
        load(path)  # it may add to the places where modules are looked for
    except InputError:
        return {"unreadable": str(path)}  # building it says so, with the cause
    folder = path.resolve().parent
    places = dict.fromkeys(Path(place).resolve() for place in sys.path)
    roots = [place for place in places if place.is_relative_to(folder)]
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(imported(path.resolve(), roots))
    }


def version_of(package: str) -> Callable[[LibraryModel], dict[str, str]]:
    """What decides a network of a library beside its recipe: the version."""
    return lambda config: {package: version(package)}
