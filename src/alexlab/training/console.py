"""Terminal output of a training run: the description of the run, the final scores, and less noise from Lightning."""

import logging
import math
import re
import shlex
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from rich.table import Table
from torch import nn

from alexlab.data.samplers import data_ranks
from alexlab.models.two_tower import Tower
from alexlab.output.command_line import command_line, short_path
from alexlab.output.escape import print_line
from alexlab.output.numbers import counted
from alexlab.output.terminal import Terminal
from alexlab.records import layout
from alexlab.records.optimized import MODES, OptimizedMetric, metric_label
from alexlab.training.module import Classifier
from alexlab.training.param_groups import parameters_by_kind

log = logging.getLogger(__name__)

# Warnings of Lightning that do not apply to our runs, with the reason.
IGNORED_WARNINGS = (
    "does not have many workers",  # data.num_workers defaults to one per core; more would wait for each other
    "smaller than the logging interval",  # short epochs are fine: epoch scores are logged at the end
    "isinstance.treespec, LeafSpec.` is deprecated",  # Lightning 2.6 on torch 2.15
    "srun. command is available on your system but is not used",  # our launcher starts the ranks, on a cluster too
    "resuming from a checkpoint that ended before the epoch ended",  # our loader continues at the right batch
)


def quiet_lightning() -> None:
    """Silence Lightning's start-up messages and the warnings that do not apply."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", f".*{message}.*")


def log_model(config: Mapping[str, Any], module: Classifier) -> None:
    """Log the net, its parameter counts, and the parameter groups of the optimizer."""
    name = config["model"]["_target_"].rsplit(".", 1)[-1]
    by_kind = parameters_by_kind(module.net).items()
    counts = [f"{kind} {_count(parameters):,}" for kind, parameters in by_kind if parameters]
    log.info("net: %s, %s parameters: %s", name, f"{_count(module.net.parameters()):,}", ", ".join(counts))
    for group in module.parameter_groups(module.net):
        values = {"lr": config["optimizer"]["lr"], "weight_decay": config["optimizer"].get("weight_decay", 0.0)} | group
        changes = [f", lr {rate:g} from epoch {epoch + 1:g}" for epoch, rate in group.get("lr_changes", ())]
        log.info(
            "optimizer: %s: %s parameters, lr %g%s, weight decay %g",
            group.get("name", "all"),
            f"{_count(group['params']):,}",
            values["lr"],
            "".join(changes),
            values["weight_decay"],
        )


def log_batches(batch_size: int, trainer: lightning.Trainer) -> None:
    """Log how the global batch is divided, the threads per rank and the precision."""
    steps, num_ranks = trainer.accumulate_grad_batches, data_ranks(trainer)[0]
    nodes = f" on {trainer.num_nodes} nodes" if trainer.num_nodes > 1 else ""
    share = batch_size // (num_ranks * steps)
    towers = "" if num_ranks == trainer.world_size else ", which both towers see"
    parts = f"{counted(num_ranks, 'device')}{nodes} x {counted(steps, 'accumulation step')} x {counted(share, 'image')}"
    log.info("batch: %d = %s%s", batch_size, parts, towers)
    log.info("threads: %d per device; precision: %s", torch.get_num_threads(), trainer.precision)


def log_communication(tower: Tower, num_steps: int) -> None:
    """Log the traffic of `num_steps` steps of a run with two towers, compared with that of DDP."""
    sizes = [4 * shape.numel() / 1e6 for shape in tower.shapes.values()]
    own = sum(value.nbytes for value in tower.parameters()) / 1e6
    sent = tower.peer.sent_bytes / max(1, num_steps) / 1e6
    log.info(
        "two towers: %.1f MB of parameters each, %.2f MB sent per step by each, validation included; "
        "DDP: %.1f MB of parameters each, and as much gradient traffic per step",
        *(own, sent, sum(sizes)),
    )


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def print_end(scores: Mapping[str, float], run_dir: Path, optimized: OptimizedMetric) -> None:
    """Print the final scores, if any, the run folder, and commands that continue from it."""
    folder = short_path(run_dir)
    if scores:
        Terminal().print_table(_score_table(scores, run_dir, optimized))
    if scores.get("skipped"):
        print_line(f"{scores['skipped']:.0f} unreadable images were skipped: {Path(folder) / layout.SKIPPED}")
    print_line(f"run folder: {folder}")
    if (run_dir / layout.BEST).is_file():
        print_line("next:")
        print_line(command_line("evaluate", f"ckpt={folder}"))
        print_line(command_line("explain", f"ckpt={folder}"))
    if any(run_dir.glob("events.*")):
        day = re.fullmatch(r"\d{4}-\d\d-\d\d", run_dir.parent.name)  # the runs of this day, for comparison
        print_line(f"tensorboard --logdir {shlex.quote(short_path(run_dir.parent) if day else folder)}")


def _score_table(scores: Mapping[str, float], run_dir: Path, optimized: OptimizedMetric) -> Table:
    table = Table(
        title=f"trained in {scores['train_s']:.0f} s; the best epoch has the {optimized.superlative} {optimized.name}"
    )
    shown = [*MODES, *([] if optimized.key in MODES else [optimized.key])]
    for column in ("split", "images", *map(metric_label, shown), "checkpoint"):
        table.add_column(column, justify="left" if column in ("split", "checkpoint") else "right")
    saved = "best" if (run_dir / layout.BEST).is_file() else "best, not saved"
    rows = [("val", "best", f"{saved}, epoch {scores['best/epoch']:.0f}")]
    if "test/top1" in scores:
        rows.append(("test", "test", "same"))
    for views in ("five", "ten_crop"):
        if f"{views}/top1" in scores:
            rows.append(("test" if "test/top1" in scores else "val", views, f"same, {views}"))
    for split, prefix, checkpoint in rows:
        values = [f"{scores.get(f'{prefix}/{name}', math.nan):.4f}" for name in shown]
        table.add_row(split, f"{scores.get(f'{prefix}/count', 0):.0f}", *values, checkpoint)
    return table
