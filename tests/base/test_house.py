"""The house stays one that can be read: small files, small functions, no hidden imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST_LINES, MOST_OF_A_FUNCTION = 400, 60
IN_THE_PACKAGE_ITSELF = {"__init__.py", "__main__.py", "py.typed"}


def sources(*folders: str) -> Iterator[tuple[str, str]]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


def test_no_file_is_long() -> None:
    lines = {name: len(text.splitlines()) for name, text in sources("pipeline", "tests")}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_no_function_is_long() -> None:
    found = {
        f"{name}: {node.name}": node.end_lineno - node.lineno + 1
        for name, text in sources("pipeline")
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None
    }
    assert {name: count for name, count in found.items() if count > MOST_OF_A_FUNCTION} == {}


def test_no_module_is_found_by_a_name_put_together() -> None:
    assert [name for name, text in sources("pipeline") if 'import_module(f"' in text] == []


def test_the_package_holds_packages() -> None:
    lying = {path.name for path in (ROOT / "pipeline").iterdir() if path.is_file()}
    assert lying == IN_THE_PACKAGE_ITSELF
