"""Networks that give logits for every place of an image, as a family of networks."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from torch import nn

from pipeline.base.checksums import hash_of
from pipeline.base.errors import InputError
from pipeline.networks.checkpoint_files import files_of
from pipeline.networks.checkpoints import load_checkpoint
from pipeline.networks.families import FAMILIES
from pipeline.networks.family import Checkpoint, Family, Rewritten, Structure, Trunks
from pipeline.networks.hub import local_file
from pipeline.networks.rewrites import Normalization, with_normalization
from pipeline.networks.sanity import refuse_dead
from pipeline.networks.segmenter.decoders import DECODERS
from pipeline.networks.segmenter.dilation import dilate
from pipeline.networks.segmenter.maps import maps_of
from pipeline.networks.segmenter.network import BACKBONE, CLASSIFIER, DECODER, Segmenter
from pipeline.recipe.libraries import TORCHVISION
from pipeline.recipe.segmenter import SegmenterModel


def trunks_of(backbone: str) -> tuple[str, Trunks[Any]]:
    """The name of a backbone as its family has it, and the family's backbones.

    Raises:
        InputError: no family has a backbone of that name.
    """
    for name in (backbone, f"{TORCHVISION}{backbone}" * (":" not in backbone)):
        for entry in FAMILIES.values():
            if name and entry.options.takes(name):
                trunks = entry.family().trunks
                if trunks is not None:
                    return name, trunks
    having = [entry.family().trunks for entry in FAMILIES.values()]
    examples = ", ".join(one.example for one in having if one is not None)
    raise InputError(f"model.backbone: got {backbone!r}; backbones are such as {examples}")


def build(config: SegmenterModel, classes: int) -> Segmenter:
    """The network that a recipe describes, with random weights.

    Raises:
        InputError: there is no such backbone, or it has not the images that are wanted.
    """
    name, trunks = trunks_of(config.backbone)
    backbone = trunks.build(name, config.channels, config.backbone_arguments)
    if config.smallest_stride < maps_of(backbone, config.channels).strides[-1]:
        dilate(backbone, config.smallest_stride, config.channels)
    maps = maps_of(backbone, config.channels)
    decoder = DECODERS[config.name](maps, config.decoded_stride, config.width)
    network = Segmenter(
        backbone,
        decoder,
        channels=config.width,
        classes=classes,
        factor=config.decoded_stride // config.answer_stride,
    )
    network.backbone_name = config.backbone
    network.stages = tuple(f"{BACKBONE}.{path}" for path in maps.made_by if path)
    return network


def _trunks(model: Segmenter) -> Trunks[Any]:
    return trunks_of(model.backbone_name)[1]


def _structure(model: Segmenter) -> Structure:
    """The stages are those of the backbone that are decoded, and the decoder."""
    dense = _trunks(model).dense(model.backbone)
    return Structure(
        classifier=CLASSIFIER,
        stages=(*model.stages, DECODER),
        dense=(*(f"{BACKBONE}.{name}" for name in dense), CLASSIFIER),
    )


def _shape(model: Segmenter) -> dict[str, object]:
    """What cannot be read off the sizes of tensors: names, strides and dilations."""
    windows = {
        name: [list(one.stride), list(one.dilation), one.groups]
        for name, one in model.named_modules()
        if isinstance(one, nn.Conv2d)
    }
    return {"backbone": model.backbone_name, "factor": model.factor, "convolutions": windows}


def _start(model: Segmenter) -> None:
    _trunks(model).start(model.backbone)


def _begin(config: SegmenterModel, model: Segmenter) -> tuple[str, ...]:
    """The backbone takes the weights of a trained classifier."""
    if config.backbone_checkpoint is None:
        return ()
    given = local_file(config.backbone_checkpoint)
    known = Checkpoint(head=("", ""), hints=lambda found, wanted: [])
    notes = load_checkpoint(model.backbone, given, known, weights=config.weights)
    refuse_dead("model.backbone_checkpoint", model.backbone, given)
    return notes


def _with_backbone(model: Segmenter, backbone: nn.Module) -> Segmenter:
    """A copy in which another module stands for the backbone."""
    kept = {id(model.backbone): backbone}
    copied = copy.deepcopy(model, kept)
    return copied.train(model.training)


def _prunable(model: Segmenter) -> Segmenter:
    return _with_backbone(model, _trunks(model).prunable(model.backbone))


def _deploy(model: Segmenter, normalization: Normalization | None = None) -> nn.Module:
    deploy = _with_backbone(model, _trunks(model).deploy(model.backbone))
    return with_normalization(deploy, normalization)


def _rewritten(model: Segmenter) -> Rewritten:
    found = _trunks(model).rewritten(model.backbone)
    return Rewritten(
        gone=frozenset(f"{BACKBONE}.{name}" for name in found.gone),
        added=tuple(replace(one, layer=f"{BACKBONE}.{one.layer}") for one in found.added),
    )


def _decided_by(config: SegmenterModel) -> dict[str, str]:
    found = trunks_of(config.backbone)[1].decided_by()
    if config.backbone_checkpoint is not None:
        try:
            files = files_of(local_file(config.backbone_checkpoint))
            found["backbone_checkpoint"] = "".join(map(hash_of, files))
        except (OSError, InputError):
            found["backbone_checkpoint"] = "unreadable"  # `begin` says so, with its cause
    return found


FAMILY = Family(
    build=build,
    structure=_structure,
    shape=_shape,
    start=_start,
    prunable=_prunable,
    deploy=_deploy,
    rewritten=_rewritten,
    decided_by=_decided_by,
    begin=_begin,
)
