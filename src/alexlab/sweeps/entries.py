"""Overrides as plain data: entries of a sweep record, and back.

An entry is `{"key": KEY}` with one of `value`, `choices`, `range`, `interval` or `glob`, or none of them for a deleted key.
"""

from typing import Any

from hydra.core.override_parser.types import Glob, IntervalSweep, Override, QuotedString, RangeSweep, Sweep

from alexlab.config.grammar import to_text


def to_entry(override: Override) -> dict[str, Any]:
    """Return an override as an entry of a sweep record."""
    entry: dict[str, Any] = {"key": override.get_key_element()}
    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        return entry | {"interval": [value.start, value.end], "log": "log" in value.tags}
    if isinstance(value, RangeSweep) and not value.shuffle:
        return entry | {"range": [value.start, value.stop, value.step]}
    if isinstance(value, Glob):
        return entry | {"glob": value.include, "exclude": value.exclude}
    if isinstance(value, Sweep):
        return entry | {"choices": [_plain(choice) for choice in override.sweep_iterator()]}
    return entry if override.is_delete() and override.value_type is None else entry | {"value": value}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    return value.text if isinstance(value, QuotedString) else value


def to_override(entry: dict[str, Any]) -> str:
    """Return an entry as an override in Hydra's grammar; the inverse of `to_entry`."""
    key = entry["key"]
    if "value" in entry:
        return f"{key}={to_text(entry['value'])}"
    if "choices" in entry:
        choices = [to_text(choice) for choice in entry["choices"]]
        return f"{key}={','.join(choices)}" if len(choices) > 1 else f"{key}=choice({choices[0]})"
    if "range" in entry:
        return f"{key}=range({','.join(map(to_text, entry['range']))})"
    if "interval" in entry:
        interval = f"interval({','.join(map(to_text, entry['interval']))})"
        return f"{key}=tag(log,{interval})" if entry["log"] else f"{key}={interval}"
    if "glob" in entry:
        include, exclude = (f"[{','.join(entry[name])}]" for name in ("glob", "exclude"))
        return f"{key}=glob({include},exclude={exclude})"
    return str(key)
