"""Image files named on the command line: a file, a folder, a glob or a list on the standard input."""

import codecs
import glob
import io
import logging
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from typing import cast

from alexlab.data.file_types import IMAGE_EXTENSIONS, SPECIAL_FILES, file_type
from alexlab.data.hidden_names import is_hidden
from alexlab.errors import DataError
from alexlab.output.escape import shown

log = logging.getLogger(__name__)


def find_files(pattern: str) -> Iterator[str]:
    """Yield the files that `pattern` names, sorted, or in the order of a list. At most one folder's names are in memory.

    Args:
        pattern: a file, a folder (the images in it, recursively), a glob (`**` matches any depth; without it, a matched
            folder stands for the images in it), or `-` for a list on the standard input, see `read_list`.

    Raises:
        DataError: if a path does not exist. A folder without images or a glob without matches yields nothing.
    """
    if pattern == "-":
        if sys.stdin is None:
            raise DataError("input=- reads a list from the standard input, which is closed")
        return read_list(cast(io.BufferedReader, sys.stdin.buffer))
    if os.path.isdir(pattern):
        return _walk(pattern, set())
    if os.path.exists(pattern):
        return iter([pattern])
    if any(letter in pattern for letter in "*?["):
        return _expand_glob(pattern)
    absolute = "" if os.path.isabs(pattern) else f" (looked for {shown(os.path.abspath(pattern))})"
    raise DataError(f"input must be a file, a folder, a glob or -; {shown(pattern)} does not exist{absolute}")


def read_list(stream: io.BufferedReader) -> Iterator[str]:
    """Yield the paths of a list as they arrive: one per line, or terminated by zero bytes as `find -print0` writes them.

    A byte order mark is skipped, and UTF-16, which PowerShell writes, is decoded.
    """
    rest, end = b"", b""
    while chunk := stream.read1(1 << 16):
        rest += chunk
        if not end:
            encoding = _utf16_encoding(rest)
            if encoding:
                lines = (rest + stream.read()).decode(encoding, "replace").lstrip("\ufeff").split("\n")
                yield from filter(None, (line.rstrip("\r") for line in lines))
                return
            rest = rest.removeprefix(codecs.BOM_UTF8)
            end = b"\0" if b"\0" in rest else b"\n" if b"\n" in rest else b""
        if end:
            *paths, rest = rest.split(end)
            yield from _decode_paths(paths, end)
    yield from _decode_paths([rest], end)


def _utf16_encoding(start: bytes) -> str | None:
    """Return the UTF-16 encoding of a text that starts with its byte order mark or with two ASCII letters, else None."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if start[1:2] == start[3:4] == b"\0" and start[0] and start[2]:
        return "utf-16-le"
    return "utf-16-be" if start[0:1] == start[2:3] == b"\0" and start[1] and start[3] else None


def _decode_paths(paths: Iterable[bytes], end: bytes) -> Iterator[str]:
    for path in paths:
        path = path if end == b"\0" else path.removesuffix(b"\r")
        if path.strip():
            yield os.fsdecode(path)


def _expand_glob(pattern: str) -> Iterator[str]:
    recursive, visited = "**" in pattern, set[tuple[int, int]]()
    prefix_length = len(re.split(r"[*?\[]", pattern)[0].rpartition("/")[0])
    for path in sorted(glob.iglob(pattern, recursive=True)):
        if any(map(is_hidden, path[prefix_length:].split("/"))):
            continue
        if not os.path.isdir(path):
            yield path
        elif not recursive:
            yield from _walk(path, visited)


def _walk(top: str, visited: set[tuple[int, int]]) -> Iterator[str]:
    """Yield the images below a folder in the order of their paths. Links to folders are followed, each folder once."""
    pending = [(top, stat.S_IFDIR)]
    while pending:
        path, kind = pending.pop()
        if kind == stat.S_IFDIR:
            pending += reversed(_entries(path, visited))
        elif not path.lower().endswith(IMAGE_EXTENSIONS):
            continue
        elif kind == stat.S_IFREG:
            yield path
        else:
            found = SPECIAL_FILES.get(kind, "not a regular file")
            log.warning("%s is left out: it is %s, and only regular files are read", shown(path), found)


def _entries(folder: str, visited: set[tuple[int, int]]) -> list[tuple[str, int]]:
    """Return paths and kinds of a folder's entries, in the order that they have in the sorted list of all paths below it."""
    try:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:
            log.warning("%s is left out: it leads to a folder that was already read", shown(folder))
            return []
        visited.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            found = [(entry.path, file_type(entry)) for entry in entries if not is_hidden(entry.name)]
    except OSError as error:
        log.warning("%s is left out: %s", shown(folder), error.strerror)
        return []
    # A folder sorts as its name with a slash: a-b.jpg, a/1.jpg, a0.jpg.
    return sorted(found, key=lambda entry: f"{entry[0]}/" if entry[1] == stat.S_IFDIR else entry[0])
