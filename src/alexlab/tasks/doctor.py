"""Comparison of remedies for a loss that does not fall, for `python src/train.py debug=doctor`: some steps with each of them."""

import copy
import logging
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from rich.table import Table
from torch import Tensor

from alexlab.config import build, build_data
from alexlab.config.data import find_splits
from alexlab.config.instantiate import Config, entries
from alexlab.config.preflight import check_run
from alexlab.config.resolve import fill_statistics
from alexlab.config.trainer import build_trainer
from alexlab.data.splits import Splits
from alexlab.distributed import ranks
from alexlab.errors import ConfigError, NumericError
from alexlab.output.command_line import command_line, short_path
from alexlab.output.csv_files import write_csv
from alexlab.output.log_handler import WHOLE, log_terminal
from alexlab.records.run import Run
from alexlab.training.callbacks.diagnosis import MIN_STEPS, Diagnosis
from alexlab.training.diagnosis import State, describe, find_cause

LEARNS = 0.9  # fraction of the chance-level loss below which a trial counts as learning
CSV = "doctor.csv"
COLUMNS = ("remedy", "loss", "spread of logits", "dead units", "verdict")
# A trial neither validates nor writes, and is stopped by its callback, so that the schedule is that of the whole run.
TRIAL = {
    "trainer": {
        "devices": 1,
        "num_nodes": 1,
        "strategy": "auto",
        "profiler": None,
        "min_epochs": None,
        "min_steps": None,
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
        "enable_model_summary": False,
    },
    "logger": {},
}

log = logging.getLogger(__name__)


class Trial(Diagnosis):
    """Diagnosis that ends the training and reports nothing.

    Args:
        num_steps: optimizer steps.
        max_s: seconds after which the training ends earlier, but not before the shortest diagnosis.
    """

    def __init__(self, num_steps: int, max_s: float) -> None:
        super().__init__(num_steps)
        self.max_s = max_s

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.start_s = time.monotonic()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step >= MIN_STEPS and time.monotonic() - self.start_s > self.max_s:
            self.last_step = trainer.global_step
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        trainer.should_stop = self.state is not None

    def report(self, trainer: lightning.Trainer, found: tuple[bool, str] | None) -> None:
        pass


@dataclass(frozen=True)
class TrialResult:
    """Outcome of a trial.

    Args:
        remedy: overrides, or `as given`.
        state: state after the steps; None if the loss was not finite.
    """

    remedy: str
    state: State | None

    @property
    def loss(self) -> float:
        return math.inf if self.state is None else self.state.loss

    @property
    def verdict(self) -> str:
        if self.state is None:
            return "not finite"
        cause = find_cause(self.state)
        if cause is not None:
            return cause.cause
        if self.state.is_stalled:
            return "no progress"
        return "learns" if self.learns else "slow"

    @property
    def learns(self) -> bool:
        return self.state is not None and self.state.loss < LEARNS * self.state.guessing

    def cells(self) -> tuple[str, ...]:
        if self.state is None:
            return (self.remedy, "", "", "", self.verdict)
        now = self.state.now
        dead = max((layer.dead for layer in now.layers), default=0.0)
        return (self.remedy, f"{self.state.loss:.3f}", f"{now.logits:.1e}", f"{dead:.0%}", self.verdict)


def compare_remedies(run: Run, *, num_steps: int, max_s: float | None) -> None:
    """Train with the config and with each remedy, from the same seed on the same images, and print a table.

    Args:
        run: the run whose config is examined; `doctor.csv` is written to its folder.
        num_steps: optimizer steps of each trial, at least 20.
        max_s: limit of the first trial in seconds, None for none; the others take as many steps.

    Raises:
        ConfigError: if the run has several processes or fewer than 20 steps, or its config cannot be used.
    """
    if ranks.is_distributed():
        raise ConfigError("debug=doctor trains in one process; start it without torchrun or srun")
    if num_steps < MIN_STEPS:
        raise ConfigError(f"doctor.num_steps must be at least {MIN_STEPS}; got {num_steps}")
    splits = find_splits(run.config)
    config = fill_statistics(check_run(run, splits)[0].config, splits)[0]
    splits = build_data.packed_splits(config, splits)
    image = build_data.mean_image(config, splits)
    mean_image = None if image is None else torch.from_numpy(image)
    rows: list[TrialResult] = []
    for remedy, changed in remedies(config):
        state = _train(changed, splits, Trial(num_steps, math.inf if max_s is None else max_s), mean_image)
        rows.append(TrialResult(remedy, state))
        log.info("%s: %s", remedy, "loss not finite" if state is None else f"loss {state.loss:.3f} {rows[-1].verdict}")
        if len(rows) == 1 and state is not None:
            num_steps, max_s = state.num_steps, math.inf
            found = describe(state, config["model"])
            if found is not None:
                log.info("%s", found[1].removesuffix(". debug=doctor compares the remedies"))
    report(rows, run)


