"""`python src/predict.py`: what a trained net says of images. Imports no torch at its top."""

import json
import os
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from alexlab.errors import ConfigError, DataError
from alexlab.output.csv_files import CellWriter
from alexlab.output.escape import print_line, writable

MAX_ROWS = 20  # in the terminal


def run(config: dict[str, Any], *, run_dir: Path, choices: dict[str, str], isolated: bool = False) -> None:
    """Writes predictions.csv, predictions.jsonl, failed.csv and, where asked for, gallery.html, as it goes.

    Args:
        config: the composed config, plain data.
        run_dir: the folder that they are written to.
        choices: the option chosen in each config group; there is none here.
        isolated: of no use here, where nothing is trained.

    Raises:
        AlexlabError: in one sentence.
    """
    from alexlab.config import build
    from alexlab.distributed.hardware import num_cores
    from alexlab.inference.checkpoint import load_checkpoint
    from alexlab.inference.predict import find_files, predictions
    from alexlab.output.progress import track

    for key in ("top_k", "batch_size"):
        if config[key] < 1:
            raise ConfigError(f"{key} must be at least 1; got {config[key]}")
    trained = load_checkpoint(config["ckpt"], class_names=config["class_names"], device=config["device"])
    trained = trained.decoding_with(config["data"])
    found = predictions(
        trained.inference,
        find_files(config["input"]),
        build.eval_view(trained.config, config["views"]),
        decoding=trained.decoding,
        top_k=config["top_k"],
        batch_size=config["batch_size"],
        num_threads=config["num_workers"] or num_cores(),
    )
    limit = config["gallery_limit"] if config["gallery"] else 0
    with Writers(run_dir, trained, gallery_limit=limit) as writers:
        for prediction in track(found, "images"):
            writers.write(prediction)
    writers.report(config["input"])
    names = [path.name for path in sorted(run_dir.iterdir()) if path.suffix in (".csv", ".jsonl", ".html")]
    print_line(f"{os.path.relpath(run_dir)}: {', '.join(names)}")


class Writers:
    """The files that predictions are written to, line by line, and what a person is told at the end.

    Args:
        out: the folder.
        trained: the net.
        gallery_limit: images of the gallery; 0 for none.
    """

    def __init__(self, out: Path, trained: Any, *, gallery_limit: int) -> None:
        self.out, self.trained, self.names, self.limit = out, trained, trained.names, gallery_limit
        self.rows: list[Any] = []  # the first ones
        self.counts: Counter[str] = Counter()
        self.num_failed = 0
        self.open_files = ExitStack()

    def __enter__(self) -> "Writers":
        from alexlab.pages import html

        def opened(name: str) -> Any:
            return self.open_files.enter_context((self.out / name).open("w", newline="", encoding="utf-8"))

        self.table, self.lines = CellWriter(opened("predictions.csv")), opened("predictions.jsonl")
        self.table.writerow(["path", "answer", "prob", "others"])
        self.gallery = opened("gallery.html") if self.limit else None
        if self.gallery is not None:
            self.gallery.write("\n".join([*html.beginning(self.trained.description), "<div class=row>"]))
        self.failed: Any = None
        self.opened = opened
        return self

    def __exit__(self, *_: object) -> None:
        from alexlab.pages import html

        if self.gallery is not None:
            left = self.num_read - self.limit
            more = f"<p>{left:,} more images are in predictions.csv.</p>" if left > 0 else ""
            self.gallery.write(f"</div>{more}{html.ending()}")
        self.open_files.close()

    @property
    def num_read(self) -> int:
        return self.counts.total()

    def write(self, prediction: Any) -> None:
        """Writes what the net says of one file."""
        path = writable(prediction.path)
        if prediction.error is not None:
            if self.failed is None:
                self.failed = CellWriter(self.opened("failed.csv"))
                self.failed.writerow(["path", "code", "reason"])
            self.failed.writerow([path, prediction.error.code, prediction.error.reason])
            self.num_failed += 1
            return
        answers = [writable(self.names[answer]) for answer in prediction.answers]
        said = [{"class": name, "prob": round(prob, 6)} for name, prob in zip(answers, prediction.probs, strict=True)]
        others = " ".join(f"{each['class']}:{each['prob']}" for each in said[1:])
        self.table.writerow([path, answers[0], f"{prediction.probs[0]:.6f}", others])
        self.lines.write(json.dumps({"path": path, "predictions": said}, ensure_ascii=False) + "\n")
        if len(self.rows) < MAX_ROWS:
            self.rows.append((path, said))
        if self.gallery is not None and self.num_read < self.limit:
            self.gallery.write(self._card(prediction.path, said))
        self.counts[answers[0]] += 1

    def _card(self, path: str, said: list[dict[str, Any]]) -> str:
        from alexlab.data.decode import decode
        from alexlab.pages import html

        decoding = replace(self.trained.decoding, channels=3)
        first, *others = [f"{html.text(each['class'])} {each['prob']:.3f}" for each in said[:3]]
        caption = "<br>".join([f"<b>{first}</b>", *others, html.text(os.path.basename(path))])
        return html.captioned(html.picture(decode(path, decoding), path, height=150), caption)

    def report(self, wanted: str) -> None:
        """Prints the first predictions, how often each class was the answer, and how many files could not be read.

        Raises:
            DataError: when there was not one image.
        """
        from rich.table import Table

        from alexlab.output.terminal import Terminal

        if not self.num_read:
            bad = (
                f"; {self.num_failed} files could not be read, see {self.out / 'failed.csv'}" if self.num_failed else ""
            )
            raise DataError(f"input={wanted} must name images; there is none{bad}")
        first = Table(
            title=f"the first {len(self.rows)} of {self.num_read:,} images" if self.num_read > MAX_ROWS else None
        )
        first.add_column("image", overflow="fold")
        for place in range(len(self.rows[0][1])):
            first.add_column(f"answer {place + 1}", overflow="fold")
        for path, said in self.rows:
            first.add_row(path, *(f"{each['class']} {each['prob']:.3f}" for each in said))
        Terminal().print(first)
        if self.num_read > MAX_ROWS:
            counts = Table("answer", "images")
            for name, count in self.counts.most_common(MAX_ROWS):
                counts.add_row(name, f"{count:,}")
            Terminal().print(counts)
        if self.num_failed:
            print_line(f"{self.num_failed} files could not be read: {os.path.relpath(self.out / 'failed.csv')}")
