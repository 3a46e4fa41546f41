"""Checkpoints as training programs leave them: each loads to the network's own outputs.

The files are written with torch.save and the objects that such programs put beside the weights.
"""

from __future__ import annotations

import argparse
import builtins
import collections
import datetime
import enum
import io
import json
import os
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pipeline.base.errors import InputError
from pipeline.networks import checkpoint_files, checkpoint_formats, checkpoint_pickles
from pipeline.networks.checkpoints import load_checkpoint, read_checkpoint
from pipeline.networks.family import Checkpoint
from tests.making.cli import pocketnest
from tests.making.networks import CLASSES, images, randomise, small
from tests.making.recipes import DEVICE_RECIPES, NARROW, settings

KNOWN = Checkpoint(head=("fc.weight", "fc.bias"), hints=lambda found, wanted: [])
State = Mapping[str, Tensor]


class Phase(enum.Enum):
    LAST = 3


class Settings(dict[str, Any]):
    """Stands for the dicts with attributes of Lightning and omegaconf."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.__dict__ = self


def resnet18(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = torchvision.models.resnet18(num_classes=CLASSES).eval()
    randomise(model, seed)
    return model


def resnest(seed: int) -> nn.Module:
    return small(seed=seed)


def beside(model: nn.Module) -> dict[str, Any]:
    """What programs keep beside the weights."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad][:3]
    optimizer = torch.optim.AdamW(weights, lr=0.1)
    sum(weight.sum() for weight in weights).backward()
    optimizer.step()
    return {
        "epoch": 3,
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2).state_dict(),
        "args": argparse.Namespace(lr=0.1, out=Path("out"), phase=Phase.LAST, seen={1, 2}),
        "best": np.float64(0.71),
        "curve": np.arange(5.0),
        "best_acc1": torch.tensor(71.0),
        "began": datetime.datetime(2024, 2, 3, tzinfo=datetime.UTC),
        "sizes": defaultdict(list, {"a": [1]}),
        "config": Settings(model=Settings(name="resnest14"), tags=frozenset({"a"})),
        "counts": collections.Counter("abc"),
        "rng": torch.get_rng_state(),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
    }


def with_prefix(prefix: str, state: State) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def lightning(model: nn.Module, other: nn.Module, prefix: str) -> dict[str, Any]:
    more = {"criterion.weight": torch.ones(5), "accuracy.total": torch.tensor(3)}
    return {
        "state_dict": with_prefix(prefix, model.state_dict()) | more,
        "pytorch-lightning_version": "2.2.0",
        "hyper_parameters": Settings(lr=0.1, path=Path("x")),
        "optimizer_states": [beside(model)["optimizer"]],
        "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": {"best": torch.tensor(0.1)}},
        "loops": {"fit_loop": {"state_dict": {}}},
    }


def averaged(model: nn.Module) -> AveragedModel:
    """Torch's average of one network, which is that network."""
    wrapped = AveragedModel(model)
    wrapped.update_parameters(model)
    return wrapped


def profiled(model: nn.Module) -> dict[str, Tensor]:
    layers = [name for name, _ in model.named_modules() if name]
    counters = {
        f"{name}.total_{what}": torch.zeros(1) for name in layers for what in ("ops", "params")
    }
    return {**model.state_dict(), "total_ops": torch.zeros(1), **counters}


def in_part(model: nn.Module, around: str) -> dict[str, Tensor]:
    """A network of which one part alone was wrapped, as the AlexNet of torch's example is."""
    return {
        name.replace("layer2.", f"layer2.{around}.", 1): value
        for name, value in model.state_dict().items()
    }


