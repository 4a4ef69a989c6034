"""`python src/train.py`: from a composed config to a trained net in a run folder. Imports no torch at its top."""

from functools import partial
from pathlib import Path
from typing import Any

from alexlab.data.settings import Data
from alexlab.nodes import bind
from alexlab.runs import STATISTICS, rank


def run(config: dict[str, Any], *, run_dir: Path, choices: dict[str, str], isolated: bool = False) -> float | None:
    """Checks the config, trains on every device that it asks for, prints the scores and returns the best val/top1.

    Args:
        config: the composed config, plain data.
        run_dir: the folder that the run writes to.
        choices: the option chosen in each config group, for the HParams tab.
        isolated: run in a process of its own even on one device, as a job of a sweep must.

    Raises:
        AlexlabError: in one sentence.
    """
    bind(Data, "data", **config["data"])
    splits = Data(**config["data"]).find_splits()  # a missing folder is told before torch is imported

    from alexlab import build
    from alexlab.launch import Limits, launch, num_ranks
    from alexlab.training import hush_lightning, print_scores, train

    hush_lightning()
    trainer = config["trainer"]
    ranks = num_ranks(accelerator=trainer["accelerator"], devices=trainer["devices"])
    bind(Limits, "elastic", **config["elastic"])
    config, statistics = build.measured(config, splits)
    build.check(config, splits, num_ranks=ranks)
    if statistics is not None and rank() == 0:
        statistics.write(run_dir / STATISTICS)
    splits = build.packed(config, splits)
    task = partial(train, config, splits, run_dir=run_dir, choices=choices, ranks=ranks)
    scores: dict[str, float] = launch(task, num_ranks=ranks, isolated=isolated, limits=Limits(**config["elastic"]))
    if scores and rank() == 0:
        print_scores(scores, run_dir)
    return scores.get("best/top1")
