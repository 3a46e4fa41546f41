"""What the latest run of every recipe has made or begun, in the store: `gc` leaves it there.

A run that was to end early, or was stopped, has no folder that says what it was made from.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.base.safe_files import json_of, real, refuse_link, write_whole
from pipeline.base.store import LATEST, STAGES_FILE
from pipeline.recipe.places import seen_from
from pipeline.recipe.recipe import Recipe, resolved_yaml

_SOURCE = "source.json"


@dataclass(frozen=True, kw_only=True)
class Record:
    """Writes down what a run has made or begun. Nothing is written before that.

    Attributes:
        store: of the results.
        recipe: of the run.
        file: that the recipe was read from.
        stages: name of the result of every stage so far.
    """

    store: Path
    recipe: Recipe
    file: Path
    stages: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Of the record: one for every name and file of a recipe."""
        place = hashlib.sha256(os.path.abspath(self.file).encode()).hexdigest()[:8]
        return self.store / LATEST / f"{self.recipe.name}-{place}"

    def add(self, stage: str, result: str) -> None:
        """Write down the name of a stage's result, which may be in the making."""
        if self.stages.get(stage) == result:
            return
        if not self.stages:
            self._begin()
        self.stages[stage] = result
        places = {name: f"../../{found}" for name, found in self.stages.items()}
        write_whole(self.folder / STAGES_FILE, json.dumps(places, indent=1))

    def _begin(self) -> None:
        refuse_link(self.store / LATEST)
        refuse_link(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        source = {"recipe": seen_from(os.path.abspath(self.file), self.folder)}
        write_whole(self.folder / _SOURCE, json.dumps(source))
        write_whole(self.folder / "recipe.yaml", resolved_yaml(self.recipe, self.folder))


@dataclass(frozen=True, kw_only=True)
class Latest:
    """The latest run of a recipe, as it was written down.

    Attributes:
        folder: of the record, with the resolved recipe.
        file: that the recipe was read from.
        results: directories of results that are there, or in the making.
        time: of the last result, in seconds since 1970.
    """

    folder: Path
    file: Path
    results: tuple[Path, ...]
    time: float

    @property
    def there(self) -> bool:
        """Whether the recipe is still on the disk."""
        return os.path.isfile(self.file)


def latest_runs(store: Path, tell: Callable[[str], None]) -> Iterator[Latest]:
    """What was written down in a store; `tell` is given a line about what cannot be read."""
    for folder in sorted((store / LATEST).glob("*")):
        places = folder / STAGES_FILE
        try:
            source = str(json_of(folder / _SOURCE)["recipe"])
            results = tuple(real(folder / str(place)) for place in json_of(places).values())
            time = places.stat().st_mtime
        except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
            tell(f"{folder}: does not say what its recipe needs ({error})")
            continue
        file = Path(os.path.abspath(folder / source))
        yield Latest(folder=folder, file=file, results=results, time=time)