def cast(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    state = model.state_dict()
    return {name: v.to(dtype) if v.is_floating_point() else v for name, v in state.items()}


def attributed(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, some with attributes of their own, as optimizers leave them."""
    state: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for number, value in enumerate(state.values()):
        if number % 2:
            value.group = Phase.LAST  # type: ignore[attr-defined]
    return state


KINDS: dict[str, Callable[[nn.Module, nn.Module], Any]] = {
    "state dict": lambda model, other: model.state_dict(),
    "parameters": lambda model, other: attributed(model),
    "torch's imagenet": lambda model, other: {
        **beside(model),
        "state_dict": nn.DataParallel(model).state_dict(),
        "arch": "resnest14",
    },
    "torchvision's references": lambda model, other: {
        **beside(model),
        "model": other.state_dict(),
        "model_ema": averaged(model).state_dict(),
    },
    "torch's tutorial": lambda model, other: {
        **beside(model),
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": beside(model)["optimizer"],
        "loss": np.float32(0.3),
    },
    "timm": lambda model, other: {
        **beside(model),
        "state_dict": other.state_dict(),
        "state_dict_ema": model.state_dict(),
        "version": 2,
        "amp_scaler": {"scale": 1024.0, "_growth_tracker": 0},
    },
    "lightning": lambda model, other: lightning(model, other, "model."),
    "lightning, net": lambda model, other: lightning(model, other, "net.encoder."),
    "compiled": lambda model, other: torch.compile(model).state_dict(),
    "compiled in parallel": lambda model, other: with_prefix(
        "module._orig_mod.", model.state_dict()
    ),
    "parallel, compiled": lambda model, other: with_prefix("_orig_mod.module.", model.state_dict()),
    "compiled in part": lambda model, other: in_part(model, "_orig_mod"),
    "parallel in part": lambda model, other: {"model": in_part(model, "module")},
    "torch's average": lambda model, other: averaged(model).state_dict(),
    "student": lambda model, other: {"model": with_prefix("student.backbone.", model.state_dict())},
    "params": lambda model, other: {
        "params": other.state_dict(),
        "params_ema": model.state_dict(),
    },
    "wrapped twice": lambda model, other: {"model": {"net": {"state_dict": model.state_dict()}}},
    "profiled": lambda model, other: profiled(model),
    "without counters": lambda model, other: {
        name: v for name, v in model.state_dict().items() if "num_batches" not in name
    },
    "with a teacher": lambda model, other: {
        **model.state_dict(),
        **with_prefix("ema_teacher.", other.state_dict()),
        "criterion.weight": torch.ones(5),
        "aux_head.fc.weight": torch.ones(5, 5),
    },
    "average in one dict": lambda model, other: {
        "state_dict": {
            **with_prefix("model.", other.state_dict()),
            **with_prefix("model_ema.", model.state_dict()),
        }
    },
    "double": lambda model, other: cast(model, torch.float64),
}
FORMS: dict[str, dict[str, Any]] = {
    "a.pth.tar": {},
    "a.ckpt": {"pickle_protocol": 4},
    "a.pth": {"_use_new_zipfile_serialization": False},
}


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, nn.Module]:
    """The network that a file is of, and another one that stands beside it."""
    return resnest(1), resnest(2)


def loaded(model: nn.Module, path: Path, **more: Any) -> tuple[nn.Module, tuple[str, ...]]:
    notes = load_checkpoint(model, path, KNOWN, **more)
    return model.eval(), notes


def assert_same(one: nn.Module, two: nn.Module) -> None:
    with torch.inference_mode():
        assert torch.equal(one(images(2)), two(images(2)))


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


# what is hostile


class Evil:
    """Would leave the sentinel where it is unpickled."""

    def __init__(self, sentinel: Path, way: str) -> None:
        self.sentinel, self.way = str(sentinel), way

    def __reduce__(self) -> Any:
        ways: dict[str, Any] = {
            "system": (os.system, (f"touch {self.sentinel}",)),
            "exec": (exec, (f"open({self.sentinel!r}, 'w').close()",)),
            "eval": (eval, (f"open({self.sentinel!r}, 'w').close()",)),
            "open": (builtins.open, (self.sentinel, "w")),
            "mkdir": (Path.mkdir, (Path(self.sentinel),)),
            "state": (argparse.Namespace, (), {"__setstate__": exec, "path": Path(self.sentinel)}),
        }
        return ways[self.way]


WAYS = ("system", "exec", "eval", "open", "mkdir")


@pytest.fixture
def nothing_is_imported() -> Iterator[list[str]]:
    """What pickle looked up, which it must not."""
    seen: list[str] = []
    active = [True]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if active and active[0] and event in ("pickle.find_class", "os.system", "os.mkdir"):
            seen.append(f"{event} {arguments}")

    sys.addaudithook(hook)
    yield seen
    active[0] = False


def poisoned(content: Any, evil: list[Evil]) -> Any:
    """The content with hostile objects beside its own."""
    more = {"optimizer": {"state": {0: evil[0]}}, "z": [evil, (evil[1], {"b": evil[2]})]}
    return OrderedDict({**content, **more})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_one_runs_nothing(
    pair: tuple[nn.Module, nn.Module],
    kind: str,
    form: str,
    nothing_is_imported: list[str],
    tmp_path: Path,
) -> None:
    sentinel = tmp_path / "ran"
    evil = [Evil(sentinel, way) for way in (*WAYS, "state")]
    content = poisoned(KINDS[kind](*pair), evil)
    torch.save(content, tmp_path / form, **FORMS[form])
    nothing_is_imported.clear()
    model = resnest(3)
    load_checkpoint(model, tmp_path / form, KNOWN)
    assert_same(model.eval(), pair[0])
    assert not sentinel.exists()
    assert not nothing_is_imported


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("way", [*WAYS, "state"])
def test_a_hostile_object_in_a_weights_place_is_named(
    pair: tuple[nn.Module, nn.Module], way: str, form: str, tmp_path: Path
) -> None:
    sentinel = tmp_path / "ran"
    content = {"model": {**pair[0].state_dict(), "fc.bias": Evil(sentinel, way)}}
    torch.save(content, tmp_path / form, **FORMS[form])
    with pytest.raises(InputError, match=r"holds [\w.]+, which is no weight .* was not loaded"):
        load_checkpoint(resnest(3), tmp_path / form, KNOWN)
    assert not sentinel.exists()


@pytest.mark.parametrize("way", WAYS)
def test_elsewhere_it_runs(way: str, nothing_is_imported: list[str], tmp_path: Path) -> None:
    sentinel = tmp_path / "ran"
    torch.save({"optimizer": Evil(sentinel, way)}, tmp_path / "a.pt")
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert sentinel.exists()
    assert nothing_is_imported


def pickled(body: bytes, folder: Path) -> Path:
    """A zip file of torch with this pickle."""
    path = folder / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", body)
        archive.writestr("a/data/0", bytes(16))
    return path


BOMBS = {
    "nested tuples as a key": b"\x80\x02}" + b")" + b"\x85" * 300_000 + b"K\x01s.",
    "nested lists": b"\x80\x02" + b"](" * 200_000 + b"e" * 200_000 + b".",
    "nested dicts": b"\x80\x02"
    + b"}X\x05\x00\x00\x00model" * 100_000
    + b"N"
    + b"s" * 100_000
    + b".",
    "a long text": b"\x80\x04\x8d" + struct.pack("<Q", 2**50) + b"x.",
    "long bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",
    "a long bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.",
    "a long frame": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b".",
    "a large memo": b"\x80\x02}r\xff\xff\xff\xff.",
    "a long number": b"\x80\x02I" + b"9" * 100_000 + b"\n.",
    "an extension": b"\x80\x02\x82\x01.",
    "an empty stack": b"\x80\x02R.",
    "no mark": b"\x80\x02e.",
    "a call of a call": b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n" * 1
    + b"q\x00)"
    + b"h\x00\x86N\x86" * 10
    + b"R.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_ends_as_an_error_of_the_file(name: str, tmp_path: Path) -> None:
    path = pickled(BOMBS[name], tmp_path)
    with pytest.raises(InputError, match=r"a\.pt: "):
        read_checkpoint(path)


def test_a_pickle_of_too_many_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pickled(b"\x80\x02(" + b"]" * 1000 + b"l.", tmp_path)
    with pytest.raises(InputError, match="holds a list"):
        read_checkpoint(path)
    monkeypatch.setattr(checkpoint_pickles, "_MOST_STEPS", 1000)
    with pytest.raises(InputError, match=r"cannot be read; .*too many objects"):
        read_checkpoint(path)


def described(count: int = 4, size: Any = (4,), stride: Any = (1,), offset: int = 0) -> bytes:
    """The pickle of one tensor, as torch writes it, of a storage with four numbers."""

    class Call:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (
                None,
                offset,
                size,
                stride,
                False,
                OrderedDict(),
            )

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", count) if value is None else None

    file = io.BytesIO()
    Pickler(file, 2).dump({"a": Call()})
    return file.getvalue()


def test_a_tensor_as_it_is_described(tmp_path: Path) -> None:
    assert torch.equal(read_checkpoint(pickled(described(), tmp_path))["a"], torch.zeros(4))


@pytest.mark.parametrize(
    "lie",
    [
        {"count": 2**40},
        {"count": 2**70},
        {"size": (2**40,)},
        {"size": (2**70,)},
        {"size": (-1,)},
        {"offset": 1},
        {"offset": 2**61},
        {"size": [1] * 100, "stride": [1] * 100},
        {"size": (4, 4)},
        {"size": "four", "stride": "four"},
        {"size": 4},
    ],
)
def test_a_tensor_that_claims_what_is_not_there(lie: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.pt: cannot be read; "):
        read_checkpoint(pickled(described(**lie), tmp_path))


def test_members_that_claim_more_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", described(2**24, (2**24,)))
        archive.writestr("a/data/0", bytes(2**26))
    assert path.stat().st_size < 2**20
    with pytest.raises(InputError, match="larger than the file"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "cannot be read now"),
        (OSError(5, "Input/output error"), "cannot be read now (.*Input/output error)"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "cannot be read now"),
        (PermissionError(13, "Permission denied"), "no permission to read it"),
        (ValueError("odd"), "truncated, damaged or of another format"),
    ],
)
def test_what_passes_is_not_told_as_damage(
    pair: tuple[nn.Module, nn.Module],
    error: Exception,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.save(pair[0].state_dict(), tmp_path / "a.pt")

    def fails(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(checkpoint_formats, "read_pickle", fails)
    with pytest.raises(InputError, match=said):
        read_checkpoint(tmp_path / "a.pt")


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
