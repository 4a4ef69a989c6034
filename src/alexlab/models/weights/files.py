"""Reader of weight files: checkpoints of alexlab and of other programs, state dicts and exported files."""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alexlab.errors import ConfigError
from alexlab.models.weights.state_dicts import State, check_state, find_state
from alexlab.records.file_kind import check_sums, is_safetensors
from alexlab.records.layout import CHECKPOINT_KEY, MEAN_IMAGE
from alexlab.records.safe_load import conversion, load_foreign

MEMBERS = "members"  # entry of an ensemble's record, and prefix of its tensors
NET = "net."  # prefix of the net's tensors in an alexlab checkpoint
MAX_NAME = 255  # maximum length of a class name, which may be the name of a folder


@dataclass(frozen=True)
class WeightFile:
    """Content of a weight file.

    Args:
        state: finite, dense tensors by name.
        record: record of the run in a file written by alexlab: `config`, `choices`, `classes`, `best`, and `mean_image` if the
            run subtracts one; otherwise None.
        notes: remarks for the user on how the file was read.
        members: record and tensors of each network in the file of an ensemble; otherwise empty.
        shares: weight of each of these networks in the average.
    """

    state: State
    record: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    members: list[tuple[dict[str, Any], State]] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)


def read_weights(path: Path, *, own: Any = ()) -> WeightFile:
    """Read a weight file without executing any code that it refers to.

    Args:
        path: path of the file.
        own: names of the tensors of the net that the weights are for, if known.

    Raises:
        ConfigError: if the file cannot be read or contains no usable weights.
    """
    content, names = load_foreign(path)
    notes = []
    try:
        entries = _entries(path, content)
        if entries and is_safetensors(path) and isinstance(entries[0], dict) and MEMBERS in entries[0]:
            return _ensemble(entries[0], content)
        record = checked_record(entries[0]) if entries else None
        if record is None:
            place, state = find_state(content, own=own)
            if place:
                notes.append(f"read from its entry {place}")
        elif is_safetensors(path):
            state = _without_mean_image(dict(content), record)
        else:
            check_sums(path)
            whole = content.get("state_dict")
            if not isinstance(whole, dict):
                raise ValueError("it has no state_dict")
            state = {str(name).removeprefix(NET): value for name, value in whole.items() if str(name).startswith(NET)}
        check_state(state)
    except ValueError as error:
        more = f"; {conversion(path, names)}" if names and str(error).endswith("by name") else ""
        raise ConfigError(f"{path} must contain a state dict: {error}{more}") from error
    if names:
        notes.append(f"ignored objects of {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}")
    return WeightFile(state, record, notes)


def _ensemble(entry: dict[str, Any], content: dict[str, Any]) -> WeightFile:
    """Return the content of the file of an ensemble.

    Raises:
        ValueError: if an entry is missing or has the wrong type.
    """
    records, shares = entry[MEMBERS], entry.get("weights")
    if not isinstance(records, list) or len(records) < 2:
        raise ValueError("an ensemble must have a list of at least 2 members")
    if not isinstance(shares, list) or len(shares) != len(records):
        raise ValueError(f"an ensemble of {len(records)} members must have a list of as many weights")
    members = []
    for number, given in enumerate(records):
        record, prefix = checked_record(given), f"{MEMBERS}.{number}."
        state = {name.removeprefix(prefix): value for name, value in content.items() if name.startswith(prefix)}
        members.append((record, _without_mean_image(state, record)))
        check_state(members[-1][1])
    return WeightFile(dict(content), members=members, shares=shares)


def _without_mean_image(state: State, record: dict[str, Any]) -> State:
    """Return the tensors of a network in an exported file; the mean image goes to the record."""
    if MEAN_IMAGE in state:
        record[MEAN_IMAGE] = state.pop(MEAN_IMAGE)
    return state


def _entries(path: Path, content: Any) -> list[Any]:
    """Return the record of the run, not validated, in a file of alexlab; nothing for other files."""
    if isinstance(content, dict) and CHECKPOINT_KEY in content:
        return [content[CHECKPOINT_KEY]]
    if is_safetensors(path):
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(CHECKPOINT_KEY)
        return [] if text is None else [json.loads(text)]
    return []


def checked_record(record: Any) -> dict[str, Any]:
    """Return a validated record of a run.

    Raises:
        ValueError: if an entry is missing or has the wrong type.
    """
    kinds = {"config": dict, "choices": dict, "classes": list}
    if not isinstance(record, dict):
        raise ValueError(f"its record of the run must be a dict; got {type(record).__name__}")
    for name, kind in kinds.items():
        if not isinstance(record.get(name), kind):
            raise ValueError(
                f"its record of the run must have {name}, a {kind.__name__}; got {type(record.get(name)).__name__}"
            )
    check_classes(record["classes"])
    best = record.get("best") or {}
    if not isinstance(best, dict) or not all(isinstance(value, int | float) for value in best.values()):
        raise ValueError("the best scores in its record must be numbers by name")
    option = record["choices"].get("model")
    if option is not None and not (isinstance(option, str) and re.fullmatch(r"[\w-]{1,100}", option)):
        raise ValueError(
            f"the name of the model in its record must be letters, digits, _ and -; got {str(option)[:100]!r}"
        )
    shown = record["config"].get("class_names")
    if shown is not None and not (
        isinstance(shown, dict) and all(isinstance(text, str) for text in [*shown, *shown.values()])
    ):
        raise ValueError("class_names in its config must map names to names")
    return {**record, "best": best}


def check_classes(classes: Any) -> None:
    """Raise ValueError unless these are unique class names that could name folders."""
    for name in classes:
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
            given = f"{len(name)} characters" if isinstance(name, str) else type(name).__name__
            raise ValueError(f"a class name must be a string of 1 to {MAX_NAME} characters; got {given}")
    if not classes:
        raise ValueError("it must have class names; its list is empty")
    (name, count), *_ = Counter(classes).most_common(1)
    if count > 1:
        raise ValueError(f"class names must be unique; {name!r} occurs {count} times")
