"""Whether weights belong to the network that is asked for."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.base.errors import InputError
from pipeline.networks.checkpoints import load_checkpoint, save_checkpoint
from pipeline.networks.resnest.network import ResNeSt, named
from tests.making.networks import SMALL
from tests.making.weights import CLASSES, KNOWN, other, same


def mismatch(model: ResNeSt, state: dict[str, Tensor], folder: Path, **more: Any) -> str:
    """The refusal of a checkpoint of `state`; the model must stay as it was."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    path = folder / "a.pt"
    torch.save(state, path)
    with pytest.raises(InputError) as caught:
        load_checkpoint(model, path, KNOWN, **more)
    assert same(model.state_dict(), before)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_own_weights_load(model: ResNeSt, tmp_path: Path) -> None:
    save_checkpoint(other(), tmp_path / "a.safetensors")
    load_checkpoint(model, tmp_path / "a.safetensors", KNOWN, CLASSES)
    assert same(model.state_dict(), other().state_dict())


@pytest.mark.parametrize("classes", ["[" * 100_000, "{}", "not JSON", "3"])
def test_another_programs_classes_are_no_classes(
    model: ResNeSt, tmp_path: Path, classes: str
) -> None:
    save_checkpoint(other(), tmp_path / "a.safetensors", {"classes": classes})
    load_checkpoint(model, tmp_path / "a.safetensors", KNOWN, CLASSES)
    assert same(model.state_dict(), other().state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precision_load(
    model: ResNeSt, tmp_path: Path, dtype: torch.dtype
) -> None:
    wanted = {
        k: v.to(dtype) if v.is_floating_point() else v for k, v in other().state_dict().items()
    }
    torch.save(wanted, tmp_path / "a.pt")
    load_checkpoint(model, tmp_path / "a.pt", KNOWN)
    assert all(torch.equal(v, wanted[k].to(v.dtype)) for k, v in model.state_dict().items())
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_mismatch_lists_every_group_and_no_more_than_five(model: ResNeSt, tmp_path: Path) -> None:
    state = model.state_dict()
    gone = [key for key in state if key.startswith("layer3")]
    for key in gone:
        del state[key]
    state |= {f"head.{i}": torch.ones(1) for i in range(3)}
    state["conv1.0.weight"] = torch.ones(32, 3, 3, 3)
    state["bn1.bias"] = state["bn1.bias"].to(torch.int64)
    lines = mismatch(model, state, tmp_path).split("\n  ")
    assert lines[0] == "does not fit the model of the recipe"
    assert lines[1] == f"missing ({len(gone)}): {', '.join(gone[:5])} and {len(gone) - 5} more"
    assert lines[2] == "unexpected (3): head.0, head.1, head.2"
    assert lines[3] == (
        "wrong shape (2): conv1.0.weight is [32, 3, 3, 3] not [8, 3, 3, 3], "
        "bn1.bias is [16] torch.int64 not [16]"
    )
    assert len(lines) == 5


@pytest.mark.parametrize("classes", [None, CLASSES])
def test_another_number_of_classes(
    model: ResNeSt, tmp_path: Path, classes: tuple[str, ...] | None
) -> None:
    state = ResNeSt(replace(SMALL, num_classes=1000)).state_dict()
    message = mismatch(model, state, tmp_path, classes=classes)
    assert "\n" not in message
    assert "trained for 1000 classes, the data has 5" in message
    assert ("(ant, bee, cat, dog, elk)" in message) == (classes is not None)
    assert "use a checkpoint" in message
    assert "or set model.head: replace" in message


@pytest.mark.parametrize("classes", [5, 1000])
def test_the_right_network_is_named(model: ResNeSt, tmp_path: Path, classes: int) -> None:
    state = named("resnest14", num_classes=classes).state_dict()
    message = mismatch(model, state, tmp_path)
    assert message.endswith("it fits resnest14: set model.name to that, without overrides")


def test_networks_of_equal_shapes_are_all_named(model: ResNeSt, tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = named("resnest50", num_classes=1000).state_dict()
    state = {key: torch.zeros(()).expand(value.shape) for key, value in shapes.items()}
    state = {k: v if v.dim() else v.to(torch.int64) for k, v in state.items()}
    assert "it fits resnest50 or resnest50_fast_2s1x64d:" in mismatch(model, state, tmp_path)


def test_the_closest_network_is_named(model: ResNeSt, tmp_path: Path) -> None:
    state = named("resnest26", num_classes=5).state_dict()
    state["conv1.0.weight"] = torch.ones(8, 3, 3, 3)
    assert "closest is resnest26 (99% of" in mismatch(model, state, tmp_path)
    state = {"features.0.weight": torch.ones(8, 3, 3, 3)}
    assert "is this a ResNeSt?" in mismatch(model, state, tmp_path)


@pytest.mark.parametrize(("found", "wanted"), [("small", "deep"), ("deep", "small")])
def test_another_stem_is_named(tmp_path: Path, found: Any, wanted: Any) -> None:
    first = {"small": "conv1.weight", "deep": "conv1.0.weight"}
    state = ResNeSt(replace(SMALL, stem=found)).state_dict()
    model = ResNeSt(replace(SMALL, stem=wanted))
    lines = mismatch(model, state, tmp_path).split("\n  ")
    assert lines[1].startswith(f"missing ({'13' if wanted == 'deep' else '1'}): {first[wanted]}")
    assert lines[2].startswith(f"unexpected ({'13' if found == 'deep' else '1'}): {first[found]}")
    assert lines[3:] == [
        f"its stem is {found}, the recipe's is {wanted}: set model.stem: {found}",
    ]
    head = mismatch(model, state, tmp_path, head=False)
    assert head.split("\n  ") == lines
    state["bn1.bias"] = torch.ones(3)
    *_, stem, closest = mismatch(model, state, tmp_path).split("\n  ")
    assert stem == lines[3]
    assert closest.startswith("closest is resnest14 (")


def test_the_right_network_of_a_small_stem_is_named(model: ResNeSt, tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = named("resnest14", num_classes=5, stem="small").state_dict()
    state = {k: torch.zeros((), dtype=v.dtype).expand(v.shape) for k, v in shapes.items()}
    fits = "it fits resnest14: set model.name to that, model.stem: small, nothing else"
    *_, stem, closest = mismatch(model, state, tmp_path).split("\n  ")
    assert stem == "its stem is small, the recipe's is deep: set model.stem: small"
    assert closest == fits
    narrow = ResNeSt(replace(SMALL, stem="small"))
    lines = mismatch(narrow, state, tmp_path).split("\n  ")
    assert lines[-1] == fits
    assert not any("its stem" in line for line in lines)


@pytest.mark.parametrize("shape", [(16, 3, 7, 7), (16, 3), (16, 4, 3, 3)])
def test_any_other_first_convolution_is_no_stem(
    model: ResNeSt, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("conv1.")}
    state["conv1.weight"] = torch.ones(shape)
    message = mismatch(model, state, tmp_path)
    assert "its stem" not in message
    assert "closest is resnest14 (" in message


def test_own_weights_of_a_small_stem_load(tmp_path: Path) -> None:
    one, two = (ResNeSt(replace(SMALL, stem="small")) for _ in range(2))
    save_checkpoint(one, tmp_path / "a.safetensors")
    load_checkpoint(two, tmp_path / "a.safetensors", KNOWN, CLASSES)
    assert same(one.state_dict(), two.state_dict())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(model: ResNeSt, tmp_path: Path, value: float) -> None:
    state = other().state_dict()
    state["layer2.0.conv1.weight"][1, 2] = value
    message = mismatch(model, state, tmp_path)
    assert message.startswith("NaN or infinity in layer2.0.conv1.weight;")
    assert "; 1 of its 2048 values; train again" in message


def test_weights_too_large_for_the_models_precision(model: ResNeSt, tmp_path: Path) -> None:
    state = other().state_dict()
    state["fc.bias"] = torch.full((5,), 1e300, dtype=torch.float64)
    assert "infinity in fc.bias" in mismatch(model, state, tmp_path)


def test_complex_weights(model: ResNeSt, tmp_path: Path) -> None:
    state = other().state_dict()
    state["bn1.num_batches_tracked"] = torch.ones((), dtype=torch.complex64)
    assert "bn1.num_batches_tracked is [] torch.complex64" in mismatch(model, state, tmp_path)


def test_names_cannot_write_to_the_terminal(model: ResNeSt, tmp_path: Path) -> None:
    state = {"\x1b[2J\nall is well": torch.ones(1)}
    message = mismatch(model, state, tmp_path)
    assert "\x1b" not in message
    assert "\nall" not in message


def test_classes_in_another_order(model: ResNeSt, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(other(), path, {"classes": json.dumps(CLASSES[::-1])})
    load_checkpoint(model, path, KNOWN)
    load_checkpoint(model, path, KNOWN, CLASSES[::-1])
    order = "other classes: the same ones in another order, number 1 is elk and ant; use the"
    with pytest.raises(InputError, match=order):
        load_checkpoint(model, path, KNOWN, CLASSES)


def test_other_classes_are_named(model: ResNeSt, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(other(), path, {"classes": json.dumps(["ant", "bee", "cat", "dog", "fox"])})
    said = "other classes: only the checkpoint has fox; only the data has elk; use the checkpoint"
    with pytest.raises(InputError, match=said):
        load_checkpoint(model, path, KNOWN, CLASSES)


@pytest.mark.parametrize("classes", [None, 5, 1000])
def test_a_head_that_is_replaced_may_be_of_any_classes(
    model: ResNeSt, tmp_path: Path, classes: int | None
) -> None:
    source = ResNeSt(replace(SMALL, num_classes=classes or 1)).state_dict()
    if classes is None:
        del source["fc.weight"], source["fc.bias"]
    path = tmp_path / "a.safetensors"
    save_checkpoint(source, path, {"classes": json.dumps(["something else"])})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    load_checkpoint(model, path, KNOWN, CLASSES, head=False)
    for name, value in model.state_dict().items():
        assert torch.equal(value, (before if name.startswith("fc.") else source)[name]), name


def test_without_its_head_a_checkpoint_must_fit_all_the_same(
    model: ResNeSt, tmp_path: Path
) -> None:
    state = model.state_dict()
    del state["conv1.0.weight"]
    save_checkpoint(state, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"missing \(1\): conv1\.0\.weight"):
        load_checkpoint(model, tmp_path / "a.safetensors", KNOWN, head=False)


@pytest.mark.parametrize("text", ["", "seven", "7", "null", '{"a": 1}'])
def test_metadata_of_other_programs_is_left_alone(
    model: ResNeSt, tmp_path: Path, text: str
) -> None:
    save_checkpoint(other(), tmp_path / "a.safetensors", {"classes": text})
    load_checkpoint(model, tmp_path / "a.safetensors", KNOWN, CLASSES)
