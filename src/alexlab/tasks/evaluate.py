"""`python src/evaluate.py`: a trained net against labelled images. Imports no torch at its top."""

import os
from pathlib import Path
from typing import Any

from alexlab.errors import ConfigError
from alexlab.output.escape import print_line


def run(config: dict[str, Any], *, run_dir: Path, choices: dict[str, str], isolated: bool = False) -> float:
    """Scores every image of a split once; prints tables, writes files and `evaluation.html`; returns the top-1 accuracy.

    Args:
        config: the composed config, plain data.
        run_dir: the folder that the results are written to.
        choices: the option chosen in each config group; there is none here.
        isolated: of no use here, where nothing is trained.

    Raises:
        AlexlabError: in one sentence.
    """
    from alexlab.inference.report import write_evaluation
    from alexlab.output.terminal import Terminal
    from alexlab.pages import html
    from alexlab.runs.layout import SKIPPED

    trained, found, about, skipped = ask(config, run_dir)
    tables, parts = write_evaluation(found, trained.names, run_dir, about)
    for table in tables:
        Terminal().print(table)
    html.write_page(run_dir / "evaluation.html", f"{trained.description}: {about['split']}", parts)
    shown = os.path.relpath(run_dir)
    if skipped:
        print_line(f"{skipped} images could not be read and were left out: {Path(shown) / SKIPPED}")
    print_line(f"{shown}/evaluation.html, scores.json, classes.csv, confusion.csv, predictions.csv")
    return float(found.right.mean())


def ask(config: dict[str, Any], run_dir: Path) -> Any:
    """The net, what it says of the images, what was evaluated, and how many images could not be read."""
    from alexlab.config import build
    from alexlab.data.config import DataConfig
    from alexlab.data.unreadable import UnreadableLog
    from alexlab.inference.checkpoint import load_checkpoint
    from alexlab.inference.predictions import predict_split, select_split, split_loader
    from alexlab.output.progress import track
    from alexlab.runs.layout import SKIPPED

    trained = load_checkpoint(config["ckpt"], class_names=config["class_names"], device=config["device"])
    trained = trained.decoding_with(config["data"])
    view = build.eval_view(trained.config, config["views"])
    changes = {key: value for key, value in config["data"].items() if value is not None}
    if not any(changes["splits"].values()):
        del changes["splits"]
    own = not changes.keys() & {"root", "url"}
    if not own:  # a folder in the place of shards, or the other way round
        changes = {"root": None, "url": None, "generate": None, "splits": {}} | changes
    settings = DataConfig(**{**trained.config["data"], "cache": None, "manifest": None, **changes})
    name, split = select_split(trained, settings, config["split"], from_run=own)
    skipped = UnreadableLog(run_dir / SKIPPED) if settings.on_error == "skip" else None
    loader = split_loader(split, view, settings, skipped=skipped)
    found = predict_split(
        trained.inference, loader, split, watch=lambda items: track(items, f"{name}: {len(split):,} images")
    )
    about = {"checkpoint": str(trained.path), "data": settings.location, "split": name, "views": config["views"]}
    return trained, found, about, skipped.finish() if skipped else 0


def check(config: dict[str, Any]) -> None:
    """Looks at what can be known before the net is read.

    Raises:
        ConfigError: when there is no such checkpoint.
    """
    if not Path(config["ckpt"]).exists():
        raise ConfigError(f"ckpt must be a run folder or a file; there is no {config['ckpt']}")
