"""What torch's own exporters make of a network as others publish it.

That is what the peers start from: they are not to pay for how we write things. A network goes to
the process that exports it as a pickle, which only that process reads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from pipeline.formats.coreml.imports import import_coremltools
from pipeline.networks.libraries.build import load, loaded_files


def save_network(model: nn.Module, path: Path) -> None:
    """Write a whole network, its code by name, to `path`, and beside it where users' code is."""
    torch.save(model, path)
    _sources(path).write_text(json.dumps([str(file) for file in loaded_files()]), encoding="utf-8")


def _sources(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def load_network(path: Path) -> nn.Module:
    """Read what `save_network` wrote; the network is in evaluation mode.

    Runs whatever the file says: only for files that this program has just written.
    """
    for file in json.loads(_sources(path).read_text(encoding="utf-8")):
        load(Path(file))
    model = torch.load(path, weights_only=False)
    assert isinstance(model, nn.Module)
    return model.eval()


def write_onnx(model: nn.Module, shape: Sequence[int], path: Path) -> None:
    """Write `model` to the ONNX file `path`: what `torch.onnx.export` gives without more ado.

    Args:
        model: in evaluation mode.
        shape: of its images, (1, channels, height, width).
        path: of the file; its input is `image` of that shape, its output `logits`.
    """
    torch.onnx.export(
        model,
        (torch.zeros(*shape),),
        path,
        dynamo=True,
        opset_version=21,
        input_names=["image"],
        output_names=["logits"],
        external_data=False,
    )


def write_coreml(model: nn.Module, shape: Sequence[int], path: Path) -> None:
    """Write `model` to the package `path` by coremltools' documented way, tracing.

    Args:
        model: in evaluation mode.
        shape: of its images, (1, channels, height, width).
        path: of the package: float16, iOS 17, names as in `write_onnx`.
    """
    import_coremltools()
    import coremltools as ct

    example = torch.zeros(*shape)
    with torch.no_grad():
        traced = torch.jit.trace(model, example)  # type: ignore[no-untyped-call]
    package = ct.convert(
        traced,
        inputs=[ct.TensorType(name="image", shape=example.shape)],
        outputs=[ct.TensorType(name="logits")],
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS17,
        skip_model_load=True,
    )
    package.save(str(path))
