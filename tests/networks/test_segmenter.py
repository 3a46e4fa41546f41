"""Networks that give a class to every place: what they give, and of which backbones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from pipeline.base.errors import InputError
from pipeline.compress.training.distill import distillation
from pipeline.networks.families import family_of
from pipeline.networks.libraries.trunks import from_torchvision_trunk
from pipeline.networks.rewrites import Normalization
from pipeline.networks.segmenter.dilation import dilate
from pipeline.networks.segmenter.family import FAMILY, trunks_of
from pipeline.networks.segmenter.maps import maps_of
from pipeline.recipe.models import ALONE, kind_of
from pipeline.recipe.segmenter import SegmenterModel
from pipeline.recipe.training import DistillConfig
from tests.making.networks import randomise
from tests.making.segmenters import CLASSES, NETWORKS, SIZE, config, images, segmenter

BACKBONES = ("resnest14", "resnet18", "torchvision:mobilenet_v3_small", "timm:test_resnet")


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_have_the_stride_that_was_asked_for(name: str) -> None:
    asked = config(**NETWORKS[name])
    with torch.no_grad():
        found = segmenter(asked)(images(2))
    sides = [side // asked.answer_stride for side in SIZE]
    assert found.shape == (2, CLASSES, *sides)


@pytest.mark.parametrize(
    ("name", "stride", "given"),
    [
        ("unet", None, 4),
        ("unet", 8, 8),
        ("unet", 1, 1),
        ("fpn", 16, 16),
        ("fpn", 32, 32),
        ("deeplabv3", None, 16),
        ("deeplabv3", 2, 2),
        ("deeplabv3plus", None, 4),
        ("deeplabv3plus", 16, 16),
    ],
)
def test_any_stride_that_the_backbone_has_or_a_finer_one(
    name: str, stride: int | None, given: int
) -> None:
    asked = config(name=name, backbone="timm:test_resnet", stride=stride)
    with torch.no_grad():
        found = segmenter(asked)(images(1))
    assert tuple(found.shape[2:]) == tuple(side // given for side in SIZE)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_form_computes_the_same(name: str) -> None:
    model = segmenter(config(**NETWORKS[name]))
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    x = images(2)
    with torch.no_grad():
        wanted = model(x)
        small = FAMILY.prunable(model)
        torch.testing.assert_close(small(x), wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(FAMILY.deploy(small, None)(x), wanted, rtol=1e-4, atol=1e-4)
        pixels = 255 * (x * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None])
        deploy = FAMILY.deploy(small, Normalization(mean=mean, std=std))
        torch.testing.assert_close(deploy(pixels), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_rest_of_the_pipeline_finds_its_way(name: str) -> None:
    asked = config(**NETWORKS[name])
    assert family_of(asked) is FAMILY
    model = segmenter(asked)
    structure = FAMILY.structure(model)
    modules = dict(model.named_modules())
    assert {structure.classifier, *structure.stages, *structure.dense} <= modules.keys()
    assert len(structure.stages) == 5, "four of the backbone and the decoder"
    assert FAMILY.shape(model) == FAMILY.shape(segmenter(asked))
    assert set(FAMILY.rewritten(FAMILY.prunable(model)).gone) <= {
        name for name, _ in FAMILY.prunable(model).named_modules()
    }


@pytest.mark.parametrize("backbone", BACKBONES)
def test_backbones_give_four_images(backbone: str) -> None:
    name, trunks = trunks_of(backbone)
    trunk = trunks.build(name, 3, {})
    found = maps_of(trunk, 3)
    assert found.strides == (4, 8, 16, 32)
    assert all(found.made_by)
    with torch.no_grad():
        assert [one.shape[1] for one in trunk.eval()(images(1))] == list(found.channels)


def test_a_dilated_backbone_sees_what_it_saw() -> None:
    """At the places that it gave before; between them it gives others."""
    small = from_torchvision_trunk("torchvision:resnet18", 3, {}).eval()
    randomise(small)
    large = from_torchvision_trunk("torchvision:resnet18", 3, {}).eval()
    large.load_state_dict(small.state_dict())
    dilate(large, 8, 3)
    assert maps_of(large, 3).strides == (4, 8, 8, 8)
    with torch.no_grad():
        before, after = small(images(1)), large(images(1))
    for one, two, step in zip(before, after, (1, 1, 2, 4), strict=True):
        torch.testing.assert_close(two[:, :, ::step, ::step], one, rtol=1e-4, atol=1e-4)


def test_dilated_pools_are_left_out_and_the_splits_still_agree() -> None:
    asked = config(name="deeplabv3", output_stride=8, **{k: NETWORKS["unet"][k] for k in _KEYS})
    model = segmenter(asked)
    assert isinstance(model.get_submodule("backbone.layer4.0.downsample.0"), nn.Identity)
    assert model.get_submodule("backbone.layer4.0.conv2.conv").dilation == (2, 2)
    x = images(1)
    with torch.no_grad():
        small = FAMILY.prunable(model)
        torch.testing.assert_close(small(x), model(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(FAMILY.deploy(small, None)(x), model(x), rtol=1e-4, atol=1e-4)


_KEYS = ("backbone", "backbone_arguments")


def test_a_backbone_starts_from_a_trained_classifier(tmp_path: Any) -> None:
    import timm

    trained = timm.create_model("test_resnet", num_classes=7).eval()
    randomise(trained)
    path = tmp_path / "trained.pth"
    torch.save(trained.state_dict(), path)
    asked = config(name="unet", backbone="timm:test_resnet", backbone_checkpoint=str(path))
    model = segmenter(asked)
    notes = FAMILY.begin(asked, model)
    with torch.no_grad():
        wanted = trained.forward_features(images(1))
        assert torch.equal(model.eval().backbone(images(1))[-1], wanted)
    assert any("fc" in note for note in notes), "its classifier was passed over, and it is said"
    before = FAMILY.decided_by(asked)
    trained.fc.weight.data.zero_()
    torch.save(trained.state_dict(), path)
    assert FAMILY.decided_by(asked) != before
    assert asked.decided["backbone_checkpoint"] == "trained.pth"


def test_attention_maps_of_every_stage_are_distilled() -> None:
    asked = config(**NETWORKS["unet"])
    student, teacher = segmenter(asked), segmenter(asked)
    settings = DistillConfig(weight=0.5, temperature=2.0, features=1.0)
    stages = FAMILY.structure(teacher).stages
    x = images(2)
    with distillation(student, teacher, settings, stages) as adjust:
        loss = adjust(x, student(x), torch.zeros(()))
    assert loss.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"backbone": "resnest15"}, "model.backbone: got torchvision:resnest15; .* near are"),
        ({"backbone": "timm:resnet19"}, r"model.backbone: got timm:resnet19"),
        ({"backbone": "shiftresnet20"}, "model.backbone: got torchvision:shiftresnet20"),
        ({"backbone": "python:net"}, "model.backbone: got 'python:net'; backbones are such as"),
        ({"backbone": "timm:vit_tiny_patch16_224"}, "at strides 16, .*; a backbone has 4, 8, 16"),
        ({"backbone_arguments": {"radix": 3}}, "model.backbone_arguments.radix: "),
        ({"backbone_arguments": {"stem": "small"}}, "a backbone has a deep stem"),
        (
            {"backbone": "torchvision:resnet18", "backbone_arguments": {"depth": 3}},
            "model.backbone: model.arguments: torchvision:resnet18 was not built",
        ),
        (
            {"name": "deeplabv3", "backbone": "convnext_tiny"},
            "model.output_stride: got 16; features.6.1 of model.backbone skips",
        ),
    ],
)
def test_what_is_no_backbone_is_refused_in_a_line(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as found:
        FAMILY.build(config(**{"name": "unet"} | keys), CLASSES)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"name": "unet", "output_stride": 8}, "unet has stride 32 alone; remove it"),
        ({"name": "deeplabv3", "stride": 32}, "the smallest image of the backbone is at 16"),
        ({"name": "unet", "input_size": 48}, "must be multiples of 32"),
        (
            {"name": "unet", "checkpoint": "a.pt", "backbone_checkpoint": "b.pt"},
            "has the backbone's weights, too; remove one",
        ),
    ],
)
def test_keys_that_do_not_fit_are_said(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        kind_of(keys["name"], ALONE).model_validate(keys)


def test_deeplab_takes_images_of_its_own_stride() -> None:
    asked = SegmenterModel(name="deeplabv3plus", input_size=48, backbone="timm:test_resnet")
    assert segmenter(asked)(torch.zeros(1, 3, 48, 48)).shape == (1, CLASSES, 12, 12)
