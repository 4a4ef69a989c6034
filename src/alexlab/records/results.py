"""Results of runs, read from their folders."""

import csv
import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from alexlab.errors import ConfigError
from alexlab.records.layout import METRICS, RUN_JSON, STATISTICS
from alexlab.records.optimized import OptimizedMetric
from alexlab.records.record import RUNNING, RunRecord

MAX_EPOCHS = 10**9  # in a record from somebody else, which may have any number

Result = TypeVar("Result", bound="RunResult")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """One run, read from its folder.

    Args:
        folder: the run folder.
        record: content of its run.json.
        epochs: rows of its metrics.csv, as numbers; `epoch` counts from 1.
    """

    folder: Path
    record: dict[str, Any]
    epochs: Sequence[dict[str, float]]

    @property
    def status(self) -> str:
        return str(self.record["status"])

    @property
    def seed(self) -> int:
        return int(self.record["seed"])

    @property
    def num_folds(self) -> int | None:
        """`data.folds`; None without a cross-validation."""
        return self._data("folds")

    @property
    def fold(self) -> int | None:
        """`data.fold`, from 0; None without a cross-validation."""
        return self._data("fold")

    def finite_score(self, name: str) -> float | None:
        """Return a score as `score` does, None if it is not finite."""
        score = self.score(name)
        return score if score is not None and math.isfinite(score) else None

    @property
    def num_val(self) -> int:
        """Number of validation images that the scores count; 0 if it is not recorded."""
        return int(self.finite_score("count") or self.record.get("data", {}).get("counts", {}).get("val") or 0)

    @cached_property
    def measured(self) -> dict[str, Any]:
        """Statistics that the run measured on its training images; empty if its config gave them."""
        try:
            content = json.loads((self.folder / STATISTICS).read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    @property
    def choices(self) -> dict[str, str]:
        return {name: str(value) for name, value in self.record["choices"].items()}

    @property
    def data_name(self) -> str:
        """Name of the folder of images, or of the option of `data=`."""
        data = self.record["config"].get("data")
        root = data.get("root") if isinstance(data, dict) else None
        return Path(str(root)).name if root else self.choices.get("data", "unknown data")

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; empty if they are not recorded."""
        return tuple(map(str, self.record.get("data", {}).get("class_names") or ()))

    @property
    def tags(self) -> list[str]:
        """The items of `tags=[...]`."""
        tags = self.record["config"].get("tags")
        return [str(tag) for tag in tags] if isinstance(tags, list) else []

    @property
    def note(self) -> str:
        """The sentence of `note=`; empty without one."""
        return str(self.record["config"].get("note") or "")

    @property
    def best_epoch(self) -> int | None:
        """The epoch of the best validation, counted from 1."""
        return _count(self.score("epoch"))

    @property
    def last_epoch(self) -> int | None:
        """The last epoch that was trained, counted from 1."""
        return _count(self.record["last"].get("epoch"))

    @property
    def max_epochs(self) -> int | None:
        """`trainer.max_epochs`; None if the run has no such limit."""
        trainer = self.record["config"].get("trainer")
        value = trainer.get("max_epochs") if isinstance(trainer, dict) else None
        return value if isinstance(value, int) and 0 < value < MAX_EPOCHS else None

    @property
    def start_s(self) -> float:
        """Unix time of the start of the last attempt; 0 if it is not recorded."""
        attempts = self.record.get("attempts")
        return float(attempts[-1]["start_s"]) if attempts else 0.0

    @property
    def elapsed_s(self) -> float | None:
        """Seconds of all attempts whose end is recorded, and of a running one so far; None without any."""
        attempts = self.record["attempts"]
        ended = [float(attempt["elapsed_s"]) for attempt in attempts if "elapsed_s" in attempt]
        now = [time.time() - self.start_s] if attempts and self.status == RUNNING else []
        return sum([*ended, *now]) if ended or now else None

    @property
    def train_s(self) -> float | None:
        return (self.record.get("scores") or {}).get("train_s")

    @property
    def optimized(self) -> OptimizedMetric:
        """The metric that decided which epoch is the best."""
        return OptimizedMetric(**self.record.get("optimized", {}))

    @property
    def best_score(self) -> float | None:
        """The best value of the optimized metric; None before the first validation."""
        return self.score(self.optimized.key)

    def score(self, name: str) -> float | None:
        """Return `top1`, `top5`, `loss`, an extra metric or `epoch` of the best validation; None before the first one."""
        value = (self.record.get("best") or {}).get(name)
        return None if value is None else float(value)

    def _data(self, key: str) -> int | None:
        node = self.record.get("config", {}).get("data")
        value = node.get(key) if isinstance(node, dict) else None
        return value if isinstance(value, int) else None


def _count(epoch: float | None) -> int | None:
    return int(epoch) if epoch is not None and abs(epoch) < MAX_EPOCHS else None


def common_metric(runs: Sequence[RunResult]) -> OptimizedMetric | None:
    """Return the optimized metric of some runs; None if they cannot be ranked, see `obstacle`."""
    return runs[0].optimized if runs and obstacle(runs) is None else None


def obstacle(runs: Sequence[RunResult]) -> str | None:
    """Return what keeps runs from being ranked, such as `different optimized metrics, val/f1, val/top1`; None if nothing does."""
    if len({run.optimized for run in runs}) > 1:
        return f"different optimized metrics, {', '.join(sorted({run.optimized.name for run in runs}))}"
    data = {run.class_names: run.data_name for run in runs if run.class_names}
    if len(data) > 1:
        return f"different classes, those of {', '.join(sorted({*data.values()}))}"
    return None


def best_run(runs: Sequence[Result]) -> Result | None:
    """Return the run with the best value of the optimized metric, of equal ones that with the lower loss.

    None if no run has been validated, or if the runs cannot be ranked.
    """
    scored = [run for run in runs if run.best_score is not None]
    metric = common_metric(scored)
    return None if metric is None else max(scored, key=lambda run: metric.rank(run.best_score, run.score("loss")))


def with_tags(runs: Sequence[RunResult], tags: Sequence[str]) -> list[RunResult]:
    """Return the runs that have all of some tags.

    Raises:
        ConfigError: if there is none.
    """
    wanted = {str(tag) for tag in tags}
    found = [run for run in runs if wanted <= {*run.tags}]
    if not found:
        known = ", ".join(sorted({tag for run in runs for tag in run.tags})) or "none"
        raise ConfigError(
            f"no run has the tags {', '.join(sorted(wanted))}; the tags of the {len(runs)} runs are {known}"
        )
    return found


def read_runs(folders: Sequence[Path]) -> list[RunResult]:
    """Return the runs of some folders; they may still be running. Runs with corrupt files are logged and left out.

    Raises:
        ConfigError: if none of them can be read.
    """
    runs, errors = [], []
    for folder in folders:
        try:
            runs.append(read_run(folder))
        except ConfigError as error:
            errors.append(error)
    if not runs and errors:
        raise errors[0]
    for problem in errors:
        log.warning("left out: %s", problem)
    return runs


def read_run(folder: Path, *, with_epochs: bool = True) -> RunResult:
    """Return the run of a folder.

    Args:
        folder: the run folder.
        with_epochs: read its metrics.csv too.

    Raises:
        ConfigError: if one of its files is corrupt.
    """
    epochs: list[dict[str, float]] = []
    path = folder / METRICS
    try:
        if with_epochs and path.is_file():
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            epochs = [{str(name): float(value) for name, value in row.items() if value} for row in rows]
    except (ValueError, TypeError, csv.Error) as error:
        raise ConfigError(f"{path} is corrupt: {error}") from error
    return RunResult(folder, RunRecord(folder).read(), epochs)


def find_run(folder: Path, *, with_epochs: bool = True) -> RunResult | None:
    """Return the run of a folder as `read_run` does; None if the folder has none."""
    return read_run(folder, with_epochs=with_epochs) if (folder / RUN_JSON).is_file() else None
