"""Check of options that are counts."""

from collections.abc import Mapping
from functools import reduce
from typing import Any

from alexlab.errors import ConfigError


def check_counts(
    config: Mapping[str, Any], minimums: Mapping[str, int], *, optional: Mapping[str, int] | None = None
) -> None:
    """Raise ConfigError unless options are integers of at least some minimum.

    Args:
        config: the config.
        minimums: minimum by key, such as `neighbours.k`.
        optional: the same for keys that may be null.
    """
    for key, minimum in {**minimums, **(optional or {})}.items():
        value: Any = reduce(lambda node, name: node[name], key.split("."), config)
        if value is None and key not in minimums:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            null = "" if key in minimums else "null or "
            given = "null" if value is None else value
            raise ConfigError(f"{key} must be {null}an integer of at least {minimum}; got {given}")
