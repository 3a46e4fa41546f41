"""The reference of recipe keys is that of the types, and leaves no key out."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from pipeline.recipe import recipe, reference_page
from pipeline.recipe.recipe import Recipe, json_schema
from pipeline.stages.known import KNOWN
from tests.making import ROOT
from tests.making.cli import environment

PAGE = ROOT / "docs" / "recipe.md"
TEXT = reference_page.markdown(KNOWN)


def mappings(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping of recipes by its title, with its keys."""
    for part in (schema, *schema["$defs"].values()):
        yield part["title"], part["properties"]


def rows(text: str) -> dict[str, list[list[str]]]:
    """The cells of every row of the page, by the key in the first."""
    found: dict[str, list[list[str]]] = {}
    for line in text.splitlines():
        if match := re.match(r"\| `(\w+)` \|", line):
            cells = re.split(r"(?<!\\) ?\| ?", line)[1:-1]
            found.setdefault(match[1], []).append(cells)
    return found


def test_the_page_is_that_of_the_types() -> None:
    assert PAGE.read_text(encoding="utf-8") == TEXT, (
        "run: python -m pipeline.commands.recipe_page > docs/recipe.md"
    )


def test_the_module_prints_the_page() -> None:
    command = [sys.executable, "-m", "pipeline.commands.recipe_page"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.stdout == TEXT


def test_every_key_of_every_mapping_is_there() -> None:
    found = rows(TEXT)
    wanted = [key for _, keys in mappings(json_schema(KNOWN)) for key in keys if key != "extends"]
    for key in set(wanted):
        assert len(found[key]) == wanted.count(key), key
    assert "`extends: FILE`" in TEXT
    for cells in (row for same in found.values() for row in same):
        assert len(cells) == 4, cells
        assert all(cells), cells


def test_ranges_and_defaults_are_those_of_the_types() -> None:
    found = rows(TEXT)
    assert found["round_to"][0][:3] == ["`round_to`", "a whole number >= 1 and <= 256", "`8`"]
    assert [cells[2] for cells in found["milestones"]] == ["`[]`", "the defaults there"]
    assert found["name"][0][2] == "the file's name"
    assert found["finetune"][0][1:3] == ["a mapping: [train](#train)", "none, it must be given"]
    assert found["temperature"][0][1].endswith("<= 100")
    (forms,) = (cells for cells in found["layers"] if "`{}`" in cells)
    assert forms[1] == "a mapping of names to one of int8, int4, int4_blocks, palette16, palette64"
    assert {tuple(cells[1:3]) for cells in found["arguments"]} == {("a mapping of names", "`{}`")}
    assert found["test"][0][1] == "a mapping of names with at least one entry or null"


def test_every_link_leads_to_a_heading() -> None:
    titles = re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    slugs = {re.sub(r"[^\w\s-]", "", title).strip().lower().replace(" ", "-") for title in titles}
    links = re.findall(r"\(#([^)]*)\)", TEXT)
    assert len(links) > 15
    assert set(links) <= slugs


def test_a_new_part_needs_nothing_and_a_key_that_says_nothing_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Card(BaseModel):
        """What people are to know of the model.

        Attributes:
            author: who made it,
                or several.
        """

        author: str = "nobody | all"

    class Silent(BaseModel):
        """Says nothing of its key."""

        licence: str = ""

    def with_part(kind: type[BaseModel]) -> type[BaseModel]:
        class More(Recipe):
            card: kind = kind()  # type: ignore[valid-type]

        More.__doc__ = Recipe.__doc__
        return More

    monkeypatch.setattr(recipe, "Recipe", with_part(Card))
    text = reference_page.markdown(KNOWN)
    assert "## card\n\nWhat people are to know of the model.\n" in text
    assert '| `author` | text | `"nobody \\| all"` | who made it, or several. |' in text
    monkeypatch.setattr(recipe, "Recipe", with_part(Silent))
    with pytest.raises(ValueError, match=r"^card\.licence: nothing says"):
        reference_page.markdown(KNOWN)
