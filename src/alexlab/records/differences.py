"""Differences between two runs besides their scores: config, code, data, versions, machine."""

import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from alexlab.records.layout import CODE_DIFF
from alexlab.records.provenance import CODE_DIR
from alexlab.records.results import RunResult
from alexlab.records.settings import differing_keys, has_key, key_values

MAX_DIFF = 200_000  # characters
Record: TypeAlias = dict[str, Any]  # of a run, checked
COMMIT = re.compile(r"[0-9a-f]{7,64}")


class RecordDifference(NamedTuple):
    """A property in which two runs differ.

    Args:
        name: what it is.
        before, after: its values in both runs.
    """

    name: str
    before: str
    after: str


def record_differences(a: Sequence[Record], b: Sequence[Record]) -> list[RecordDifference]:
    """Return the differences between the runs of A and those of B in code, images, versions and machine.

    A cell lists the different values of its runs. Code with uncommitted changes counts as different, because two runs with
    changes need not have the same ones. What the records of A or B lack, as those in checkpoints lack the machine, is left out.

    Args:
        a, b: records of the runs.
    """
    code = RecordDifference("code", *_cells(_code, a, b))
    found = [code] if any(record["code"]["dirty"] for record in (*a, *b)) else _unequal([code])
    counts, fingerprints = _cells(_counts, a, b), _cells(_fingerprint, a, b)
    if counts[0] == counts[1] and all(fingerprints) and fingerprints[0] != fingerprints[1]:
        counts = _cells(_images, a, b)
    found += _unequal([RecordDifference("images", *counts)])
    names = sorted({name for record in (*a, *b) for name in record["versions"]})
    versions = [RecordDifference(f"version of {name}", *_cells(partial(_version, name), a, b)) for name in names]
    rows = [*found, *_unequal([*versions, RecordDifference("machine", *_cells(_machine, a, b))])]
    return [row for row in rows if row.before and row.after]


def _cells(describe: Callable[[Record], str], a: Sequence[Record], b: Sequence[Record]) -> list[str]:
    """Return the different descriptions of the records of A, and of B; an empty text stands for what is not recorded."""
    return ["; ".join(dict.fromkeys(filter(None, map(describe, records)))) for records in (a, b)]


def _unequal(differences: Sequence[RecordDifference]) -> list[RecordDifference]:
    return [each for each in differences if each.before != each.after]


def _code(record: Record) -> str:
    commit = record["code"]["commit"]
    return (str(commit)[:12] if commit else "unknown commit") + (" with changes" if record["code"]["dirty"] else "")


def _counts(record: Record) -> str:
    counts = record.get("data", {}).get("counts") or {}
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _fingerprint(record: Record) -> str:
    return str(record.get("data", {}).get("fingerprint") or "")


def _images(record: Record) -> str:
    return f"{_counts(record)}, fingerprint {_fingerprint(record)[:8]}"


def _version(name: str, record: Record) -> str:
    return str(record["versions"].get(name, "none" if record["versions"] else ""))


def _machine(record: Record) -> str:
    if record["hardware"]["cpu"] == "unknown":
        return ""
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
