"""The images that a run could not read and went on without: one list, written by all its processes. Imports no torch."""

import csv
import io
from pathlib import Path

from alexlab.cells import CellWriter, restored, write_csv
from alexlab.errors import ImageError

COLUMNS = ("path", "code", "reason")


class Skipped:
    """Adds each unreadable image to a CSV file: a line is one write, so that processes do not mix their lines.

    Args:
        path: of the file, which is there from the first entry on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: set[str] = set()

    def add(self, error: ImageError) -> None:
        """Lists the image, once for each process."""
        if error.path in self.known:
            return
        self.known.add(error.path)
        line = io.StringIO()
        CellWriter(line).writerow([error.path, error.code, error.reason])
        with self.path.open("a", newline="", encoding="utf-8", errors="shown") as file:
            file.write(line.getvalue())

    def finish(self) -> int:
        """Puts a header over the list, each image once, and gives their number. For one process, when all are done."""
        if not self.path.exists():
            return 0
        with self.path.open(newline="", encoding="utf-8") as file:
            rows = {
                row[0]: [restored(cell) for cell in row] for row in csv.reader(file) if row and row[0] != COLUMNS[0]
            }
        write_csv(self.path, [COLUMNS, *(row for _, row in sorted(rows.items()))])
        return len(rows)
