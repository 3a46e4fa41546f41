"""YAML, `extends` and `--set` in; a tree that knows file and line of every value out.

Knows nothing of what a recipe holds: pipeline.recipe checks the tree against its types.
Scalars follow YAML 1.2 (as editors do), so that `1e-4` is a number and `yes`, `1:30` and
dates are text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

import yaml

from pipeline.recipe.layers import lay
from pipeline.recipe.tree import Location, Plain, Scalar, Value, show

MAX_BYTES = 1 << 20
MAX_VALUES = 10_000
MAX_DEPTH = 20


class _Problem(Exception):
    """One line for the user: reading this file cannot go on."""


class _Loader(yaml.SafeLoader):
    """The safe loader with YAML 1.2 scalars and limits on nesting and on the number of values."""

    depth = 0
    nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node | None:
        self.depth += 1
        self.nodes += 1
        if self.depth > MAX_DEPTH or self.nodes > 2 * MAX_VALUES:
            problem = f"must have at most {MAX_DEPTH} levels and {MAX_VALUES} values; use fewer"
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]  # stub has none
            raise yaml.MarkedYAMLError(None, None, problem, mark)
        node = super().compose_node(parent, index)  # type: ignore[arg-type]  # stub lacks None
        self.depth -= 1
        return node


_TAG = "tag:yaml.org,2002:"
SCALARS = {
    "null": re.compile(r"^(?:~|null|Null|NULL|)$"),
    "bool": re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"),
    "int": re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"),
    "float": re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
}
"""The plain scalars of YAML 1.2's core schema (chapter 10.3.2) that are not text."""


class _Dumper(yaml.SafeDumper):
    """The safe dumper, which quotes text that YAML 1.1 or 1.2 would read as something else."""


_Loader.yaml_implicit_resolvers = {}
for _name, _pattern in SCALARS.items():
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, None)
    _Dumper.add_implicit_resolver(_TAG + _name, _pattern, None)


