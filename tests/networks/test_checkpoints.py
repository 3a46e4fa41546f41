"""Networks from recipes; checkpoints of every kind, whole, foreign, damaged and hostile."""

import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.base.errors import InputError
from pipeline.networks.checkpoints import load_checkpoint, read_checkpoint, save_checkpoint
from pipeline.networks.resnest.build import build
from pipeline.networks.resnest.family import FAMILY
from pipeline.networks.resnest.network import NAMED, ResNeSt, ResNeStConfig, named
from pipeline.recipe.resnest import ResNeStModel
from tests.making.networks import SMALL

KNOWN = FAMILY.checkpoint(ResNeSt(SMALL))
CLASSES = ("ant", "bee", "cat", "dog", "elk")


@pytest.fixture
def model() -> ResNeSt:
    torch.manual_seed(0)
    return ResNeSt(SMALL)


def other() -> ResNeSt:
    torch.manual_seed(1)
    return ResNeSt(SMALL)


def same(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    assert len(message) < len(str(path)) + 400
    return message


# build


@pytest.mark.parametrize("name", NAMED)
def test_build_gives_the_named_network(name: Any) -> None:
    with torch.device("meta"):
        assert build(ResNeStModel(name=name), 7).config == replace(NAMED[name], num_classes=7)


def test_build_applies_every_override() -> None:
    overrides: dict[str, Any] = {
        "block": "basic",
        "layers": (1, 2, 1, 1),
        "radix": 4,
        "cardinality": 2,
        "base_width": 40,
        "stem": "small",
        "stem_width": 24,
        "avd": False,
        "avd_first": True,
        "width_multiplier": 0.5,
    }
    config = ResNeStModel(name="resnest50", input_size=64, checkpoint="a.pt", **overrides)
    assert build(config, 3).config == ResNeStConfig(num_classes=3, **overrides)


def test_build_refuses_groups_that_do_not_divide() -> None:
    config = ResNeStModel(name="resnest50", base_width=33, radix=4, cardinality=2)
    with pytest.raises(InputError, match=r"radix 4 x cardinality 2 .* base_width 33.* multiple of"):
        build(config, 3)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"layers": (1000, 1000, 1000, 1000)}, r"model\.layers: .* 4000 blocks; at most 500"),
        ({"base_width": 1024, "width_multiplier": 2.0}, r"model: \d+ M parameters .* most 500 M"),
    ],
)
def test_build_refuses_what_no_machine_holds(overrides: dict[str, Any], said: str) -> None:
    config = ResNeStModel(name="resnest50", **overrides)
    with pytest.raises(InputError, match=said):
        build(config, 3)


# reading


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_every_wrapping_reads_the_same(
    model: ResNeSt, tmp_path: Path, suffix: str, zipped: bool, wrapper: str | None, prefix: str
) -> None:
    state = model.state_dict()
    content: Any = OrderedDict((prefix + key, value) for key, value in state.items())
    if wrapper:
        content = {wrapper: content, "epoch": 3, "optimizer": {"lr": 0.1, "state": {}}}
    path = tmp_path / f"weights{suffix}"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert same(read_checkpoint(path), state)


def test_parameters_come_back_as_plain_tensors(model: ResNeSt, tmp_path: Path) -> None:
    torch.save(dict(model.named_parameters()), tmp_path / "a.pt")
    read = read_checkpoint(tmp_path / "a.pt")
    assert not any(value.requires_grad for value in read.values())


def test_a_prefix_that_not_all_names_have_stays(tmp_path: Path) -> None:
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "a.pt")
    assert set(read_checkpoint(tmp_path / "a.pt")) == {"module.a", "b"}


