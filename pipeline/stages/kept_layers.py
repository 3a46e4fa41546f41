"""What every layer of a network holds and costs, before and after pruning; kept with a run.

`inspect` then needs neither the network's code nor its weights, and `bundle` no program.
"""

from __future__ import annotations

import math
from pathlib import Path

from pydantic import ValidationError
from torch import nn

from pipeline.base.errors import InputError
from pipeline.base.record import Above0, Count, Positive, Record
from pipeline.base.safe_files import content_of
from pipeline.networks.count import LayerCount, count
from pipeline.recipe.input_shape import InputShape

LAYERS_FILE = "layers.json"
"""Name of the file, in the folder of `fold` and in that of a run."""
_MOST_BYTES = 64 * 2**20


class LayerSize(Record):
    """One layer at one width.

    Attributes:
        outputs: channels.
        height: of the output.
        width: of the output.
        params: C_o C_i K_h K_w / G + C_o; every convolution has a bias once batch normalisation
            is folded into it.
        macs: C_o C_i K_h K_w / G x H_o W_o for one image.
    """

    outputs: Count
    height: Positive
    width: Positive
    params: Count
    macs: Count


class SizedLayer(Record):
    """One layer of a network in prunable form.

    Attributes:
        name: of it.
        kernel: such as `3x3`.
        groups: into which the channels are divided.
        before: in the network as it was trained.
        after: in the pruned network; None for a recipe that was not run, and where it is gone.
    """

    name: str
    kernel: str
    groups: Positive
    before: LayerSize
    after: LayerSize | None


class KeptLayers(Record):
    """The layers of a run.

    Attributes:
        layers: in the order in which they run.
        modules: the module of the network that makes each quantized tensor of program and file, by
            the tensor's name; none of a float program.
        step: of the grid that the program's answers lie on; None without one.
    """

    layers: tuple[SizedLayer, ...]
    modules: dict[str, str]
    step: Above0 | None


def sized_layers(
    whole: nn.Module, small: nn.Module | None, shape: InputShape
) -> tuple[SizedLayer, ...]:
    """The layers of a network in prunable form.

    Args:
        whole: as it was trained.
        small: as pruning left it; None where it was not run.
        shape: of an image.
    """
    after = {} if small is None else {n.name: _size(n) for n in count(small, shape).layers}
    return tuple(
        SizedLayer(
            name=layer.name,
            kernel="x".join(map(str, layer.kernel)),
            groups=layer.groups,
            before=_size(layer),
            after=after.get(layer.name),
        )
        for layer in count(whole, shape).layers
    )


def _size(layer: LayerCount) -> LayerSize:
    weights = layer.inputs * layer.outputs * math.prod(layer.kernel) // layer.groups
    height, width = layer.output_shape[2:] or (1, 1)
    return LayerSize(
        outputs=layer.outputs,
        height=height,
        width=width,
        params=weights + layer.outputs,
        macs=layer.macs,
    )


def write(path: Path, found: KeptLayers) -> None:
    """Write the layers of a run as JSON."""
    path.write_text(found.model_dump_json(), encoding="utf-8")


def read(path: Path) -> KeptLayers | None:
    """What `write` kept; None where there is no such file, as in older runs.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return KeptLayers.model_validate_json(content_of(path, _MOST_BYTES))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise InputError(
            f"{path}: not of this version ({error.error_count()} problems); run the recipe again"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: {error}; run the recipe again") from error
