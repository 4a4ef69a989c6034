"""Errors of Hydra and OmegaConf while a config is composed, as sentences that name files, options and what to write instead."""

import difflib
import posixpath
import re
import traceback
from collections.abc import Sequence
from pathlib import Path

from hydra.core.object_type import ObjectType
from hydra.errors import MissingConfigException
from hydra.plugins.config_source import ConfigSource
from omegaconf.errors import OmegaConfBaseException

from alexlab.cli.synonyms import replacement
from alexlab.config import CONFIG_DIR


def display_path(path: Path) -> str:
    """Return a path relative to the working directory or the repository if it is inside one of them."""
    for folder in (Path.cwd(), CONFIG_DIR.parent):
        if path.resolve().is_relative_to(folder.resolve()):
            return str(path.resolve().relative_to(folder.resolve()))
    return str(path)


def _file(config_path: str, sources: Sequence[ConfigSource]) -> str:
    """Return the path of a config file for display, or its name if no source has it."""
    paths = (Path(source.path) / f"{config_path}.yaml" for source in sources if source.scheme() == "file")
    return next((display_path(path) for path in paths if path.is_file()), config_path)


def cycle(error: RecursionError, sources: Sequence[ConfigSource]) -> str:
    """Name the files whose defaults lists include each other, from the frames that the RecursionError went through."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if "parent" in frame.f_locals][-50:]
    paths = dict.fromkeys(frame.f_locals["path"] for frame in frames if "path" in frame.f_locals)
    return f"defaults lists must not form a cycle; these do: {', '.join(_file(path, sources) for path in paths)}"


def missing_option(
    error: MissingConfigException, overrides: Sequence[str], sources: Sequence[ConfigSource], command: str
) -> str:
    """Return a sentence with the missing option or file, the file that requests it, and the available options."""
    group, name = _split_group(str(error.missing_cfg_file), sources)
    typed = any(override.startswith((f"{group}=", f"+{group}=")) and name in override for override in overrides)
    if not typed:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
    groups = [source for source in sources if source.is_group(group)]
    options = sorted({option for source in groups for option in source.list(group, ObjectType.CONFIG)})
    parent = re.match(r"In '([^']*)'", str(error))
    requester = None if typed else _requester(str(parent[1]) if parent else "", group, name, overrides, sources)
    if requester is None:
        return f"unknown option {group}={name}; {which_option(command, group, name, options)}"
    slash = "a group outside this folder begins with a slash, as in /optimizer: sgd"
    hint = which_option(command, group, name, options) if group and options else slash
    return f"{requester}: {error.missing_cfg_file}.yaml does not exist; {hint}"


def _split_group(config_path: str, sources: Sequence[ConfigSource]) -> tuple[str, str]:
    """Return group and option of a config path whose option may contain slashes, as in `model=runs/best.ckpt`."""
    slashes = [match.start() for match in re.finditer("/", config_path)]
    groups = [config_path[:end] for end in slashes if posixpath.normpath(config_path[:end]) == config_path[:end]]
    group = next((path for path in reversed(groups) if any(source.is_group(path) for source in sources)), None)
    return (group, config_path[len(group) + 1 :]) if group else ("", config_path)


def which_option(command: str, group: str, name: str, options: Sequence[str]) -> str:
    """Return the end of a message about an unknown option: what to write instead, or what was probably meant."""
    folded = {re.sub(r"[^a-z0-9]", "", option.lower()): option for option in reversed(options)}
    stem = Path(name).stem if name.endswith((".yaml", ".yml")) else name
    same = folded.get(re.sub(r"[^a-z0-9]", "", stem.lower()))
    instead = None if same else replacement(command, group, name)
    if instead is not None:
        return instead
    near = [same] if same else difflib.get_close_matches(name.lower(), options, n=1)
    hint = f"did you mean {near[0]}? The options" if near else "the options"
    return f"{hint} of {group} are {', '.join(options)}"


def _requester(
    parent: str, group: str, name: str, overrides: Sequence[str], sources: Sequence[ConfigSource]
) -> str | None:
    """Return the file whose defaults list selects an option, or None if the command line does."""
    folders = [Path(source.path) for source in sources if source.scheme() == "file"]
    if "/" in parent:
        return _file(parent, sources)
    if any(name in override for override in overrides):
        return None
    entry = re.compile(rf"\b{re.escape(group)}: *\[?[^#\n]*\b{re.escape(name)}\b")
    files = (path for folder in folders for path in sorted(folder.rglob("*.yaml")))
    return next((display_path(path) for path in files if entry.search(path.read_text(errors="replace"))), None)


def sentence(error: Exception, overrides: Sequence[str], sources: Sequence[ConfigSource], command: str) -> str:
    """Return the message of Hydra or OmegaConf on one line, with file paths instead of config names."""
    text, cause = str(error), error.__cause__
    if text.startswith(("Config group override must be", "Could not delete '")):
        override = next((item for item in overrides if item.endswith("=null") or item.startswith("~")), None)
        if override is None:
            return "a config group must be set to the name of an option"
        group = override.strip("~+").partition("=")[0]
        return (
            f"{override} must name an option; to select none, use {group}=[] if the group takes several, else ~{group}"
        )
    present = re.match(r"Could not append to config. An item is already at '(.*?)'", text)
    if present:
        return f"{present[1]} is already set; leave out the + to change it"
    repeated = re.match(
        r"Multiple values for ([\w/@.]+)\.|force-add of config groups is not supported: '\+\+([^=]+)=", text
    )
    group = (repeated[1] or repeated[2]) if repeated else ""
    added = next((each for each in overrides if group and each.startswith((f"+{group}=", f"++{group}="))), None)
    if added is not None:
        return f"{group} is a group of every run; leave out the +: {added.lstrip('+')}"
    ambiguous = re.search(r"Ambiguous value for argument '([^=]*)=(.*?)'\n1\.", text)
    if ambiguous:
        key, value = ambiguous.groups()
        return f"{key}={value} has several values: add -m to run each; a list needs brackets, [{value}]"
    if isinstance(cause, OmegaConfBaseException):
        where = f"{cause.full_key}: " if cause.full_key else ""
        text = f"{text}{': ' if text else ''}{where}{str(cause).splitlines()[0]}"
    text = re.sub(r"\n\s*(full_key|reference_type|object_type)[:=].*", "", text)
    found = re.match(r"In '?([\w/.-]+)'?: (.*)", text, re.DOTALL)
    if found:
        text = f"{_file(found[1], sources)}: {found[2]}"
    unused = re.search(r"Could not override '([^']*)'\. No match in the defaults list", text)
    if unused:
        group = unused[1]
        value = next((text.partition("=")[2] for text in overrides if text.startswith(f"{group}=")), "")
        groups = [path.name for path in CONFIG_DIR.iterdir() if path.is_dir()]
        near = difflib.get_close_matches(group, [name for name in groups if name != group], n=1)
        hint = replacement(command, group, value) or (f"did you mean {near[0]}?" if near else "")
        text = f"{text[: unused.start()]}this command has no config group {group}{'; ' if hint else ''}{hint}"
    return " ".join(text.split())