def test_timms_weights_load(tmp_path: Path) -> None:
    theirs = timm.create_model("resnest14d", num_classes=3).eval()
    save_file(theirs.state_dict(), tmp_path / "timm.safetensors")
    ours = named("resnest14", num_classes=3).eval()
    load_checkpoint(ours, tmp_path / "timm.safetensors", KNOWN)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted = theirs(x)
        assert (ours(x) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


class Hostile:
    """Runs `command` when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle", "renamed"])
def test_a_hostile_pickle_never_runs(tmp_path: Path, form: str) -> None:
    ran = tmp_path / "ran"
    content = {"fc.weight": torch.ones(1), "fc.bias": Hostile(f"touch {ran}")}
    path = tmp_path / ("a.safetensors" if form == "renamed" else "a.pth")
    if form == "bare pickle":
        path.write_bytes(pickle.dumps(content["fc.bias"], protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    message = refusal(path)
    if form != "renamed":
        assert f"{os.system.__module__}.system" in message
        assert "was not loaded" in message
    assert "weights_only=False" not in message
    assert not ran.exists()
    if form == "bare pickle":  # the test itself is sound: elsewhere it does run
        pickle.loads(path.read_bytes())
        assert ran.exists()


def test_objects_of_other_programs_are_named(tmp_path: Path, model: ResNeSt) -> None:
    torch.save(model, tmp_path / "whole.pt")
    message = refusal(tmp_path / "whole.pt")
    assert "pipeline.networks.resnest.network.ResNeSt" in message
    assert "torch.save(model.state_dict(), path)" in message


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_file_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.ones(1)), tmp_path / "a.pt")
    assert "TorchScript" in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize("name", ["a.onnx", "a", "a.safetensors.tmp", "a.PT"])
def test_other_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    assert ".safetensors, .pt, .pth" in refusal(tmp_path / name)


def test_missing_and_folders(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "a.pt")
    (tmp_path / "b.pt").mkdir()
    assert "is not a file" in refusal(tmp_path / "b.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"x", b"<html>not found</html>", b"\0" * 100])
def test_rubbish_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    assert "cannot be read" in refusal(path)


def test_a_safetensors_header_that_lies(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + b"\0" * 8)
    refusal(path)
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    refusal(path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.99, 0.99999])
def test_a_truncated_file_is_refused(
    model: ResNeSt, tmp_path: Path, suffix: str, share: float
) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".pt":
        torch.save(model.state_dict(), path)
    else:
        save_checkpoint(model, path)
    content = path.read_bytes()
    path.write_bytes(content[: min(int(len(content) * share), len(content) - 1)])
    assert "truncated" in refusal(path)


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    suffix=st.sampled_from([".pt", ".safetensors"]),
    legacy=st.booleans(),
    changes=st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damaged_files_give_tensors_or_an_input_error(
    tmp_path: Path, suffix: str, legacy: bool, changes: list[tuple[int, int]]
) -> None:
    path = tmp_path / f"a{suffix}"
    state = {"a.weight": torch.ones(3, 4), "a.bias": torch.ones(3)}
    if suffix == ".pt":
        torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    else:
        save_checkpoint(state, path, {"classes": "[]"})
    content = bytearray(path.read_bytes())
    for place, value in changes:
        content[place % len(content)] = value
    path.write_bytes(content)
    read, message = {}, ""
    try:
        read = read_checkpoint(path)
    except InputError as error:
        message = str(error)
    assert "\n" not in message
    assert bool(read) != bool(message)
    assert all(isinstance(value, Tensor) for value in read.values())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([torch.ones(1)], "holds a list"),
        (torch.ones(1), "holds a Tensor"),
        ({}, "no tensors"),
        ({"state_dict": {}}, "no tensors"),
        ({"epoch": 3, "a": torch.ones(1)}, "'epoch' is a int"),
        ({"state_dict": [1]}, "'state_dict' is a list"),
        ({1: torch.ones(1)}, "'1' is a Tensor"),
        ({"a": torch.eye(2).to_sparse()}, "'a' is a Tensor"),
        ({"a": torch.ones(2, device="meta")}, "'a' is a Tensor"),
        (
            {"a": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)},
            "'a' is a Tensor",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_what_is_no_dict_of_plain_tensors(tmp_path: Path, content: Any, said: str) -> None:
    torch.save(content, tmp_path / "a.pt")
    assert said in refusal(tmp_path / "a.pt")


def test_a_dict_that_holds_itself_ends(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content["state_dict"] = content
    torch.save(content, tmp_path / "a.pt")
    refusal(tmp_path / "a.pt")


def test_a_zip_of_something_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as file:
        file.writestr("readme.txt", "hello")
    assert "cannot be read" in refusal(tmp_path / "a.pt")


# loading


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


# saving


def test_what_is_saved_reads_back(model: ResNeSt, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    metadata = {"recipe": "r", "ünï": "ç\n", "classes": json.dumps(CLASSES)}
    save_checkpoint(model, path, metadata)
    assert same(read_checkpoint(path), model.state_dict())
    with safe_open(path, "pt") as file:
        assert file.metadata() == metadata


def test_same_weights_same_bytes(model: ResNeSt, tmp_path: Path) -> None:
    metadata = {str(i): str(i) for i in range(8)}
    contents = set()
    for i in range(8):
        path = tmp_path / f"{i}.safetensors"
        save_checkpoint(model, path, dict(sorted(metadata.items(), reverse=i % 2 == 0)))
        contents.add(path.read_bytes())
    assert len(contents) == 1


def test_views_shared_and_strided_tensors_are_saved(tmp_path: Path) -> None:
    base = torch.arange(24.0).view(2, 3, 4)
    state = {
        "base": base,
        "view": base[0],
        "strided": base[..., ::2],
        "channels_last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "expanded": torch.ones(1).expand(7),
        "gradient": torch.nn.Parameter(torch.ones(2)),
        "scalar": torch.tensor(3),
        "empty": torch.ones(0, 2),
    }
    save_checkpoint(state, tmp_path / "a.safetensors")
    assert same(read_checkpoint(tmp_path / "a.safetensors"), state)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    model: ResNeSt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(model, path)
    old = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(other(), path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_a_saved_file_has_the_usual_rights(model: ResNeSt, tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    save_checkpoint(model, tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_only_safetensors_is_written(model: ResNeSt, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"written as \.safetensors"):
        save_checkpoint(model, tmp_path / "a.pt")
    assert not list(tmp_path.iterdir())


def test_saving_into_a_missing_folder(model: ResNeSt, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        save_checkpoint(model, tmp_path / "none" / "a.safetensors")
