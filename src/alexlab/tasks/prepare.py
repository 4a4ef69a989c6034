"""`python src/prepare.py`: data sets, made ready for training. Imports no torch at its top."""

import os
from pathlib import Path
from typing import Any


def run(config: dict[str, Any], *, run_dir: Path, choices: dict[str, str], isolated: bool = False) -> None:
    """Writes a data set of the catalogue as a tree of image files.

    Args:
        config: the composed config, plain data.
        run_dir: the folder of the command's log.
        choices: the option chosen in each config group; there is none here.
        isolated: of no use here, where nothing is trained.

    Raises:
        AlexlabError: in one sentence.
    """
    from rich.console import Console
    from rich.table import Table

    from alexlab.data.catalogue import write_dataset

    name = str(config["dataset"])
    out = Path(config["out"] or f"data/{name}")
    counts = write_dataset(name, out, Path(config["downloads"]))
    table = Table("split", "images", title=os.fspath(out))
    for split, count in counts.items():
        table.add_row(split, f"{count:,}")
    Console().print(table)
    print(f"python src/train.py data.root={out}")
