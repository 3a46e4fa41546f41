"""Templates of what people get: pages, Markdown and code."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined


@cache
def templates(package: str, *, html: bool = False) -> Environment:
    """The templates of a package; a name that a template does not know is an error.

    Kept, since several are rendered in a row.

    Args:
        package: that has a folder `templates`.
        html: escape all that is put in, as a page needs it; Markdown and code say for themselves.
    """
    return Environment(
        loader=PackageLoader(package),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
