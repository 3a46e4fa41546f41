"""What a run would do, told before it does: which stages are reused, and why others are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.store import Store, key_of
from pipeline.stages import schedule
from pipeline.stages.context import Context
from pipeline.stages.explain import explain
from pipeline.stages.schedule import stage_ingredients
from pipeline.stages.stage import Stage, StageFacts
from tests.making.recipes import device_recipe
from tests.making.runs import context as making_context


def stage(**parts: Any) -> Stage[StageFacts]:
    fixed = {"make": lambda *_: StageFacts(), "facts": StageFacts, "packages": ("torch",)}
    return Stage(**fixed, **parts)


STAGES = (
    stage(
        name="train",
        after=(),
        reads=("train", "seed"),
        code=("stages/train.py",),
    ),
    stage(name="prune", after=("train",), reads=("prune",), code=()),
    stage(name="fold", after=("prune",), reads=(), code=("compress/quantization",)),
    stage(
        name="sparsify",
        after=(),
        reads=("seed",),
        code=(),
        needed=lambda recipe: recipe.sparsify is not None,
    ),
)


def context(*overrides: str) -> Context:
    recipe = device_recipe(*overrides)
    return making_context(recipe)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(directory=tmp_path / "store", tell=lambda line: None)


def run(store: Store, about: Context) -> None:
    """Have the result of every stage in the store."""
    store.directory.mkdir(exist_ok=True)
    keys: dict[str, str] = {}
    for stage in STAGES[:3]:
        ingredients = stage_ingredients(stage, about, keys)
        keys[stage.name] = key_of(ingredients)
        store.obtain(stage.name, ingredients, lambda place: StageFacts(), StageFacts)


def told(store: Store, about: Context) -> list[tuple[str, bool, str]]:
    return [(one.stage, one.reused, one.why) for one in explain(STAGES, about, store)]


def test_nothing_is_there_yet(store: Store) -> None:
    expected = [(name, False, "no result yet") for name in ("train", "prune", "fold")]
    assert told(store, context()) == expected
    assert not store.directory.exists(), "nothing is changed"


def test_everything_is_there(store: Store) -> None:
    run(store, context())
    assert told(store, context("budgets.size_mb=3", "name=other")) == [
        (name, True, "unchanged") for name in ("train", "prune", "fold")
    ]


def test_what_changed_is_named_where_it_counts(store: Store) -> None:
    run(store, context("train.epochs=7"))
    train, prune, fold = told(store, context("train.epochs=9"))
    assert train == ("train", False, "train.epochs: 7 before, 9 now")
    assert prune == ("prune", False, "made from train anew")
    assert fold == ("fold", False, "made from prune anew")


def test_the_nearest_result_is_compared(store: Store) -> None:
    run(store, context("train.epochs=7", "seed=3", "prune.macs=0.25"))
    run(store, context("train.epochs=7"))
    train, *_ = told(store, context("train.epochs=9"))
    assert train == ("train", False, "train.epochs: 7 before, 9 now")


def test_many_changes_are_cut_short(store: Store) -> None:
    run(store, context("train.epochs=7"))
    changes = ("epochs=9", "batch_size=8", "learning_rate=0.3", "clip_norm=null", "momentum=0.5")
    changed = context(*(f"train.{change}" for change in changes), "seed=9")
    (_, reused, why), *_ = told(store, changed)
    assert not reused
    assert why.endswith("; and 1 more")
    assert "train.learning_rate: 0.05 before, 0.3 now" in why


def test_code_and_data_are_said_to_have_changed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(store, context())
    about = context()
    other = replace(about, dataset=replace(about.dataset, training_sha256="2" * 64))
    monkeypatch.setattr(schedule, "code_hash", lambda name: "another")
    assert told(store, other)[0] == (
        "train",
        False,
        "code.stages/train.py: changed; data: changed",
    )


def test_what_images_are_normalised_by_counts(store: Store) -> None:
    """Neither the hash of the images nor the part of the recipe that training reads has it."""
    run(store, context())
    about = context()
    other = replace(about, dataset=replace(about.dataset, std=(0.5, 0.5, 0.5)))
    (_, reused, why), *_ = told(store, other)
    assert not reused
    assert why.startswith("normalization.std: [")
    assert why.endswith("[0.5, 0.5, 0.5] now")


def test_what_lies_around_the_images_counts(store: Store) -> None:
    run(store, context())
    about = context()
    train = replace(about.dataset.train, margin=(4, 4))
    (_, reused, why), *_ = told(store, replace(about, dataset=replace(about.dataset, train=train)))
    assert not reused
    assert why == "preparation.margin: [0, 0] before, [4, 4] now"
