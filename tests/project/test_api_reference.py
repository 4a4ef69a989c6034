"""The docstrings render: a full build of the site, `make docs`, takes a minute, this a few seconds."""

import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

import docutils.core
import pytest
from docutils.utils import SystemMessage
from sphinx.ext.napoleon import Config
from sphinx.ext.napoleon.docstring import GoogleDocstring

import alexlab
from support.runs import ROOT

MODULES = sorted(module.name for module in pkgutil.walk_packages(alexlab.__path__, "alexlab."))


def public_objects(module: Any) -> Iterator[tuple[str, Any]]:
    """Yield a module, and its public classes, methods and functions, as the reference shows them."""
    yield module.__name__, module
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(value):
            yield from ((f"{name}.{key}", member) for key, member in vars(value).items() if not key.startswith("_"))
        yield name, value


def docstring_converter() -> Any:
    spec = importlib.util.spec_from_file_location("conf", ROOT / "docs/conf.py")
    assert spec is not None and spec.loader is not None
    conf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conf)
    return conf.to_rst


def render(docstring: str, title: str) -> None:
    """Parse a docstring as the reference does; raises SystemMessage for a warning."""
    lines = inspect.cleandoc(docstring).splitlines()
    TO_RST(None, "", title, None, None, lines)
    source = "\n".join(GoogleDocstring(lines, Config(napoleon_use_param=True, napoleon_use_ivar=True)).lines())
    settings = {"report_level": 2, "halt_level": 2, "warning_stream": False}
    docutils.core.publish_doctree(source, source_path=title, settings_overrides=settings)


TO_RST = docstring_converter()


@pytest.mark.parametrize("name", MODULES)
def test_docstrings_are_valid_markup(name: str) -> None:
    for title, value in public_objects(importlib.import_module(name)):
        docstring = getattr(value, "__doc__", None)
        if isinstance(docstring, str) and (callable(value) or isinstance(value, property) or title == name):
            render(docstring, f"{name}: {title}")


def test_invalid_markup_is_found() -> None:
    with pytest.raises(SystemMessage, match="Inline strong"):
        render("Take **arguments without an end.", "example")


def test_every_module_is_documented() -> None:
    assert len(MODULES) > 100
