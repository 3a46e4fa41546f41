"""Plain arithmetic in Swift, read as Python: there is no Swift compiler on Linux machines of ours.

What is read is what the bundle's Photo.swift is written in: static constants and functions, structs
of constants, loops, `if` on a line, and expressions of numbers and arrays. Whole numbers divide as
Swift's do, and bytes that do not fit end in an error, as there.
"""

from __future__ import annotations

import ast
import re
from collections import namedtuple
from types import SimpleNamespace
from typing import Any


def functions(source: str, enum: str) -> SimpleNamespace:
    """The functions of an `enum` of static functions.

    Raises:
        SyntaxError: it holds what is not read.
    """
    lines = [line for line in source.split("\n") if not re.match(r"\s*(//|$)", line)]
    made, names = SimpleNamespace(), _names()
    names[enum] = made
    structs = re.findall(r"struct (\w+) \{((?:\s*let \w+: [^\n]*\n)+)", source)
    for name, body in structs:
        names[name] = namedtuple(name, re.findall(r"let (\w+):", body))
    code, depth, inside = [], 0, False
    for line in (text.strip() for text in lines):
        if line.startswith("struct "):
            inside = True
        elif inside:
            inside = line != "}"
        elif line == "}":
            depth -= 1
        elif not line.startswith("enum "):
            code.append("    " * depth + _statement(line))
            depth += line.endswith("{")
    tree = ast.fix_missing_locations(_Division().visit(ast.parse("\n".join(code))))
    exec(compile(tree, enum, "exec"), names)
    vars(made).update({name: value for name, value in names.items() if name[0] != "_"})
    return made


def _statement(line: str) -> str:
    """A line of Swift as one of Python; an opening brace is a colon."""
    if found := re.fullmatch(r"static func (\w+)\((.*)\) -> .* \{", line):
        return f"def {found[1]}({', '.join(_parameter(p) for p in found[2].split(', '))}):"
    if found := re.fullmatch(r"for (\w+) in (.+)\.\.<(.+) \{", line):
        return f"for {found[1]} in range({_expression(found[2])}, {_expression(found[3])}):"
    if found := re.fullmatch(r"for (\w+) in (\w+) \{", line):
        return f"for {found[1]} in {found[2]}:"
    if found := re.fullmatch(r"if (.+) \{ return (.+) \}", line):
        return f"if {_expression(found[1])}: return {_expression(found[2])}"
    if found := re.fullmatch(r"precondition\((.+)\)", line):
        return f"assert {_expression(found[1])}"
    if found := re.fullmatch(r"(?:static )?(?:let|var) (\w+)(?:: [^=]+)? = (.+)", line):
        return f"{found[1]} = {_expression(found[2])}"
    if found := re.fullmatch(r"([\w\[\] .*()+-]+) (\+?=) (.+)", line):
        return f"{_expression(found[1])} {found[2]} {_expression(found[3])}"
    if found := re.fullmatch(r"return (.+)", line):
        return f"return {_expression(found[1])}"
    return _expression(line)


def _parameter(text: str) -> str:
    name, _, rest = text.removeprefix("_ ").partition(": ")
    _, default, value = rest.partition(" = ")
    return f"{name}={value}" if default else name


def _expression(text: str) -> str:
    text = re.sub(r"\[\w+\]\(repeating: (\w+), count: (.+)\)$", r"[\1] * (\2)", text)
    text = text.replace("&&", "and")
    text = re.sub(r"([\w.]+(?:\[[^\]]*\])?(?:\.\w+)*)\.count", r"len(\1)", text)
    text = re.sub(r"\(([^()?]+) \? ([^()]+) : ([^()]+)\)", r"(\2 if \1 else \3)", text)
    text = re.sub(r"^(.+) \? (.+) : (.+)$", r"(\2) if (\1) else (\3)", text)
    return re.sub(r"(\w+): ", r"\1=", text)


class _Division(ast.NodeTransformer):
    """Makes every `/` a call: of whole numbers it cuts off."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.op, ast.Div):
            return node
        name = ast.Name("_divided", ast.Load())
        return ast.Call(func=name, args=[node.left, node.right], keywords=[])


def _names() -> dict[str, Any]:
    return {"_divided": _divided, "Int": int, "Double": float, "UInt8": _byte}


def _divided(one: float, other: float) -> float:
    if isinstance(one, int) and isinstance(other, int):
        whole = abs(one) // abs(other)
        return whole if (one < 0) == (other < 0) else -whole
    return one / other


def _byte(value: int) -> int:
    assert 0 <= value <= 255, f"{value} is no byte"
    return value
