"""Early stopping, also of a resumed run."""

import math
from typing import Any

import lightning
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from alexlab import compat


class EarlyStopping(LightningEarlyStopping):
    """Callback that ends the training when its metric no longer improves, or passes a threshold.

    Each validation counts once, for a training metric each complete epoch. A validation that is only due because the run stops
    does not count: a longer run would not have it. Lightning's own (2.6) raises an error where the metric was not measured, as
    in an epoch that `max_steps` cut short, and a resumed run forgets that it had stopped.

    Args:
        monitor: metric to compare.
        mode: `max` or `min`.
        patience: validations, or epochs for a training metric, without improvement before the run ends. A resumed run may
            have another patience.
        min_delta: smallest change that counts as an improvement.
        stopping_threshold: value from which the run ends.
        divergence_threshold: value so bad that the run ends.
        check_finite: end the run if the metric is not finite.
    """

    def __init__(
        self,
        monitor: str = "val/top1",
        mode: str = "max",
        patience: int = 10,
        min_delta: float = 0.0,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_finite: bool = True,
    ) -> None:
        super().__init__(
            monitor,
            mode=mode,
            patience=patience,
            min_delta=min_delta,
            stopping_threshold=stopping_threshold,
            divergence_threshold=divergence_threshold,
            check_finite=check_finite,
            strict=False,  # a training metric is missing in an epoch that was cut short
            check_on_train_epoch_end=monitor.startswith("train/"),
        )
        self.limits: list[int | None] = []  # epochs and steps after which the run ends

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.limits = [trainer.max_epochs, trainer.max_steps]

    def state_dict(self) -> dict[str, Any]:
        state = {**super().state_dict(), "limits": self.limits}
        del state["stopping_reason_message"]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the counts; a longer run or more patience overrules the decision to stop."""
        super().load_state_dict({**state_dict, "patience": self.patience})
        # The count alone is not enough: if patience ran out before `min_epochs`, an improvement may have reset it since.
        is_patient = self.patience > max(state_dict["patience"], self.wait_count)
        is_patient = is_patient and self.stopping_reason is EarlyStoppingReason.PATIENCE_EXHAUSTED
        before, now = (
            [math.inf if limit in (None, -1) else limit for limit in limits]
            for limits in (state_dict["limits"], self.limits)
        )
        if is_patient or any(new > old for old, new in zip(before, now, strict=True)):
            self.stopping_reason = EarlyStoppingReason.NOT_STOPPED

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Repeat the decision to stop of the run that is resumed."""
        trainer.should_stop |= self.stopping_reason is not EarlyStoppingReason.NOT_STOPPED

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not trainer.sanity_checking and compat.validation_is_scheduled(trainer):
            super().on_validation_end(trainer, pl_module)
