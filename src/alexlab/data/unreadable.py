"""Log of the images that a run could not read and skipped, written by all of its processes."""

import csv
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alexlab.errors import ImageError
from alexlab.output.command_line import command_line
from alexlab.output.csv_files import CellWriter, csv_bytes, unescape_formula
from alexlab.records.atomic import write_atomic
from alexlab.records.disk_errors import RunFileWriter

COLUMNS = ("path", "code", "reason")


class UnreadableLog(RunFileWriter):
    """CSV file to which each unreadable image is appended in a single write, so that processes do not mix their lines.

    Args:
        path: path of the file, which is created by the first entry.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.logged: set[str] = set()

    def add(self, error: ImageError) -> None:
        """Append an image, once per process.

        Raises:
            DiskError: if the disk is full. With `continue_on_full_disk`, the image is appended when it is next read instead.
        """
        if error.path in self.logged:
            return
        line = io.StringIO()
        CellWriter(line).writerow([error.path, error.code, error.reason])
        with self.writing(self.path), self.path.open("a", newline="", encoding="utf-8", errors="shown") as file:
            file.write(line.getvalue())
        if not self.failed:
            self.logged.add(error.path)

    def finish(self) -> int:
        """Sort the log, list each image once, add a header, and return the number of images.

        Must be called by one process, after all others have stopped writing.
        """
        if not self.path.exists():
            return 0
        with self.path.open(newline="", encoding="utf-8") as file:
            rows = {
                row[0]: [unescape_formula(cell) for cell in row]
                for row in csv.reader(file)
                if row and row[0] != COLUMNS[0]
            }
        with self.writing(self.path):
            write_atomic(self.path, csv_bytes([COLUMNS, *(row for _, row in sorted(rows.items()))]))
        return len(rows)


@contextmanager
def suggest_skipping(data: Mapping[str, Any]) -> Iterator[None]:
    """Add to an ImageError how to continue without unreadable images, and how to list them.

    Args:
        data: the `data` node of the config.
    """
    try:
        yield
    except ImageError as error:
        if data.get("on_error") != "raise":
            raise
        hint = "data.on_error=skip leaves unreadable images out"
        root = data.get("root")
        if root is not None and os.path.isdir(root):  # the images of a manifest may be anywhere
            hint += f", and {command_line('prepare', 'action=check', f'data.root={root}')} lists them"
        raise error.with_hint(hint) from error
