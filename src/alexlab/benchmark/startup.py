"""Suite `startup`: the time to `--help`, to the first optimizer step, and between two epochs."""

import itertools
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from alexlab.benchmark import first_step
from alexlab.benchmark.commands import command_timer, run_command, script_command
from alexlab.benchmark.context import BenchmarkContext
from alexlab.benchmark.epochs import ours
from alexlab.benchmark.interleave import Candidate, Figures, Turn, loop
from alexlab.benchmark.roofline import per_round
from alexlab.benchmark.stock_lightning import stock_lightning
from alexlab.benchmark.table import Row
from alexlab.config import CONFIG_DIR, allowlist

HYDRA_APP = """import sys
sys.path.insert(0, {source!r})
import hydra
from omegaconf import OmegaConf
OmegaConf.register_new_resolver("tag", str)
@hydra.main(version_base="1.3", config_path={conf!r}, config_name="train")
def main(config):
    pass
main()
"""
SOURCE = Path(__file__).parents[2]


def suite(context: BenchmarkContext) -> list[Row]:
    """Compare whole commands, then the pauses between the epochs of two trainings."""
    return [compare_help(context), compare_first_step(context), compare_pauses(context)]


def compare_help(context: BenchmarkContext) -> Row:
    """Compare `--help` with that of a bare Hydra app on the same configs."""
    app = context.out_dir / "hydra_app.py"
    app.write_text(HYDRA_APP.format(source=str(SOURCE), conf=str(CONFIG_DIR)))
    candidates = [
        Candidate("help of train.py", loop(command_timer, script_command("train.py", ["--help"]))),
        Candidate("help of a Hydra app", loop(command_timer, [sys.executable, str(app), "--help"])),
    ]
    results = context.interleave(candidates, "startup: --help")
    values, baseline_values = (per_round(results[candidate.name], "s") for candidate in candidates)
    return Row("startup", "--help", values, "s", "a bare Hydra app on the same conf/", baseline_values, "imports")


def compare_first_step(context: BenchmarkContext) -> Row:
    """Compare the time from the command to the end of the first optimizer step with that of a script with a bare loop."""
    root = str(context.config["data"]["root"])
    time_paths = [context.out_dir / f"first_step_{name}" for name in ("ours", "script")]
    overrides = [
        *context.overrides,
        f"data.root={root}",
        f"{allowlist.FLAG}[{FirstStep.__module__}]",
        f"+callbacks.first_step._target_={FirstStep.__module__}.{FirstStep.__name__}",
        f"+callbacks.first_step.path={time_paths[0]}",
    ]
    numbers = itertools.count()

    def ours_command() -> list[str]:
        run_dir = context.out_dir / "runs" / f"first_step_{next(numbers)}"
        return script_command("train.py", [*overrides, f"hydra.run.dir={run_dir}"])

    def script() -> list[str]:
        return [sys.executable, first_step.__file__, root, str(time_paths[1])]

    candidates = [
        Candidate("first step of train.py", loop(_first_step_timer, ours_command, time_paths[0])),
        Candidate("first step of a script", loop(_first_step_timer, script, time_paths[1])),
    ]
    results = context.interleave(candidates, "startup: first step")
    values, baseline_values = (per_round(results[candidate.name], "s") for candidate in candidates)
    return Row("startup", "to the first step", values, "s", "a bare loop", baseline_values, "imports")


def compare_pauses(context: BenchmarkContext) -> Row:
    """Compare the pause between two epochs without validation with that of stock Lightning."""
    options: dict[str, Any] = {"callback": PauseTurns, "limit_val_batches": 0}
    candidates = [
        Candidate("our pauses", partial(ours, context.workload("our pauses"), **options)),
        Candidate("pauses of Lightning", partial(stock_lightning, context.workload("pauses of Lightning"), **options)),
    ]
    results = context.interleave(candidates, "startup: two epochs per turn")
    values, baseline_values = (per_round(results[candidate.name], "ms") for candidate in candidates)
    what = "between two epochs, without validation"
    return Row("startup", what, values, "ms", "stock Lightning", baseline_values, "the disk")


def _first_step_timer(command: Callable[[], list[str]], time_path: Path) -> Callable[[], Figures]:
    """Return a function that runs a command and measures the time until the moment that the command writes to a file."""

    def work() -> Figures:
        time_path.unlink(missing_ok=True)
        start_s = time.time()
        run_command(command())
        return {"s": float(time_path.read_text()) - start_s}

    return work


class FirstStep(Callback):
    """Callback that writes the time of the first optimizer step to a file and exits.

    Args:
        path: file that is written.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        Path(self.path).write_text(str(time.time()))
        os._exit(0)


class PauseTurns(Callback):
    """Callback that makes two epochs one turn, timed from the last step of the first to the first step of the second.

    Args:
        turn_fd: file descriptor of the candidate's `Turn`.
    """

    def __init__(self, turn_fd: int) -> None:
        self.turn = Turn(turn_fd)
        self.end_s = self.pause_s = 0.0

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.current_epoch == 0:
            self.turn.next()
        elif trainer.current_epoch % 2 == 0:
            self.turn.next({"ms": 1000 * self.pause_s})

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0 and trainer.current_epoch % 2:
            self.pause_s = time.perf_counter() - self.end_s

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(outputs, dict) and torch.is_tensor(outputs.get("loss")):
            outputs["loss"].item()  # waits for the end of the step on a GPU
        self.end_s = time.perf_counter()
