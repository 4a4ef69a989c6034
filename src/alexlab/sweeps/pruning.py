"""Pruning of the trials of a search by Optuna's median rule."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.callbacks import Callback

from alexlab import compat
from alexlab.errors import PrunedError
from alexlab.sweeps.jobs import STORAGE

if TYPE_CHECKING:
    import optuna

STUDY = "sweep"


def open_study(sweep_dir: Path, *, minimize: bool = False, **options: Any) -> "optuna.Study":
    """Open or create the study of a sweep; several processes may have it open.

    Args:
        sweep_dir: folder of the sweep.
        minimize: lower values are better, in a new study.
        options: of `optuna.create_study`.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    # Optuna's lock is a link to this path; it notices an abandoned one only if the link is not broken, as a relative one is.
    storage = JournalStorage(JournalFileBackend(str((sweep_dir / STORAGE).resolve())))
    direction = optuna.study.StudyDirection.MINIMIZE if minimize else optuna.study.StudyDirection.MAXIMIZE
    return optuna.create_study(study_name=STUDY, storage=storage, direction=direction, load_if_exists=True, **options)


class Pruning(Callback):
    """Callback that stops a trial whose best score is worse than the median of the other trials at the same epoch.

    The score is the optimized metric.

    It has no effect outside the jobs of a search.

    Args:
        min_trials: number of finished trials before any trial is pruned.
        min_epochs: minimum number of epochs of each trial.
    """

    def __init__(self, min_trials: int = 5, min_epochs: int = 3) -> None:
        for name, value in (("min_trials", min_trials), ("min_epochs", min_epochs)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        self.min_trials, self.min_epochs = min_trials, min_epochs
        self.trial: Any = None
        self.reason: str | None = None  # reason for pruning; None before the trial is to be pruned

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.is_global_zero:
            self.trial = self._open()

    def _open(self) -> Any:
        """Return the unfinished trial of this job; None outside a search."""
        if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
            return None
        sweep_dir, number = Path(HydraConfig.get().sweep.dir), HydraConfig.get().job.num
        if not (sweep_dir / STORAGE).is_file():
            return None
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # Optuna does not prune a trial at a step before n_warmup_steps.
        pruner = optuna.pruners.MedianPruner(n_startup_trials=self.min_trials, n_warmup_steps=self.min_epochs)
        study = open_study(sweep_dir, pruner=pruner)
        (found,) = [trial for trial in study.get_trials(deepcopy=False) if trial.number == number]
        return None if found.state.is_finished() else compat.reopen_trial(study, found)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Report the score of this epoch to the study, and ask whether to prune."""
        metric: Any = pl_module.optimized
        score = trainer.callback_metrics.get(metric.name)
        if self.trial is None or score is None or trainer.sanity_checking:
            return
        epoch = trainer.current_epoch + 1
        reported = self.trial.study.get_trials(deepcopy=False)[self.trial.number].intermediate_values
        if epoch not in reported:  # a resumed job may have reported it before
            self.trial.report(score.item(), step=epoch)
        if self.trial.should_prune():
            self.reason = f"after epoch {epoch} its best {metric.name} was worse than the median of the other trials"

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Stop the run on all ranks, after the deciding epoch has been logged, recorded and saved in a checkpoint."""
        reason: str | None = trainer.strategy.broadcast(self.reason)
        if reason is not None:
            raise PrunedError(reason)
