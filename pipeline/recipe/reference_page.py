"""The reference of all recipe keys as Markdown, made of the recipe's types.

    python -m pipeline.commands.recipe_page > docs/recipe.md

Types, ranges and defaults come from the JSON Schema of `pipeline.recipe.Recipe`, what a key does
from the `Attributes:` of its class. A new key needs nothing here.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pipeline.recipe.known import Known
from pipeline.recipe.problems import allowed
from pipeline.recipe.recipe import schema_of

Schema = dict[str, Any]

_HEAD = """\
<!-- Made by `python -m pipeline.commands.recipe_page > docs/recipe.md`. -->

# Recipe reference

A recipe is a YAML file that describes one run for one target device. Every key that it may hold \
stands here with its type, its range and its default; any other key is refused. `pocketnest check` \
names every problem of a recipe with its line. Editors complete recipes by \
`recipes/recipe.schema.json`:

```yaml
# yaml-language-server: $schema=recipes/recipe.schema.json
extends: recipes/resnest50/android-litert-int8.yaml
budgets: {size_mb: 15}
```

## How recipes are put together

- `extends: FILE` takes everything from another recipe, whose path is relative to this file. \
Mappings merge key by key, `null` removes a key, all else replaces. \
`card` does not pass to a recipe that names other images: what it says, and the licence, is of \
those that it was said of.
- `--set a.b=c` changes a value from the command line, after all files; `c` is YAML.
- Relative paths are relative to the file that names them, those of `--set` to the working \
directory.
- Scalars follow YAML 1.2: `1e-4` is a number, `yes` is text.
- Every run keeps the whole recipe, defaults filled in, as `recipe.yaml` beside its file.

## Rules between keys

- `task.kind: multilabel` needs `data.kind: image_folder`; `data.labels` is for it alone, \
`task.threshold` for it and detection.
- `task.kind: detection` takes `data.kind: coco`, `voc` or `digit_scenes`; `task.overlap` is for \
it alone. It has `target.output: logits`, and of `augment` its trainings take `flip`, `shift` and \
`scale` alone, since boxes would not follow the rest.
- `task.kind: segmentation` takes `data.kind: mask_folder` or `digit_scenes`; `task.stride` and \
`task.loss` are for it alone. It has `target.output: logits`, and no training of it mixes images \
(`mixup`, `cutmix`), changes their size (`sizes`) or has an `augment.policy`: masks would not \
follow.
- `data.label` is for `data.kind: webdataset`, which takes `task.kind: classification` or `binary`.
- `prune` takes one of `macs`, `params`, `size_mb` and `latency`. A recipe that extends one with \
`macs` sets `macs: null` to ask for another.
- `prune.latency` needs `target.precision: int8`, `target.cpu: any` and a runtime that can be \
timed on this machine.
- `sparsify.end` is at least `sparsify.start`. With a pattern `N:M`, `sparsity` is N / M.
- The four `qat.milestones` do not decrease.
- `qat.weights.forms` of several takes one of `size_mb`, `download_mb` and `accuracy_drop_pt`; one \
alone takes none.
- `qat.train.sizes` stays empty: the quantized program is made for one size of image.
- With `shrink: crop`, no side in `sizes` is above `model.input_size`.
- `target.cpu: x86_amx` is for int8 ONNX files, `target.opset` for ONNX files.
- `target.products` is for int8 Core ML files.
- `target.classifier` is for Core ML files with `output: probabilities` of one class an image.
- The recipes of one call have different names.
"""


_FILLED_IN = {"name": "the file's name"}
"""Keys that the types ask for and reading a file fills in."""


@dataclass(kw_only=True)
class _Page:
    """What has been written, and where each type was described first."""

    schema: Schema
    lines: list[str] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)


def markdown(known: Known) -> str:
    """The whole page, with the names that a recipe may hold.

    Raises:
        ValueError: a key of a recipe has no description; names it.
    """
    schema = schema_of(known)
    page = _Page(schema=schema)
    _section(page, "Top level", "", schema, "##")
    return _HEAD + "\n" + "\n".join(page.lines) + "\n"


def _section(page: _Page, title: str, path: str, node: Schema, level: str) -> None:
    """Write a mapping's description and keys, then the mappings in it."""
    about, attributes = _parts(node.get("description", ""))
    page.lines += [f"{level} {title}", "", about, ""]
    page.lines += ["| key | value | default | what it does |", "| --- | --- | --- | --- |"]
    inner: list[tuple[str, str, Schema]] = []
    for key, value in node["properties"].items():
        dotted = f"{path}.{key}" if path else key
        types = list(_mappings(value, page.schema))
        says = attributes.get(key) or (_parts(types[0][1]["description"])[0] if types else "")
        if not says:
            raise ValueError(
                f"{dotted}: nothing says what it does; add it to the `Attributes:` of its class "
                "in pipeline/recipe.py"
            )
        default = _default(dotted, value, key in node.get("required", ()))
        shown = _links(page, dotted, types, inner)
        words = f"{shown}{_or_null(value)}" if types else allowed(value, page.schema)
        page.lines.append(_row(f"`{key}`", words, default, says))
    page.lines.append("")
    for inner_title, dotted, inner_node in inner:
        _section(page, inner_title, dotted, inner_node, "##" if "." not in dotted else "###")


