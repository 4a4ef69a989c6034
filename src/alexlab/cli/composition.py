"""Composition of a command's config, with a check of every YAML file before Hydra merges it.

Hydra itself merges any content. Here a file must be valid YAML, the command must read its keys, and its values must have the
type of those that they replace. Each error is one sentence with the file and the line.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from hydra.core.config_loader import ConfigLoader
from hydra.core.default_element import GroupDefault, ResultDefault
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, MissingConfigException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from alexlab import compat
from alexlab.cli.arguments import expand_paths
from alexlab.cli.composition_errors import cycle, display_path, missing_option, sentence
from alexlab.cli.data_option import compose_with_data
from alexlab.cli.overrides import CompositionError, Config, Reader, check_change, check_override, unknown_key
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
        config = compose_with_data(
            lambda given: original(loader, config_name, given, *args, **kwargs),
            overrides,
            is_sweep=RunMode.MULTIRUN in (*args, *kwargs.values()),
        )
    except CompositionError:
        raise
    except MissingConfigException as error:
        raise CompositionError(missing_option(error, overrides, loader.get_sources(), str(config_name))) from None
    except RecursionError as error:
        raise CompositionError(cycle(error, loader.get_sources())) from None
    except (ValueError, yaml.YAMLError, OmegaConfBaseException, ConfigCompositionException) as error:
        raise CompositionError(sentence(error, overrides, loader.get_sources(), str(config_name))) from error
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
