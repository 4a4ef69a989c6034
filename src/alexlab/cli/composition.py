"""Composition of a command's config from YAML files, each checked before it is merged. Imports no torch.

Hydra merges whatever a file holds. Here a file must be valid YAML, its keys must be keys that the command reads, and its values
must be of the kind of those that they replace. Each mistake is one sentence with the file and the line.
"""

import difflib
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
from alexlab.cli.overrides import CONFIG_DIR, CompositionError, Config, check_change, check_override, unknown, with_home


def install() -> None:
    """Hook the checks into Hydra."""
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
    """Compose a config as Hydra does.

    Raises:
        CompositionError: in one sentence.
    """
    try:
        config = original(loader, config_name, overrides, *args, **kwargs)
    except CompositionError:
        raise
    except MissingConfigException as error:
        raise CompositionError(_missing(error, overrides, loader.get_sources())) from None
    except RecursionError as error:
        raise CompositionError(_circle(error, loader.get_sources())) from None
    except (ValueError, yaml.YAMLError, OmegaConfBaseException, ConfigCompositionException) as error:
        raise CompositionError(_sentence(error, overrides, loader.get_sources())) from error
    with_home(config)
    return config


def load_config(
    original: Callable[..., ConfigResult | None], repository: compat.ConfigRepository, config_path: str
) -> ConfigResult | None:
    """Read a YAML file as Hydra does.

    Raises:
        CompositionError: with file and line, unless it is a mapping in valid YAML.
    """
    path = compat.config_file(repository, config_path)
    if path is None:
        return original(repository, config_path)
    try:
        text = path.read_bytes().decode()
        if text.startswith("\ufeff"):
            what = "a byte order mark, which hides its first line from Hydra"
            raise CompositionError(f"{shown(path)} begins with {what}; save it as UTF-8 without one")
        found = original(repository, config_path)
        # OmegaConf reads a file of one word as a key without a value.
        if found is None or not isinstance(found.config, DictConfig) or (found.config and ":" not in text):
            raise CompositionError(f"{shown(path)} must hold keys and values, as in `seed: 1`")
        return found
    except CompositionError:
        raise
    except OSError as error:
        raise CompositionError(f"{shown(path)} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{shown(path)}, line {mark.line + 1}" if mark else shown(path)
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        hint = "; YAML is indented with spaces" if "'\\t'" in problem else ""
        raise CompositionError(f"{where}: {problem}{hint}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{error.object[error.start]:02x}"
        raise CompositionError(f"{shown(path)}, line {line}: {byte} is not UTF-8; save the file as UTF-8") from error
    except (ValueError, OmegaConfBaseException) as error:
        text = str(error).splitlines()[0].removeprefix(f"In {config_path}: ")
        raise CompositionError(f"{shown(path)}: {text}") from error


def shown(path: Path) -> str:
    """Return a path as a person would type it: relative to the repository or the working directory where it lies inside."""
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
    """Merge the files of a defaults list as Hydra does, after these changes and checks.

    Raises:
        CompositionError: with file and line, for a key that nothing reads or a value of the wrong kind.
    """
    files = _Files(loader, defaults, repo)
    files.add_standing()
    files.check()
    return original(loader, defaults=defaults, repo=repo)


class _Files:
    """The files that a config is composed of, in the order in which they are merged.

    Args:
        loader, defaults, repo: Hydra's.
    """

    def __init__(self, loader: ConfigLoader, defaults: list[ResultDefault], repo: compat.ConfigRepository) -> None:
        self.loader, self.defaults, self.repo = loader, defaults, repo
        # conf/train.yaml and what it extends. They decide which keys are read and which options stand for a group.
        self.commands = [path for path in self.paths() if "/" not in path and self.found(path).provider == "main"]
        self.standing: dict[str, Any] = {}
        for entry in (entry for path in self.commands for entry in self.found(path).defaults_list or ()):
            if isinstance(entry, GroupDefault) and not entry.override and entry.value:
                self.standing[str(entry.group)] = entry.value

    def paths(self) -> list[str]:
        return [str(default.config_path) for default in self.defaults]

    def found(self, config_path: str) -> ConfigResult:
        result = self.repo.load_config(config_path)
        assert result is not None  # Hydra has looked it up already
        return result

    def file(self, config_path: str) -> Path:
        folder = str(self.found(config_path).path).partition("://")[2]
        return Path(folder) / f"{config_path.removesuffix('.yaml')}.yaml"

    def add_standing(self) -> None:
        """Put the options that the command lists for a group, such as callbacks, before any others: `callbacks=ema` adds one.

        An empty list, `callbacks=[]`, is the way to have none.
        """
        for group, options in self.standing.items():
            first = next((n for n, path in enumerate(self.paths()) if path.startswith(f"{group}/")), None)
            if not isinstance(options, list) or first is None:
                continue
            standing = [f"{group}/{option}" for option in options]
            others = [default for default in self.defaults[first:] if default.config_path not in standing]
            self.defaults[first:] = [*(ResultDefault(path, package=group) for path in standing), *others]

    def check(self) -> None:
        """Raise CompositionError for the first key or value that does not fit."""
        known: Config = {}
        kept = [default for default in self.defaults if not str(default.config_path).startswith("hydra/")]
        keys = [str(key) for path in self.commands for key in cast(DictConfig, self.found(path).config)]
        top = {*self.standing, *keys} - {"hydra"}
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
                raise CompositionError(f"{self._place(default, error.place)}: {error}", error.place) from None
            _merge(known, content)
        for group, option in self.standing.items():
            if group not in known:
                raise CompositionError(f"{group} must be one of its options, as in {group}={option}; got none")

    def _check(
        self, known: Config, content: Config, top: set[str], *, group: str, packages: Sequence[str], extends: bool
    ) -> None:
        for name, value in content.items():
            if name not in top:
                if name in packages:
                    text = f"nothing reads {name}.*, which its keys lie under; its first line must be `# @package _global_`"
                    raise CompositionError(text)
                raise unknown([], str(name), sorted(top))
            if name != group and name not in known:
                raise CompositionError(f"{name} is set again by a later file; set it in an experiment", [name])
            free = (
                name == group and group in self.standing and not extends
            )  # the first file of a group defines its keys
            check_change(known, {name: value}, command=self.commands[-1], adds=True, free=free)

    def _place(self, default: ResultDefault, place: Sequence[str]) -> str:
        """Return the file and, where its text has the key, the line."""
        path = self.file(str(default.config_path))
        package = "" if default.package in (None, "_global_") else str(default.package)
        line = _line(path, place[len(package.split(".")) if package else 0 :])
        return f"{shown(path)}, line {line}" if line else shown(path)


def _merge(known: Config, content: Config) -> None:
    for name, value in content.items():
        if isinstance(value, dict) and isinstance(known.get(name), dict):
            _merge(known[name], value)
        else:
            known[name] = value


def _line(path: Path, place: Sequence[str]) -> int | None:
    node, line = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader), None
    for name in place:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        key, node = next((pair for pair in pairs if pair[0].value == str(name)), (None, None))
        if key is None:
            return line
        line = key.start_mark.line + 1
    return line


def apply_overrides(original: Callable[..., None], words: list[Override], config: DictConfig) -> None:
    """Apply overrides one by one, each checked against the config that it changes."""
    command = config.hydra.job.name
    for word in words:
        check_override(word, config, command=command)
        original([word], config)


def _file(config_path: str, sources: Sequence[ConfigSource]) -> str:
    """Return the file of a config for people; its name where it is in none of the folders."""
    paths = (Path(source.path) / f"{config_path}.yaml" for source in sources if source.scheme() == "file")
    return next((shown(path) for path in paths if path.is_file()), config_path)


def _circle(error: RecursionError, sources: Sequence[ConfigSource]) -> str:
    """Name the files whose defaults lists lead in a circle: those that Hydra was in when Python gave up."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if "parent" in frame.f_locals][-50:]
    paths = dict.fromkeys(frame.f_locals["path"] for frame in frames if "path" in frame.f_locals)
    return f"the defaults lists of {', '.join(_file(path, sources) for path in paths)} lead in a circle"


def _missing(error: MissingConfigException, words: Sequence[str], sources: Sequence[ConfigSource]) -> str:
    """Return a sentence with the missing option or file, the file that asks for it, and the options that exist."""
    group, _, name = str(error.missing_cfg_file).rpartition("/")
    groups = [source for source in sources if source.is_group(group)]
    options = sorted({option for source in groups for option in source.list(group, ObjectType.CONFIG)})
    near = difflib.get_close_matches(name, options, n=1)
    hint = f"did you mean {near[0]}? The options" if near else "the options"
    choice = f"; {hint} of {group} are {', '.join(options)}" if group and options else ""
    parent = re.match(r"In '([^']*)'", str(error))
    asked = _asking(str(parent[1]) if parent else "", group, name, words, sources)
    if asked is None:
        return f"there is no {group}={name}{choice}"
    slash = "; a group that does not lie in this folder begins with a slash, as in /optimizer: sgd"
    return f"{asked}: there is no {error.missing_cfg_file}.yaml{choice or slash}"


def _asking(parent: str, group: str, name: str, words: Sequence[str], sources: Sequence[ConfigSource]) -> str | None:
    """Return the file whose defaults list asks for an option; None where the command line does."""
    folders = [Path(source.path) for source in sources if source.scheme() == "file"]
    if "/" in parent:
        return _file(parent, sources)
    if any(name in word for word in words):
        return None
    entry = re.compile(rf"\b{re.escape(group)}: *\[?[^#\n]*\b{re.escape(name)}\b")
    files = (path for folder in folders for path in sorted(folder.rglob("*.yaml")))
    return next((shown(path) for path in files if entry.search(path.read_text(errors="replace"))), None)


def _sentence(error: Exception, words: Sequence[str], sources: Sequence[ConfigSource]) -> str:
    """Return what Hydra or OmegaConf says in one line, with a file in the place of a config's name."""
    text, cause = str(error), error.__cause__
    if text.startswith(("Config group override must be", "Could not delete '")):
        word = next((word for word in words if word.endswith("=null") or word.startswith("~")), "an override")
        group = word.strip("~+").partition("=")[0]
        return f"{word} must name an option; none is {group}=[] where several can be chosen, ~{group} where one can"
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
        groups = [path.name for path in CONFIG_DIR.iterdir() if path.is_dir()]
        near = difflib.get_close_matches(group, [name for name in groups if name != group], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        text = f"{text[: unused.start()]}this command has no group {group}{hint}"
    return text if "Ambiguous value" in text else " ".join(text.split())
