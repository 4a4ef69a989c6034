"""The decision of early stopping in a resumed run."""

import pytest
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from alexlab.training.callbacks.early_stopping import EarlyStopping


@pytest.mark.parametrize(
    ("limits", "patience", "stays"),
    [
        ([50, -1], 3, True),
        ([20, -1], 3, True),  # a shorter run
        ([60, -1], 3, False),
        ([None, -1], 3, False),  # no limit
        ([50, 100], 3, True),
        ([50, -1], 4, False),
    ],
)
def test_only_a_longer_run_or_more_patience_overrules_it(limits: list[int | None], patience: int, stays: bool) -> None:
    before = EarlyStopping(patience=3)
    before.limits, before.wait_count = [50, -1], 3
    before.stopping_reason = EarlyStoppingReason.PATIENCE_EXHAUSTED
    resumed = EarlyStopping(patience=patience)
    resumed.limits = limits
    resumed.load_state_dict(before.state_dict())
    assert (resumed.stopping_reason is EarlyStoppingReason.PATIENCE_EXHAUSTED) == stays
    assert (resumed.patience, resumed.wait_count) == (patience, 3)


@pytest.mark.parametrize(("patience", "stays"), [(3, True), (2, True), (4, False)])
def test_an_improvement_before_min_epochs_does_not_overrule_it(patience: int, stays: bool) -> None:
    """An uninterrupted run stops at min_epochs in spite of it."""
    before = EarlyStopping(patience=3)
    before.limits, before.wait_count = [50, -1], 0
    before.stopping_reason = EarlyStoppingReason.PATIENCE_EXHAUSTED
    resumed = EarlyStopping(patience=patience)
    resumed.limits = before.limits
    resumed.load_state_dict(before.state_dict())
    assert (resumed.stopping_reason is EarlyStoppingReason.PATIENCE_EXHAUSTED) == stays
