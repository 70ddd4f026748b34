"""Jinja templates of HTML pages, in which text is shown as in the terminal: control characters are escaped."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mmaudio.utils.escapes import escape_controls


def load_templates(package: str, folder: str = "templates") -> Environment:
    """The templates in a folder of a package; every value is escaped, but markup."""
    return Environment(
        loader=PackageLoader(package, folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_escape_text,
    )


def _escape_text(value: object) -> object:
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return escape_controls(str(value)) if is_text else value
