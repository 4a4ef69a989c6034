"""Training on one rank: build the objects, resume, fit, and score the best checkpoint."""

import logging
import os
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch

from alexlab.config import build, build_data
from alexlab.config.data import data_config
from alexlab.config.resolve import accumulation_steps
from alexlab.config.trainer import build_trainer
from alexlab.data.datamodule import ImageDataModule
from alexlab.data.limits import num_eval_images, num_limited_batches
from alexlab.data.splits import Splits
from alexlab.distributed import ranks, transfer
from alexlab.distributed.failures import translate_errors
from alexlab.distributed.hardware import keep_memory
from alexlab.distributed.signals import signals
from alexlab.errors import ConfigError
from alexlab.models.two_tower import Tower
from alexlab.output.escape import shown
from alexlab.output.numbers import counted
from alexlab.records import layout
from alexlab.records.provenance import versions
from alexlab.records.record import RunRecord
from alexlab.records.run import Run
from alexlab.records.safe_load import load_file
from alexlab.tasks.best import score_best
from alexlab.training import checkpoint_io
from alexlab.training.callbacks.checkpoint import CheckpointCallback
from alexlab.training.callbacks.run_record import RunRecordUpdates
from alexlab.training.console import log_batches, log_communication, log_model
from alexlab.training.loggers import EpochCSV, TensorBoard, open_loggers
from alexlab.training.module import Classifier
from alexlab.training.preview import preview_grid, write_preview
from alexlab.training.restore import choose_checkpoint
from alexlab.training.two_towers import TwoTowerStrategy

log = logging.getLogger(__name__)

HPARAM_GROUPS = ("model", "optimizer", "scheduler", "augmentation")


def train(run: Run, splits: Splits) -> dict[str, float]:
    """Train from the last checkpoint in the run folder, or from the start, and return the scores of the best checkpoint."""
    if ranks.rank() > 0:
        logging.getLogger().setLevel(logging.WARNING)
    config = run.config
    lightning.seed_everything(config["seed"], workers=True, verbose=False)
    keep_memory()
    trainer = _build_trainer(run, splits)
    (updates,) = (callback for callback in trainer.callbacks if isinstance(callback, RunRecordUpdates))  # type: ignore[attr-defined]
    data = build_data.datamodule(config, splits, run.dir)
    ckpt_path = _resume(config, trainer, data)
    data.trainer = trainer
    with translate_errors(run.dir):
        try:
            data.start_workers()
            module = _build_module(run, trainer, data, with_weights=ckpt_path is None)
            boards = _start_logging(run, trainer, data, module)
            try:
                with signals.handler(lambda signum: None):  # the ranks agree on the step after which they stop
                    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
                signals.raise_pending()
                _require_best(trainer, module)
                if isinstance(module.net, Tower) and trainer.is_global_zero:
                    log_communication(module.net, trainer.global_step - updates.start_step)
                scores: dict[str, float] = {}
                if module.best:
                    scores = {"train_s": updates.train_s, **score_best(run, trainer, module, data)}
                    scores = {f"best/{name}": value for name, value in module.best.items()} | scores
            finally:
                for board in boards:
                    board.close()
        finally:
            data.stop_workers()
    if data.unreadable is not None and trainer.is_global_zero:
        skipped = data.unreadable.finish()
        scores |= {"skipped": skipped} if scores else {}
    return scores


def _require_best(trainer: lightning.Trainer, module: Classifier) -> None:
    """Raise ConfigError if the best checkpoint is lost and the run ended before a new one: its scores would be lost too."""
    lost = any(getattr(callback, "best_is_lost", False) for callback in trainer.checkpoint_callbacks)
    if lost and not module.best:
        raise ConfigError(
            f"{Path(trainer.default_root_dir) / layout.BEST} is lost, and the run ended before an epoch replaced it: resume "
            f"with a later end, such as a larger trainer.max_epochs, or use {layout.LAST}"
        )