def write_yaml(data: Plain) -> str:
    """Return data as YAML that reads back the same, keys in the given order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False)


def read_tree(path: Path, problems: list[str]) -> Value | None:
    """Read a recipe file and the files it extends into one tree; its files win over their bases.

    Args:
        path: the recipe.
        problems: what is wrong is appended here, one line each.

    Returns:
        The tree, its root a mapping without `extends`; None where a file could not be read.
    """
    layers: list[Value] = []
    seen: dict[str, str] = {}
    asker = asked_by = ""
    while True:
        try:
            text = _read(path, asked_by)
            real = os.path.realpath(path)
            if real in seen:
                chain = " -> ".join([*seen.values(), str(path)])
                raise _Problem(f"{asked_by}goes round in a circle: {chain}; remove one 'extends'")
            seen[real] = str(path)
            root = _parse(path, text, problems)
            if not isinstance(root.content, dict):
                raise _Problem(f"{path}:1: got {show(root)}; must be a mapping (key: value lines)")
            base = root.content.pop("extends", None)
            layers.append(root)
            if base is None:
                break
            asker = base.place.text
            asked_by = f"{asker}: extends: "
            path = _base_path(base, asked_by)
        except _Problem as problem:
            # What is wrong in a base is of use only to one who knows which recipe asked for it.
            known = not asked_by or str(problem).startswith(asked_by)
            problems.append(str(problem) if known else f"{problem} ({asker} extends it)")
            return None
    tree = layers.pop()
    while layers:
        tree = lay(tree, layers.pop())
    return tree


def _base_path(base: Value, asked_by: str) -> Path:
    if not isinstance(base.content, str) or not base.content:
        raise _Problem(f"{asked_by}got {show(base)}; must be one file, such as base.yaml")
    return Path(os.path.normpath(base.place.folder / base.content))


def _read(path: Path, asked_by: str) -> str:
    where = f"{asked_by}{path}" if asked_by else f"{path}:1"
    try:
        if path.is_dir():
            raise _Problem(f"{where}: is a folder; name the YAML file itself")
        if not path.is_file():
            raise _Problem(f"{where}: no such file; check the name")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _Problem(f"{where}: cannot be read: {error}") from error
    if len(data) > MAX_BYTES:
        raise _Problem(f"{where}: larger than 1 MiB; a recipe must be smaller")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise _Problem(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from error


def _parse(path: Path, text: str, problems: list[str]) -> Value:
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        words = " ".join(filter(None, [error.context, error.problem]))
        raise _Problem(f"{path}:{line}: not valid YAML: {words}") from error
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        message = f"{path}:{line}: holds the control character {error.character!r}; remove it"
        raise _Problem(message) from error
    except (ValueError, OverflowError) as error:  # chr() of "\\Uffffffff", inside PyYAML
        raise _Problem(f"{path}:1: not valid YAML: {error}") from error
    if node is None:
        raise _Problem(f"{path}:1: the file is empty; must hold a recipe")
    return _Tree(str(path), path.parent, problems).value(node)


class _Tree:
    """Turns the nodes of one text into values, and counts them against alias bombs."""

    def __init__(self, label: str, folder: Path, problems: list[str], in_file: bool = True) -> None:
        self.label, self.folder, self.problems, self.in_file = label, folder, problems, in_file
        self.count = 0
        self.depth = 0

    def value(self, node: yaml.Node, key: yaml.Node | None = None) -> Value:
        place = self.place(node if isinstance(node, yaml.ScalarNode) or key is None else key)
        self.count += 1
        if self.count > MAX_VALUES or self.depth > MAX_DEPTH:  # an alias can stand in itself
            limit = f"{MAX_DEPTH} levels and {MAX_VALUES} values"
            raise _Problem(f"{place.text}: aliases (*name) make more than {limit}; use fewer")
        if isinstance(node, yaml.ScalarNode):
            return Value(place, self.scalar(node, place))
        if node.tag not in (_TAG + "map", _TAG + "seq"):
            raise _Problem(f"{place.text}: the tag {node.tag!r} is not allowed; remove it")
        self.depth += 1
        content: dict[str, Value] | list[Value]
        if isinstance(node, yaml.MappingNode):
            content = self.mapping(node)
        else:
            content = [self.value(item) for item in node.value]
        self.depth -= 1
        return Value(place, content)

    def place(self, node: yaml.Node) -> Location:
        text = f"{self.label}:{node.start_mark.line + 1}" if self.in_file else self.label
        return Location(text, self.folder, self.in_file)

    def mapping(self, node: yaml.MappingNode) -> dict[str, Value]:
        items: dict[str, Value] = {}
        for key_node, value_node in node.value:
            place = self.place(key_node)
            key = self.scalar(key_node, place) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                shown = getattr(key_node, "value", "") if key_node.id == "scalar" else "a list"
                self.problems.append(f"{place.text}: key {shown!r}: must be text; put it in quotes")
            elif key == "<<" and not key_node.style:
                self.problems.append(f"{place.text}: '<<' is not supported; use 'extends' or *name")
            elif key in items:
                first = items[key].place.text
                self.problems.append(
                    f"{place.text}: duplicate key {key!r} (also at {first}); remove one"
                )
            else:
                items[key] = self.value(value_node, key_node)
        return items

    def scalar(self, node: yaml.ScalarNode, place: Location) -> Scalar:
        text: str = node.value
        kind = node.tag.removeprefix(_TAG)
        if kind == "str":
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                raise _Problem(f"{place.text}: got {text!r}; half a character; remove it")
            return text
        if kind not in SCALARS:
            raise _Problem(f"{place.text}: the tag {node.tag!r} is not allowed; remove it")
        if not SCALARS[kind].match(text):
            raise _Problem(f"{place.text}: got {text[:60]!r}, which is no {kind}")
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind == "float":
            return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
        if len(text) > 100:
            raise _Problem(f"{place.text}: got a number of {len(text)} digits; use fewer")
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def read_overrides(settings: Iterable[str], problems: list[str]) -> list[Value]:
    """Turn `a.b=c` texts of `--set` into trees to merge, in order; the value is YAML.

    A relative path given this way is relative to the working directory.
    """
    trees: list[Value] = []
    for setting in settings:
        label = f"--set {setting if setting.isprintable() else repr(setting)}"
        dotted, equals, text = setting.partition("=")
        keys = [key.strip() for key in dotted.split(".")]
        if not equals or not all(keys):
            problems.append(f"{label}: must be key=value, such as train.epochs=3")
            continue
        if keys[0] == "extends":
            problems.append(f"{label}: 'extends' cannot be set here; write it in the file")
            continue
        place = Location(label, Path.cwd(), in_file=False)
        try:
            node = yaml.compose(text, Loader=_Loader)
            value = Value(place, None)
            if node is not None:
                value = _Tree(label, place.folder, problems, in_file=False).value(node)
        except _Problem as problem:
            problems.append(str(problem))
            continue
        except (yaml.YAMLError, ValueError, OverflowError) as error:
            words = getattr(error, "problem", None) or "put the value in quotes"
            problems.append(f"{label}: the value is not valid YAML: {words}")
            continue
        for key in reversed(keys):
            value = Value(place, {key: value})
        trees.append(value)
    return trees
