"""Wording of docstrings, comments, messages, configs, pages and docs: the field's terms, and no idioms of a translation."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from support.runs import ROOT

# Pattern -> wording to use instead.
BANNED = {
    r"\bso many\b": "number of",
    r"\b(go|goes|going|gone|went) on\b": "resume, continue",
    r"\btake(s|n)? up\b": "resume",
    r"\bbeside\b": "compared with, next to",
    r"\bdamaged\b": "corrupt",
    r"\b(was|were) ended\b": "was killed, exited",
    r"\bruns? on\b (and|until)": "keeps running",
    r"\bafresh\b|\banew\b": "again",
    r"\b(tell|tells|told|hear|hears|heard|said)\b": "raise, log, return, report, print",
    r"\bidentity card\b|\b(its|the|a) card\b": "run record",
    r"\bcontenders?\b|\bcontests?\b": "candidate",
    r"\bwitness(es)?\b|\bjudge[sd]?\b|\bseats?\b": "recorder, metric, slot",
    r"\bin words\b|\bwords (for|of)\b|\bleaves? (a|no|its) word\b": "message, override, error file",
    r"\bis none of\b|; there is none\b": "not found, is not a",
    r"\btaken for\b|\bmistaken\b": "predicted as, misclassified",
    r"\bof one's own\b": "own, custom",
    r"\bImports no torch\b": "a test checks this",
    r"\bthaw(s|ed)?\b|\bput(s)? to rest\b": "unfreeze, eval mode",
    r"\bwhatever\b": "regardless of",
    r"\b(normal|initial|minim|maxim|optim|recogn|synchron|memor|regular)is(e|ed|es|ing|ation)\b": "-ize, -ization",
}
OPENING = re.compile(r"(What|How|Where|Which|Who|Whether|Says|Tells|Gives|Looks)\b")
PYTHON = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / ".ci").rglob("*.py")])
TEXT = sorted(
    [
        *(ROOT / "conf").rglob("*.yaml"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "src").rglob("*.html"),
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "Makefile", "pyproject.toml")),
    ]
)


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield (1 if isinstance(node, ast.Module) else node.lineno), text


@cache
def prose(path: Path) -> list[tuple[int, str]]:
    """Return docstrings and comments of a module, and for the package also its other strings, which may be messages."""
    return list(_prose(path))


def _prose(path: Path) -> Iterator[tuple[int, str]]:
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    yield from docstrings(tree)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    if path.is_relative_to(ROOT / "src"):
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
                yield node.lineno, node.value


def test_there_is_text_to_check() -> None:
    assert len(PYTHON) > 250 and len(TEXT) > 100


@pytest.mark.parametrize(("pattern", "instead"), BANNED.items())
def test_banned_idioms(pattern: str, instead: str) -> None:
    found = []
    for path in PYTHON:
        if path == Path(__file__):
            continue
        found += [
            f"{path.relative_to(ROOT)}:{line}: {text[:100]!r}" for line, text in prose(path) if re.search(pattern, text)
        ]
    for path in TEXT:
        for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            is_glossary = path.name == "CONTRIBUTING.md" and text.startswith("|")
            if re.search(pattern, text) and not is_glossary:
                found.append(f"{path.relative_to(ROOT)}:{line}: {text.strip()[:100]!r}")
    assert not found, f"use {instead} instead:\n" + "\n".join(dict.fromkeys(found))


def test_docstrings_open_with_a_noun_phrase_or_an_imperative() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text[:80]!r}"
        for path in PYTHON
        for line, text in docstrings(ast.parse(path.read_text(encoding="utf-8")))
        if OPENING.match(text)
    ]
    assert not found, "\n".join(found)