def remedies(config: Config) -> Iterator[tuple[str, Config]]:
    """Yield the config as given, then overrides that may help, with the changed config."""
    yield "as given", config
    model = config["model"]
    rates = {"optimizer.lr": config["optimizer"]["lr"]}
    rates |= {
        f"param_groups.{name}": rate
        for name in ("bias_lr", "head_lr")
        if (rate := config["param_groups"][name]) is not None
    }
    changes: list[dict[str, Any]] = []
    if model.get("weights") is None and not model.get("pretrained"):
        key = "model.init" if "init" in model else "+model.init"
        changes += [{key: scheme} for scheme in ("he", "xavier", "kaiming") if scheme != model.get("init", "torch")]
        changes.append({key: "he", **{name: rate * 0.1 for name, rate in rates.items()}})
    if model.get("norm") in ("none", "lrn"):
        changes.append({"model.norm": "batch"} | ({"model.norm_layers": None} if model.get("norm_layers") else {}))
    changes += [{name: rate * factor for name, rate in rates.items()} for factor in (0.01, 0.1, 10.0, 100.0)]
    for change in changes:
        changed = copy.deepcopy(config)
        for key, value in change.items():
            group, _, name = key.removeprefix("+").partition(".")
            changed[group][name] = value
        texts = {key: f"{value:.3g}" if isinstance(value, float) else value for key, value in change.items()}
        yield " ".join(f"{key}={text}" for key, text in texts.items()), changed


def _train(config: Config, splits: Splits, trial: Trial, mean_image: Tensor | None) -> State | None:
    """Return the state of a training after its steps, or None if its loss or weights were not finite."""
    kept = {name: node for name, node in entries(config["callbacks"]).items() if node["_target_"].endswith(".Finetune")}
    config = {**config, **TRIAL, "trainer": {**config["trainer"], **TRIAL["trainer"]}, "callbacks": kept}
    lightning.seed_everything(config["seed"], workers=True, verbose=False)
    with tempfile.TemporaryDirectory(prefix="alexlab_") as folder:
        trainer = build_trainer(config, Path(folder), num_ranks=1)
        trainer.callbacks.append(trial)  # type: ignore[attr-defined]
        data = build_data.datamodule(config, splits, Path(folder))
        module = build.classifier(config, splits, mean_image=mean_image)
        weights = build.pretrained(config, module.net, splits)
        if weights is not None:
            weights.load_into(module.net)
        try:
            trainer.fit(module, datamodule=data)
        except NumericError:
            return None
    if trial.state is None:
        raise ConfigError(f"debug=doctor needs a run of at least {MIN_STEPS} steps; this one has {trainer.global_step}")
    return trial.state


def report(rows: list[TrialResult], run: Run) -> None:
    """Print a table of the trials, the first of which is the config as given, and the command of the best remedy."""
    cells: list[tuple[str, ...]] = [row.cells() for row in rows]
    write_csv(run.dir / CSV, [COLUMNS, *cells])
    states = [row.state for row in rows if row.state is not None]
    guessing = f"; chance-level loss: {states[0].guessing:.3f}" if states else ""
    table = Table(title=f"after {states[0].num_steps if states else 0} steps{guessing}")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("remedy", "verdict") else "right")
    for each in cells:
        table.add_row(*each)
    log_terminal().print_table(table)
    best = min(rows, key=lambda row: row.loss)
    given = [override for override in run.overrides if not override.startswith(("debug=", "doctor."))]
    if rows[0].learns:
        log.info("the loss falls with the given config")
    falls = best.state is not None and not best.state.is_stalled
    if falls and best is not rows[0]:
        log.info("the loss is lowest with %s:", best.remedy)
        log.info("%s", command_line("train", *given, *best.remedy.split()), extra=WHOLE)
    if not falls:
        log.warning(
            "no remedy makes the loss fall within these steps: check the labels and preview.png, or raise doctor.num_steps"
        )
    log.info("table: %s", short_path(run.dir / CSV))
