"""Composition of a command's config, with a check of every YAML file before Hydra merges it.

Hydra itself merges any content. Here a file must be valid YAML, the command must read its keys, and its values must have the
type of those that they replace. Each error is one sentence with the file and the line.
"""

import difflib
import posixpath
import re
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from hydra.core.config_loader import ConfigLoader
from hydra.core.default_element import GroupDefault, ResultDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, MissingConfigException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from alexlab import compat
from alexlab.cli.arguments import expand_paths
from alexlab.cli.overrides import CompositionError, Config, Reader, check_change, check_override, unknown_key
from alexlab.cli.synonyms import replacement
from alexlab.config import CONFIG_DIR
from alexlab.output.command_line import own_commands


def install() -> None:
    """Patch the checks into Hydra."""
    compat.hook_hydra(
        load_config=load_config,
        load_configuration=load_configuration,
        compose_files=compose_files,
        apply_overrides=apply_overrides,
    )


def load_configuration(
    original: Callable[..., DictConfig],
    loader: ConfigLoader,
    config_name: str | None,
    overrides: list[str],
    *args: Any,
    **kwargs: Any,
) -> DictConfig:
    """Compose a config and raise every error of Hydra or OmegaConf as a CompositionError of one sentence."""
    try:
        config = original(loader, config_name, overrides, *args, **kwargs)
    except CompositionError:
        raise
    except MissingConfigException as error:
        raise CompositionError(_missing(error, overrides, loader.get_sources(), str(config_name))) from None
    except RecursionError as error:
        raise CompositionError(_cycle(error, loader.get_sources())) from None
    except (ValueError, yaml.YAMLError, OmegaConfBaseException, ConfigCompositionException) as error:
        raise CompositionError(_sentence(error, overrides, loader.get_sources(), str(config_name))) from error
    expand_paths(config)
    config.hydra.help.template = own_commands(config.hydra.help.template)
    return config


