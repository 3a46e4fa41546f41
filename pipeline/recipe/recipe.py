"""The recipe: what one run does for one target device, and every limit on it.

    recipes = load_recipes([Path("recipes/resnest50/linux-arm-onnxruntime-int8.yaml")])

The types here are the only place that says what a recipe may hold: the error texts, the JSON
Schema for editors and the defaults all come from them. Reading YAML, `extends` and `--set` is
in pipeline.recipe.loading, the wording of errors in pipeline.recipe.problems. Other modules
need only this one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from pipeline.base.errors import InputError
from pipeline.base.record import MeasuredRecord, Sha256, Text
from pipeline.recipe.compression import PruneConfig, QatConfig, SparsifyConfig
from pipeline.recipe.data import DataConfig, ImageFolderData, PhotoData
from pipeline.recipe.known import Known, with_names
from pipeline.recipe.layers import lay
from pipeline.recipe.loading import read_overrides, read_tree, write_yaml
from pipeline.recipe.models import AnyModel, kind_of, kinds, known_names, with_models
from pipeline.recipe.places import PATHS, named_from
from pipeline.recipe.problems import explain
from pipeline.recipe.target import (
    BudgetsConfig,
    CardConfig,
    GuardConfig,
    MeasureConfig,
    TargetConfig,
    VerifyConfig,
)
from pipeline.recipe.task import TaskConfig
from pipeline.recipe.training import SaveConfig, TrainConfig
from pipeline.recipe.tree import Location, Value, absolute_files, absolute_paths, find, plain
from pipeline.recipe.values import FileName, Part, Threads


def _trainings(part: Part) -> list[TrainConfig]:
    """The training of a part of a recipe, if it has one."""
    found = (part, getattr(part, "finetune", None), getattr(part, "train", None))
    return [one for one in found if isinstance(one, TrainConfig)]


def recipe_info(recipe: Recipe, folder: Path | None = None) -> RecipeInfo:
    """Name of a recipe and the hash of what it says in full, as `resolved_yaml` writes it."""
    text = resolved_yaml(recipe, folder).encode()
    return RecipeInfo(name=recipe.name, sha256=hashlib.sha256(text).hexdigest())


_RELATIVE = "# Relative paths are relative to the folder that this file lies in.\n"


class Recipe(Part):
    """One run for one target device.

    Attributes:
        name: names the folder of the run; without it, the file's name.
        description: in words, for people.
        seed: of all random numbers.
        threads: CPU threads of training and calibration; part of bit-for-bit repeatability.
        model: the network.
        task: what it learns.
        data: its images.
        train: training of the float network; skipped where `model.checkpoint` is used as it is.
        prune: removal of channels; null does not prune.
        sparsify: zeroing of single weights; null leaves every weight.
        qat: quantization-aware training.
        target: the device and its file.
        verify: on how many images the file is verified, and where beside this machine.
        budgets: limits that the file must keep, else the exit code is 3.
        measure: timing.
        save: states of a training, to go on from.
        guard: where a run stops because a stage went wrong.
        card: what the file and the bundle's model card say beside what was measured.
    """

    name: FileName
    description: str = ""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    threads: Threads = 2
    model: AnyModel
    task: TaskConfig = TaskConfig()
    data: DataConfig
    train: TrainConfig
    prune: PruneConfig | None = None
    sparsify: SparsifyConfig | None = None
    qat: QatConfig
    target: TargetConfig
    verify: VerifyConfig = VerifyConfig()
    budgets: BudgetsConfig = BudgetsConfig()
    measure: MeasureConfig = MeasureConfig()
    save: SaveConfig = SaveConfig()
    guard: GuardConfig = GuardConfig()
    card: CardConfig = CardConfig()

    @field_validator("data")
    @classmethod
    def _says_what_images_are(cls, data: DataConfig, info: ValidationInfo) -> DataConfig:
        """Some tasks take it from folders, others from a table."""
        if "task" not in info.data or not isinstance(info.context, Known):
            return data
        kind, tasks = info.data["task"].kind, info.context.tasks
        own = tasks[kind].data
        taking = [name for name, one in tasks.items() if data.kind in one.data]
        if own and data.kind not in own:
            raise ValueError(f"task.kind {kind} takes data.kind {' or '.join(own)}")
        if taking and not own:
            raise ValueError(
                f"data.kind {data.kind} is for task.kind {' or '.join(taking)}, not {kind}"
            )
        table = isinstance(data, ImageFolderData) and data.labels is not None
        if tasks[kind].table and not isinstance(data, ImageFolderData):
            raise ValueError(
                f"task.kind {kind} takes the labels of images from a table; data.kind must be "
                f"image_folder, not {data.kind}"
            )
        if table and not tasks[kind].table:
            having = " or ".join(name for name, task in tasks.items() if task.table)
            raise ValueError(
                f"labels: task.kind {kind} takes what an image is from its folder; remove it, or "
                f"set task.kind to {having}"
            )
        return data

    @field_validator("prune", "sparsify", "qat")
    @classmethod
    def _only_the_float_network(cls, part: Part | None) -> Part | None:
        """Later trainings are of other forms of the network, which drop and average nothing."""
        train = getattr(part, "finetune", None) or getattr(part, "train", None)
        for name, off in (("dropblock", 0.0), ("dropout", 0.0), ("ema", None)):
            if train is not None and getattr(train, name) != off:
                where = "finetune" if isinstance(part, PruneConfig) else "train"
                raise ValueError(
                    f"{where}.{name}: got {getattr(train, name):g}; only `train` can have it"
                )
        return part

    @field_validator("train", "prune", "sparsify", "qat")
    @classmethod
    def _has_images(cls, part: Part | None, info: ValidationInfo) -> Part | None:
        """Without training images nothing can be trained; `qat` may set ranges alone."""
        data, model = info.data.get("data"), info.data.get("model")
        if part is None or not isinstance(data, PhotoData) or data.trains:
            return part
        if isinstance(part, TrainConfig) and model is not None:
            trains = model.checkpoint is None or model.head == "replace"
        else:
            trains = not isinstance(part, QatConfig) or part.train.epochs > 0
        if trains:
            raise ValueError(
                "needs training images, and data.train is left out; give it, or leave this to a "
                "network that is trained: model.checkpoint with head: keep, no prune, no sparsify, "
                "qat.train.epochs: 0"
            )
        return part

    @field_validator("train", "prune", "sparsify", "qat")
    @classmethod
    def _targets_follow(cls, part: Part | None, info: ValidationInfo) -> Part | None:
        """Where targets lie in the image, they must follow all that is done to it."""
        task = info.data.get("task")
        if part is None or task is None or not isinstance(info.context, Known):
            return part
        if task.kind not in info.context.tasks or info.context.tasks[task.kind].mixes:
            return part
        for config in _trainings(part):
            given = {
                "mixup": config.mixup,
                "cutmix": config.cutmix,
                "sizes": config.sizes,
                "augment.policy": config.augment.policy,
            }
            if not info.context.tasks[task.kind].turns:
                given["augment.crop"] = config.augment.crop
                given["augment.rotate_deg"] = config.augment.rotate_deg
            for key, value in given.items():
                if value:
                    raise ValueError(
                        f"{key}: got {value}; what task.kind {task.kind} learns lies in the image "
                        "and would not follow; remove it"
                    )
        return part

    @field_validator("verify")
    @classmethod
    def _runs_there(cls, part: VerifyConfig, info: ValidationInfo) -> VerifyConfig:
        target = info.data.get("target")
        if not part.arm64 or target is None or not isinstance(info.context, Known):
            return part
        formats = info.context.formats
        having = [one.title for one in formats.values() if one.elsewhere is not None]
        if target.format in formats and formats[target.format].elsewhere is None:
            raise ValueError(
                f"arm64: must be false: only {' and '.join(having)} have a runtime for ARM64 Linux"
            )
        return part

    @field_validator("target")
    @classmethod
    def _classifies(cls, target: TargetConfig, info: ValidationInfo) -> TargetConfig:
        task = info.data.get("task")
        if task is None or not isinstance(info.context, Known):
            return target
        tasks = info.context.tasks
        only_logits = task.kind in tasks and not tasks[task.kind].probabilities
        if only_logits and target.output != "logits":
            raise ValueError(f"output: must be logits: task.kind {task.kind} gives no others")
        if not target.classifier:
            return target
        if task.kind in tasks and tasks[task.kind].link != "softmax":
            having = " or ".join(name for name, one in tasks.items() if one.link == "softmax")
            raise ValueError(
                f"classifier: must be false: it names one of several classes by their "
                f"probabilities, which task.kind {task.kind} has not, but {having}"
            )
        return target

    @field_validator("train", "prune", "sparsify")
    @classmethod
    def _crops_fit(cls, part: Part | None, info: ValidationInfo) -> Part | None:
        train = part.finetune if isinstance(part, PruneConfig) else part
        train = train.train if isinstance(train, SparsifyConfig) else train
        if not isinstance(train, TrainConfig) or "model" not in info.data:
            return part
        side = info.data["model"].input_shape.shorter
        too_large = [size for size in train.sizes if size > side]
        if too_large and train.shrink == "crop":
            raise ValueError(
                f"sizes: got {max(too_large)}; a part cut out of an image is at most "
                f"model.input_size, which is {side}"
            )
        return part


def load_recipes(
    paths: Sequence[Path], overrides: Sequence[str] = (), known: Known | None = None
) -> list[Recipe]:
    """Read and check recipes, in the order of `paths`.

    Args:
        paths: YAML files. A file may say `extends: base.yaml` (relative to itself): mappings
            merge, null removes, all else replaces. Relative paths in a recipe are relative to
            the file that names them and come back absolute.
        overrides: `a.b=c` texts laid over every recipe, c in YAML; relative paths here are
            relative to the working directory.
        known: the names that a recipe may hold of what lies above this package. Without, a
            format or task of any name passes here, and is missed where it is looked up.

    Returns:
        One recipe per path.

    Raises:
        InputError: with one line for every problem of every file and override.
    """
    problems: list[str] = []
    if not paths:
        problems.append("no recipe given; name at least one YAML file")
    settings = read_overrides(overrides, problems)
    recipes: list[Recipe] = []
    names: dict[object, Path] = {}
    for path in map(Path, paths):
        tree = read_tree(path, problems)
        if tree is None:
            continue
        for setting in settings:
            tree = lay(tree, setting)
        tree = _named(tree, path, names, problems)
        try:
            content = plain(absolute_files(absolute_paths(tree, PATHS)))
            recipes.append(Recipe.model_validate(content, context=known))
        except ValidationError as error:
            problems += explain(error, tree, _schema_for(tree, known))
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))
    return recipes


def _named(tree: Value, path: Path, names: dict[object, Path], problems: list[str]) -> Value:
    """Give a recipe without a name that of its file; no two of one call may share a name."""
    assert isinstance(tree.content, dict)
    name = tree.content.get("name")
    if name is None or name.removed:
        name = Value(Location(f"{path}:1", path.parent), path.stem)
    if isinstance(name.content, str) and name.content in names:
        problems.append(
            f"{name.place.text}: name: got {name.content!r}, the name of {names[name.content]} "
            "too; give every recipe of a run its own"
        )
    elif isinstance(name.content, str):
        names[name.content] = path
    return replace(tree, content=tree.content | {"name": name})


def schema_of(known: Known | None) -> dict[str, Any]:
    """The JSON Schema of a whole recipe, with the names and the families that are known."""
    return with_models(with_names(Recipe.model_json_schema(), known), kinds(known))


def _schema(known: Known | None) -> dict[str, Any]:
    schema = schema_of(known)
    extends = {"type": "string", "description": "The recipe that this one changes."}
    schema["properties"] = {"extends": extends} | schema["properties"]
    return schema


def _schema_for(tree: Value, known: Known | None) -> dict[str, Any]:
    """The schema with the keys of the family that a recipe names, and the names of all."""
    schema = _schema(known)
    kind = kind_of(plain(find(tree, ["model", "name"])[0]), kinds(known))
    model = kind.model_json_schema()
    schema["$defs"] |= model.pop("$defs", {})
    model["properties"]["name"] = {"type": "string", "enum": list(known_names(kinds(known)))}
    schema["properties"]["model"] = model
    return schema


def json_schema(known: Known | None = None) -> dict[str, Any]:
    """Return the JSON Schema of a recipe file, for editors, with the names that are `known`.

    A key may be absent, since the extended file may hold it, and a value may be null, which
    removes it; only a null that drops a key of another kind of data is marked, though it loads.
    """
    schema = _schema(known)
    for part in (schema, *schema["$defs"].values()):
        part.pop("required", None)
        for key, value in part["properties"].items():
            part["properties"][key] = {"anyOf": [value, {"type": "null"}]}
    data = schema["properties"]["data"]["anyOf"][0]
    del data["discriminator"]
    # Without `kind`, which may be in the extended file, several kinds of data can fit.
    data["anyOf"] = data.pop("oneOf")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


def resolved_yaml(recipe: Recipe, folder: Path | None = None) -> str:
    """Return the whole recipe, defaults filled in, as YAML that loads again.

    Args:
        recipe: from `load_recipes`.
        folder: that the YAML is for: paths are relative to it, so that a run can be moved together
            with what it was made of. Without it they are absolute.
    """
    content = recipe.model_dump(mode="json")
    if folder is None:
        return write_yaml(content)
    return _RELATIVE + write_yaml(named_from(content, folder))


class RecipeInfo(MeasuredRecord):
    """The recipe; for a report of several, `combined` and the hash of their hashes."""

    name: Text
    sha256: Sha256
