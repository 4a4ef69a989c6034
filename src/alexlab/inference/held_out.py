"""Check that no member of an ensemble was trained on an image of the evaluation."""

import os
from typing import Any

from alexlab.data.config import DataConfig
from alexlab.errors import ConfigError
from alexlab.inference.checkpoint import TrainedModel

# Keys of `data` that decide which images are in which split.
SPLIT_KEYS = (
    *("root", "url", "dataset", "generate", "splits", "val_split", "val_fraction", "test_fraction"),
    *("split_seed", "group", "folds", "fold"),
)


def check_held_out(model: TrainedModel, settings: DataConfig, split: str, *, from_run: bool) -> None:
    """Raise ConfigError if images of a split may have trained a member, because the members' runs split the data differently.

    Args:
        model: an ensemble, or a single network, for which nothing is checked.
        settings: data settings of the evaluation.
        split: val, test, train or all.
        from_run: whether the settings refer to the data of the first member's run.
    """
    if settings.root is not None and not from_run:
        same = [each for each in model.members if _real(each.config["data"].get("root")) == _real(settings.root)]
    else:
        same = [*model.members] if from_run else []
    for key in SPLIT_KEYS if from_run else SPLIT_KEYS[1:]:
        given = [member.config["data"].get(key) for member in same]
        values = list(dict.fromkeys(_real(value) if key == "root" else str(value) for value in given))
        if len(values) > 1 and not (key == "fold" and split == "test"):
            instead = "split=test or data.root=DIR" if key == "fold" else "data.root=DIR"
            raise ConfigError(
                f"split={split} must not contain training images of any member, but the members' runs split the data differently "
                f"(data.{key}: {', '.join(values)}); set {instead}"
            )


def _real(root: Any) -> str:
    return os.path.realpath(str(root))
