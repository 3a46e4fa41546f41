"""The model card of a bundle: figures of the report, words of the recipe, all of it as text."""

from __future__ import annotations

from typing import Any

import pytest
import tree_sitter_cpp
import tree_sitter_kotlin
import tree_sitter_swift
from tree_sitter import Language, Parser

from pipeline.commands.bundle.card import model_card
from pipeline.recipe.target import CardConfig
from tests.making import reports
from tests.making.markup import MARKDOWN, ODD_NAMES

pytestmark = pytest.mark.slow

GRAMMARS = {
    ".kt": Parser(Language(tree_sitter_kotlin.language())),
    ".kts": Parser(Language(tree_sitter_kotlin.language())),
    ".swift": Parser(Language(tree_sitter_swift.language())),
    ".hpp": Parser(Language(tree_sitter_cpp.language())),
    ".cpp": Parser(Language(tree_sitter_cpp.language())),
}


def one(classes: list[str]) -> Any:
    """A report of one target."""
    return reports.full(1, classes)


def cells(markdown: str) -> list[str]:
    tokens = MARKDOWN.parse(markdown)
    return [token.content for token in tokens if token.type == "inline"]


def shown(markdown: str) -> str:
    """The text that a reader of the rendered card sees."""
    found = []
    for token in MARKDOWN.parse(markdown):
        found += [child.content for child in token.children or []]
    return "\n".join(found)


def test_a_card_shows_hostile_words_as_text() -> None:
    classes = [*ODD_NAMES, *reports.DIGITS[len(ODD_NAMES) :]]
    card = CardConfig(
        intended_use="# <b>Birds</b> | cats", limits="| none |", licence="MIT", author="Ü <x@y.z>"
    )
    text = shown(model_card(one(classes), card))
    for name in classes:
        line = " ".join(name.split())
        assert "".join(char if char.isprintable() else "\ufffd" for char in line) in text
    for said in ("# <b>Birds</b> | cats", "| none |", "MIT", "Ü <x@y.z>"):
        assert said in text
    tokens = MARKDOWN.parse(model_card(one(classes), card))
    assert not any(token.type.startswith("html") for token in tokens)
    assert sum(token.type == "heading_open" for token in tokens) == 10


def test_what_nobody_stated_is_said_to_be_missing() -> None:
    text = model_card(one(list(reports.DIGITS)), CardConfig())
    for key in ("intended_use", "limits", "licence", "author"):
        assert f"Not stated. The recipe's `card.{key}` says it." in text


def test_figures_of_a_card_come_from_the_report() -> None:
    report = one(list(reports.DIGITS))
    text = model_card(report, CardConfig())
    (target,) = report.targets
    assert f"{target.accuracy['test'].top1:.2%}".replace("%", " %") in text
    changed = target.model_copy(update={"size_bytes": 1_230_000_000})
    other = model_card(report.model_copy(update={"targets": (changed,)}), CardConfig())
    assert "1230 MB" in other
    assert "1230 MB" not in text


def test_a_card_of_a_thousand_classes_has_the_worst_twenty() -> None:
    report = one([f"class {n}" for n in range(1000)])
    text = model_card(report, CardConfig())
    assert "The 20 classes that this file knows least, of 1000." in text
    assert sum(cell.startswith("class ") for cell in cells(text)) == 20


def test_a_card_without_figures_says_why() -> None:
    report = reports.report(reports.target("x", top1=None))
    text = model_card(report, CardConfig())
    assert "Not measured: " in text
    assert "| test | 450 | 98.00 % | not measured |" in text


def test_a_card_says_which_budget_is_missed() -> None:
    report = reports.report(reports.target("x", size_bytes=9_000_000))
    assert "- Missed: size 9 MB, allowed at most 7 MB." in model_card(report, CardConfig())
