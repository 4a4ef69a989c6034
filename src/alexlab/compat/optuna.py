"""Private names of Optuna."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import optuna


def reopen_trial(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> optuna.Trial:
    """Return a running trial of a study that another process has asked for, so that values can be reported to it.

    Works around: Optuna hands out such a trial only in the process that calls `ask` or `optimize`. Checked with optuna 5.0.
    """
    import optuna

    return optuna.Trial(study, trial._trial_id)
