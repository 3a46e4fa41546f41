"""Checkpoints as training programs leave them: each loads to the network's own outputs.

The files are written with torch.save and the objects that such programs put beside the weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from pipeline.base.errors import InputError
from pipeline.networks import checkpoint_files
from pipeline.networks.checkpoints import load_checkpoint, read_checkpoint
from tests.making.checkpoints import FORMS, KINDS, KNOWN, Phase, assert_same, cast, with_prefix
from tests.making.cli import pocketnest
from tests.making.networks import CLASSES, randomise, small
from tests.making.recipes import DEVICE_RECIPES, NARROW, settings


def resnet18(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = torchvision.models.resnet18(num_classes=CLASSES).eval()
    randomise(model, seed)
    return model


def resnest(seed: int) -> nn.Module:
    return small(seed=seed)


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, nn.Module]:
    """The network that a file is of, and another one that stands beside it."""
    return resnest(1), resnest(2)


def loaded(model: nn.Module, path: Path, **more: Any) -> tuple[nn.Module, tuple[str, ...]]:
    notes = load_checkpoint(model, path, KNOWN, **more)
    return model.eval(), notes


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_loads_to_equal_outputs(
    pair: tuple[nn.Module, nn.Module], kind: str, form: str, tmp_path: Path
) -> None:
    torch.save(KINDS[kind](*pair), tmp_path / form, **FORMS[form])
    model, _ = loaded(resnest(3), tmp_path / form)
    assert_same(model, pair[0])


def test_the_comparison_can_fail(pair: tuple[nn.Module, nn.Module]) -> None:
    with pytest.raises(AssertionError):
        assert_same(*pair)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["torch's imagenet", "timm", "lightning", "torch's average", "profiled"]
)
def test_another_network_loads_alike(kind: str, tmp_path: Path) -> None:
    given = resnet18(1)
    torch.save(KINDS[kind](given, resnet18(2)), tmp_path / "a.ckpt")
    model, _ = loaded(resnet18(3), tmp_path / "a.ckpt")
    assert_same(model, given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_both_readers_give_the_same_tensors(
    pair: tuple[nn.Module, nn.Module], dtype: torch.dtype, tmp_path: Path
) -> None:
    state = cast(pair[0], dtype)
    state |= {"empty": torch.ones(0, 3), "flag": torch.tensor([True]), "bytes": torch.arange(4)}
    state["new"] = torch.tensor([1, 65535], dtype=torch.uint16)  # of a type without a storage
    save_file(state, tmp_path / "a.safetensors")
    wanted = read_checkpoint(tmp_path / "a.safetensors")
    for name, how in FORMS.items():
        torch.save(state, tmp_path / name, **how)
        found = read_checkpoint(tmp_path / name)
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            assert found[key].dtype == value.dtype
            assert torch.equal(found[key], value), key


def test_views_of_one_storage_are_read(tmp_path: Path) -> None:
    base = torch.arange(24.0).view(2, 3, 4)
    state = {
        "base": base,
        "part": base[1, 1:],
        "turned": base.permute(2, 0, 1),
        "one": base[1, 2, 3],
    }
    for name, how in FORMS.items():
        torch.save(state, tmp_path / name, **how)
        found = read_checkpoint(tmp_path / name)
        assert all(torch.equal(found[key], value) for key, value in state.items())


def hub_folder(folder: Path, model: nn.Module, name: str, config: Any) -> Path:
    folder.mkdir()
    if name.endswith(".safetensors"):
        save_file(model.state_dict(), folder / name)
    else:
        torch.save(model.state_dict(), folder / name)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


TIMM_CONFIG = {
    "architecture": "resnest14d",
    "num_classes": CLASSES,
    "pretrained_cfg": {
        "input_size": [3, 224, 224],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    },
}


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_of_the_hub(pair: tuple[nn.Module, nn.Module], name: str, tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "resnest14d.in1k", pair[0], name, TIMM_CONFIG)
    model, notes = loaded(resnest(3), folder, classes=tuple("abcde"))
    assert_same(model, pair[0])
    assert notes == (
        "config.json says mean 0.485 0.456 0.406, std 0.229 0.224 0.225, input size 3 224 224, "
        f"{CLASSES} classes",
    )
    assert [file.name for file in checkpoint_files.files_of(folder)] == [name, "config.json"]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"label_names": list("abcdf")}, "only the checkpoint has f; only the data has e"),
        ({"id2label": dict(enumerate("edcba"))}, "in another order, number 1 is e and a"),
        ({"num_labels": 7}, r"was trained for 7 classes \(config.json\), the data has 5"),
        ({"num_labels": 5, "id2label": {str(n): f"LABEL_{n}" for n in range(5)}}, None),
        ({"mean": ["x"], "std": {}, "num_classes": "many", "label_names": [], "id2label": 3}, None),
        ([], None),
    ],
)
def test_what_a_folder_says_of_classes(
    pair: tuple[nn.Module, nn.Module], config: Any, said: str | None, tmp_path: Path
) -> None:
    folder = hub_folder(tmp_path / "x", pair[0], "model.safetensors", config)
    if said is None:
        loaded(resnest(3), folder, classes=tuple("abcde"))
        return
    with pytest.raises(InputError, match=said):
        loaded(resnest(3), folder, classes=tuple("abcde"))
    loaded(resnest(3), folder, classes=tuple("abcde"), head=False)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"without model.safetensors or pytorch_model.bin; set"):
        read_checkpoint(tmp_path / "empty")


# what is told


def notes_of(content: Any, folder: Path, **more: Any) -> str:
    torch.save(content, folder / "a.ckpt")
    _, notes = loaded(resnest(3), folder / "a.ckpt", **more)
    return "; ".join(notes)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("state dict", ""),
        ("torch's imagenet", "prefix module. taken off"),
        ("parallel, compiled", "prefix _orig_mod.module. taken off"),
        ("parallel in part", "module taken out of names"),
        ("timm", "averaged weights, state_dict_ema (model.weights: raw takes state_dict)"),
        ("torch's average", "averaged weights, module; prefix module. taken off"),
        (
            "average in one dict",
            "averaged weights, state_dict.model_ema (model.weights: raw takes state_dict.model); "
            "prefix model_ema. taken off; passed over ",
        ),
        (
            "lightning",
            "prefix model. taken off; passed over criterion.weight, accuracy.total",
        ),
        ("profiled", ""),
        ("without counters", ""),
        ("with a teacher", "passed over ema_teacher.conv1.0.weight, "),
    ],
)
def test_what_was_done_is_told(
    pair: tuple[nn.Module, nn.Module], kind: str, told: str, tmp_path: Path
) -> None:
    notes = notes_of(KINDS[kind](*pair), tmp_path)
    assert notes == told or (told.endswith(("over ", ", ")) and notes.startswith(told))


@pytest.mark.parametrize(
    "kind", ["timm", "torchvision's references", "params", "average in one dict"]
)
def test_raw_weights_where_they_are_asked_for(
    pair: tuple[nn.Module, nn.Module], kind: str, tmp_path: Path
) -> None:
    torch.save(KINDS[kind](*pair), tmp_path / "a.ckpt")
    model, notes = loaded(resnest(3), tmp_path / "a.ckpt", weights="raw")
    assert_same(model, pair[1])
    assert "averaged" not in "; ".join(notes)


def test_averages_alone_are_not_raw(pair: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    torch.save(KINDS["torch's average"](*pair), tmp_path / "a.pt")
    with pytest.raises(
        InputError, match=r"holds averaged weights alone \(module\), .* is raw; set"
    ):
        loaded(resnest(3), tmp_path / "a.pt", weights="raw")


def test_two_sets_that_fit_alike_are_not_guessed(
    pair: tuple[nn.Module, nn.Module], tmp_path: Path
) -> None:
    one, two = (model.state_dict() for model in pair)
    torch.save({"student": one, "teacher": two}, tmp_path / "a.pt")
    with pytest.raises(
        InputError, match="several sets of weights that fit: student, teacher; save"
    ):
        loaded(resnest(3), tmp_path / "a.pt")


def test_an_optimizers_averages_are_no_weights(
    pair: tuple[nn.Module, nn.Module], tmp_path: Path
) -> None:
    one, two = (model.state_dict() for model in pair)
    torch.save({"model": one, "optimizer": {"average": two}}, tmp_path / "a.pt")
    model, _ = loaded(resnest(3), tmp_path / "a.pt")
    assert_same(model, pair[0])


def test_one_network_of_two_names_is_one(pair: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    state = pair[0].state_dict()
    both = {**with_prefix("model.", state), **with_prefix("alias.", state)}
    torch.save({"state_dict": both}, tmp_path / "a.ckpt")
    model, _ = loaded(resnest(3), tmp_path / "a.ckpt")
    assert_same(model, pair[0])
    both["alias.fc.bias"] = both["alias.fc.bias"] + 1
    torch.save({"state_dict": both}, tmp_path / "a.ckpt")
    with pytest.raises(InputError, match="several sets"):
        loaded(resnest(3), tmp_path / "a.ckpt")


def test_an_average_of_the_parameters_alone_is_not_taken(
    pair: tuple[nn.Module, nn.Module], tmp_path: Path
) -> None:
    average = {name: value.detach() for name, value in pair[1].named_parameters()}
    torch.save({"model": pair[0].state_dict(), "ema": {"shadow": average}}, tmp_path / "a.pt")
    model, notes = loaded(resnest(3), tmp_path / "a.pt")
    assert_same(model, pair[0])
    assert notes == ("averaged weights of ema.shadow not taken, they are not all of them",)


def test_prefixes_in_safetensors(pair: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    save_file(with_prefix("module._orig_mod.", pair[0].state_dict()), tmp_path / "a.safetensors")
    model, notes = loaded(resnest(3), tmp_path / "a.safetensors")
    assert_same(model, pair[0])
    assert notes == ("prefix module._orig_mod. taken off",)


def test_a_new_head_on_anothers_body(pair: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    state = {name: v for name, v in pair[0].state_dict().items() if not name.startswith("fc.")}
    state |= {"last_linear.weight": torch.ones(1000, 512), "last_linear.bias": torch.ones(1000)}
    torch.save({"state_dict": with_prefix("module.", state)}, tmp_path / "a.pth.tar")
    model, notes = loaded(resnest(3), tmp_path / "a.pth.tar", head=False)
    assert notes == (
        "prefix module. taken off",
        "passed over last_linear.weight, last_linear.bias",
    )
    assert torch.equal(model.state_dict()["bn1.bias"], pair[0].state_dict()["bn1.bias"])
    assert torch.equal(model.state_dict()["fc.bias"], resnest(3).state_dict()["fc.bias"])
    with pytest.raises(InputError, match=r"missing \(2\): fc.weight, fc.bias"):
        loaded(resnest(3), tmp_path / "a.pth.tar")


class Inner(nn.Module):
    """A network whose own names begin as those of wrappers do."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(2, 2)
        self.model = nn.ModuleDict({"module": nn.Linear(2, 2)})


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "module.model."])
def test_a_prefix_that_the_network_has_itself_stays(prefix: str, tmp_path: Path) -> None:
    one, two = Inner(), Inner()
    torch.save(with_prefix(prefix, one.state_dict()), tmp_path / "a.pt")
    load_checkpoint(two, tmp_path / "a.pt", KNOWN)
    assert all(torch.equal(v, two.state_dict()[k]) for k, v in one.state_dict().items())


