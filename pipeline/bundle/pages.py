"""Templates of what is not HTML: Markdown and code, where nothing is escaped by itself."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined


@cache
def environment(package: str) -> Environment:
    """The templates of a package; a name that a template does not know is an error."""
    return Environment(
        loader=PackageLoader(package),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
