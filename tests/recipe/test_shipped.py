"""The shipped recipes load, fit their schema, and say how to run them."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jsonschema
import pytest
import torch
import yaml

from pipeline.base.errors import InputError
from pipeline.compress.training.schedule import highest_rate
from pipeline.recipe.recipe import json_schema, load_recipes
from pipeline.stages.known import KNOWN
from pipeline.tasks.images.batches import batches
from pipeline.tasks.images.load import load_dataset
from pipeline.tasks.mixing import mixer
from tests.making.photos import write_image

RECIPES = Path(__file__).parents[2] / "recipes"
SCHEMA = RECIPES / "recipe.schema.json"
OFFLINE = (
    *("resnest50", "efficientnet_lite0", "mobilenet_v2", "resnet18", "resnext50"),
    *("shiftresnet20", "squeezenet", "tresnet_m", "segmentation"),
)
FILES = sorted(RECIPES.rglob("*.yaml"))
BENCHMARKS = [p for p in FILES if p.parent.name == "bench" and p.name != "base.yaml"]
DEVICES = [p for p in FILES if p.parent.name != "bench" and p.name != "base.yaml"]
EMBEDDED = [p for p in DEVICES if p.relative_to(RECIPES).parts[0] in OFFLINE]
CIFAR10 = sorted((RECIPES / "resnest50-cifar10").glob("*.yaml"))


def named(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def test_there_is_a_recipe_for_every_format() -> None:
    recipes = load_recipes(DEVICES)
    assert [recipe.name for recipe in recipes] == [path.stem for path in DEVICES]
    assert {recipe.target.format for recipe in recipes} == {"onnx", "tflite", "coreml"}


@pytest.mark.parametrize("path", EMBEDDED, ids=named)
def test_a_recipe_on_embedded_data_runs_offline(path: Path) -> None:
    (recipe,) = load_recipes([path])
    assert recipe.data.kind in ("digits", "digit_scenes")
    assert recipe.model.checkpoint is None


def test_cifar10_has_both_blocks_on_every_device_and_trains_each_block_once() -> None:
    recipes = load_recipes(CIFAR10, ["data.path=/cifar"])
    for name in ("resnest50", "resnest50_basic"):
        (same, *others) = [recipe for recipe in recipes if recipe.model.name == name]
        targets = [same.target.format, *(other.target.format for other in others)]
        assert sorted(targets) == ["coreml", "onnx", "tflite"]
        fields = {"name", "description", "target", "budgets"}
        assert {other.model_dump_json(exclude=fields) for other in others} == {
            same.model_dump_json(exclude=fields)
        }


def test_imagenet_is_read_from_a_folder_and_trained_as_in_the_paper(tmp_path: Path) -> None:
    for folder, count in (("train", 6), ("val", 2)):
        for name in ("n01440764", "n01443537"):
            (tmp_path / folder / name).mkdir(parents=True)
            for index in range(count):
                write_image(tmp_path / folder / name / f"{index}.JPEG", index, 320, 240)
    recipes = load_recipes(
        sorted((RECIPES / "resnest50-imagenet").glob("*.yaml")),
        [f"data.path={tmp_path}", "data.calibration_images=4"],
    )
    assert {recipe.target.format for recipe in recipes} == {"onnx", "tflite", "coreml"}
    train = recipes[0].train
    assert highest_rate(train) == pytest.approx(3.2)  # 8192 / 256 * 0.1
    dataset = load_dataset(recipes[0].data, recipes[0].model.input_shape)
    assert (len(dataset.train), len(dataset.tests["val"])) == (8, 4)
    assert dataset.train.with_margin(torch.arange(2)).shape == (2, 3, 256, 256)
    generator = torch.Generator().manual_seed(0)
    given = batches(dataset.train, 4, dataset, augment_config=train.augment, generator=generator)
    mix = mixer(train, 1000)
    assert mix is not None
    for images, labels in given:
        mixed, shares = mix(images, labels)
        assert (images.shape, mixed.shape) == ((4, 3, 224, 224),) * 2
        assert shares.sum(1) == pytest.approx(torch.ones(4))


@pytest.mark.parametrize("path", DEVICES, ids=named)
def test_a_device_recipe_has_budgets(path: Path) -> None:
    (recipe,) = load_recipes([path])
    assert recipe.budgets.accuracy_drop_pt is not None
    assert recipe.budgets.size_mb is not None
    # Core ML runs on Apple systems only: a limit there could never be judged on Linux.
    assert (recipe.budgets.speedup is None) == (recipe.target.format == "coreml")


@pytest.mark.parametrize("path", BENCHMARKS, ids=named)
def test_a_benchmark_runs_offline_at_224_and_judges_nothing(path: Path) -> None:
    (recipe,) = load_recipes([path])
    assert recipe.data.kind == "digits"
    assert recipe.model.input_size == 224
    assert recipe.qat.train.epochs == 0  # ranges from calibration alone, as other tools take them
    assert set(recipe.budgets.model_dump().values()) == {None}


def test_base_lacks_nothing_but_a_target() -> None:
    path = RECIPES / "resnest50" / "base.yaml"
    load_recipes([path], ["target={device: any, format: onnx, precision: int8}"])
    with pytest.raises(InputError, match=r"^\S*base\.yaml:\d+: target: missing; [^\n]*$"):
        load_recipes([path])


@pytest.mark.parametrize("path", FILES, ids=named)
def test_the_header_names_schema_and_command(path: Path) -> None:
    header = path.read_text().split("\n\n")[0]
    first, *rest = header.splitlines()
    relative = first.removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / relative).resolve() == SCHEMA.resolve()
    benchmark = path.parent.name == "bench"
    folder = path.relative_to(RECIPES).parts[0]
    network, _, data = folder.partition("-")
    command = "#     nox -s bench" if benchmark else f"#     nox -s compress-{network}"
    if not benchmark and network != "resnest50":
        command = "#     nox -s compress"
    if path.name == "base.yaml" and command.endswith("compress"):
        command += f" -- recipes/{folder}"
    elif path.name == "base.yaml" and data:
        command += f" -- recipes/{folder}/*.yaml"
    elif path.name != "base.yaml" and not benchmark:
        command += f" -- {path.relative_to(RECIPES.parent).as_posix()}"
    assert command in rest


def test_the_shipped_schema_is_current() -> None:
    assert json.loads(SCHEMA.read_text()) == json_schema(KNOWN), (
        "run: python -c 'import json; from pipeline.recipe.recipe import json_schema; "
        "from pipeline.stages.known import KNOWN; "
        f"print(json.dumps(json_schema(KNOWN), indent=2))' > {SCHEMA}"
    )


@functools.cache
def editor() -> jsonschema.Draft202012Validator:
    """What an editor makes of the schema."""
    schema = json_schema(KNOWN)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", FILES, ids=named)
def test_an_editor_accepts_the_shipped_recipes(path: Path) -> None:
    editor().validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    "recipe",
    [
        {"extends": "base.yaml", "data": {"calibration_images": 8}},
        {"data": {"train": None}, "prune": None},
        {"model": {"layers": [1, 1, 1, 1], "radix": None}},
    ],
)
def test_an_editor_accepts_a_partial_recipe(recipe: dict[str, object]) -> None:
    editor().validate(recipe)


@pytest.mark.parametrize(
    "recipe",
    [
        {"trian": {}},
        {"train": {"epochs": -1}},
        {"model": {"layers": [1]}},
        {"data": {"kind": "digit"}},
        {"target": {"format": "onxx"}},
        {"name": "a..b"},
    ],
)
def test_an_editor_marks_a_bad_recipe(recipe: dict[str, object]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        editor().validate(recipe)
