"""Corrected manifest: the rows of a dataset with the decisions on suspicious labels."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from alexlab.data.manifest import ManifestRow, write_manifest
from alexlab.data.splits import Splits
from alexlab.data.table import read_table
from alexlab.errors import DataError
from alexlab.output.escape import shown
from alexlab.records.disk_errors import make_out_dir

DECISIONS = ("accept", "reject", "remove")
COLUMNS = ("path", "class", "proposed", "quality", "proposed_prob", "decision")


@dataclass(frozen=True)
class Decision:
    """Decision on the label of one image.

    Args:
        where: file and line, for messages.
        path: path of the image, relative to the dataset's folder.
        label: class that the image has; "" if the file does not name it.
        proposed: class that it gets if the proposal is accepted.
        quality: probability of the label, 0..1; None if the file does not have it.
        decision: one of DECISIONS, or "" for an undecided image.
    """

    where: str
    path: str
    label: str
    proposed: str
    quality: float | None
    decision: str


def read_decisions(path: Path) -> list[Decision]:
    """Return the rows of labels.csv or decisions.csv.

    Raises:
        DataError: if a cell is invalid, or an image is listed twice; with the line.
    """
    decisions: dict[str, Decision] = {}
    for where, cells in read_table(path, what="a table of decisions", needed=("path", "proposed", "decision")):
        decision = cells["decision"].lower()
        if decision not in ("", *DECISIONS):
            raise DataError(f"{where}: decision must be {', '.join(DECISIONS)} or empty; got {cells['decision']!r}")
        quality = cells.get("quality", "").replace(",", ".")  # the decimal comma of a spreadsheet
        try:
            number = float(quality) if quality else None
        except ValueError as error:
            raise DataError(f"{where}: quality must be a number; got {quality!r}") from error
        if cells["path"] in decisions:
            raise DataError(f"{where}: each image must be listed once; {shown(cells['path'])} is listed before")
        decisions[cells["path"]] = Decision(
            where, cells["path"], cells.get("class", ""), cells["proposed"], number, decision
        )
    return list(decisions.values())


def accept_below(decisions: list[Decision], quality: float) -> list[Decision]:
    """Return the decisions with the undecided images below a quality accepted.

    Raises:
        DataError: if an undecided row has no quality.
    """
    lacking = next((row for row in decisions if not row.decision and row.quality is None), None)
    if lacking is not None:
        raise DataError(f"{lacking.where}: accept=NUMBER needs a number in the column quality")
    return [
        replace(row, decision="accept")
        if not row.decision and row.quality is not None and row.quality < quality
        else row
        for row in decisions
    ]


def in_train(decisions: list[Decision], splits: Splits) -> list[Decision]:
    """Return the decisions without those on images of val and test."""
    others = {path for name, split in splits.items() if name != "train" for path in split.paths}
    return [row for row in decisions if row.path not in others]


def corrected_rows(splits: Splits, decisions: list[Decision]) -> list[ManifestRow]:
    """Return the manifest rows of a dataset, with the class of accepted and without removed images; splits are kept.

    Raises:
        DataError: if a decision names an image or a class that the dataset does not have, or another label than its own.
    """
    pending = {row.path: row for row in decisions}
    root = os.path.abspath(splits.train.root)
    kept: list[ManifestRow] = []
    for name, split in splits.items():
        for index, (path, label) in enumerate(zip(split.paths, split.labels.tolist(), strict=True)):
            decision, given = pending.pop(path, None), split.classes[label]
            if decision is not None:
                _check(decision, given, splits)
            if decision is not None and decision.decision == "remove":
                continue
            accepted = decision is not None and decision.decision == "accept"
            sha256 = (split.sha256(index) or b"").hex()
            kept.append(
                ManifestRow(
                    path,
                    sha256=sha256,
                    label=decision.proposed if accepted and decision else given,
                    split=name,
                    root=root,
                )
            )
    unknown = next((row for row in pending.values() if row.decision), None)
    if unknown is not None:
        raise DataError(
            f"{unknown.where}: the path must be that of an image of {shown(root)}; got {shown(unknown.path)}"
        )
    trained = {row.label for row in kept if row.split == "train"}
    lost = [name for name in splits.train.classes if name not in trained]
    if lost:
        raise DataError(
            f"every class must keep a training image; the decisions leave none of {shown(lost[0])}: change some of them"
        )
    return kept


def write_corrected(splits: Splits, decisions: list[Decision], path: Path) -> None:
    """Write the manifest of `corrected_rows`, and its folder if that does not exist.

    Raises:
        ConfigError: if the folder cannot be one.
        DataError: as `corrected_rows`; nothing is written then.
    """
    rows = corrected_rows(splits, decisions)
    make_out_dir(path.parent)
    write_manifest(rows, path, with_root=True)


def _check(decision: Decision, label: str, splits: Splits) -> None:
    if decision.label not in ("", label):
        raise DataError(
            f"{decision.where}: the class must be that of the image in the dataset, {shown(label)}; got {shown(decision.label)}"
        )
    if decision.decision == "accept" and decision.proposed not in splits.classes:
        raise DataError(
            f"{decision.where}: proposed must be one of {', '.join(map(shown, splits.classes[:20]))}; "
            f"got {shown(decision.proposed)!r}"
        )
