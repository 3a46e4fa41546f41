"""What the command line says and returns when something is wrong."""

from __future__ import annotations

import errno
import os
import resource
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from pipeline import __main__
from pipeline.base import console
from pipeline.networks.checkpoints import save_checkpoint
from pipeline.networks.resnest.network import named
from pipeline.recipe.recipe import load_recipes
from pipeline.stages import finished_run
from tests.making import ROOT
from tests.making.cli import narrow_run, pocketnest, process
from tests.making.recipes import DEVICE_RECIPES

pytestmark = pytest.mark.slow

ONNX = DEVICE_RECIPES["onnx"]


def test_check_and_help_answer_without_torch() -> None:
    code = (
        "import sys, pipeline.__main__ as m; "
        f"assert m.main(['check', {str(ONNX)!r}]) == 0; "
        "bad = {'torch', 'tensorflow', 'numpy', 'coremltools'} & set(sys.modules); "
        "assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, pipeline.__main__ as m; m.parser().format_help(); "
        "bad = {'torch', 'numpy', 'rich', 'scipy', 'tensorflow'} & set(sys.modules); "
        "assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["check", str(ONNX)]])
def test_they_answer_within_a_second(arguments: list[str]) -> None:
    # CPU time, since the clock on the wall also counts what else the machine does.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert process(*arguments).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


@pytest.mark.parametrize(
    ("command", "example"),
    [(name, line) for name, made in __main__.COMMANDS.items() for line in made.examples],
)
def test_every_example_of_the_help_is_a_command(command: str, example: str) -> None:
    program, *arguments = shlex.split(example)
    stops = [arguments.index(sign) for sign in ("<", ">") if sign in arguments]
    parsed = __main__.parser().parse_args(arguments[: min(stops, default=None)])
    assert (program, parsed.command) == ("pocketnest", command)
    assert all(made.examples for made in __main__.COMMANDS.values())


def test_help_names_the_exit_codes() -> None:
    assert "3 a budget is missed" in pocketnest("--help").stdout


def assert_refused(done: subprocess.CompletedProcess[str], *expected: str) -> None:
    """Exit code 2, the words expected, and no traceback."""
    assert done.returncode == 2, done.stdout + done.stderr
    for words in expected:
        assert words in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_every_problem_of_a_recipe_at_once(tmp_path: Path) -> None:
    recipe = tmp_path / "bad.yaml"
    recipe.write_text(
        f"extends: {ROOT}/recipes/resnest50/base.yaml\n"
        "model: {name: resnest51, input_size: 2049}\n"
        "train: {epoch: 3}\n"
        "prune: {macs: 1.5}\n"
        "target: {device: phone, format: onnx, precision: int8}\n"
    )
    done = pocketnest("check", recipe)
    assert_refused(done, "resnest51", "resnest50", "2049", "'epochs'", "1.5", "bad.yaml:2")


def test_a_missing_recipe() -> None:
    assert_refused(pocketnest("run", "no-such.yaml"), "no-such.yaml")


def test_nan_loss_names_the_step(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = narrow_run([ONNX], out, "train.learning_rate=1e30", "train.clip_norm=null")
    assert_refused(done, "step", "learning_rate", "1e+30")
    assert {p.name for p in out.glob(".store/*")} == {".latest", ".locks"}, (
        "a failed stage leaves nothing but what it was to make"
    )


def test_a_pruning_target_out_of_reach(tmp_path: Path) -> None:
    done = narrow_run([ONNX], tmp_path, "prune.macs=0.0001", "train.epochs=0")
    assert_refused(done, "prune.macs", "0.0001", "at the least")
    assert list(tmp_path.glob(".store/train-*")), "finished stages are kept"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "narrow.safetensors"
    save_checkpoint(named("resnest14", num_classes=10, width_multiplier=0.25), path)
    return path


def with_checkpoint(path: Path, out: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return narrow_run([ONNX], out, f"model.checkpoint={path}", *overrides)


def test_a_checkpoint_of_another_shape(checkpoint: Path, tmp_path: Path) -> None:
    done = with_checkpoint(checkpoint, tmp_path, "model.width_multiplier=0.5")
    assert_refused(done, "narrow.safetensors", "conv1.0.weight")


def test_a_checkpoint_of_another_class_count(tmp_path: Path) -> None:
    path = tmp_path / "seven.safetensors"
    save_checkpoint(named("resnest14", num_classes=7, width_multiplier=0.25), path)
    assert_refused(with_checkpoint(path, tmp_path / "out"), "7", "10")


def test_a_truncated_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(checkpoint.read_bytes()[:-1000])
    assert_refused(with_checkpoint(path, tmp_path / "out"), "cut.safetensors")


def test_a_pickle_that_would_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/ran",)

    path = tmp_path / "evil.pt"
    torch.save({"conv1.0.weight": Evil()}, path)
    assert_refused(with_checkpoint(path, tmp_path / "out"), "evil.pt")
    assert not (tmp_path / "ran").exists()


def image_folder(root: Path, classes: int, images: int = 12) -> Path:
    for number in range(classes):
        for index in range(images):
            path = root / f"class{number}" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (number * 40, index * 5, 90)).save(path)
    return root


def with_folder(train: Path, test: Path, out: Path) -> subprocess.CompletedProcess[str]:
    recipe = out.parent / "folder.yaml"
    recipe.write_text(
        f"extends: {ONNX}\n"
        "model: {name: resnest14, width_multiplier: 0.25}\n"
        f"data: {{kind: image_folder, train: {train}, test: {{test: {test}}},"
        " calibration_images: 4}\n"
    )
    return pocketnest("run", recipe, "--out", out)


def test_an_empty_image_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    test = image_folder(tmp_path / "test", 2)
    assert_refused(with_folder(tmp_path / "empty", test, tmp_path / "out"), str(tmp_path / "empty"))


def test_a_single_class(tmp_path: Path) -> None:
    one = image_folder(tmp_path / "one", 1)
    assert_refused(with_folder(one, one, tmp_path / "out"), "class")


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    train = image_folder(tmp_path / "train", 2)
    broken = train / "class1" / "3.png"
    broken.write_bytes(broken.read_bytes()[:40])
    done = with_folder(train, image_folder(tmp_path / "test", 2), tmp_path / "out")
    assert_refused(done, str(broken))


def test_bench_wants_the_directory_of_a_run(tmp_path: Path) -> None:
    assert_refused(pocketnest("bench", tmp_path), "recipe.yaml")


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs to mount a tmpfs")
def test_no_disk_space(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)])
    if mounted.returncode != 0:
        pytest.skip("cannot mount a tmpfs here")
    try:
        done = narrow_run([ONNX], small / "out", "train.epochs=0")
        assert_refused(done, "disk space")
        left = {path.name for path in (small / "out" / ".store").glob("*")}
        assert left <= {".latest", ".locks"}, "nothing half-written"
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_an_output_directory_that_cannot_be_written(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: object) -> int:
        raise OSError(number, os.strerror(number), "artifacts")

    replaced = replace(__main__.COMMANDS["check"], run=fail)
    monkeypatch.setitem(__main__.COMMANDS, "check", replaced)
    assert __main__.main(["check", str(ONNX)]) == 2
    assert "artifacts" in capsys.readouterr().err


