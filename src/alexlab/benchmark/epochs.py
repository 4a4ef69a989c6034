"""Suite `epochs`: whole epochs of training, validation and checkpoint, compared with other loops."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from alexlab.benchmark.baselines import bare_loop, torchvision_reference
from alexlab.benchmark.commands import command_timer, peer_command, script_command, timed
from alexlab.benchmark.context import BenchmarkContext
from alexlab.benchmark.interleave import Candidate, Figures, Turn, loop
from alexlab.benchmark.roofline import CEILING, per_round, share_of_ceiling, train_flops
from alexlab.benchmark.stock_lightning import FOREVER, EpochTurns, stock_lightning, stock_lightning_ddp
from alexlab.benchmark.table import Row
from alexlab.benchmark.workload import Workload
from alexlab.config import allowlist
from alexlab.records.run import Run
from alexlab.training.checkpoint_io import AtomicCheckpointIO

LABELS = {"epoch": "whole epochs", "train": "training", "val": "validation"}  # labels of the figures


def ours(workload: Workload, turn: Turn, *, callback: type = EpochTurns, **options: Any) -> None:
    """Train as `train.py` does, with one more callback.

    Args:
        workload: net, data and optimizer to train.
        turn: turn of the candidate.
        callback: class that takes the turns, with an argument `turn_fd`.
        options: entries of the `trainer` node.
    """
    allowlist.trust(callback.__module__)
    node = {**workload.config["trainer"], "max_epochs": FOREVER, "devices": workload.num_ranks, **options}
    entry = {"_target_": f"{callback.__module__}.{callback.__name__}", "turn_fd": turn.fd}
    callbacks = {**workload.config["callbacks"], "turns": entry}
    workload.run_dir.mkdir(parents=True)
    config = {**workload.config, "trainer": node, "callbacks": callbacks}
    workload.train(Run(config=config, dir=workload.run_dir))


def suite(context: BenchmarkContext) -> list[Row]:
    """Compare epochs, on one rank also a checkpoint, and with `peer=` whole commands."""
    rows = compare_epochs(context)
    if context.num_ranks == 1:
        rows.append(compare_checkpoints(context))
    if context.peer is not None:
        rows.append(compare_commands(context, context.peer))
    return rows


def compare_epochs(context: BenchmarkContext) -> list[Row]:
    """Compare our training with a bare loop, stock Lightning and torchvision's reference; on several ranks with stock DDP."""
    num_ranks = context.num_ranks
    loops: dict[str, Callable[[Workload, Turn], None]] = {"ours": ours}
    if num_ranks == 1:
        loops |= {"a bare loop": bare_loop, "stock Lightning": stock_lightning}
        loops["torchvision's reference"] = torchvision_reference
    else:
        loops["stock Lightning, DDP"] = stock_lightning_ddp
    candidates = [Candidate(name, partial(train, context.workload(name, num_ranks))) for name, train in loops.items()]
    results = context.interleave(candidates, "epochs: one epoch per turn", ceiling=True)
    operations = dict(zip(("train", "val"), train_flops(context.config, len(context.splits.classes)), strict=True))
    if context.bfloat16 and str(context.config["trainer"]["val_precision"]) == "32":
        del operations["val"]  # the matrix products are timed in bfloat16
    limits = {
        figure: share_of_ceiling(results["ours"], count, results[CEILING], figure)
        for figure, count in operations.items()
    }
    label = context.label + (f", {num_ranks} ranks" if num_ranks > 1 else "")
    rows = []
    for baseline in [name for name in loops if name != "ours"]:
        for figure, what in LABELS.items():
            values, baseline_values = (per_round(results[name], figure) for name in ("ours", baseline))
            limit = limits.get(figure, "")
            rows.append(Row("epochs", f"{what}: {label}", values, "images/s", baseline, baseline_values, limit))
    return rows


def compare_checkpoints(context: BenchmarkContext) -> Row:
    """Compare writing a checkpoint atomically with `torch.save` of the same content."""
    workload = context.workload("checkpoints")
    folder = workload.run_dir
    folder.mkdir(parents=True)

    def content() -> dict[str, Any]:
        net = workload.net()
        optimizer = workload.optimizer(net.parameters())
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        return {"state_dict": net.state_dict(), "optimizer_states": [optimizer.state_dict()], "global_step": 1}

    def atomic() -> Callable[[], Figures]:
        checkpoint = content()
        return lambda: timed(lambda: AtomicCheckpointIO().save_checkpoint(checkpoint, folder / "atomic.ckpt"))

    def plain() -> Callable[[], Figures]:
        checkpoint = content()
        return lambda: timed(lambda: torch.save(checkpoint, folder / "plain.pth"))

    candidates = [Candidate("atomic checkpoint", loop(atomic)), Candidate("torch.save", loop(plain))]
    results = context.interleave(candidates, "epochs: checkpoints")
    size_mb = (folder / "plain.pth").stat().st_size / 1e6
    values, baseline_values = (per_round(results[candidate.name], "s") for candidate in candidates)
    what = f"an atomic checkpoint of {size_mb:.0f} MB"
    return Row("epochs", what, values, "s", "torch.save", baseline_values, "the disk")


def compare_commands(context: BenchmarkContext, peer: str) -> Row:
    """Compare our whole command with that of another program."""
    data, epochs = context.config["data"], context.settings.peer_epochs
    overrides = [*context.overrides, f"data.root={data['root']}", f"trainer.max_epochs={epochs}"]
    commands = {
        "command train.py": script_command("train.py", overrides),
        "command of peer": peer_command(peer, root=data["root"], epochs=epochs, batch_size=data["batch_size"]),
    }
    candidates = [Candidate(name, loop(command_timer, command)) for name, command in commands.items()]
    results = context.interleave(candidates, "epochs: whole commands")
    values, peer_values = (per_round(results[name], "s") for name in commands)
    return Row("epochs", "the whole command", values, "s", peer, peer_values)
