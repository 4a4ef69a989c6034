"""Whole epochs beside those of others: training, validation and a checkpoint."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from alexlab.benchmark.baselines import Job, TakesTurns, bare, reference, stock, turns_of_this_process
from alexlab.benchmark.commands import command_of, in_turn, run_command, split_command
from alexlab.benchmark.context import Measuring
from alexlab.benchmark.interleave import Contender, Figures, Turns, repeated
from alexlab.benchmark.roofline import CEILING, rates, share, train_flops
from alexlab.benchmark.table import Row
from alexlab.config import allowlist
from alexlab.distributed.hardware import num_cores
from alexlab.distributed.launch import Limits, launch
from alexlab.tasks import train as train_task
from alexlab.training.checkpoint_io import AtomicCheckpointIO

FOREVER = 1_000_000  # epochs; a contest ends from outside
WHAT = {"epoch": "whole epochs", "train": "training", "val": "validation"}


def ours(job: Job, turns: Turns) -> None:
    """What `train.py` does, with a callback more."""
    ours_with(f"{TakesTurns.__module__}.{TakesTurns.__name__}", job, turns)


def ours_with(callback: str, job: Job, turns: Turns, **trainer: Any) -> None:
    """What `train.py` does, with a callback that takes the turns.

    Args:
        callback: its class.
        job, turns: as for every contender.
        trainer: keys of the trainer.
    """
    turns_of_this_process[:] = [turns]
    allowlist.trusted.append(callback.rpartition(".")[0])
    node = {**job.config["trainer"], "max_epochs": FOREVER, "devices": job.ranks, **trainer}
    config = {**job.config, "trainer": node}
    config["callbacks"] = {**config["callbacks"], "turns": {"_target_": callback}}
    job.run_dir.mkdir(parents=True)
    train_task.run(config, run_dir=job.run_dir, choices={})


def stock_ranks(job: Job, turns: Turns) -> None:
    """Stock Lightning on several ranks, started as torchrun starts them."""

    def rank() -> None:
        torch.set_num_threads(max(1, num_cores() // job.ranks))
        stock(job, turns)

    launch(rank, num_ranks=job.ranks, isolated=False, limits=Limits(**job.config["elastic"]))


def suite(measuring: Measuring) -> list[Row]:
    """Our whole epochs beside a bare loop's, stock Lightning's and the usual loop's; the cost of a durable checkpoint."""
    ranks = measuring.ranks
    bodies: dict[str, Callable[[Job, Turns], None]] = {"ours": ours}
    if ranks == 1:
        bodies |= {"a bare loop": bare, "stock Lightning": stock, "torchvision's reference": reference}
    else:
        bodies["stock Lightning, DDP"] = stock_ranks
    jobs = {name: job_of(measuring, name, ranks) for name in bodies}
    contenders = [Contender(name, partial(body, jobs[name])) for name, body in bodies.items()]
    found = measuring.contest(contenders, "fit: an epoch in each turn", ceiling=True)
    operations = dict(zip(("train", "val"), train_flops(measuring.config, len(measuring.splits.classes)), strict=True))
    if measuring.bfloat16:
        del operations["val"]  # which is in 32 bits always
    limits = {name: share(found["ours"], count, found[CEILING], name) for name, count in operations.items()}
    label = measuring.label + (f", {ranks} ranks" if ranks > 1 else "")
    rows = []
    for other in [name for name in bodies if name != "ours"]:
        for name, what in WHAT.items():
            values = rates(found["ours"], name)
            others = rates(found[other], name)
            rows.append(Row("epochs", f"{what}: {label}", values, "images/s", other, others, limits.get(name, "")))
    if ranks == 1:
        rows.append(checkpoints(jobs["ours"], measuring))
    if measuring.peer is not None:
        rows.append(commands(measuring))
    return rows


def job_of(measuring: Measuring, name: str, ranks: int = 1) -> Job:
    """What one contender trains, in a folder of its own."""
    place = measuring.out / "runs" / f"{name.replace(' ', '_').replace(',', '')}_{ranks}"
    return Job(measuring.config, measuring.splits, place, ranks, measuring.device)


def checkpoints(job: Job, measuring: Measuring) -> Row:
    """Writing the same content durably and by `torch.save`."""
    folder = job.run_dir.parent

    def content() -> dict[str, Any]:
        net = job.net()
        optimizer = job.optimizer(net.parameters())
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        return {"state_dict": net.state_dict(), "optimizer_states": [optimizer.state_dict()], "global_step": 1}

    def durable() -> Callable[[], Figures]:
        whole = content()
        return lambda: timed(lambda: AtomicCheckpointIO().save_checkpoint(whole, folder / "durable.ckpt"))

    def plain() -> Callable[[], Figures]:
        whole = content()
        return lambda: timed(lambda: torch.save(whole, folder / "plain.pth"))

    found = measuring.contest(
        [Contender("durable", repeated(durable)), Contender("torch.save", repeated(plain))], "fit: checkpoints"
    )
    size_mb = (folder / "plain.pth").stat().st_size / 1e6
    values, others = (rates(found[name], "s") for name in ("durable", "torch.save"))
    return Row("epochs", f"a durable checkpoint of {size_mb:.0f} MB", values, "s", "torch.save", others, "the disk")


def timed(work: Any) -> Figures:
    """Seconds that some work takes."""
    start_s = time.perf_counter()
    work()
    return {"s": time.perf_counter() - start_s}


def commands(measuring: Measuring) -> Row:
    """Our whole command beside that of a peer, in turn."""
    assert measuring.peer is not None
    data, epochs = measuring.config["data"], measuring.settings.peer_epochs
    known = {"root": data["root"], "epochs": epochs, "batch_size": data["batch_size"]}
    words = [*measuring.words, f"data.root={data['root']}", f"trainer.max_epochs={epochs}"]
    lines = {"ours": command_of("train.py", words), "peer": split_command(measuring.peer, **known)}
    logs = measuring.out / "logs"
    times = in_turn(
        {name: partial(run_command, line, logs / f"command_{name}.log") for name, line in lines.items()},
        measuring.settings.pairs,
    )
    return Row("epochs", "the whole command", times["ours"], "s", measuring.peer, times["peer"])
