"""Files of weights are read without running anything, or refused in a line."""

import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from pipeline.base.errors import InputError
from pipeline.networks.checkpoints import load_checkpoint, read_checkpoint, save_checkpoint
from pipeline.networks.resnest.build import build
from pipeline.networks.resnest.network import NAMED, ResNeSt, ResNeStConfig, named
from pipeline.recipe.resnest import ResNeStModel
from tests.making.weights import KNOWN, same


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    assert len(message) < len(str(path)) + 400
    return message


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
