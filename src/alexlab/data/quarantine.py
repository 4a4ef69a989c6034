"""Moves files that cannot be read out of a data set, and back. Imports no torch."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from alexlab.data.listing import shown
from alexlab.disk import writing
from alexlab.errors import ConfigError, DataError

MOVES = "moves.jsonl"


def quarantine(root: str, paths: Sequence[str], folder: Path) -> int:
    """Moves files into a folder, with a list by which `restore` undoes it; each is listed before it is moved.

    Args:
        root: the data set's folder.
        paths: the files, relative to root.
        folder: a new one.

    Returns:
        The number of files that were moved.

    Raises:
        ConfigError: when the folder exists.
    """
    if folder.exists():
        raise ConfigError(f"quarantine must be a new folder; {folder} exists")
    there = [path for path in paths if os.path.lexists(os.path.join(root, path))]
    for path in there:
        source, target = os.path.abspath(os.path.join(root, path)), folder / path
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with (folder / MOVES).open("a") as file:
                file.write(json.dumps({"from": source, "to": path}) + "\n")
            shutil.move(source, target)
    return len(there)


def restore(folder: Path) -> int:
    """Moves the files of a quarantine back to where they were, and gives their number.

    Raises:
        ConfigError: when the folder is no quarantine.
        DataError: when another file has taken the place of one of them; then nothing is moved.
    """
    if not (folder / MOVES).is_file():
        raise ConfigError(f"quarantine must be a folder that fix=quarantine has made; {folder} has no {MOVES}")
    moves = [json.loads(line) for line in (folder / MOVES).read_text().splitlines()]
    moves = [move for move in moves if os.path.lexists(folder / move["to"])]
    taken = [move["from"] for move in moves if os.path.lexists(move["from"])]
    if taken:
        raise DataError(f"the place of a file in quarantine must be free; there is another file at {shown(taken[0])}")
    for move in moves:
        os.makedirs(os.path.dirname(move["from"]), exist_ok=True)
        shutil.move(folder / move["to"], move["from"])
    (folder / MOVES).unlink()
    return len(moves)
