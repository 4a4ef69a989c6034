"""Suite `startup`: the time to `--help`, to the first optimizer step, between two jobs of a sweep, and between two epochs."""

import itertools
import re
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
from alexlab.benchmark.step_times import StepTimes
from alexlab.benchmark.stock_lightning import stock_lightning
from alexlab.benchmark.table import Row
from alexlab.config import CONFIG_DIR, allowlist
from alexlab.config.grammar import quote_path

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
    """Compare whole commands, then the pauses between jobs, and those between the epochs of two trainings."""
    return [compare_help(context), compare_first_step(context), time_jobs(context), compare_pauses(context)]


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
    """Compare the time from the command to the end of the first optimizer step with that of a script with a bare loop.

    Both train torchvision's AlexNet.
    """
    root, batch_size = context.config["data"]["root"], context.config["data"]["batch_size"]
    time_paths = [context.out_dir / f"first_step_{name}" for name in ("ours", "script")]
    own = [override for override in context.overrides if not re.match(r"model[.=]", override)]
    overrides = [*own, "model=alexnet", f"data.root={root}", *_step_times(time_paths[0], stop=True)]
    numbers = itertools.count()

    def ours_command() -> list[str]:
        run_dir = context.out_dir / "runs" / f"first_step_{next(numbers)}"
        return script_command("train.py", [*overrides, f"hydra.run.dir={run_dir}"])

    def script() -> list[str]:
        return [sys.executable, first_step.__file__, str(root), str(time_paths[1]), str(batch_size)]

    candidates = [
        Candidate("first step of train.py", loop(_first_step_timer, ours_command, time_paths[0])),
        Candidate("first step of a script", loop(_first_step_timer, script, time_paths[1])),
    ]
    results = context.interleave(candidates, "startup: first step")
    values, baseline_values = (per_round(results[candidate.name], "s") for candidate in candidates)
    return Row("startup", "to the first step", values, "s", "a bare loop", baseline_values, "imports")


def time_jobs(context: BenchmarkContext) -> Row:
    """Time the pause between two jobs of a sweep, from the end of one training to the first step of the next."""
    time_path = context.out_dir / "step_times"
    data = {key: context.config["data"][key] for key in ("root", "batch_size")}
    overrides = [
        *("-m", "seed=1,2", "model=alexnet_quarter", "data=folder", *(f"data.{key}={data[key]}" for key in data)),
        *("trainer.max_steps=1", "trainer.limit_val_batches=0", "~callbacks.checkpoint", *_step_times(time_path)),
    ]
    numbers = itertools.count()

    def work() -> Figures:
        time_path.unlink(missing_ok=True)
        sweep_dir = context.out_dir / "runs" / f"sweep_{next(numbers)}"
        run_command(script_command("train.py", [*overrides, f"hydra.sweep.dir={sweep_dir}"]))
        _, _, end_s, next_step_s, _, _ = map(float, time_path.read_text().split())
        return {"s": next_step_s - end_s}

    results = context.interleave([Candidate("sweep", loop(lambda: work))], "startup: two jobs")
    return Row("startup", "between two jobs of a sweep", per_round(results["sweep"], "s"), "s")


def _step_times(path: Path, *, stop: bool = False) -> list[str]:
    """Return the overrides that add the callback StepTimes."""
    return [
        f"{allowlist.FLAG}[{StepTimes.__module__}]",
        f"+callbacks.step_times._target_={StepTimes.__module__}.{StepTimes.__name__}",
        f"+callbacks.step_times.path={quote_path(str(path))}",
        f"+callbacks.step_times.stop={stop}",
    ]


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
    """Return a function that runs a command and measures the time until the last one that the command writes to a file."""

    def work() -> Figures:
        time_path.unlink(missing_ok=True)
        start_s = time.time()
        run_command(command())
        return {"s": float(time_path.read_text().split()[-1]) - start_s}

    return work


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
