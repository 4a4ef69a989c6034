"""Private names of Hydra."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from hydra.core.default_element import ResultDefault
    from hydra.core.utils import JobReturn
    from hydra.plugins.config_source import ConfigResult
    from omegaconf import DictConfig


class ConfigRepository(Protocol):
    """The config files that Hydra finds on its search path."""

    def load_config(self, config_path: str) -> ConfigResult | None:
        """Return a config by its path without suffix, such as `model/alexnet`."""
        ...


def hook_hydra(
    *,
    load_config: Callable[..., ConfigResult | None],
    load_configuration: Callable[..., DictConfig],
    compose_files: Callable[..., DictConfig],
    apply_overrides: Callable[..., None],
) -> None:
    """Wrap four steps of Hydra's composition. Each hook is called with the original function and then its arguments.

    Works around: Hydra has no public hook between the command line and the composed config. A second call replaces the hooks.
    Checked with hydra 1.3.8.

    Args:
        load_config: reads one file; called with a `ConfigRepository` and a config path.
        load_configuration: composes everything; called with the config loader, a config name, and overrides.
        compose_files: merges the files of a defaults list; called with the config loader, `defaults` and `repo`.
        apply_overrides: applies overrides; called with a list of them and the config.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.config_repository import ConfigRepository

    _wrap(ConfigRepository, "load_config", load_config)
    _wrap(ConfigLoaderImpl, "load_configuration", load_configuration)
    _wrap(ConfigLoaderImpl, "_compose_config_from_defaults_list", compose_files)
    _wrap(ConfigLoaderImpl, "_apply_overrides_to_config", apply_overrides, static=True)


def _wrap(owner: type, name: str, hook: Callable[..., Any], *, static: bool = False) -> None:
    original = inspect.unwrap(getattr(owner, name))

    @functools.wraps(original)
    def call(*args: Any, **keywords: Any) -> Any:
        return hook(original, *args, **keywords)

    setattr(owner, name, staticmethod(call) if static else call)


def config_file(repository: Any, config_path: str) -> Path | None:
    """Return the file that a config repository reads a config from; None if it has none or it is no file.

    Works around: the repository publishes only the content and the folder. Checked with hydra 1.3.8.
    """
    from hydra.core.object_type import ObjectType

    source = repository._find_object_source(config_path, ObjectType.CONFIG)
    if source is None or source.scheme() != "file":
        return None
    return Path(source.path) / source._normalize_file_name(config_path)


def load_default(loader: Any, default: ResultDefault, repository: ConfigRepository) -> DictConfig:
    """Return what one entry of a defaults list merges into the config, below its package.

    Works around: a config loader publishes only the merged config. Checked with hydra 1.3.8.
    """
    config: DictConfig = loader._load_single_config(default=default, repo=repository).config
    return config


def job_error(result: JobReturn) -> Any:
    """Return the exception of a failed job.

    Works around: `JobReturn.return_value` raises it, and prints a line to stderr before. Checked with hydra 1.3.8.
    """
    return result._return_value
