"""Loggers that write one file each, directly into the run folder, and continue it when the run is resumed."""

import csv
import netrc
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment  # type: ignore[attr-defined]
from lightning.pytorch.utilities import rank_zero_only

from alexlab import compat
from alexlab.errors import AlexlabError, ConfigError
from alexlab.output.csv_files import csv_bytes
from alexlab.records.atomic import write_atomic
from alexlab.records.disk_errors import RunFileWriter

EPOCH_METRICS = ("train/", "val/", "best/")
OFFLINE = ("offline", "dryrun", "disabled")  # modes of Weights & Biases that need no API key
WANDB_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")  # old and new host name
# With its default limits MLflow waits four minutes for a server that does not answer.
MLFLOW_LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


def check_wandb(node: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError if Weights & Biases would prompt for an API key. Does not import or contact it.

    Args:
        node: arguments of a WandbLogger.
        where: key of the node in the config.
    """
    mode = str(node.get("mode") or os.environ.get("WANDB_MODE", "")).lower()
    if node.get("offline") or node.get("anonymous") or mode in OFFLINE or _has_wandb_key():
        return
    raise ConfigError(
        f"{where} needs an API key: run `wandb login` or set WANDB_API_KEY; with WANDB_MODE=offline the run stays on this "
        "disk, and `wandb sync` uploads it later"
    )


def _has_wandb_key() -> bool:
    """Return whether there is an API key where Weights & Biases looks for one."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    settings = Path(os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config/wandb") / "settings"
    if any(
        path.is_file() and re.search("api_key|base_url", path.read_text())
        for path in (settings, Path("wandb/settings"))
    ):
        return True  # a private server, whose key is in the netrc file under its host name
    hosts = {*WANDB_HOSTS, urlsplit(os.environ.get("WANDB_BASE_URL", "")).netloc}
    for path in (os.environ.get("NETRC"), Path.home() / ".netrc", Path.home() / "_netrc"):
        try:
            if path and any(netrc.netrc(path).authenticators(host) for host in hosts):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


@contextmanager
def logger_errors(where: str) -> Iterator[None]:
    """Convert any error while a logger is built or opened, such as a server that does not answer, to a ConfigError."""
    before = {name: os.environ.get(name) for name in MLFLOW_LIMITS}
    os.environ.update({name: value for name, value in MLFLOW_LIMITS.items() if before[name] is None})
    try:
        yield
    except AlexlabError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300] or type(error).__name__
        hint = (
            "; with WANDB_MODE=offline the run stays on this disk" if type(error).__module__.startswith("wandb") else ""
        )
        raise ConfigError(f"{where} cannot be opened: {text}{hint}") from error
    finally:
        for name in (name for name, value in before.items() if value is None):
            del os.environ[name]


def open_loggers(loggers: Iterable[Logger]) -> None:
    """Connect loggers of other packages to their servers, so that a failure is reported before the first step."""
    for logger in loggers:
        if not isinstance(logger, TensorBoard | EpochCSV):
            with logger_errors(f"logger {type(logger).__name__}"):
                _ = getattr(logger, "experiment", None)


class _EpochsFromOne(Logger):
    """Logger whose `epoch` counts from 1; Lightning's counts from 0."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log metrics; `epoch` is left out of those after the training."""
        found = dict(metrics)
        epoch = found.pop("epoch", None)
        if epoch is not None and any(name.startswith(("train/", "val/")) for name in found):
            found["epoch"] = epoch + 1
        super().log_metrics(found, step)  # type: ignore[safe-super]  # of the second base class


class Wandb(_EpochsFromOne, WandbLogger):
    """Lightning's logger for Weights & Biases with epochs from 1."""


class MLflow(_EpochsFromOne, MLFlowLogger):
    """Lightning's logger for MLflow with epochs from 1."""


class TensorBoard(RunFileWriter, _EpochsFromOne, TensorBoardLogger):
    """TensorBoard logger with a single event file, directly in the run folder, for training, test and HParams.

    PyTorch's own writer has a thread that dies at the first failed write.

    Args:
        save_dir: run folder.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir, name="", version="", default_hp_metric=False)
        self.board: Any = None  # the SummaryWriter, once it is open
        self.purge_step: int | None = None  # TensorBoard hides events of earlier files from this step on

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The SummaryWriter."""
        if self.board is None:
            from alexlab.training.events import EventFile

            self.board = compat.summary_writer(self.log_dir, EventFile, purge_step=self.purge_step)
        return self.board

    @rank_zero_only
    def start_charts(self, names: Iterable[str]) -> None:
        """Put the training and the validation of each metric into one chart of the tab Custom Scalars."""
        charts = {name: ["Multiline", [f"{split}/{name}$" for split in ("train", "val")]] for name in names}
        self.experiment.add_custom_scalars({"training and validation": charts})

    @rank_zero_only
    def start_hparams(self, params: dict[str, Any], metrics: list[str]) -> None:
        """Start a row of the HParams tab, whose metrics TensorBoard reads from the scalars of these names."""
        from torch.utils.tensorboard.summary import hparams

        experiment, start, self._session_end = hparams(params, dict.fromkeys(metrics, 0))
        self.experiment.file_writer.add_summary(experiment)
        self.experiment.file_writer.add_summary(start)

    @rank_zero_only
    def save(self) -> None:
        """Flush the event file; unlike Lightning, write no hparams.yaml, which `.hydra` makes redundant."""
        with self.writing(Path(self.log_dir)):
            self.experiment.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Flush only: Lightning calls this after fit and after test, and a closed writer would start a second file."""
        if self.board is not None:
            self.save()

    @rank_zero_only
    def close(self) -> None:
        """End the row of the HParams tab and close the file."""
        if self.board is None:
            return
        if hasattr(self, "_session_end"):
            self.experiment.file_writer.add_summary(self._session_end)
        with self.writing(Path(self.log_dir)):
            self.experiment.close()


class EpochCSV(RunFileWriter, Logger):
    """Logger that writes `metrics.csv`, with a row per epoch, counted from 1, and a column per metric.

    Every update rewrites the whole file atomically: readers never see a partial row, and rows that could not be written to
    a full disk are included in the next write.

    Args:
        save_dir: run folder.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self.path = Path(save_dir) / "metrics.csv"
        self.rows: dict[int, dict[str, Any]] = {}

    def resume(self, num_epochs: int) -> None:
        """Resume after some epochs: keep their rows."""
        if self.path.is_file():
            with self.path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if int(row["epoch"]) <= num_epochs]
            self.rows = {int(row["epoch"]): {name: value for name, value in row.items() if value} for row in rows}

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: hyper-parameters are in `.hydra/config.yaml`."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add the metrics of an epoch to its row, without those of single steps, of the test split and after the training."""
        values = {
            name: value for name, value in metrics.items() if name.startswith(EPOCH_METRICS) and "_step" not in name
        }
        if all(name.startswith("best/") for name in values):  # the best checkpoint, scored again after the training
            return
        epoch = int(metrics["epoch"]) + 1  # Lightning counts from 0
        self.rows.setdefault(epoch, {}).update(values, epoch=epoch, step=step)
        self._write()

    def _write(self) -> None:
        columns = list(dict.fromkeys(["epoch", "step", *sorted({name for row in self.rows.values() for name in row})]))
        rows: list[Any] = [columns, *([row.get(name) for name in columns] for _, row in sorted(self.rows.items()))]
        with self.writing(self.path):
            write_atomic(self.path, csv_bytes(rows))
