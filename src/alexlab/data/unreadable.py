"""The images that a run could not read and went on without: one list, written by all its processes. Imports no torch."""

import csv
import io
from pathlib import Path

from alexlab.errors import ImageError
from alexlab.output.csv_files import CellWriter, csv_bytes, unescape_formula
from alexlab.runs.atomic import write_atomic
from alexlab.runs.disk_errors import RunFileWriter

COLUMNS = ("path", "code", "reason")


class UnreadableLog(RunFileWriter):
    """Adds each unreadable image to a CSV file: a line is one write, so that processes do not mix their lines.

    Args:
        path: of the file, which is there from the first entry on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: set[str] = set()

    def add(self, error: ImageError) -> None:
        """Lists the image, once for each process.

        Raises:
            DiskError: when the disk has no room; a run that goes on lists the image when it meets it again.
        """
        if error.path in self.known:
            return
        line = io.StringIO()
        CellWriter(line).writerow([error.path, error.code, error.reason])
        with self.writing(self.path), self.path.open("a", newline="", encoding="utf-8", errors="shown") as file:
            file.write(line.getvalue())
        if not self.failed:
            self.known.add(error.path)

    def finish(self) -> int:
        """Puts a header over the list, each image once, and gives their number. For one process, when all are done."""
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
