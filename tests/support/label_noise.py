"""Planted label noise, for the tests and for the figures in docs/data.md.

`PYTHONPATH=src:tests python -m support.label_noise DIR OUT.csv` writes a manifest in which 5 % of the labels are wrong, and
`... OUT.csv labels.csv` prints how many of them `prepare.py action=labels` has found.
"""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from alexlab.data.discovery import find_splits
from alexlab.data.manifest import ManifestRow, write_manifest
from alexlab.data.splits import Splits
from support.runs import rows as read_rows

FRACTION = 0.05


def flip_labels(rows: Sequence[ManifestRow], fraction: float = FRACTION) -> list[ManifestRow]:
    """Return manifest rows of which a fraction has another class, both chosen by a hash of the path; test is not changed."""
    classes = sorted({row.label for row in rows})
    drawn = [int.from_bytes(hashlib.sha256(row.path.encode()).digest()[:8]) for row in rows]
    chosen = sorted((n for n, row in enumerate(rows) if row.split != "test"), key=drawn.__getitem__)
    flipped = list(rows)
    for number in chosen[: round(fraction * len(chosen))]:
        others = [name for name in classes if name != rows[number].label]
        flipped[number] = replace(rows[number], label=others[drawn[number] // 1009 % len(others)])
    return flipped


def split_rows(splits: Splits) -> list[ManifestRow]:
    """Return the rows of a dataset with absolute paths."""
    return [
        ManifestRow(split.file_path(index), label=split.classes[split.labels[index]], split=name)
        for name, split in splits.items()
        for index in range(len(split))
    ]


def recall_and_precision(flipped: set[str], found: Sequence[str]) -> tuple[float, float]:
    """Return the fraction of the flipped images that were found, and the fraction of the found images that were flipped."""
    hits = len(flipped & {*found})
    return hits / len(flipped), hits / max(1, len(found))


def main(source: str, target: str) -> None:
    """Write a manifest with flipped labels, or compare labels.csv with one."""
    if Path(source).is_dir():
        splits = find_splits(str(Path(source).resolve()), val_fraction=0.2, test_fraction=0.0)
        write_manifest(flip_labels(split_rows(splits)), Path(target))
        return
    true = {row["path"]: Path(row["path"]).parent.name for row in read_rows(Path(source))}
    flipped = {row["path"] for row in read_rows(Path(source)) if row["class"] != true[row["path"]]}
    suspects = read_rows(Path(target))
    paths = [row["path"] for row in suspects]
    recall, precision = recall_and_precision(flipped, paths)
    first_50, first = (recall_and_precision(flipped, paths[:count])[1] for count in (50, len(flipped)))
    restored = sum(row["path"] in flipped and row["proposed"] == true[row["path"]] for row in suspects)
    print(f"{len(flipped)} flipped, {len(paths)} suspicious: recall {recall:.3f}, precision {precision:.3f}")
    print(f"precision of the first 50: {first_50:.3f}, of as many as were flipped: {first:.3f}")
    print(f"flipped labels whose true class is proposed: {restored}")


if __name__ == "__main__":
    main(*sys.argv[1:])
