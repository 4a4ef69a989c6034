"""Files and terminal tables of predictions on unlabelled images."""

import json
import os
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from rich.table import Table

from alexlab.data.decode import decode
from alexlab.errors import DataError
from alexlab.inference.checkpoint import TrainedModel
from alexlab.inference.predict import FilePrediction
from alexlab.output.command_line import short_path
from alexlab.output.csv_files import CellWriter
from alexlab.output.escape import print_line, writable
from alexlab.output.numbers import counted
from alexlab.output.terminal import PathCell, Terminal
from alexlab.pages.images import thumbnail_url
from alexlab.pages.render import render

MAX_ROWS = 20  # in the terminal
GALLERY_HEIGHT = 150  # pixels of an image
NUM_CAPTIONS = 3  # classes below an image of the gallery
MIN_PROB = 0.0005  # less is shown as 0.000, and is left out there


class PredictionWriter:
    """Context manager that writes predictions to files as they arrive.

    It writes predictions.csv and predictions.jsonl, gallery.html if `gallery_limit` is positive, and failed.csv if a file
    cannot be read.

    Args:
        out_dir: folder of the files.
        model: the model that makes the predictions.
        source: `input` of the command, for the title of the gallery and for messages.
        gallery_limit: maximum number of images in the gallery.
    """

    def __init__(self, out_dir: Path, model: TrainedModel, source: str, *, gallery_limit: int) -> None:
        self.out_dir, self.model, self.source, self.gallery_limit = out_dir, model, source, gallery_limit
        self.first_rows: list[tuple[str, list[dict[str, Any]]]] = []
        self.class_counts: Counter[str] = Counter()
        self.num_failed = 0
        self.open_files = ExitStack()
        self.failed: CellWriter | None = None

    def __enter__(self) -> "PredictionWriter":
        self.csv, self.jsonl = CellWriter(self._open("predictions.csv")), self._open("predictions.jsonl")
        self.csv.writerow(["path", "class", "prob", "others"])
        self.gallery = self._open("gallery.html") if self.gallery_limit else None
        if self.gallery is not None:
            source = "a list of files" if self.source == "-" else self.source
            about = {"Model": self.model.description, "Checkpoint": self.model.label}
            self.gallery.write(render("gallery_head.html", title=f"Predictions for {source}", about=about))
        return self

    def __exit__(self, *_: object) -> None:
        if self.gallery is not None:
            num_left = max(0, self.num_read - self.gallery_limit)
            self.gallery.write(render("gallery_foot.html", num_left=num_left, num_failed=self.num_failed))
        self.open_files.close()

    @property
    def num_read(self) -> int:
        """Number of images that were predicted."""
        return self.class_counts.total()

    def write(self, prediction: FilePrediction) -> None:
        """Write the prediction or the error of one file."""
        path = writable(prediction.path)
        if prediction.error is not None:
            if self.failed is None:
                self.failed = CellWriter(self._open("failed.csv"))
                self.failed.writerow(["path", "code", "reason"])
            self.failed.writerow([path, prediction.error.code, prediction.error.reason])
            self.num_failed += 1
            return
        names = [writable(self.model.names[number]) for number in prediction.classes]
        top = [{"class": name, "prob": round(prob, 6)} for name, prob in zip(names, prediction.probs, strict=True)]
        others = " ".join(f"{entry['class']}:{entry['prob']}" for entry in top[1:])
        self.csv.writerow([path, names[0], f"{prediction.probs[0]:.6f}", others])
        self.jsonl.write(json.dumps({"path": path, "predictions": top}, ensure_ascii=False) + "\n")
        if len(self.first_rows) < MAX_ROWS:
            self.first_rows.append((path, top))
        if self.gallery is not None and self.num_read < self.gallery_limit:
            self.gallery.write(self._gallery_image(prediction.path, top))
        self.class_counts[names[0]] += 1

    def print_summary(self) -> None:
        """Print the first predictions, the number of images per predicted class and the number of unreadable files.

        Raises:
            DataError: if no image was predicted.
        """
        if not self.num_read:
            failed = f"; {counted(self.num_failed, 'file')} could not be read, see {self.out_dir / 'failed.csv'}"
            raise DataError(f"input={self.source} must match images; found none{failed if self.num_failed else ''}")
        Terminal().print_table(self._first_table(), optional=[f"prediction {rank}" for rank in (5, 4, 3)])
        if self.num_read > MAX_ROWS:
            counts = Table("predicted class", "images")
            for name, count in self.class_counts.most_common(MAX_ROWS):
                counts.add_row(name, f"{count:,}")
            Terminal().print_table(counts)
        if self.num_failed:
            print_line(
                f"{counted(self.num_failed, 'file')} could not be read: {short_path(self.out_dir / 'failed.csv')}"
            )

    def _first_table(self) -> Table:
        title = f"the first {len(self.first_rows)} of {self.num_read:,} images" if self.num_read > MAX_ROWS else None
        table = Table(title=title)
        table.add_column("image")
        for rank in range(1, len(self.first_rows[0][1]) + 1):
            table.add_column(f"prediction {rank}", overflow="fold")
        for path, top in self.first_rows:
            table.add_row(PathCell(path), *(f"{entry['class']} {entry['prob']:.3f}" for entry in top))
        return table

    def _gallery_image(self, path: str, top: list[dict[str, Any]]) -> str:
        pixels = decode(path, replace(self.model.decoding, channels=3))
        likely = [entry for entry in top[:NUM_CAPTIONS] if entry["prob"] >= MIN_PROB]
        return render(
            "gallery_image.html",
            url=thumbnail_url(pixels, GALLERY_HEIGHT),
            path=path,
            name=os.path.basename(path),
            first=top[0],
            others=likely[1:],
        )

    def _open(self, name: str) -> TextIO:
        file = (self.out_dir / name).open("w", newline="", encoding="utf-8")
        return self.open_files.enter_context(file)
