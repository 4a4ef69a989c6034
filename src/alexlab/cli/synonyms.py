"""Replacements for arguments of other frameworks that no command reads, from `synonyms.yaml`."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from alexlab.config import CONFIG_DIR
from alexlab.distributed.consistency import flatten
from alexlab.output.command_line import own_commands

FILE_SUFFIXES = (".ckpt", ".pth", ".pt", ".safetensors", ".bin", ".csv")  # of checkpoints and manifests
TABLE = Path(__file__).with_name("synonyms.yaml")


def replacement(command: str, key: str, value: str, config: Mapping[str, Any] | None = None) -> str | None:
    """Return the end of an error message about an argument that `command` does not read; None if nothing is known.

    It names what to write instead: what the table lists for the key or its last parts, else the key of the config that
    equals the last parts, or that alone has the last name.

    Args:
        command: name of the command.
        key: key as typed, such as `lr` or `model.optimizer.lr`; or a config group.
        value: value as typed, or an option of the group.
        config: plain config of the command, without the `hydra` node.
    """
    tables = [section for section in read_table() if command in section["commands"]]
    parts = [part.lower().replace("-", "_") for part in key.split(".")]
    own = [name for name, _ in flatten(config or {})]
    for start in range(len(parts)):
        last = ".".join(parts[start:])
        if start and last in own:
            return _use(f"{last}={{value}}", value)
        for table in tables:
            text = _text(table.get("arguments", {}), last, value) if start == 0 else None
            text = _without_group(_text(table.get("keys", {}), last, value), own) if text is None else text
            if text is not None:
                return _of_group(command, text, value) or _use(text, value)
    same = [name for name in own if name.split(".")[-1] == parts[-1] and not name.endswith("_target_")]
    return _use(f"{same[0]}={{value}}", value) if len(same) == 1 else None


def read_table() -> list[dict[str, Any]]:
    """Return the sections of `synonyms.yaml`."""
    sections: list[dict[str, Any]] = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return sections


def _text(words: Mapping[str, Any], key: str, value: str) -> str | None:
    """Return the entry of a key and its value."""
    for names, entry in words.items():
        if key in names.split():
            if isinstance(entry, str):
                return entry
            plain = value.strip("'\"")
            return next((text for pattern, text in entry.items() if _matches(str(pattern), plain)), None)
    return None


def _matches(pattern: str, value: str) -> bool:
    if pattern == "PATH":
        return "/" in value or value.lower().endswith(FILE_SUFFIXES) or os.path.exists(value)
    return re.fullmatch(pattern, value.lower()) is not None


def _of_group(command: str, text: str, value: str) -> str | None:
    """Return what to write instead of `GROUP={value}` if the group has no such option: the advice must be accepted."""
    group, _, rest = text.partition("=")
    options = {path.stem for path in (CONFIG_DIR / group).glob("*.yaml")}
    if rest != "{value}" or not options or value.startswith("[") or value in options:
        return None
    if value.lower() in options:
        return _use(text, value.lower())
    return replacement(command, group, value) or f"use {group}=NAME, one of {', '.join(sorted(options))}"


def _without_group(text: str | None, own: Sequence[str]) -> str | None:
    """Leave out `optimizer=sgd` before `optimizer.momentum=0.9` if the config has that key without it."""
    first, _, second = (text or "").partition(" ")
    key, value = first.split("=") if first.count("=") == 1 else ("", "")
    is_selection = second.startswith(f"{key}.") and value and " " not in second
    return second if is_selection and second.partition("=")[0] in own else text


def _use(text: str, value: str) -> str:
    """Fill in the value, quoted for the shell, and put "use" before an argument or a command."""
    words = [_filled(word, value) for word in text.split(" ")]
    is_argument = "=" in words[0] or words[0].startswith(("-", "+", "python"))
    return own_commands(f"{'use ' if is_argument else ''}{' '.join(words)}")


def _filled(word: str, value: str) -> str:
    if "{" not in word:
        return word
    comma = "," if word.endswith(",") else ""
    plain = word.removesuffix(",").replace("{value}", value).replace("{lower}", value.lower())
    return shlex.quote(plain) + comma
