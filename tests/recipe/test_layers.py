"""What a recipe that extends another takes from it, and what never passes."""

from __future__ import annotations

from pathlib import Path

from pipeline.recipe.recipe import Recipe, load_recipes
from tests.making import ROOT
from tests.making.recipes import DEVICE_RECIPES

PHOTOS = "data: {kind: image_folder, path: photos}\n"
CARD = "card: {licence: MIT, author: We, intended_use: Cats.}\n"


def load(folder: Path, text: str, *overrides: str, name: str = "mine.yaml") -> Recipe:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    for place in (folder, (folder / name).parent):
        for part in ("train", "test"):
            (place / "photos" / part).mkdir(parents=True, exist_ok=True)
    (recipe,) = load_recipes([folder / name], overrides)
    return recipe


def said(recipe: Recipe) -> dict[str, str]:
    return recipe.card.model_dump(exclude_none=True)


def test_a_shipped_card_does_not_pass_to_the_users_own_photos(tmp_path: Path) -> None:
    """A network of cats said that it reads digits, and carried a licence that nobody gave."""
    shipped = f"extends: {DEVICE_RECIPES['onnx']}\n"
    assert set(said(load(tmp_path, shipped))) == {"intended_use", "limits", "licence"}
    assert said(load(tmp_path, shipped + PHOTOS)) == {}
    own = load(tmp_path, shipped + PHOTOS + "card: {author: Me}\n")
    assert said(own) == {"author": "Me"}, "what the recipe says itself stays"


def test_a_setting_brings_other_data_as_a_file_does(tmp_path: Path) -> None:
    base = load(tmp_path, f"extends: {DEVICE_RECIPES['onnx']}\n{PHOTOS}{CARD}", name="base.yaml")
    assert set(said(base)) == {"licence", "author", "intended_use"}
    text, other = "extends: base.yaml\n", tmp_path / "other"
    for part in ("train", "test"):
        (other / part).mkdir(parents=True)
    assert said(load(tmp_path, text, "data.calibration_images=8")) == said(base)
    assert said(load(tmp_path, text, f"data.path={tmp_path}/photos")) == said(base)
    assert said(load(tmp_path, text, f"data.path={other}")) == {}
    assert said(load(tmp_path, text, f"data.path={other}", "card.licence=MIT")) == {
        "licence": "MIT"
    }


def test_the_same_word_in_another_folder_is_other_data(tmp_path: Path) -> None:
    load(tmp_path, f"extends: {DEVICE_RECIPES['onnx']}\n{PHOTOS}{CARD}", name="base.yaml")
    text = f"extends: ../base.yaml\n{PHOTOS}"
    assert said(load(tmp_path, text, name="sub/mine.yaml")) == {}
    assert said(load(tmp_path, text.replace("../", ""))) != {}


def test_a_first_folder_is_no_other_data(tmp_path: Path) -> None:
    """Shipped recipes say what their images are, and not where they lie."""
    text = f"extends: {DEVICE_RECIPES['onnx']}\ndata: {{kind: image_folder}}\n{CARD}"
    (tmp_path / "base.yaml").write_text(text)
    assert set(said(load(tmp_path, "extends: base.yaml\ndata: {path: photos}\n"))) == {
        *("licence", "author", "intended_use")
    }


def test_all_shipped_recipes_have_a_card_or_none() -> None:
    for file in sorted((ROOT / "recipes" / "resnest50").glob("*.yaml")):
        if file.stem != "base":
            assert said(load_recipes([file])[0])["licence"] == "Apache-2.0"


def test_other_shards_are_other_data(tmp_path: Path) -> None:
    shards = "data: {kind: webdataset, path: photos}\n"
    load(tmp_path, f"extends: {DEVICE_RECIPES['onnx']}\n{shards}{CARD}", name="base.yaml")
    assert said(load(tmp_path, f"extends: ../base.yaml\n{shards}", name="sub/mine.yaml")) == {}
    assert said(load(tmp_path, "extends: base.yaml\n", "data.label=folder")) != {}
    assert said(load(tmp_path, "extends: base.yaml\n", "data.path=other")) == {}
