"""Workers that decode ahead: any number of them gives the bits that none gives."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.base.errors import InputError
from pipeline.base.signals import cleanly_interruptible, deferred
from pipeline.compress.training.hooks import Hooks, Step
from pipeline.compress.training.resume import Saves
from pipeline.recipe.data import ImageFolderData
from pipeline.recipe.input_shape import square
from pipeline.recipe.training import AugmentConfig, TrainConfig
from pipeline.tasks.images import pixels as images_module
from pipeline.tasks.images import workers as workers_module
from pipeline.tasks.images.batches import WHOLE, ProcessShare, batches
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.images.load import load_dataset
from pipeline.tasks.images.pixels import Images
from pipeline.tasks.images.workers import workers_for
from tests.making.networks import ONE_BLOCK, same_state, small
from tests.making.photos import SIZE, make_folders
from tests.making.training import fit

AUGMENTED = AugmentConfig(crop=(0.3, 1.0), policy="trivialaugment", flip=True, shift=0.1)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Images that are decoded when asked for."""
    monkeypatch.setattr(images_module, "MEMORY_LIMIT_BYTES", 0)
    config = make_folders(tmp_path / "data").model_copy(update={"crop_pct": 0.8})
    return load_dataset(config.model_copy(update={"calibration_images": 1}), square(SIZE))


def by(count: int, dataset: Dataset) -> Dataset:
    return replace(dataset, train=replace(dataset.train, workers=count))


def epoch(
    dataset: Dataset, config: AugmentConfig | None, share: ProcessShare = WHOLE
) -> tuple[list[torch.Tensor], list[int]]:
    """All of an epoch, and what both generators give afterwards."""
    torch.manual_seed(5)
    generator = torch.Generator().manual_seed(3)
    given = batches(
        dataset.train, 4, dataset, augment_config=config, generator=generator, share=share
    )
    found = [one for x, y in given for one in (x, y)]
    left = [int(torch.randint(2**30, (), generator=one)) for one in (generator, None)]
    return found, left


@pytest.mark.parametrize("config", [None, AugmentConfig(flip=True), AUGMENTED])
def test_workers_give_the_same_batches(photos: Dataset, config: AugmentConfig | None) -> None:
    expected, left = epoch(by(0, photos), config)
    assert len(expected) == 2 * 3
    for count in (1, 3):
        found, after = epoch(by(count, photos), config)
        assert all(map(torch.equal, found, expected))
        assert (len(found), after) == (len(expected), left)


def test_processes_take_their_parts_with_workers(photos: Dataset) -> None:
    shares = [ProcessShare(parts=2, first=first) for first in range(2)]
    for share in shares:
        expected, found = (epoch(by(count, photos), AUGMENTED, share)[0] for count in (0, 2))
        assert all(map(torch.equal, found, expected))
        assert len(found) == len(expected)


def test_a_batch_that_is_not_asked_for_leaves_no_worker(photos: Dataset) -> None:
    given = batches(by(2, photos).train, 2, photos)
    next(given)
    running = multiprocessing.active_children()
    assert len(running) == 2
    given.close()
    assert multiprocessing.active_children() == []


def test_an_image_that_breaks_is_told_in_one_line(photos: Dataset, tmp_path: Path) -> None:
    torn = tmp_path / "data" / "train" / "bee" / "0.png"
    torn.write_bytes(torn.read_bytes()[:300])
    with pytest.raises(InputError, match=r"^cannot read image \S*bee/0\.png: [^\n]*$"):
        epoch(by(2, photos), None)


def test_a_worker_that_is_killed_is_named(photos: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(workers_module._Asked, "pixels", killed)
    with pytest.raises(InputError, match=r"data\.workers: a process that decodes images ended"):
        epoch(by(1, photos), None)


def test_what_is_typed_at_the_terminal_ends_no_worker(photos: Dataset) -> None:
    """Ctrl-C reaches all processes; the training takes its step to the end, and saves."""
    seen = 0
    with cleanly_interruptible(), deferred() as asked:
        for _ in batches(by(2, photos).train, 2, photos):
            seen += 1
            if seen == 2:
                for one in (*multiprocessing.active_children(), multiprocessing.current_process()):
                    assert one.pid is not None
                    os.kill(one.pid, signal.SIGINT)
        assert asked() == signal.SIGINT
    assert seen == 6


def test_workers_are_for_files_of_several_batches(
    photos: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [rows.numpy() for rows in torch.arange(12).split(4)]
    images = photos.train
    assert workers_for(images, wanted) == 0, "so few are decoded before a process is there"
    monkeypatch.setattr(workers_module, "_WORTH_IMAGES", 12)
    assert workers_for(images, wanted) >= 1
    assert workers_for(replace(images, workers=2), wanted) == 2
    assert workers_for(replace(images, workers=9), wanted) == 3
    assert workers_for(replace(images, workers=2), wanted[:1]) == 0
    in_memory = Images(labels=images.labels, shape=square(4), source=torch.zeros(12, 3, 4, 4))
    assert workers_for(replace(in_memory, workers=2), wanted) == 0
    room = 3 * 4 * 3 * 40**2 * 2  # of one worker: three parts of four images with their margin
    monkeypatch.setattr(workers_module, "_free_shared_memory", lambda: 2 * room - 2)
    assert workers_for(replace(images, workers=2), wanted) == 1
    monkeypatch.setattr(workers_module, "_free_shared_memory", lambda: room - 2)
    assert workers_for(replace(images, workers=2), wanted) == 0


def test_a_recipe_says_how_many_there_are(tmp_path: Path) -> None:
    config = make_folders(tmp_path)
    assert load_dataset(config, square(SIZE)).train.workers is None
    some = ImageFolderData.model_validate(config.model_dump() | {"workers": 3})
    assert load_dataset(some, square(SIZE)).tests["day"].workers == 3


class Stopped(Exception):
    """In place of a signal that kills."""


@pytest.mark.slow
def test_a_training_with_workers_that_is_stopped_ends_as_one_without(
    photos: Dataset, tmp_path: Path
) -> None:
    config = TrainConfig(epochs=2, batch_size=3, learning_rate=0.05, augment=AUGMENTED)

    def trained(dataset: Dataset, saves: Saves | None = None, stop: int = 0) -> torch.nn.Module:
        torch.manual_seed(0)
        model = small(layers=ONE_BLOCK, dropblock=0.1, dropout=0.2)

        def watch(step: Step) -> None:
            if step.step == stop:
                raise Stopped

        fit(model, dataset, config, 1, Hooks(watch=watch), saves)
        return model

    expected = trained(by(0, photos))
    for stop in (2, 4, 6):
        saves = Saves(directory=tmp_path / str(stop), steps=1)
        with pytest.raises(Stopped):
            trained(by(2, photos), saves, stop)
        again = Saves(directory=tmp_path / str(stop), steps=1)
        assert same_state(trained(by(2, photos), again), expected)
