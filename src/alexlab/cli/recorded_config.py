"""The config of a recorded run: which of its keys may change, and what it may refer to."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from alexlab.cli import overrides
from alexlab.config import CONFIG_DIR
from alexlab.config.allowlist import check_targets
from alexlab.config.confinement import check_confined
from alexlab.errors import ConfigError

# Keys that a resumed run may change: its length, where it runs and how it is monitored.
CHANGEABLE = (
    *("trainer.max_epochs", "trainer.max_steps", "trainer.max_time"),
    *("trainer.devices", "trainer.accelerator", "trainer.num_nodes"),
    *("data.root", "data.splits", "data.url", "data.num_workers", "data.cache", "data.cache_dir", "data.on_error"),
    *("data.stream.prefetch_shards", "data.stream.cache_gb"),
    *("callbacks.", "logger.", "elastic.", "test.", "tags", "note"),
)
DECIDING = re.compile(r"optimized_metric|callbacks\..+\.(monitor|mode)")
# Nodes that every config of a run has.
GROUPS = (
    *("model", "module", "data", "augmentation", "loss", "optimizer", "scheduler", "trainer", "callbacks", "logger"),
    *("metrics", "compile", "elastic", "param_groups", "test"),
)


def check_foreign(
    config: dict[str, Any], folder: Path, *, confirmed: Sequence[str] = (), own: dict[str, Any] | None = None
) -> None:
    """Raise ConfigError if a config from a run folder would import other classes, or write or send elsewhere.

    Args: see `check_confined`.
    """
    missing = [name for name in GROUPS if not isinstance(config.get(name), dict)]
    if missing:
        raise ConfigError(f"the config in {folder} must have the groups {', '.join(GROUPS)}; {missing[0]} is missing")
    check_targets(config)
    check_confined(config, folder, confirmed=confirmed, own=own)


def override_keys(overrides: Sequence[str]) -> list[str]:
    """Return the keys of overrides."""
    return [override.partition("=")[0].lstrip("+~") for override in overrides]


def apply_changes(config: dict[str, Any], arguments: Sequence[str], run_dir: Path) -> dict[str, Any]:
    """Return the config with overrides applied, after checking that they do not change what the run computes."""
    result = OmegaConf.create(config)
    try:
        parsed = OverridesParser.create().parse_overrides(list(arguments))
        for override in parsed:
            if override.is_sweep_override():
                key, _, text = (override.input_line or "").partition("=")
                raise ConfigError(f"{key}={text} has several values; a list needs brackets: {key}=[{text}]")
            if is_unchanged(override, result):
                continue
            _check_changeable(override, run_dir)
            overrides.check_override(override, result)
            value = override.value()
            if isinstance(value, str):  # a plain config has no interpolations and no escapes
                value = value.replace("\\${", "${")
            OmegaConf.update(result, override.key_or_group, value, merge=False)
    except HydraException as error:
        raise ConfigError(*str(error).split("\n")) from error
    plain: Any = OmegaConf.to_container(result)
    return dict(plain)


def is_unchanged(override: Override, config: Any) -> bool:
    """Return whether an override repeats the config, which confirms a value that refers to other folders."""
    try:
        found = OmegaConf.select(config, override.key_or_group)
    except OmegaConfBaseException:
        return False
    return override.type == OverrideType.CHANGE and found is not None and found == override.value()


def _check_changeable(override: Override, run_dir: Path) -> None:
    key = override.key_or_group
    if DECIDING.fullmatch(key):
        raise ConfigError(
            f"a resumed run keeps the metrics by which epochs are compared, so {override.input_line} is refused; start a new "
            "run for another metric"
        )
    if (CONFIG_DIR / key).is_dir():
        raise ConfigError(
            f"a resumed run keeps its {key}, so {override.input_line} is refused; start a new run for another {key}"
        )
    if override.is_add() or override.is_force_add() or override.is_delete() or not key.startswith(CHANGEABLE):
        raise ConfigError(
            f"a resumed run keeps its config, so {override.input_line} needs a new run; {run_dir} can change only "
            f"{', '.join(f'{name}*' if name.endswith('.') else name for name in CHANGEABLE)}"
        )
