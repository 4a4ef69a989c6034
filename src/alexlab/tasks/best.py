"""Final scores of a run: its best checkpoint in 32 bits."""

import gc
import logging
from typing import Any

import lightning
from lightning.pytorch.plugins import Precision

from alexlab.config import build
from alexlab.data.datamodule import ImageDataModule
from alexlab.distributed import transfer
from alexlab.distributed.hardware import return_memory
from alexlab.records import layout
from alexlab.records.run import Run
from alexlab.training.callbacks.checkpoint import CheckpointCallback
from alexlab.training.module import Classifier
from alexlab.training.restore import load_best

log = logging.getLogger(__name__)


def score_best(run: Run, trainer: lightning.Trainer, module: Classifier, data: ImageDataModule) -> dict[str, float]:
    """Score the best checkpoint in 32 bits, as `evaluate.py` does, and store its validation in `module.best`.

    The splits are the validation split, unless its score is known from the training; the test split, if there is one; and for
    `test.views` the test split, or the validation split if there is no test split.

    Returns:
        The scores of the test split and of the views. Nothing is scored if no checkpoint was saved.
    """
    best = run.dir / layout.BEST
    if trainer.num_nodes > 1:
        transfer.broadcast_file(best, "best")
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, CheckpointCallback)]
    views, splits = build.extra_views(run.config), data.splits
    if not best.is_file() and all(callback.best_score is None for callback in callbacks):
        if splits.test is not None or views is not None or not _validates_in_32_bits(trainer, module):
            log.info("no checkpoint was saved, so no scores are computed in 32 bits after the training")
        return {}
    is_known = _validates_in_32_bits(trainer, module)
    _free_training(trainer, module)
    trainer.strategy.precision_plugin = Precision()
    module.float()
    # Without ckpt_path: Lightning would also restore the callbacks, and that of the moving average replaces the average by the
    # raw weights.
    saved = load_best(module, best)
    limits = {"val": trainer.limit_val_batches, "test": trainer.limit_test_batches}
    loaders: dict[str, tuple[Any, float]] = {}
    if not is_known or saved["step"] != module.best["step"]:  # other steps if it was chosen by another metric
        loaders["best"] = data.eval_loader(splits.val, limit=limits["val"]), limits["val"]
    if splits.test is not None:
        loaders["test"] = data.eval_loader(splits.test, limit=limits["test"]), limits["test"]
    if views is not None:
        loader = data.eval_loader(splits.test or splits.val, views, limit=limits["test"])
        loaders[run.config["test"]["views"]] = loader, limits["test"]
    scores: dict[str, float] = {}
    for prefix, (loader, limit) in loaders.items():
        module.test_metric_prefix = prefix
        trainer.limit_test_batches = limit
        trainer.test(module, dataloaders=loader, verbose=False)
        values = " ".join(f"{name} {module.scored[name]:.4f}" for name in module.scored_names)
        log.info("%s, best checkpoint: %s", "val in 32 bits" if prefix == "best" else prefix, values)
        if prefix == "best":
            module.best = {**module.scored, **saved}
        else:
            scores |= {f"{prefix}/{name}": module.scored[name] for name in (*module.scored_names, "count")}
    return scores


def _free_training(trainer: lightning.Trainer, module: Classifier) -> None:
    """Free the gradients, the optimizer and the memory of the training steps.

    The loader processes that follow are forked from this process, and each page that it writes to later exists twice.
    """
    module.zero_grad(set_to_none=True)
    trainer.optimizers, trainer.strategy.lr_scheduler_configs = [], []
    gc.collect()
    return_memory()


def _validates_in_32_bits(trainer: lightning.Trainer, module: Classifier) -> bool:
    """Return whether the validations of a training compute in 32 bits."""
    return trainer.precision == "32-true" or module.val_precision == "32"
