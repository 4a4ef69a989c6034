"""Quarantine: move unreadable files out of a dataset, and back."""

import json
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from alexlab.data.scan import check_root
from alexlab.errors import ConfigError, DataError, DiskError
from alexlab.output.escape import shown
from alexlab.records.disk_errors import disk_errors

MOVES = "moves.jsonl"


def quarantine(root: str, paths: Sequence[str], folder: Path) -> int:
    """Move files into a new folder. Each is recorded in its `moves.jsonl` before it is moved, so that `restore` can undo it.

    Args:
        root: folder of the dataset.
        paths: files to move, relative to root.
        folder: quarantine folder, which must not exist.

    Returns:
        The number of moved files.

    Raises:
        ConfigError: if the folder exists or is inside the dataset.
        DataError: if a path leads out of the dataset through a link; nothing is moved then.
    """
    if folder.exists():
        raise ConfigError(f"quarantine must be a new folder; {folder} exists")
    if is_inside(str(folder), root):
        raise ConfigError(f"quarantine must be outside of the dataset; {folder} is in {root}")
    existing = [path for path in paths if os.path.lexists(os.path.join(root, path))]
    for path in existing:
        if not is_inside(os.path.join(root, path), root):
            raise DataError(f"only files inside {shown(root)} can be moved; {shown(path)} is outside, behind a link")
    for path in existing:
        source, target = os.path.abspath(os.path.join(root, path)), folder / path
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with (folder / MOVES).open("a") as file:
                file.write(json.dumps({"from": source, "to": path}) + "\n")
            shutil.move(source, target)
    return len(existing)


def is_inside(path: str, folder: str) -> bool:
    """Return whether a path is below a folder; links are followed, except in the last component of the path."""
    parent = os.path.realpath(os.path.dirname(os.path.abspath(path)))
    return f"{parent}/".startswith(f"{os.path.realpath(folder).rstrip('/')}/")


def restore(root: str, folder: Path) -> int:
    """Move the files of a quarantine back and return their number.

    `moves.jsonl` is untrusted: all of it is checked before any file is moved.

    Args:
        root: folder of the dataset that the files were moved out of.
        folder: quarantine folder.

    Raises:
        ConfigError: if the folder is not a quarantine.
        DataError: if a line would move anything but a file of the quarantine to the same path below root, or if that path
            is taken; nothing is moved then. The message has the line number.
        DiskError: if a file cannot be moved; calling `restore` again moves the rest.
    """
    if not (folder / MOVES).is_file():
        raise ConfigError(f"quarantine must be a folder created by fix=quarantine; {folder} has no {MOVES}")
    check_root(root)
    paths = _checked_moves(root, folder)
    try:
        for path in paths:
            target = os.path.join(root, path)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.move(folder / path, target)
        (folder / MOVES).unlink()
    except OSError as error:
        raise DiskError(f"cannot move the files back to {shown(root)}: {error}") from error
    return len(paths)


def _checked_moves(root: str, folder: Path) -> list[str]:
    """Return the recorded paths that are still in the quarantine."""
    paths: dict[str, str] = {}
    for number, line in enumerate((folder / MOVES).read_bytes().splitlines(), start=1):
        where = f"{shown(folder / MOVES)}, line {number}"
        path = _parse_move(line, root, where)
        if not os.path.lexists(folder / path):
            continue  # restored by an earlier call, or never moved
        if not is_inside(os.path.join(root, path), root) or not is_inside(str(folder / path), str(folder)):
            raise DataError(f"{where}: {shown(path)} must not pass through a link that leads out of its folder")
        if stat.S_IFMT(os.lstat(folder / path).st_mode) not in (stat.S_IFREG, stat.S_IFLNK):
            raise DataError(f"{where}: {shown(path)} must be a file; it is a folder or a special file")
        if os.path.lexists(os.path.join(root, path)):
            raise DataError(f"{where}: cannot restore {shown(path)}; {shown(os.path.join(root, path))} exists")
        paths[path] = where
    for path, where in paths.items():
        if any(str(parent) in paths for parent in Path(path).parents):
            raise DataError(f"{where}: {shown(path)} is below another file in the list")
    return list(paths)


def _parse_move(line: bytes, root: str, where: str) -> str:
    """Return the path of one line, relative to both the dataset and the quarantine."""
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
        raise DataError(f"{where}: `from` must be {shown(path)} inside data.root={shown(root)}; got {source!r}")
    return path
