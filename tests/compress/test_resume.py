"""A training that was stopped ends as one that was not, to the bit."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.base import checksums
from pipeline.base.checksums import MANIFEST, seal
from pipeline.base.errors import InputError
from pipeline.base.signals import Interrupted, cleanly_interruptible
from pipeline.compress.pruning.sparsify import Sparsifier
from pipeline.compress.quantization import qat
from pipeline.compress.training import loop
from pipeline.compress.training.hooks import Hooks, Step
from pipeline.compress.training.resume import Saves
from pipeline.compress.training.schedule import batches_per_epoch
from pipeline.networks.resnest.branches import branch_form
from pipeline.recipe.compression import Milestones, SparsifyConfig
from pipeline.recipe.training import AugmentConfig, TrainConfig
from tests.making.graphs import calibrated
from tests.making.networks import ONE_BLOCK, SHALLOW, dataset, same_state, small, structure
from tests.making.training import fit

pytestmark = pytest.mark.slow

EPOCHS = 3
CONFIG = TrainConfig(
    epochs=EPOCHS,
    batch_size=6,
    learning_rate=0.05,
    warmup_epochs=1,
    clip_norm=1.0,
    augment=AugmentConfig(shift=0.1, rotate_deg=10, flip=True),
)
STEPS = batches_per_epoch(16, 6) * EPOCHS

Case = Callable[[], tuple[nn.Module, dict[str, Any]]]
"""Makes a network and what its stage adds to the loop."""


class Stopped(Exception):
    """In place of a signal that kills."""


def plain() -> tuple[nn.Module, dict[str, Any]]:
    return small(layers=ONE_BLOCK, dropblock=0.1, dropout=0.2), {}


def quantized() -> tuple[nn.Module, dict[str, Any]]:
    graph = calibrated()
    schedule = qat.Schedule(
        graph, Milestones(fake_quantize=0.2, freeze_observers=0.5, freeze_bn=0.8)
    )
    return graph, {
        "before_step": schedule.before_step,
        "set_training": schedule.set_training,
        "load": qat.load_state,
    }


def sparse() -> tuple[nn.Module, dict[str, Any]]:
    model = branch_form(small(layers=SHALLOW)).train()
    config = SparsifyConfig(sparsity=0.5, criterion="snip_momentum", train=CONFIG)
    sparsifier = Sparsifier(model, config, STEPS, structure(model).dense)
    return model, {
        "before_step": sparsifier.before_step,
        "after_backward": sparsifier.after_backward,
        "after_step": sparsifier.after_step,
        "state": sparsifier.state,
        "set_state": sparsifier.set_state,
    }


def trained(case: Case, saves: Saves | None, stop_after: int | None = None) -> Any:
    """The network and its curve; None where it was stopped."""
    model, hooks = case()

    def watch(step: Step) -> None:
        if step.step == stop_after:
            raise Stopped

    try:
        curve = fit(model, dataset(), CONFIG, 3, Hooks(watch=watch, **hooks), saves)
    except Stopped:
        return None
    return model.cpu(), curve


@pytest.mark.parametrize("case", [plain, quantized, sparse])
def test_a_stopped_training_ends_as_one_that_was_not(case: Case, tmp_path: Path) -> None:
    whole, curve = trained(case, None)
    # In the middle of an epoch, at its end, right after it, and before the very first state.
    for stop in (1, 2, batches_per_epoch(16, 6), batches_per_epoch(16, 6) + 1, STEPS):
        saves = tmp_path / f"{case.__name__}-{stop}"
        assert trained(case, Saves(directory=saves, steps=1), stop_after=stop) is None
        found, found_curve = trained(case, Saves(directory=saves, steps=1))
        assert same_state(found, whole), stop
        assert found_curve == curve


@settings(max_examples=8, deadline=None)
@given(stops=st.lists(st.integers(1, STEPS), max_size=4), every=st.integers(1, 4))
def test_a_training_can_be_stopped_again_and_again(
    tmp_path_factory: pytest.TempPathFactory, stops: list[int], every: int
) -> None:
    whole, curve = trained(plain, None)
    directory = tmp_path_factory.mktemp("saves")
    for stop in stops:
        trained(plain, Saves(directory=directory, steps=every), stop_after=stop)
    found, found_curve = trained(plain, Saves(directory=directory, steps=every))
    assert same_state(found, whole)
    assert found_curve == curve


def test_a_finished_training_is_not_done_again(tmp_path: Path) -> None:
    whole, curve = trained(plain, Saves(directory=tmp_path))
    found, found_curve = trained(plain, Saves(directory=tmp_path), stop_after=STEPS)
    assert same_state(found, whole)
    assert found_curve == curve


@pytest.mark.parametrize("file", ["state.pt", MANIFEST])
@pytest.mark.parametrize("all_of_them", [False, True])
def test_damaged_states_are_not_gone_on_from(tmp_path: Path, file: str, all_of_them: bool) -> None:
    whole, _ = trained(plain, None)
    assert trained(plain, Saves(directory=tmp_path, steps=1), stop_after=5) is None
    states = sorted(tmp_path.glob("[0-9]*"))
    assert [int(state.name) for state in states] == [3, 4]
    for state in states if all_of_them else states[-1:]:
        with (state / file).open("r+b") as content:
            content.truncate(50)
    found, _ = trained(plain, Saves(directory=tmp_path, steps=1))
    assert same_state(found, whole)


@pytest.mark.parametrize("odd", ["pipe", "file", "link"])
def test_what_is_no_state_is_removed_and_not_waited_for(tmp_path: Path, odd: str) -> None:
    whole, _ = trained(plain, None)
    saves = tmp_path / "saves"
    saves.mkdir()
    (tmp_path / "kept").mkdir()
    make = {
        "pipe": os.mkfifo,
        "file": lambda path: path.write_bytes(b"x"),
        "link": lambda path: path.symlink_to(tmp_path / "kept"),
    }[odd]
    for name in ("000000002", "000000003", ".new"):
        make(saves / name)
    found, _ = trained(plain, Saves(directory=saves, steps=1))
    assert same_state(found, whole)
    assert (tmp_path / "kept").is_dir()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(tmp_path: Path, number: signal.Signals) -> None:
    whole, _ = trained(plain, None)
    model, hooks = plain()

    def watch(step: Step) -> None:
        if step.step == 4:
            os.kill(os.getpid(), number)

    saves = Saves(directory=tmp_path)
    with pytest.raises(Interrupted) as caught, cleanly_interruptible():
        fit(model, dataset(), CONFIG, 3, Hooks(watch=watch, **hooks), saves)
    assert caught.value.number == number
    assert [int(state.name) for state in tmp_path.glob("[0-9]*")] == [4]
    found, _ = trained(plain, Saves(directory=tmp_path))
    assert same_state(found, whole)


def test_states_are_saved_by_time_and_by_steps(tmp_path: Path) -> None:
    by_steps = Saves(directory=tmp_path, seconds=1e9, steps=5)
    assert [by_steps.due(step) for step in (4, 5)] == [False, True]
    by_steps.save(5, {"x": torch.ones(2)})
    assert [by_steps.due(step) for step in (9, 10)] == [False, True]
    assert not Saves(directory=tmp_path, seconds=1e9).due(10**6)
    assert Saves(directory=tmp_path, seconds=1e-9).due(1)


def test_saving_takes_a_small_share_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("pipeline.compress.training.resume.time.monotonic", lambda: now[0])
    saves = Saves(directory=tmp_path, seconds=10.0)
    now[0] = 10.0
    assert saves.due(1)

    def slowly(state: object, path: Path) -> None:
        path.touch()
        now[0] += 3.0

    monkeypatch.setattr("pipeline.compress.training.resume.torch.save", slowly)
    saves.save(1, {})
    now[0] += 149.0
    assert not saves.due(2)
    now[0] += 2.0
    assert saves.due(2)


def test_a_state_with_code_in_it_is_dropped_and_never_runs(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    directory = tmp_path / "saves"
    trained(plain, Saves(directory=directory, steps=1), stop_after=3)
    newest = max(directory.iterdir())
    torch.save({"model": Hostile()}, newest / "state.pt")
    seal(newest)
    whole, curve = trained(plain, None)
    found, found_curve = trained(plain, Saves(directory=directory, steps=1))
    assert same_state(found, whole)
    assert found_curve == curve
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("progress", "step", 10**12),
        ("progress", "step", "2"),
        ("progress", "order", torch.zeros(16, dtype=torch.int64)),
        ("model", "fc.bias", torch.zeros(3)),
        ("optimizer", "param_groups", []),
    ],
)
def test_a_state_of_another_training_is_refused(
    tmp_path: Path, part: str, name: str, value: Any
) -> None:
    trained(plain, Saves(directory=tmp_path, steps=1), stop_after=3)
    newest = max(tmp_path.iterdir())
    state = torch.load(newest / "state.pt", weights_only=True)
    state[part][name] = value
    torch.save(state, newest / "state.pt")
    seal(newest)
    with pytest.raises(InputError, match=r"holds no state of this training .* remove it"):
        trained(plain, Saves(directory=tmp_path, steps=1))


@pytest.mark.parametrize(
    "passing",
    [
        MemoryError(),
        OSError(errno.EIO, os.strerror(errno.EIO)),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_state_that_cannot_be_read_now_stays(
    tmp_path: Path, passing: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves = Saves(directory=tmp_path / "saves", steps=1)
    saves.save(1, {"step": 1})
    saves.save(2, {"step": 2})

    def fails(*arguments: object, **named: object) -> object:
        raise passing

    for module, name in ((torch, "load"), (checksums, "open_file")):
        monkeypatch.setattr(module, name, fails)
        with pytest.raises(type(passing)):
            saves.latest()
        monkeypatch.undo()
        assert {path.name for path in saves.directory.iterdir()} == {"000000001", "000000002"}
    assert saves.latest() == {"step": 2}


def test_a_damaged_state_is_set_aside(tmp_path: Path) -> None:
    saves = Saves(directory=tmp_path / "saves", steps=1)
    saves.save(1, {"step": 1})
    saves.save(2, {"step": 2})
    (saves.directory / "000000002" / "state.pt").write_bytes(b"x")
    assert saves.latest() == {"step": 1}
    left = {path.name for path in saves.directory.iterdir()}
    assert left == {"000000001", ".damaged-000000002"}


def test_no_memory_for_a_state_is_not_the_states_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(plain, Saves(directory=tmp_path, steps=1), stop_after=3)

    def fails(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop, "go_on_from", fails)
    with pytest.raises(torch.OutOfMemoryError):
        trained(plain, Saves(directory=tmp_path, steps=1))