def _links(
    page: _Page,
    dotted: str,
    types: list[tuple[str, Schema]],
    inner: list[tuple[str, str, Schema]],
) -> str:
    """Links to the sections of a mapping; those that are yet to be written go into `inner`."""
    links = []
    for name, node in types:
        told = _told_apart(node) if len(types) > 1 else ""
        title = f"{dotted}, {told}" if told else dotted
        if name not in page.places:
            page.places[name] = title
            inner.append((title, dotted, node))
        title = page.places[name]
        links.append(f"[{title}](#{_slug(title)})")
    return "a mapping: " + " or ".join(links)


def _told_apart(node: Schema) -> str:
    """What tells a mapping from others in its place: its kind, or what its name is."""
    kinds, names = (node["properties"].get(key, {}) for key in ("kind", "name"))
    if kind := " or ".join(kinds.get("enum", [kinds["const"]] if "const" in kinds else [])):
        return f"kind: {kind}"
    if several := names.get("enum"):
        return f"name: {several[0]} and others"
    return f"name: {names['description']}" if "description" in names else ""


def _mappings(value: Schema, schema: Schema) -> Iterator[tuple[str, Schema]]:
    """Every type that a value can be of, by name, where those are mappings with known keys."""
    for one in (value, *value.get("anyOf", []), *value.get("oneOf", [])):
        if "$ref" in one:
            name = one["$ref"].rpartition("/")[2]
            yield name, schema["$defs"][name]


def _or_null(value: Schema) -> str:
    return " or null" if {"type": "null"} in value.get("anyOf", []) else ""


def _default(dotted: str, value: Schema, required: bool) -> str:
    if dotted in _FILLED_IN:
        return _FILLED_IN[dotted]
    if required:
        return "none, it must be given"
    if "default" not in value and value.get("type") == "object":
        return "`{}`"  # schemas leave out what a function makes
    default = value.get("default")
    if isinstance(default, dict):
        return "the defaults there"
    return f"`{json.dumps(default)}`"


def _parts(docstring: str) -> tuple[str, dict[str, str]]:
    """The text of a docstring, and what its `Attributes:` say, by name; a line each."""
    text, _, rest = inspect.cleandoc(docstring).partition("Attributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in rest.splitlines():
        if begins := re.match(r" {4}(\w+): (.*)", line):
            name = begins[1]
            found[name] = begins[2]
        elif line.strip() and name:
            found[name] += f" {line.strip()}"
    paragraphs = [" ".join(one.split()) for one in text.strip().split("\n\n")]
    return "\n\n".join(paragraphs), found


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _slug(title: str) -> str:
    """The anchor that Markdown readers give a heading."""
    return re.sub(r"[^\w\s-]", "", title).strip().lower().replace(" ", "-")