def load_config(
    original: Callable[..., ConfigResult | None], repository: compat.ConfigRepository, config_path: str
) -> ConfigResult | None:
    """Read a YAML file.

    Raises:
        CompositionError: with file and line, if it is not a mapping in valid YAML.
    """
    path = compat.config_file(repository, config_path)
    if path is None:
        return original(repository, config_path)
    try:
        text = path.read_bytes().decode()
        if text.startswith("\ufeff"):
            problem = "a byte order mark, which hides the first line from Hydra"
            raise CompositionError(f"{display_path(path)} begins with {problem}; save it as UTF-8 without BOM")
        found = original(repository, config_path)
        # OmegaConf reads a file that holds a single word as a key without a value.
        if found is None or not isinstance(found.config, DictConfig) or (found.config and ":" not in text):
            raise CompositionError(f"{display_path(path)} must hold keys and values, as in `seed: 1`")
        return found
    except CompositionError:
        raise
    except OSError as error:
        raise CompositionError(f"{display_path(path)} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{display_path(path)}, line {mark.line + 1}" if mark else display_path(path)
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        hint = "; YAML is indented with spaces" if "'\\t'" in problem else ""
        raise CompositionError(f"{where}: {problem}{hint}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{error.object[error.start]:02x}"
        raise CompositionError(
            f"{display_path(path)}, line {line}: {byte} is not UTF-8; save the file as UTF-8"
        ) from error
    except (ValueError, OmegaConfBaseException) as error:
        text = str(error).splitlines()[0].removeprefix(f"In {config_path}: ")
        raise CompositionError(f"{display_path(path)}: {text}") from error


def display_path(path: Path) -> str:
    """Return a path relative to the working directory or the repository if it is inside one of them."""
    for folder in (Path.cwd(), CONFIG_DIR.parent):
        if path.resolve().is_relative_to(folder.resolve()):
            return str(path.resolve().relative_to(folder.resolve()))
    return str(path)


def compose_files(
    original: Callable[..., DictConfig],
    loader: ConfigLoader,
    defaults: list[ResultDefault],
    repo: compat.ConfigRepository,
) -> DictConfig:
    """Check the files of a defaults list, then let Hydra merge them.

    Raises:
        CompositionError: with file and line, for an unknown key or a value of the wrong type.
    """
    files = _Files(loader, defaults, repo)
    files.add_defaults()
    files.check()
    return original(loader, defaults=defaults, repo=repo)


class _Files:
    """The files that a config is composed of, in merge order.

    Args:
        loader, defaults, repo: arguments of Hydra's composition.
    """

    def __init__(self, loader: ConfigLoader, defaults: list[ResultDefault], repo: compat.ConfigRepository) -> None:
        self.loader, self.defaults, self.repo = loader, defaults, repo
        # conf/train.yaml and the files it extends. They define the known keys and the default options of each group.
        self.commands = [path for path in self.paths() if "/" not in path and self.found(path).provider == "main"]
        self.keys = {str(key) for path in self.commands for key in cast(DictConfig, self.found(path).config)}
        self.group_defaults: dict[str, Any] = {}
        for entry in (entry for path in self.commands for entry in self.found(path).defaults_list or ()):
            if not isinstance(entry, GroupDefault) or entry.override or entry.optional:
                continue
            if entry.value or str(entry.group) in self.keys:  # else an overlay
                self.group_defaults[str(entry.group)] = entry.value

    def paths(self) -> list[str]:
        return [str(default.config_path) for default in self.defaults]

    def found(self, config_path: str) -> ConfigResult:
        result = self.repo.load_config(config_path)
        assert result is not None  # Hydra has already resolved it
        return result

    def file(self, config_path: str) -> Path:
        folder = str(self.found(config_path).path).partition("://")[2]
        return Path(folder) / f"{config_path.removesuffix('.yaml')}.yaml"

    def add_defaults(self) -> None:
        """Merge selected options into the default ones where a group takes several: `callbacks=ema` adds a callback.

        An empty list, `callbacks=[]`, selects none.
        """
        for group, options in self.group_defaults.items():
            first = next((n for n, path in enumerate(self.paths()) if path.startswith(f"{group}/")), None)
            if not isinstance(options, list) or first is None:
                continue
            default_paths = [f"{group}/{option}" for option in options]
            others = [default for default in self.defaults[first:] if default.config_path not in default_paths]
            self.defaults[first:] = [*(ResultDefault(path, package=group) for path in default_paths), *others]

    def check(self) -> None:
        """Raise CompositionError for the first unknown key or value of the wrong type."""
        known: Config = {}
        kept = [default for default in self.defaults if not str(default.config_path).startswith("hydra/")]
        top = {*self.group_defaults, *self.keys} - {"hydra"}
        for number, default in enumerate(kept):
            path = str(default.config_path)
            loaded = compat.load_default(self.loader, default, self.repo)
            content: Any = OmegaConf.to_container(loaded)
            content.pop("hydra", None)
            group = path.rpartition("/")[0]
            packages = (group.split("/")[0], (default.package or "").split(".")[0])
            extends = any(str(other.config_path).rpartition("/")[0] == group for other in kept[:number])
            try:
                if path not in self.commands:
                    self._check(known, content, top, group=group.split("/")[0], packages=packages, extends=extends)
            except CompositionError as error:
                raise CompositionError(f"{self._location(default, error.key)}: {error}", error.key) from None
            _merge(known, content)
        for group, option in self.group_defaults.items():
            if group not in known:
                raise CompositionError(f"{group} must have an option, such as {group}={option}; got none")

    def _check(
        self, known: Config, content: Config, top: set[str], *, group: str, packages: Sequence[str], extends: bool
    ) -> None:
        reader = Reader(self.commands[-1], known)
        for name, value in content.items():
            if name not in top:
                if name in packages:
                    raise CompositionError(
                        f"no command reads {name}.*, the package of this file; its first line must be `# @package _global_`"
                    )
                raise unknown_key([], str(name), dict.fromkeys(sorted(top)), value, reader=reader)
            if name != group and name not in known:
                raise CompositionError(f"a later file sets {name} again; set it in an experiment instead", [name])
            free = (
                name == group and group in self.group_defaults and not extends
            )  # the first file of a group defines its keys
            check_change(known, {name: value}, reader=reader, adds=True, free=free)

    def _location(self, default: ResultDefault, key: Sequence[str]) -> str:
        """Return the file and, if its text contains the key, the line."""
        path = self.file(str(default.config_path))
        package = "" if default.package in (None, "_global_") else str(default.package)
        line = _line(path, key[len(package.split(".")) if package else 0 :])
        return f"{display_path(path)}, line {line}" if line else display_path(path)


def _merge(known: Config, content: Config) -> None:
    for name, value in content.items():
        if isinstance(value, dict) and isinstance(known.get(name), dict):
            _merge(known[name], value)
        else:
            known[name] = value


def _line(path: Path, names: Sequence[str]) -> int | None:
    node, line = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader), None
    for name in names:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        key, node = next((pair for pair in pairs if pair[0].value == str(name)), (None, None))
        if key is None:
            return line
        line = key.start_mark.line + 1
    return line


def apply_overrides(original: Callable[..., None], overrides: list[Override], config: DictConfig) -> None:
    """Apply overrides one by one, checking each against the config that it changes."""
    command = config.hydra.job.name
    for override in overrides:
        check_override(override, config, command=command)
        original([override], config)


def _file(config_path: str, sources: Sequence[ConfigSource]) -> str:
    """Return the path of a config file for display, or its name if no source has it."""
    paths = (Path(source.path) / f"{config_path}.yaml" for source in sources if source.scheme() == "file")
    return next((display_path(path) for path in paths if path.is_file()), config_path)


def _cycle(error: RecursionError, sources: Sequence[ConfigSource]) -> str:
    """Name the files whose defaults lists include each other, from the frames that the RecursionError went through."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if "parent" in frame.f_locals][-50:]
    paths = dict.fromkeys(frame.f_locals["path"] for frame in frames if "path" in frame.f_locals)
    return f"defaults lists must not form a cycle; these do: {', '.join(_file(path, sources) for path in paths)}"


def _missing(
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


def _sentence(error: Exception, overrides: Sequence[str], sources: Sequence[ConfigSource], command: str) -> str:
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