def _build_trainer(run: Run, splits: Splits) -> lightning.Trainer:
    """Return the Trainer for the ranks that are present, which after a restart may be fewer than configured."""
    num_ranks = ranks.world_size()
    steps = accumulation_steps(run.config, num_ranks)
    assert steps is not None, "checked before the run"
    present = {"num_nodes": ranks.num_nodes(), "accumulate_grad_batches": steps}
    config = {**run.config, "trainer": {**run.config["trainer"], **present}}
    trainer = build_trainer(config, run.dir, num_ranks=num_ranks)
    configured = run.config["trainer"]["accumulate_grad_batches"]
    if steps != configured:  # the limits are numbers or fractions of batches, of which a step now accumulates more
        num_batches = len(splits.train) // data_config(run.config).batch_size * configured
        num_batches = num_limited_batches(num_batches, trainer.limit_train_batches)
        trainer.limit_train_batches = num_batches * steps // configured
        interval = trainer.val_check_interval
        if not isinstance(interval, float) or interval < 1:  # 1.0: after each epoch
            batches = num_limited_batches(num_batches, interval) if isinstance(interval, float) else interval
            trainer.val_check_interval = max(1, batches) * steps // configured
    # Not with the config before the ranks start: the precisions of a GPU initialize CUDA in the process that forks them.
    precisions = ranks.all_gather("precision", trainer.precision)
    for number, precision in enumerate(precisions):
        if precision != precisions[0]:
            raise ConfigError(
                f"all ranks must train in the same precision; trainer.precision=auto resolves to {precisions[0]} on rank 0 and "
                f"to {precision} on rank {number}: set trainer.precision=32-true"
            )
    return trainer


def _build_module(run: Run, trainer: lightning.Trainer, data: ImageDataModule, *, with_weights: bool) -> Classifier:
    """Return the LightningModule, with the weights of `model.weights` unless a checkpoint replaces them."""
    config, splits = run.config, data.splits
    mean_image = None
    if data_config(config).mean_image:
        mean_image = torch.from_numpy(np.load(run.dir / layout.MEAN_IMAGE_FILE))
    module = build.classifier(config, splits, record=checkpoint_record(run), mean_image=mean_image)
    weights = build.pretrained(config, module.net, splits) if with_weights else None
    if weights is not None:
        weights.load_into(module.net)
    if trainer.is_global_zero:
        open_loggers(trainer.loggers)
        _log_data(config, splits, trainer)
        log_model(config, module)
        log_batches(config["data"]["batch_size"], trainer)
        for line in weights.lines() if weights else ():
            log.info("weights: %s", line)
    if isinstance(trainer.strategy, TwoTowerStrategy):
        module.net = Tower(module.net, ranks.rank())
        for metrics in module.extra_metrics.values():
            metrics.keep_local()  # type: ignore[operator]
    return module


def _start_logging(
    run: Run, trainer: lightning.Trainer, data: ImageDataModule, module: Classifier
) -> list[TensorBoard]:
    """Write the split list, the preview and the hyperparameters; return the TensorBoard loggers, to be closed at the end."""
    node = run.config["data"]
    is_listed = node.get("url") is not None or os.path.isfile(str(node.get("root")))  # shards, or a manifest
    if trainer.is_global_zero and (data.splits.auto_split or is_listed):
        data.splits.write_manifest(run.dir / layout.MANIFEST)
    boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoard)]
    if run.config["data"]["preview"] and trainer.is_global_zero:
        grid = preview_grid(data, num_images=run.config["data"]["preview"], mix=module.mix)
        write_preview(grid, run.dir / layout.PREVIEW, boards)
    splits = ("best",) if data.splits.test is None else ("best", "test")
    hparam_metrics = [f"{split}/{name}" for split in splits for name in module.scored_names]
    for board in boards:
        board.start_charts(module.scored_names)
        board.start_hparams(_hparams(run), hparam_metrics)
    return boards


