"""Final scores and predictions of a run: those of its best checkpoint, in float32."""

import gc
import logging
from collections.abc import Iterator
from typing import Any

import lightning
from lightning.pytorch.plugins import Precision

from alexlab.config import build_data
from alexlab.data.datamodule import ImageDataModule
from alexlab.data.samplers import data_ranks
from alexlab.data.splits import Split
from alexlab.distributed import transfer
from alexlab.distributed.hardware import return_memory
from alexlab.records import layout
from alexlab.records.disk_errors import RunFileWriter
from alexlab.records.run import Run
from alexlab.training.callbacks.checkpoint import CheckpointCallback
from alexlab.training.collector import PredictionCollector
from alexlab.training.module import Classifier
from alexlab.training.restore import load_best

log = logging.getLogger(__name__)


def score_best(run: Run, trainer: lightning.Trainer, module: Classifier, data: ImageDataModule) -> dict[str, float]:
    """Score the best checkpoint in float32, as `evaluate.py` does, and save its predictions in `predictions/`.

    The splits are the validation split, whose scores replace `module.best`; the test split, if there is one; and for
    `test.views` the test split, or the validation split if there is no test split.

    Returns:
        The scores of the test split and of the views. Nothing is scored if no checkpoint was saved.
    """
    best = run.dir / layout.BEST
    if trainer.num_nodes > 1:
        transfer.broadcast_file(best, "best")
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, CheckpointCallback)]
    if not best.is_file() and all(callback.best_score is None for callback in callbacks):
        log.info("no checkpoint was saved: the run ends without final scores and saved predictions")
        return {}
    _free_training(trainer, module)
    trainer.strategy.precision_plugin = Precision()
    module.float()
    # Without ckpt_path: Lightning would also restore the callbacks, and that of the moving average replaces the average by the
    # raw weights.
    saved = load_best(module, best)
    writer = RunFileWriter()
    writer.continue_on_full_disk = any(callback.on_error == "warn" for callback in callbacks)
    scores: dict[str, float] = {}
    for prefix, split, transform, limit in list(_evaluations(run, trainer, data)):
        module.collector = PredictionCollector(split) if transform is None else None
        module.test_metric_prefix = prefix
        trainer.limit_test_batches = limit
        loader = data.eval_loader(split, transform, limit=limit)
        trainer.test(module, dataloaders=loader, verbose=False)
        values = " ".join(f"{name} {module.scored[name]:.4f}" for name in module.scored_names)
        log.info("%s, best checkpoint: %s", "val in float32" if prefix == "best" else prefix, values)
        if prefix == "best":
            module.best = {**module.scored, **saved}
        else:
            scores |= {f"{prefix}/{name}": module.scored[name] for name in (*module.scored_names, "count")}
        if module.collector is not None:
            num_ranks, rank = data_ranks(trainer)
            kept = module.collector.gather(loader.batch_sampler, num_ranks=num_ranks, rank=rank)
            if kept is not None and trainer.is_global_zero:
                with writer.writing(run.dir / layout.PREDICTIONS):
                    kept.write(run.dir, "val" if prefix == "best" else prefix)
    module.collector = None
    return scores


def _evaluations(
    run: Run, trainer: lightning.Trainer, data: ImageDataModule
) -> Iterator[tuple[str, Split, Any, int | float]]:
    """Yield the prefix of the scores, split, transform and limit of each evaluation; the transform is None for the usual one."""
    views, splits, test_limit = build_data.extra_views(run.config), data.splits, trainer.limit_test_batches
    yield "best", splits.val, None, trainer.limit_val_batches
    if splits.test is not None and test_limit:
        yield "test", splits.test, None, test_limit
    if views is not None and test_limit:
        yield run.config["test"]["views"], splits.test or splits.val, views, test_limit


def _free_training(trainer: lightning.Trainer, module: Classifier) -> None:
    """Free the gradients, the optimizer and the memory of the training steps.

    Later DataLoader workers are forked from this one, and each memory page that it then writes to is copied.
    """
    module.zero_grad(set_to_none=True)
    trainer.optimizers, trainer.strategy.lr_scheduler_configs = [], []
    gc.collect()
    return_memory()
