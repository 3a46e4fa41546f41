"""What is written, read as those who get it read it: tables of Markdown, text of a page."""

from __future__ import annotations

from collections import Counter
from html.parser import HTMLParser

from markdown_it import MarkdownIt

MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])
ODD_NAMES = (
    "<b>bold</b><script>alert(1)</script>",
    "\"quoted\" & 'single'",
    "emoji \N{GRINNING FACE}\N{VARIATION SELECTOR-16}",
    "x" * 300,
    "$x^2$ \\alpha",
    "\N{RIGHT-TO-LEFT OVERRIDE}reversed",
)
"""Names from outside that could break a page."""


def rows(markdown: str, table: int = 0) -> dict[str, dict[str, str]]:
    """Cells of a table of the rendered Markdown by the text of their row and column."""
    tokens = MARKDOWN.parse(markdown)
    starts = [index for index, token in enumerate(tokens) if token.type == "table_open"]
    lines: list[list[str]] = []
    for token in tokens[starts[table] :]:
        if token.type == "table_close":
            break
        if token.type == "tr_open":
            lines.append([])
        elif token.type == "inline":
            assert token.children is not None
            lines[-1].append("".join(child.content for child in token.children))
    header, *body = lines
    assert all(len(line) == len(header) for line in body)
    return {line[0]: dict(zip(header, line, strict=True)) for line in body}


class Page(HTMLParser):
    """The text of a page as it is shown, its ids, links and elements."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.elements: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(content)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" not in self.open and "svg" not in self.open:
            self.words.append(data)

    def all_of(self, name: str) -> list[str]:
        return [value for _, key, value in self.attributes if key == name]
