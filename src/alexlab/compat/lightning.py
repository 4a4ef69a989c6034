"""Private names of Lightning."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import lightning


def disable_signal_handlers(trainer: lightning.Trainer) -> None:
    """Keep a Trainer from handling signals; called before `fit` has registered its handlers, as in `Callback.setup`.

    Works around: Lightning's SIGTERM handler broadcasts to the other ranks from inside a step, which deadlocks with a collective
    that the step has begun, and with several ranks it broadcasts once more, and reads the result, at every batch. Neither can
    be switched off. Checked with lightning 2.6.6.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def finish_steps(trainer: lightning.Trainer) -> None:
    """Let validations and a stop within an epoch wait for the end of the optimizer step; called once, before `fit`.

    Works around: Lightning validates and stops between two accumulated batches, whose gradients no checkpoint contains, and
    where DDP has not yet broadcast the statistics of batch norm. Checked with lightning 2.6.6.
    """
    loop = trainer.fit_loop.epoch_loop
    kind: Any = type(loop)

    class WholeSteps(kind):
        @property
        def done(self) -> bool:
            return not self._should_accumulate() and super().done

        def _should_check_val_fx(self, data_fetcher: Any) -> bool:
            if self._should_accumulate():
                return False
            if super()._should_check_val_fx(data_fetcher):
                return True
            interval = trainer.val_check_batch or math.inf  # None if the interval is a time
            batch_idx = self.total_batch_idx if trainer.check_val_every_n_epoch is None else self.batch_idx
            num_accumulated = self.batch_idx % trainer.accumulate_grad_batches
            became_due = batch_idx // interval > (batch_idx - num_accumulated) // interval
            return became_due and self._should_check_val_epoch()

    loop.__class__ = WholeSteps


def validation_is_due(trainer: lightning.Trainer) -> bool:
    """Return whether a validation follows the training batch that has just ended.

    Works around: Lightning decides that from six arguments of the Trainer and publishes the result only when the validation
    begins. Checked with lightning 2.6.6.
    """
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def validation_is_scheduled(trainer: lightning.Trainer) -> bool:
    """Return whether the validation after the current training batch is due by its interval, not only since the run stops.

    Works around: Lightning also validates before it stops within an epoch, and does not distinguish the two cases. Checked with
    lightning 2.6.6.
    """
    if trainer.state.fn != "fit":  # `trainer.validate`
        return True
    stops, trainer.should_stop = trainer.should_stop, False
    try:
        return validation_is_due(trainer)
    finally:
        trainer.should_stop = stops


def repeat_validation(trainer: lightning.Trainer) -> None:
    """Let a resumed fit begin with the whole validation that follows the step of its checkpoint.

    Works around: Lightning skips that validation unless its own checkpoint was written in the middle of it, and then continues
    at the batch that was reached. Checked with lightning 2.6.6.
    """
    from lightning.pytorch.loops.evaluation_loop import RestartStage

    loop = trainer.fit_loop.epoch_loop.val_loop
    loop._restart_stage = RestartStage.RESTARTED_MID_EVALUATION
    loop.restarting = False  # from its first batch


def await_validation(trainer: lightning.Trainer, is_pending: Callable[[], bool]) -> None:
    """Keep a resumed fit from ending while a validation is pending; called before `fit` starts its loops.

    Works around: Lightning skips all loops of a fit that is resumed after its last step, as given by `max_steps`, `max_time` or
    early stopping. Checked with lightning 2.6.6.
    """

    def held(kind: Any) -> Any:
        done = property(lambda loop: not is_pending() and kind.done.fget(loop))
        return type(kind.__name__, (kind,), {"done": done})

    for loop in (trainer.fit_loop, trainer.fit_loop.epoch_loop):
        loop.__class__ = held(type(loop))


def resume_by_epochs(trainer: lightning.Trainer) -> None:
    """Resume a run with `max_steps` as one with `max_epochs`; called before `fit` loads the checkpoint.

    Works around: with `max_steps`, Lightning repeats the end of a finished epoch and counts it twice. Checked with lightning
    2.6.6.
    """
    trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]


def loop_progress(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the progress of epochs and of batches in a checkpoint: `total` and `current`, each with `ready` and `processed`.

    Works around: the layout of a checkpoint's `loops` is undocumented. Checked with lightning 2.6.6.
    """
    loops = checkpoint["loops"]["fit_loop"]
    return loops["epoch_progress"], loops["epoch_loop.batch_progress"]


def reopen_batch(checkpoint: Mapping[str, Any]) -> None:
    """Change a checkpoint to one saved by `on_train_batch_end` of its last batch, so that its step is not counted again.

    Works around: Lightning resumes after a batch that was followed by a validation by ending that batch once more. Checked with
    lightning 2.6.6.
    """
    for counts in (loop_progress(checkpoint)[1][name] for name in ("total", "current")):
        counts["completed"] = counts["processed"] - 1
    checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