# what is no match


@pytest.mark.parametrize(
    ("more", "less", "said"),
    [
        ({"layer1.0.conv9.weight": torch.ones(1)}, (), r"unexpected \(1\): layer1.0.conv9.weight"),
        ({f"decoder.{n}": torch.ones(1) for n in range(1000)}, (), r"unexpected \(1000\): decoder"),
        ({"criterion.weight": torch.ones(1)}, ("bn1.bias",), r"missing \(1\): bn1.bias"),
        ({"criterion.weight": torch.ones(1)}, ("bn1.bias",), r"unexpected \(1\): criterion.weight"),
        ({"conv1.0.weight": 3}, (), "'conv1.0.weight' is a int"),
        ({"fc.bias": Phase.LAST}, (), r"holds .*Phase, which is no weight and could run code"),
        ({("fc", 1): torch.ones(1)}, (), "'tuple' is a Tensor; save"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "model."])
def test_what_does_not_fit_is_refused(
    pair: tuple[nn.Module, nn.Module],
    more: dict[str, Any],
    less: tuple[str, ...],
    said: str,
    prefix: str,
    tmp_path: Path,
) -> None:
    state = {k: v for k, v in pair[0].state_dict().items() if k not in less} | more
    model = resnest(3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    content = {prefix + k if isinstance(k, str) else k: value for k, value in state.items()}
    torch.save({"state_dict": content}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=said):
        load_checkpoint(model, tmp_path / "a.pt", KNOWN)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# the command line


@pytest.mark.slow
def test_a_run_shows_what_was_made_of_it(tmp_path: Path) -> None:
    model, other = (
        small("resnest14", seed=seed, num_classes=10, layers=(1, 1, 1, 1)) for seed in (1, 2)
    )
    content = KINDS["timm"](nn.DataParallel(model), other)
    torch.save(content, tmp_path / "last.pth.tar")
    changes = [
        *(*NARROW, "model.layers=[1,1,1,1]", "model.weights=ema", "data.test_images=20"),
        *(f"model.checkpoint={tmp_path / 'last.pth.tar'}", "guard.accuracy_drop_pt=null"),
    ]
    recipe = DEVICE_RECIPES["onnx"]
    checked = pocketnest("check", recipe, *settings(*changes))
    assert (checked.returncode, checked.stderr) == (0, "")
    done = pocketnest(
        *("run", recipe, "--out", tmp_path / "out", "--until", "train"), *settings(*changes)
    )
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "averaged weights, state_dict_ema.module (model.weights: raw takes state_dict)" in said
    assert "prefix module. taken off" in said
