"""How long one waits: for `--help`, for the first optimizer step, and between two epochs."""

import itertools
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from alexlab.benchmark import first_step
from alexlab.benchmark.baselines import stock_with, turns_of_this_process
from alexlab.benchmark.commands import command_of, in_turn, run_command
from alexlab.benchmark.context import Measuring
from alexlab.benchmark.epochs import job_of, ours_with
from alexlab.benchmark.interleave import Contender, Turns
from alexlab.benchmark.roofline import rates
from alexlab.benchmark.table import Row
from alexlab.config import CONFIG_DIR, allowlist

BARE_APP = """import sys
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


def suite(measuring: Measuring) -> list[Row]:
    """Whole commands in processes of their own, in turn; then the gaps inside of two trainings."""
    return [helps(measuring), first_steps(measuring), gaps(measuring)]


def helps(measuring: Measuring) -> Row:
    """`--help`, beside a bare Hydra app over the same configs."""
    app = measuring.out / "bare_app.py"
    app.write_text(BARE_APP.format(source=str(SOURCE), conf=str(CONFIG_DIR)))
    lines = {"ours": command_of("train.py", ["--help"]), "bare": [sys.executable, str(app), "--help"]}
    logs = measuring.out / "logs"
    found = in_turn(
        {name: partial(run_command, line, logs / f"help_{name}.log") for name, line in lines.items()},
        measuring.settings.pairs,
    )
    return Row(
        "startup", "--help", found["ours"], "s", "a bare Hydra app over the same conf/", found["bare"], "imports"
    )


def first_steps(measuring: Measuring) -> Row:
    """From the command to the end of the first optimizer step, beside a script with a bare loop."""
    root, mark = str(measuring.config["data"]["root"]), measuring.out / "first_step"
    words = [
        *measuring.words,
        f"data.root={root}",
        f"{allowlist.WORD}[{FirstStep.__module__}]",
        f"+callbacks.first_step._target_={FirstStep.__module__}.{FirstStep.__name__}",
        f"+callbacks.first_step.path={mark}",
    ]
    runs = (f"hydra.run.dir={measuring.out / 'runs' / f'first_step_{number}'}" for number in itertools.count())
    found = in_turn(
        {
            "ours": lambda: _until(command_of("train.py", [*words, next(runs)]), mark, measuring.out / "logs"),
            "bare": lambda: _until(
                [sys.executable, first_step.__file__, root, str(mark)], mark, measuring.out / "logs"
            ),
        },
        measuring.settings.pairs,
    )
    return Row("startup", "to the first step", found["ours"], "s", "a bare loop", found["bare"], "imports")


def gaps(measuring: Measuring) -> Row:
    """Between two epochs without validation, beside stock Lightning."""
    bare: dict[str, Any] = {"limit_val_batches": 0}
    bodies = {"ours": partial(ours_with, GAP, **bare), "stock Lightning": partial(stock_with, Gap, **bare)}
    found = measuring.contest(
        [Contender(name, partial(body, job_of(measuring, f"gap {name}"))) for name, body in bodies.items()],
        "start: two epochs in each turn",
    )
    values, others = (rates(found[name], "ms") for name in bodies)
    return Row("startup", "between two epochs, without validation", values, "ms", "stock Lightning", others, "the disk")


def _until(command: list[str], mark: Path, logs: Path) -> float:
    """Seconds from the start of a command to the time that it leaves in a file."""
    mark.unlink(missing_ok=True)
    start_s = time.time()
    run_command(command, logs / "first_step.log")
    return float(mark.read_text()) - start_s


class FirstStep(Callback):
    """Leaves the time of the first optimizer step in a file and ends the process, which has nothing more to do."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        Path(self.path).write_text(str(time.time()))
        os._exit(0)


class Gap(Callback):
    """Takes turns of two epochs and measures from the end of the first one's last step to the begin of the next step."""

    def __init__(self) -> None:
        self.turns: Turns = turns_of_this_process[0]
        self.end_s = self.gap_s = 0.0

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.current_epoch == 0:
            self.turns.next()
        elif trainer.current_epoch % 2 == 0:
            self.turns.next({"ms": 1000 * self.gap_s})

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0 and trainer.current_epoch % 2:
            self.gap_s = time.perf_counter() - self.end_s

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(outputs, dict) and torch.is_tensor(outputs.get("loss")):
            outputs["loss"].item()  # the step has ended on a GPU too
        self.end_s = time.perf_counter()


GAP = f"{Gap.__module__}.{Gap.__name__}"
