"""Self-contained HTML pages from Jinja2 templates; they need no network."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from alexlab.output.escape import shown


class Link(NamedTuple):
    """A link to a file.

    Args:
        name: link text.
        href: URL, relative to the page.
    """

    name: str
    href: str


def render(template: str, **values: Any) -> str:
    """Return a page from a template in `templates/`.

    Every value is escaped for HTML, and its hidden characters are made visible, unless it is `Markup`. A value that the
    template uses and that is not given is an error.

    Args:
        template: file name, such as `evaluation.html`.
        values: variables of the template; pages need `title`.
    """
    return _ENVIRONMENT.get_template(template).render(**values)


def file_links(files: Sequence[Path], page_dir: Path) -> list[Link]:
    """Return relative links to files, which stay valid when the files and the page are moved together.

    Args:
        files: paths of the files.
        page_dir: folder of the page.
    """
    paths = [os.fsencode(os.path.relpath(file.absolute(), page_dir.absolute())) for file in files]
    return [Link(file.name, quote(path)) for file, path in zip(files, paths, strict=True)]


def format_value(value: Any) -> str:
    """Return a table cell as text: four decimals, thousands separators, and `-` for None."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:g}" if value == round(value, 1) else f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _finalize(value: Any) -> Any:
    return value if isinstance(value, Markup) else shown(value)


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_finalize,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_ENVIRONMENT.filters["value"] = format_value
