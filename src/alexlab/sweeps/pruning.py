"""Ending the trials of a search that fall behind, by Optuna's median rule. Imports Optuna only in a search."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.callbacks import Callback

from alexlab import compat
from alexlab.errors import PrunedError

if TYPE_CHECKING:
    import optuna

STUDY = "sweep"
STORAGE = "optuna.journal"  # in the folder of the sweep


def open_study(sweep_dir: Path, **options: Any) -> "optuna.Study":
    """The study of a sweep, which is begun where there is none yet; several processes may have it open."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(sweep_dir / STORAGE)))
    return optuna.create_study(study_name=STUDY, storage=storage, direction="maximize", load_if_exists=True, **options)


class Pruning(Callback):
    """Ends a trial whose best val/top1 so far is below the median of the other trials at the same epoch.

    It acts in the jobs of a search only; in any other run it does nothing.

    Args:
        min_trials: finished trials before any is ended.
        min_epochs: epochs that each trial has in any case.
    """

    def __init__(self, min_trials: int = 5, min_epochs: int = 3) -> None:
        for name, value in (("min_trials", min_trials), ("min_epochs", min_epochs)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        self.min_trials, self.min_epochs = min_trials, min_epochs
        self.trial: Any = None
        self.behind: str | None = None  # the reason to end, once there is one

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.is_global_zero:
            self.trial = self._open()

    def _open(self) -> Any:
        """The running trial that this job is; None of any other run."""
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
        """Tells the study the score of this epoch and asks it."""
        score = trainer.callback_metrics.get("val/top1")
        if self.trial is None or score is None or trainer.sanity_checking:
            return
        epoch = trainer.current_epoch + 1
        known = self.trial.study.get_trials(deepcopy=False)[self.trial.number].intermediate_values
        if epoch not in known:  # a resumed job has told of it before
            self.trial.report(score.item(), step=epoch)
        if self.trial.should_prune():
            self.behind = f"after epoch {epoch} its best val/top1 was below the median of the other trials"

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Ends the run, on all ranks, when the epoch that has decided it is whole: logged, on the card, in a checkpoint."""
        behind: str | None = trainer.strategy.broadcast(self.behind)
        if behind is not None:
            raise PrunedError(behind)
