"""The Markdown pages of the project: their commands, links, code blocks and inline code."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from support.runs import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    """Return the code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text(name), re.DOTALL | re.MULTILINE)


def prose(name: str) -> str:
    """Return a page without its code blocks."""
    return re.sub(r"^```.*?^```", "", text(name), flags=re.DOTALL | re.MULTILINE)


def inline_code(name: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(name))


def commands(name: str) -> list[str]:
    """Return every command of a page: the lines of its shell blocks, and inline code that starts a program or make."""
    lines = "\n".join(blocks(name, "sh")).replace("\\\n", " ").splitlines()
    found = [" ".join(shlex.split(line, comments=True)) and re.sub(r"\s+#.*", "", line).strip() for line in lines]
    starts = re.compile(r"(python src/\w+\.py|torchrun|make) ")
    return [line for line in [*found, *filter(starts.match, inline_code(name))] if line]


def links(name: str) -> list[str]:
    """Return the targets of the links and images of a page, without those on the web."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(name))
    return [target for target in targets if not target.startswith(("http://", "https://"))]


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MyST form them."""
    headings = re.findall(r"^#{1,6} (.+)$", prose(str(path.relative_to(ROOT))), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-") for heading in headings}


def modules(name: str) -> Iterator[str]:
    """Yield the dotted names of this package in a page."""
    yield from re.findall(r"\balexlab(?:\.[A-Za-z_]\w*)+", text(name))
