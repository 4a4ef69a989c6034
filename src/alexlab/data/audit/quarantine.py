"""Moves files that cannot be read out of a data set, and back. Imports no torch."""

import json
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from alexlab.data.scan import check_root
from alexlab.errors import ConfigError, DataError, DiskError
from alexlab.output.escape import shown
from alexlab.runs.atomic import disk_errors

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
        ConfigError: when the folder exists or lies in the data set.
        DataError: when a file lies in a folder that a link outside of the data set leads to; then nothing is moved.
    """
    if folder.exists():
        raise ConfigError(f"quarantine must be a new folder; {folder} exists")
    if inside(str(folder), root):
        raise ConfigError(f"quarantine must lie outside of the data set; {folder} is in {root}")
    there = [path for path in paths if os.path.lexists(os.path.join(root, path))]
    for path in there:
        if not inside(os.path.join(root, path), root):
            raise DataError(f"only files inside {shown(root)} are moved; a link leads out of it to {shown(path)}")
    for path in there:
        source, target = os.path.abspath(os.path.join(root, path)), folder / path
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with (folder / MOVES).open("a") as file:
                file.write(json.dumps({"from": source, "to": path}) + "\n")
            shutil.move(source, target)
    return len(there)


def inside(path: str, folder: str) -> bool:
    """Return whether a path lies below a folder when all links in front of its last part are followed."""
    parent = os.path.realpath(os.path.dirname(os.path.abspath(path)))
    return f"{parent}/".startswith(f"{os.path.realpath(folder).rstrip('/')}/")


def restore(root: str, folder: Path) -> int:
    """Moves the files of a quarantine back to where they were, and gives their number.

    The list may come from a stranger: all of it is checked before anything is moved.

    Args:
        root: the data set's folder, which every file must have come from.
        folder: of the quarantine.

    Raises:
        ConfigError: when the folder is no quarantine.
        DataError: by line, when a file would not move from the quarantine to the same path below root, or another file has
            taken its place; then nothing is moved.
        DiskError: when a file cannot be moved; the same call moves the rest.
    """
    if not (folder / MOVES).is_file():
        raise ConfigError(f"quarantine must be a folder that fix=quarantine has made; {folder} has no {MOVES}")
    check_root(root)
    paths: dict[str, str] = {}
    for number, line in enumerate((folder / MOVES).read_bytes().splitlines(), start=1):
        where = f"{shown(folder / MOVES)}, line {number}"
        path = _restorable(line, root, where)
        if not os.path.lexists(folder / path):
            continue  # moved back by an earlier call, or never moved
        if not inside(os.path.join(root, path), root) or not inside(str(folder / path), str(folder)):
            raise DataError(f"{where}: {shown(path)} must lie in its folder; a link leads out of it")
        if stat.S_IFMT(os.lstat(folder / path).st_mode) not in (stat.S_IFREG, stat.S_IFLNK):
            raise DataError(f"{where}: {shown(path)} must be a file; it is a folder or a special file")
        if os.path.lexists(os.path.join(root, path)):
            raise DataError(
                f"{where}: the place of a file in quarantine must be free; there is another file at "
                f"{shown(os.path.join(root, path))}"
            )
        paths[path] = where
    for path, where in paths.items():
        if any(str(parent) in paths for parent in Path(path).parents):
            raise DataError(f"{where}: {shown(path)} lies below another file that is listed")
    try:
        for path in paths:
            target = os.path.join(root, path)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.move(folder / path, target)
        (folder / MOVES).unlink()
    except OSError as error:
        raise DiskError(f"cannot move the files back to {shown(root)}: {error}") from error
    return len(paths)


def _restorable(line: bytes, root: str, where: str) -> str:
    """The path of a listed file, the same in the data set and in the quarantine."""
    try:
        move = json.loads(line)
        source, path = move["from"], move["to"]
    except (ValueError, TypeError, KeyError, RecursionError):
        source = path = None
    if not (isinstance(source, str) and isinstance(path, str)) or set(move) != {"from", "to"}:
        raise DataError(f'{where}: a line must be {{"from": PATH, "to": PATH}}; got {shown(os.fsdecode(line[:200]))!r}')
    if path != os.path.normpath(path) or path.split("/")[0] in ("", "..", ".", MOVES) or "\0" in path + source:
        raise DataError(f"{where}: `to` must be a path inside the quarantine; got {path!r}")
    if os.path.realpath(source.removesuffix(path)) != os.path.realpath(root) or not source.endswith(f"/{path}"):
        raise DataError(
            f"{where}: `from` must be {shown(path)} inside data.root={shown(root)}, where the files were; got {source!r}"
        )
    return path