def test_an_internal_error_gives_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: object) -> int:
        raise RuntimeError("a bug")

    replaced = replace(__main__.COMMANDS["check"], run=fail)
    monkeypatch.setitem(__main__.COMMANDS, "check", replaced)
    assert __main__.main(["check", str(ONNX)]) == 1
    assert "a bug" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["predict", "no-such-run", "a.png"], "no-such-run: not the directory of a run"),
        (["debug", "no-such-run"], "no-such-run: not the directory of a run"),
        (["debug", "."], "not the directory of a run"),
        (["debug", ".", "--images", "0"], "got '0'; must be a whole number above 0"),
        (["predict", ".", "a.png", "--top", "x"], "got 'x'; must be a whole number above 0"),
        (["bench", ".", "--rounds", "-1"], "must be a whole number above 0"),
    ],
)
def test_bad_arguments_of_the_commands_on_runs(
    arguments: list[str], expected: str, tmp_path: Path
) -> None:
    assert_refused(pocketnest(*arguments, cwd=tmp_path), expected)
    assert list(tmp_path.iterdir()) == []


def test_names_cannot_move_the_cursor_of_the_terminal(tmp_path: Path) -> None:
    name = "\x1b[31mred\udcff"
    done = pocketnest("check", os.fsencode(name).decode("utf-8", "surrogateescape"), cwd=tmp_path)
    assert_refused(done, r"error: \x1b[31mred\udcff:1: no such file")


