"""Quoting for Hydra's override grammar, so that a path or a text arrives as it was typed."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import ListConfig, OmegaConf
from omegaconf.errors import GrammarParseError
from omegaconf.grammar_parser import parse

UNQUOTED = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")  # strings that Hydra parses unquoted as themselves
NOT_STRINGS = ("true", "false", "null", "nan", "inf")


def raw_overrides(overrides: Sequence[str]) -> list[str]:
    """Return overrides that Hydra keeps in a config without resolving interpolations such as `${hydra.job.num}`."""
    container: Any = OmegaConf.to_container(cast(ListConfig, overrides))
    return [str(override) for override in container]


def expand_home(path: str | os.PathLike[str]) -> str:
    """Return a path with a leading `~` or `~user` replaced by the home folder, unless a file of that name exists."""
    path = os.fspath(path)
    return os.path.expanduser(path) if path.startswith("~") and not os.path.lexists(path) else path


def quote_path(path: str) -> str:
    """Return a path as a value that Hydra's grammar reads as that text.

    `${...}` is an interpolation, as in `hydra.run.dir=runs/${seed}`, unless a file or folder has it in its name or it is
    incomplete; then it is part of the path.
    """
    if path in ("", "null", "???") or (len(path) > 1 and path[0] == path[-1] and path[0] in "'\""):
        return path
    if re.fullmatch(r"[A-Za-z0-9_./-]+", path) and re.search(r"[./-]", path) and re.search(r"[A-Za-z]", path):
        return quote(path) if is_number(path) else path
    if "${" in path and _is_literal(path):
        path = re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + "\\${", path)
    return quote(path)


def quote(text: str) -> str:
    """Return a text in quotes, as a value that Hydra's grammar reads as that text."""
    # A backslash escapes only in front of a quote.
    escaped = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text)
    return f"'{escaped}'"


def to_text(value: Any) -> str:
    """Return a plain value in Hydra's grammar."""
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, list):
        return f"[{','.join(map(to_text, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{name}:{to_text(item)}' for name, item in value.items())}}}"
    return value if UNQUOTED.fullmatch(value) and value.lower() not in NOT_STRINGS else quote(value)


def is_interpolation(text: str) -> bool:
    """Return whether a text that contains `${` parses, that is, whether its interpolations are complete."""
    try:
        parse(text)
    except GrammarParseError:
        return False
    return True


def is_number(text: str) -> bool:
    """Return whether a text is a number, such as 1e-4."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_literal(path: str) -> bool:
    """Return whether `${` in a path is part of a file name."""
    if any("${" in str(folder) and os.path.lexists(folder) for folder in (Path(path), *Path(path).parents)):
        return True
    return not is_interpolation(path)