def _resume(config: dict[str, Any], trainer: lightning.Trainer, data: ImageDataModule) -> Path | None:
    """Position the data and the loggers at the checkpoint to resume from and return its path, or None without one.

    Raises:
        ConfigError: if there are checkpoints but all of them are corrupt.
    """
    last = Path(trainer.default_root_dir) / layout.LAST

    def choose() -> dict[str, Any]:
        return choose_checkpoint(last, build.classifier(config, data.splits, device="meta"), trainer)

    chosen = ranks.broadcast("checkpoint", choose)
    path = last.with_name(chosen["name"])
    if trainer.num_nodes > 1:
        transfer.broadcast_file(path, "checkpoint")
    if not path.is_file():
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoard) and any(Path(logger.log_dir).glob("events.*")):
                logger.purge_step = 0  # hide the events of an attempt that ended before its first checkpoint
        return None
    checkpoint = load_file(path)
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, CheckpointCallback):
            callback.best_is_lost = chosen["best_is_lost"]
    checkpoint_io.reopen_epoch(checkpoint)
    checkpoint_io.rescale_progress(checkpoint, trainer.accumulate_grad_batches)
    data.resume_at = checkpoint_io.position(checkpoint)
    num_epochs, num_batches = data.resume_at
    position = f", batch {num_batches} of epoch {num_epochs + 1}" if num_batches else ""
    log.info("resuming after %s%s, step %d", counted(num_epochs, "epoch"), position, checkpoint["global_step"])
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoard):
            logger.purge_step = checkpoint["global_step"]
        elif isinstance(logger, EpochCSV):
            logger.resume(num_epochs)
    return path


def checkpoint_record(run: Run) -> dict[str, Any]:
    """Return what the checkpoints of a run store about it, as plain data.

    Only the first node has `run.json`, which has the commit of the code and the fingerprint of the images.
    """
    about = {"config": run.config, "choices": dict(run.choices), "versions": versions()}
    if not (run.dir / layout.RUN_JSON).is_file():
        return about
    record = RunRecord(run.dir).read()
    data = {name: value for name, value in record["data"].items() if name in ("counts", "fingerprint", "sample")}
    return about | {"code": record["code"], "data": data}


def _hparams(run: Run) -> dict[str, Any]:
    """Return the keys by which TensorBoard's HParams tab compares runs."""
    config = run.config
    width = config["model"].get("width", 1.0)
    return {
        **{group: shown(run.choices.get(group, "")) for group in HPARAM_GROUPS},
        "width": float(width) if isinstance(width, int | float) else shown(width),
        "lr": float(config["optimizer"]["lr"]),
        "batch_size": config["data"]["batch_size"],
        "devices": shown(config["trainer"]["devices"]),
        "seed": config["seed"],
        "tags": shown(", ".join(map(str, config["tags"] or ()))),
        "note": shown(config["note"] or ""),
    }


def _log_data(config: dict[str, Any], splits: Splits, trainer: lightning.Trainer) -> None:
    """Log the dataset, its splits, and the share of them that is scored."""
    sizes = ", ".join(f"{name} {len(split)}" for name, split in splits.items())
    location = data_config(config).location
    log.info("data: %s: %d classes, images: %s", location, len(splits.classes), sizes)
    for note in splits.notes:
        log.info("data: %s", note)
    limits = {"val": trainer.limit_val_batches, "test": trainer.limit_test_batches}
    for name, split in splits.items():
        count = num_eval_images(split, data_config(config), limits.get(name, 1.0))
        if 0 < count < len(split):
            log.info(
                "data: scores use a fixed sample of %d of the %d %s images, stratified by class (trainer.limit_%s_batches)",
                *(count, len(split), name, name),
            )
    if config["data"]["sampler"] == "balanced" and config["loss"].get("class_weights") == "balanced":
        log.warning(
            "data.sampler=balanced and loss.class_weights=balanced both correct for unequal classes, so rare ones count "
            "too much; use one of the two"
        )
    if len(splits.classes) < 5:
        log.info("top-5 equals top-%d: there are only %d classes", len(splits.classes), len(splits.classes))