def test_a_file_that_is_in_the_way_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: object) -> int:
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), "artifacts/run.log")

    replaced = replace(__main__.COMMANDS["check"], run=fail)
    monkeypatch.setitem(__main__.COMMANDS, "check", replaced)
    assert __main__.main(["check", str(ONNX)]) == 2
    assert capsys.readouterr().err == "error: artifacts/run.log: Is a directory\n"


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shells_can_complete(shell: str) -> None:
    done = pocketnest("--print-completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    for expected in ("compare", "--allow-mismatch", "--dry-run"):
        assert expected in done.stdout


@pytest.mark.parametrize("leads_to", ["nowhere", "elsewhere"])
def test_a_store_that_is_a_link_is_refused_before_anything_is_written(
    leads_to: str, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".store").symlink_to(tmp_path / leads_to)
    done = pocketnest("run", DEVICE_RECIPES["onnx"], "--out", tmp_path / "out")
    assert done.returncode == 2
    assert ".store: is a link" in done.stderr
    assert not (tmp_path / "nowhere").exists()
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that commands take for that of a finished run, and that none gets to work on."""
    directory = tmp_path / "run"
    directory.mkdir()
    (recipe,) = load_recipes([ONNX])
    made: Any = SimpleNamespace(directory=directory, recipe=recipe, file=directory / "model.onnx")

    def work(*arguments: object, **named: object) -> None:
        raise AssertionError("it began to work")

    monkeypatch.setattr(finished_run, "open_runs", lambda *a, **k: [made])
    monkeypatch.setattr(finished_run, "open_run", lambda *a, **k: made)
    monkeypatch.setattr(console, "third_party_output_to", work)
    return directory


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["debug", "RUN"], "run/debug.csv"),
        (["debug", "RUN", "--csv", "OUT"], "out"),
        (["inspect", "RUN", "--csv", "OUT"], "out"),
        (["inspect", str(ONNX), "--csv", "OUT"], "out"),
        (["bench", "RUN"], "run/bench.json"),
        (["bench", "RUN"], "run/bench.svg"),
        (["bench", "RUN", "--peers"], "run/peers"),
        (["bench", "RUN", "--peers"], "run/peers/peers.json"),
        (["bench", "RUN", "--out", "OUT"], "out/bench.json"),
        (["bundle", "RUN"], "run/linux-arm-onnxruntime-int8.zip"),
        (["bundle", "RUN", "--out", "OUT"], "out/linux-arm-onnxruntime-int8.zip"),
        (["baseline", str(ONNX), "--out", "OUT"], "out/baselines"),
        (["run", str(ONNX), str(DEVICE_RECIPES["tflite"]), "--out", "OUT"], "out/combined"),
        (["init", "OUT", "--device", "android"], "out"),
    ],
)
def test_a_link_in_the_place_of_an_output_is_refused_before_any_work(
    arguments: list[str],
    output: str,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "outside").mkdir()
    place = tmp_path / output
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(tmp_path / "outside" / "made")
    given = {"RUN": str(finished), "OUT": str(tmp_path / "out")}
    assert __main__.main([given.get(argument, argument) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert str(place) in said
    assert "is a link" in said or "is there already" in said
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_folder_that_is_not_there_is_named_before_any_work(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "nowhere" / "layers.csv"
    for command in ("debug", "inspect"):
        assert __main__.main([command, str(finished), "--csv", str(table)]) == 2
        assert f"{table}: its folder is not there" in capsys.readouterr().err
    assert __main__.main(["init", str(table), "--device", "android"]) == 2
    assert f"{table}: its folder is not there" in capsys.readouterr().err
