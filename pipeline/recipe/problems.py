"""Words for what pydantic refused: file and line, dotted key, value, what is allowed, the fix.

What is allowed is read from the JSON Schema of the recipe, so that it is written in one place,
the types of pipeline.recipe.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from pipeline.recipe.loading import SCALARS
from pipeline.recipe.tree import Plain, Value, find, plain, show_key, show_plain

Schema = dict[str, Any]


def explain(error: ValidationError, tree: Value, schema: Schema) -> Iterator[str]:
    """Yield one line per problem.

    Args:
        error: what validation of `tree` raised.
        tree: the merged recipe, paths as written.
        schema: the JSON Schema of the model that was validated.
    """
    for detail in error.errors(include_url=False):
        kind, loc = detail["type"], detail["loc"]
        if kind == "missing" and isinstance(loc[-1], int):
            kind, loc = "too_short", loc[:-1]  # the place in the list is missing, not a key
        keys, node, parent = _locate(loc, schema)
        if kind.startswith("union_tag"):
            keys = [*keys, node["discriminator"]["propertyName"]]
            node = {"enum": list(node["discriminator"]["mapping"])}
            kind = "missing" if kind == "union_tag_not_found" else "enum"
        value, found = find(tree, keys)
        got = plain(value) if found else detail["input"]
        if kind == "missing":
            why = "removed by null, but needed" if found and value.removed else "missing"
            words = f"{why}; add it: {allowed(node, schema)}"
        elif kind == "extra_forbidden":
            names = list(parent["properties"])
            near = _near(str(keys[-1]), names)
            words = f"unknown key {keys[-1]!r}; {near}allowed: {', '.join(names)}"
        elif kind == "value_error":
            words = f"got {show_plain(got)}; {detail['ctx']['error']}"
        elif loc[-1] == "[key]":
            words = f"the key {keys[-1]!r} must be {allowed(node, schema)}"
        else:
            words = f"got {show_plain(got)}; must be {allowed(node, schema)}"
            words += _hint(got, node)
        default = "" if found or kind in ("missing", "extra_forbidden") else " (here the default)"
        yield f"{value.place.text}: {'.'.join(map(show_key, keys))}: {words}{default}"


def _locate(loc: Sequence[str | int], schema: Schema) -> tuple[list[str | int], Schema, Schema]:
    """Return the keys in the file, the schema there, and the schema of the mapping around it.

    pydantic puts the chosen member of a union into `loc` (`data`, `digits`, `path`) and ends
    it in `[key]` where a key itself is refused; neither stands in the file.
    """
    keys: list[str | int] = []
    node, parent = schema, schema
    for part in loc:
        if "discriminator" in node:
            node = _concrete({"$ref": node["discriminator"]["mapping"][part]}, schema)
        elif part == "[key]":
            node = {"type": "string", "pattern": "", "description": parent["description"]}
        else:
            keys.append(part)
            parent = node
            node = _concrete(_child(node, part), schema)
    return keys, node, parent


def _child(node: Schema, part: str | int) -> Schema:
    if isinstance(part, int):
        items: list[Schema] = node.get("prefixItems", [])
        return items[part] if part < len(items) else node.get("items", {})
    if part in node.get("properties", {}):
        return dict(node["properties"][part])
    others = node.get("additionalProperties")
    named = [
        *node.get("patternProperties", {}).values(),
        others if isinstance(others, dict) else {},
    ]
    return dict(named[0])


def _concrete(node: Schema, schema: Schema) -> Schema:
    """Follow references, and look through `or null`; remembers the null as `nullable`."""
    while True:
        if "$ref" in node:
            name = node["$ref"].rpartition("/")[2]
            node = node | schema["$defs"][name]
            del node["$ref"]
        elif "anyOf" in node:
            rest = {key: value for key, value in node.items() if key != "anyOf"}
            (member,) = (item for item in node["anyOf"] if item.get("type") != "null")
            node = rest | member | {"nullable": True}
        else:
            return node


def allowed(node: Schema, schema: Schema) -> str:
    """Say in words what a schema allows: `a whole number >= 0`.

    Args:
        node: a part of it.
        schema: the whole, for its references.
    """
    node = _concrete(node, schema)
    null = " or null" if node.get("nullable") else ""
    if "enum" in node or "const" in node:
        choices = node.get("enum", [node.get("const")])
        return ("one of " if len(choices) > 1 else "") + ", ".join(map(str, choices)) + null
    if "discriminator" in node:
        kinds = ", ".join(node["discriminator"]["mapping"])
        return f"a mapping with {node['discriminator']['propertyName']}: one of {kinds}"
    match node.get("type"):
        case "object" if "properties" in node:
            return f"a mapping with the keys {', '.join(node['properties'])}{null}"
        case "object":
            return _names(node, schema) + null
        case "array":
            items: list[Schema] = node.get("prefixItems", [])
            each = items[0] if items else node["items"]
            length = f" of {len(items)}" if items else ""
            return f"a list{length}, each {allowed(each, schema)}{null}"
        case "boolean":
            return f"true or false{null}"
        case "integer" | "number":
            return _number(node) + null
        case _ if node.get("format") == "path":
            return "a path"
        case _:
            described = "pattern" in node or isinstance(node.get("type"), list)
            about = node.get("description") if described else None
            return (about or _text(node)) + null


def _names(node: Schema, schema: Schema) -> str:
    """A mapping whose keys are not known beforehand; its values, where these are a choice."""
    values = node.get("additionalProperties")
    chosen = isinstance(values, dict) and "enum" in _concrete(values, schema)
    to = f" to {allowed(values, schema)}" if isinstance(values, dict) and chosen else ""
    least = " with at least one entry" if node.get("minProperties") else ""
    return f"a mapping of names{to}{least}"


def _text(node: Schema) -> str:
    text = "text, not empty" if node.get("minLength") else "text"
    return text + (f", at most {node['maxLength']} characters" if "maxLength" in node else "")


def _number(node: Schema) -> str:
    text = "a whole number" if node["type"] == "integer" else "a number"
    signs = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    bounds = [f"{sign} {node[key]}" for key, sign in signs.items() if key in node]
    text += " " + " and ".join(bounds) if bounds else ""
    return text + (f", a multiple of {node['multipleOf']}" if "multipleOf" in node else "")


def _near(word: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {close[0]!r}? " if close else ""


def _hint(got: Plain, node: Schema) -> str:
    """Return the fix where the value is of the wrong type or a slip of the keyboard."""
    if isinstance(got, str) and "enum" in node:
        near = _near(got, [str(name) for name in node["enum"]])
        return f"; {near.strip()}" if near else ""
    if isinstance(got, str) and node.get("type") in ("integer", "number", "boolean"):
        unquoted = any(SCALARS[kind].match(got) for kind in ("bool", "int", "float"))
        return "; remove the quotes" if unquoted else ""
    if isinstance(got, bool | int | float) and node.get("type") == "string":
        return "; put it in quotes"
    return ""
