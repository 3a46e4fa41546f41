"""A finished run, read back from its directory: what was exported, and from what."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor, nn

from pipeline.base.checksums import damage
from pipeline.base.errors import InputError
from pipeline.base.safe_files import content_of, json_of
from pipeline.base.store import IMAGES, STAGES_FILE, STORE, refuse_links
from pipeline.formats.format import Format
from pipeline.formats.formats import FORMATS
from pipeline.measure.lanes.lane import ModelFile
from pipeline.measure.lanes.lanes import HOST, LANES
from pipeline.measure.probabilities import logits_of
from pipeline.networks.checkpoints import WEIGHTS, load_checkpoint
from pipeline.networks.families import family_of
from pipeline.recipe.data import DataConfig
from pipeline.recipe.input_shape import InputShape
from pipeline.recipe.libraries import PythonModel
from pipeline.recipe.places import data_in, seen_from
from pipeline.recipe.recipe import Recipe, load_recipes
from pipeline.report.records import Report
from pipeline.stages.known import KNOWN
from pipeline.tasks.images.dataset import Channels, Dataset
from pipeline.tasks.images.pixels import normalize
from pipeline.tasks.images.preparation import Preparation, preparation_of
from pipeline.tasks.images.statistics import mean_and_std
from pipeline.tasks.tasks import link_of, task_of

MOST_BYTES = 64 * 2**20
"""Of a report, and of the class names."""
_WHERE = "where its images lie now, --data DIR says"


@dataclass(frozen=True, kw_only=True)
class Finished:
    """One recipe's run.

    Attributes:
        directory: of the run.
        recipe: as it was resolved then.
        file: the exported file.
        classes: class names in the order of the logits.
    """

    directory: Path
    recipe: Recipe
    file: Path
    classes: tuple[str, ...]

    @property
    def format(self) -> Format:
        """Of the file."""
        return FORMATS[self.recipe.target.format]

    @property
    def shape(self) -> InputShape:
        """Of an image."""
        return self.recipe.model.input_shape

    @property
    def preparation(self) -> Preparation:
        """How a photo becomes an image."""
        return preparation_of(self.recipe.data, self.shape)

    @property
    def mean_and_std(self) -> tuple[Channels, Channels]:
        """What images are normalised by, per channel."""
        return mean_and_std(self.recipe.data, self.shape.channels)

    def dataset(self) -> Dataset:
        """The data of the run, from where its own store has the images decoded.

        Raises:
            InputError: it is missing, cannot be read, or is other data than the run was made of.
        """
        store = self.directory.parent / STORE
        refuse_links(store)
        cache = store / IMAGES
        task = task_of(self.recipe)
        try:
            found = task.load(self.recipe.data, self.shape, cache=cache if cache.is_dir() else None)
        except InputError as error:
            raise InputError(f"{error}\n{self.directory}: {_WHERE}") from error
        wanted = self._data_sha256()
        if wanted is not None and found.sha256 != wanted:
            raise InputError(
                f"{self.directory}: its data has changed since (SHA-256 {found.sha256[:12]}, and "
                f"{wanted[:12]} in report.json); {_WHERE}, or run the recipe again"
            )
        return found

    def _data_sha256(self) -> str | None:
        """Of the data that the run was made of; None where an older report does not say it."""
        try:
            return str(json_of(self.directory / "report.json")["data"]["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def logits(self, pixels: Tensor) -> Tensor:
        """The logits of `answers`, or those that its probabilities stand for."""
        return logits_of(self.answers(pixels), link_of(self.recipe))

    def answers(self, pixels: Tensor) -> Tensor:
        """What the file answers, opened in its runtime.

        Args:
            pixels: uint8 (images, channels, height, width), which are normalised where the file
                wants that.

        Returns:
            float32 (images, classes), or maps (images, classes, h, w).

        Raises:
            InputError: the file cannot be run.
        """
        fed = self.fed(pixels)
        return LANES[HOST].answers({"file": self.model_file}, [fed], self.recipe.threads)["file"]

    def fed(self, pixels: Tensor) -> Tensor:
        """Pixels, uint8 (images, channels, height, width), as the file takes them: float32."""
        if self.recipe.target.takes_pixels:
            return pixels.float()
        return normalize(pixels, *self.mean_and_std)

    @property
    def model_file(self) -> ModelFile:
        """The file, as lanes take it."""
        return ModelFile(path=self.file, format=self.recipe.target.format)

    def stages(self) -> dict[str, Path]:
        """Directory of every stage's result in the store.

        Raises:
            InputError: the run does not say so.
        """
        try:
            return self._places()
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(
                f"{self.directory / STAGES_FILE}: does not say where its stages are; "
                "run the recipe again"
            ) from error

    def place(self, name: str) -> Path:
        """The directory of the result of the stage `name`, which may be gone.

        Raises:
            InputError: the run does not say so.
        """
        try:
            return self._places()[name]
        except (OSError, ValueError, AttributeError, KeyError) as error:
            raise InputError(
                f"{self.directory / STAGES_FILE}: does not say where stage {name} is; "
                "run the recipe again"
            ) from error

    def stage(self, name: str, file: str) -> Path:
        """A file that the stage `name` left in the store.

        Raises:
            InputError: it is gone.
        """
        path = self.place(name) / file
        if not path.exists():
            fix = "run the recipe again"
            if not self.has_store:
                fix = f"copy {STORE}/{path.parent.name} beside the run's folder, or {fix}"
            raise InputError(
                f"{os.path.normpath(path)}: missing; it is needed for this, and "
                f"{self.directory / STAGES_FILE} names it; {fix}"
            )
        return path

    @property
    def has_store(self) -> bool:
        """Whether the store lies beside the run; where its folder was moved alone, it does not."""
        return os.path.lexists(self.directory.parent / STORE)

    def report(self) -> Report:
        """What the run found out, about its one target.

        Raises:
            InputError: it is missing, of another version, or of several targets.
        """
        path = self.directory / "report.json"
        try:
            found = Report.model_validate_json(content_of(path, MOST_BYTES))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path}: not a report of this version; run the recipe again"
            ) from error
        if len(found.targets) != 1:
            raise InputError(
                f"{path}: is of {len(found.targets)} targets, and a run has one; run the recipe "
                "again"
            )
        return found

    def _places(self) -> dict[str, Path]:
        places = json_of(self.directory / STAGES_FILE)
        if any("\0" in str(place) for place in places.values()):
            raise ValueError("a path with a NUL")
        return {name: self.directory / str(place) for name, place in places.items()}


def open_runs(directory: Path, *, checked: bool = True, data: Path | None = None) -> list[Finished]:
    """Every run of a directory: one, or those that a combined report is of.

    Args:
        directory: of a run, or of a combined report.
        checked: refuse a run whose files are not those that were written.
        data: folder that the images lie in now; None where they lie as the recipe says.

    Raises:
        InputError: it is not the directory of a finished run, or a file of it has changed; or the
            images are not in `data`.
    """
    if (directory / "recipe.yaml").is_file():
        return [_open(directory, checked, data)]
    try:
        report = Report.model_validate_json(content_of(directory / "report.json", MOST_BYTES))
    except FileNotFoundError:
        raise InputError(
            f"{directory}: not the directory of a run, it has no recipe.yaml; give one such as "
            "artifacts/android-litert-int8, or artifacts/combined"
        ) from None
    except ValidationError as error:
        raise InputError(
            f"{directory / 'report.json'}: not a report of this version ({error.error_count()} "
            "problems); run the recipes again"
        ) from None
    names = [target.name for target in report.targets]
    for name in names:
        if Path(name).name != name or name == "..":
            raise InputError(
                f"{directory / 'report.json'}: names a run {name!r}, which is not the name of a "
                "folder beside it; run the recipes again"
            )
        recipe_file = directory.parent / name / "recipe.yaml"
        if not os.path.isfile(recipe_file):  # unlike Path's, also of a name that is too long
            raise InputError(
                f"{recipe_file}: missing, but {directory / 'report.json'} names this run; "
                "run the recipes again"
            )
    return [_open(directory.parent / name, checked, data) for name in names]


def open_run(directory: Path, target: str | None, data: Path | None = None) -> Finished:
    """The run of one target; `target` may be left out where there is only one.

    Raises:
        InputError: no finished run, no such target, or none named among several; or as of
            `open_runs`.
    """
    runs = open_runs(directory, data=data)
    names = [run.recipe.name for run in runs]
    if target is None and len(runs) == 1:
        return runs[0]
    if target not in names:
        given = "no target given" if target is None else f"target: got {target!r}"
        raise InputError(f"{given}; {directory} has {', '.join(names)}")
    return runs[names.index(target)]


def float_network(runs: Sequence[Finished]) -> nn.Module:
    """The float network that the files of some runs were all made from, in evaluation mode.

    Raises:
        InputError: the runs are of different networks, or the float weights are gone.
    """
    refuse_others(runs)
    weights, model = runs[0].stage("train", WEIGHTS), untrained_network(runs[0])
    load_checkpoint(model, weights, family_of(runs[0].recipe.model).checkpoint(model))
    return model


def untrained_network(run: Finished) -> nn.Module:
    """A network as a run's float network, its weights random, in evaluation mode.

    Raises:
        InputError: it cannot be built, such as where the user's own code is gone.
    """
    outputs = task_of(run.recipe).outputs(run.classes)
    model: nn.Module = family_of(run.recipe.model).build(run.recipe.model, len(outputs)).eval()
    return model


def refuse_others(runs: Sequence[Finished]) -> None:
    """Refuse runs that were not all made from one float network.

    Raises:
        InputError: names the first that was not.
    """
    first = runs[0]
    for run in runs[1:]:
        # By name, which is a hash of all that decided it: the weights need not be here.
        if run.place("train").name != first.place("train").name:
            raise InputError(
                f"{first.directory} and {run.directory} are of different networks or data; "
                "take one at a time, or run both recipes into one folder"
            )


def no_float_weights(run: Finished) -> str | None:
    """Why a run that was moved has no float weights; None where they are there."""
    place = run.place("train")
    if os.path.lexists(place):
        return None
    return f"its float weights are not here ({STORE}/{place.name}, beside the run's folder)"


def no_code(run: Finished) -> str | None:
    """Why the network of a run that was moved cannot be built; None where it can."""
    model = run.recipe.model
    if not isinstance(model, PythonModel) or Path(model.file).exists():
        return None
    where = seen_from(model.file, run.directory)
    return f"the code of its network is not here ({where}, seen from the run's folder)"


def _open(directory: Path, checked: bool, data: Path | None) -> Finished:
    recipe_file = directory / "recipe.yaml"
    if not recipe_file.is_file():
        raise InputError(f"{recipe_file}: missing; run the recipe again")
    # Before any runtime opens the model: some crash on a damaged one.
    if checked and (fault := damage(directory, more_allowed=True)) is not None:
        raise InputError(f"{directory}: {fault}; run the recipe again")
    (recipe,) = load_recipes([recipe_file], known=KNOWN)
    recipe = recipe.model_copy(update={"data": _where(recipe.data, directory, data)})
    file = directory / f"model{FORMATS[recipe.target.format].suffix}"
    if not file.exists():
        raise InputError(f"{file}: missing; run the recipe again")
    for part in (file, *file.rglob("*")):
        # A library would read a link to a device for ever.
        if not part.is_file() and not part.is_dir():
            raise InputError(f"{part}: is neither file nor folder; run the recipe again")
    try:
        labels = content_of(directory / "labels.txt", MOST_BYTES).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{directory / 'labels.txt'}: {error}; run the recipe again") from error
    return Finished(directory=directory, recipe=recipe, file=file, classes=tuple(labels))


def _where(recorded: DataConfig, directory: Path, folder: Path | None) -> DataConfig:
    """A run's data, in `folder` if it is given; the names of the classes lie in the run itself."""
    found = recorded if folder is None else data_in(recorded, folder)
    names = getattr(found, "classes", None)
    if names is None or Path(names).exists():
        return found
    return found.model_copy(update={"classes": directory / "labels.txt"})
