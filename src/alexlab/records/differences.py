"""Differences between two runs besides their scores: config, code, data, versions, machine."""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from alexlab.records.compare import differing_keys, has_key, key_values
from alexlab.records.layout import CODE_DIFF
from alexlab.records.provenance import CODE_DIR
from alexlab.records.results import RunResult

MAX_DIFF = 200_000  # characters
COMMIT = re.compile(r"[0-9a-f]{7,64}")


class Difference(NamedTuple):
    """A property in which two runs differ.

    Args:
        name: what it is.
        before, after: its values in both runs.
    """

    name: str
    before: str
    after: str


def record_differences(before: dict[str, Any], after: dict[str, Any]) -> list[Difference]:
    """Return the differences of two run records in code, data, versions and machine.

    Code with uncommitted changes counts as different, because two runs with changes need not have the same ones.
    """
    records = before, after
    found = [Difference("code", *map(_code, records))]
    if not any(record["code"]["dirty"] for record in records):
        found = _unequal(found)
    if len({str(record.get("data", {}).get("fingerprint")) for record in records}) > 1:
        images = [Difference("images", *map(_counts, records))]
        found += _unequal(images) or [Difference("images", *map(_fingerprint, records))]
    names = sorted({name for record in records for name in record["versions"]})
    versions = [
        Difference(f"version of {name}", *(record["versions"].get(name, "none") for record in records))
        for name in names
    ]
    return [*found, *_unequal([*versions, Difference("machine", *map(_machine, records))])]


def _unequal(differences: Sequence[Difference]) -> list[Difference]:
    return [each for each in differences if each.before != each.after]


def _code(record: dict[str, Any]) -> str:
    return str(record["code"]["commit"] or "no commit")[:12] + (" with changes" if record["code"]["dirty"] else "")


def _counts(record: dict[str, Any]) -> str:
    counts = record.get("data", {}).get("counts") or {}
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "not recorded"


def _fingerprint(record: dict[str, Any]) -> str:
    return f"{_counts(record)}, fingerprint {str(record.get('data', {}).get('fingerprint'))[:8]}"


def _machine(record: dict[str, Any]) -> str:
    gpus = ", ".join(map(str, record.get("gpus") or ["no GPU"]))
    return f"{record['hardware']['cpu']}, {record['hardware']['cores']} cores, {gpus}"


class ConfigDifference(NamedTuple):
    """A config group or key in which two runs differ.

    Args:
        key: its name.
        values: for each run a tuple with the value; an empty one if the run does not have the key.
    """

    key: str
    values: Sequence[tuple[Any, ...]]


def config_differences(runs: Sequence[RunResult], *, groups: bool) -> list[ConfigDifference]:
    """Return the keys that affect the result and in which two runs differ, see `differing_keys`.

    Args:
        runs: the two runs.
        groups: a config group with different options stands for the keys that it sets; False for all keys.
    """
    if not groups:
        runs = [replace(run, record={**run.record, "choices": {}}) for run in runs]
    found = []
    for key in differing_keys(runs):
        present = [has_key(run, key) for run in runs]
        values = [(key_values(run, [key])[key],) if has else () for run, has in zip(runs, present, strict=True)]
        found.append(ConfigDifference(key, values))
    return found


def code_differences(runs: Sequence[RunResult], *, code_dir: Path = CODE_DIR) -> list[tuple[str, str]]:
    """Return a title and a unified diff for each part of the code in which two runs differ.

    The parts are the changes between their commits, if the checkout has both, and the uncommitted changes of each run.

    Args:
        runs: the two runs.
        code_dir: checkout to read the commits from.
    """
    commits = [str(run.record["code"]["commit"] or "") for run in runs]
    found = []
    if commits[0] != commits[1] and all(map(COMMIT.fullmatch, commits)):
        title = f"from {commits[0][:12]} to {commits[1][:12]}"
        found.append((title, _git_diff(code_dir, commits)))
    own = [_own_changes(run) for run in runs]
    if own[0] != own[1]:
        found += [(f"uncommitted changes of {name}", text) for name, text in zip("AB", own, strict=True)]
    return [(title, _shortened(text)) for title, text in found if text]


def _git_diff(code_dir: Path, commits: Sequence[str]) -> str:
    command = ["git", "-C", str(code_dir), "diff", *commits, "--", "src", "conf"]
    try:
        output = subprocess.run(command, capture_output=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):  # no checkout, or one without these commits
        return ""
    return output.decode("utf-8", "replace")


def _own_changes(run: RunResult) -> str:
    path = run.folder / CODE_DIFF
    if not run.record["code"]["dirty"] or not path.is_file():  # a later attempt without changes leaves the file
        return ""
    return path.read_text(encoding="utf-8", errors="replace")


def _shortened(text: str) -> str:
    if len(text) <= MAX_DIFF:
        return text
    kept = text[:MAX_DIFF].rpartition("\n")[0]
    return f"{kept}\n... and {len(text) - len(kept):,} more characters"
