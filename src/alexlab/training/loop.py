"""One run, as each of its ranks sees it."""

import logging
import os
import time
import warnings
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lightning
import torch
from rich.table import Table

from alexlab.config import build
from alexlab.data.datamodule import ImageDataModule
from alexlab.data.limits import num_eval_images
from alexlab.data.splits import Splits
from alexlab.distributed import ranks, transfer
from alexlab.distributed.failures import translate_errors
from alexlab.distributed.hardware import keep_memory
from alexlab.distributed.signals import signals
from alexlab.models.two_tower import Tower
from alexlab.output.escape import print_line, shown
from alexlab.output.terminal import Terminal
from alexlab.runs import layout
from alexlab.runs.safe_load import load_file
from alexlab.training import checkpoint_io
from alexlab.training.callbacks.checkpoint import CheckpointCallback
from alexlab.training.loggers import EpochCSV, TensorBoard, open_loggers
from alexlab.training.module import Classifier
from alexlab.training.param_groups import parameters_by_kind
from alexlab.training.preview import preview_grid, write_preview
from alexlab.training.restore import choose_checkpoint, load_best
from alexlab.training.two_towers import TwoTowerStrategy

log = logging.getLogger(__name__)

HPARAM_GROUPS = ("model", "optimizer", "scheduler", "augmentation")
# What Lightning says of every run of ours, and why it does not apply.
UNFOUNDED = (
    "does not have many workers",  # data.num_workers takes one for each core; more only wait for each other
    "smaller than the logging interval",  # short epochs are fine: the scores of an epoch are logged at its end
    "isinstance.treespec, LeafSpec.` is deprecated",  # Lightning 2.6 on torch 2.15
    "srun. command is available on your system but is not used",  # our launcher starts the ranks, on a cluster too
    "resuming from a checkpoint that ended before the epoch ended",  # our loader goes on where it was
)


def hush_lightning() -> None:
    """Silences what Lightning says of every run: its greetings, and warnings that do not apply."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in UNFOUNDED:
        warnings.filterwarnings("ignore", f".*{message}.*")


def train(
    config: dict[str, Any],
    splits: Splits,
    *,
    run_dir: Path,
    choices: dict[str, str],
) -> dict[str, float]:
    """Train, from the last checkpoint in the run folder if there is one, score the best one on the test split, return the scores.

    Args:
        config, splits: what to train, and on which files.
        run_dir, choices: as for `tasks.train.run`.
    """
    if ranks.rank() > 0:
        logging.getLogger().setLevel(logging.WARNING)
    lightning.seed_everything(config["seed"], workers=True, verbose=False)
    keep_memory()

    num_ranks, nodes = ranks.world_size(), ranks.num_nodes()
    here = {"num_nodes": nodes, "accumulate_grad_batches": build.accumulation(config, num_ranks)}
    trainer = build.trainer({**config, "trainer": {**config["trainer"], **here}}, run_dir, num_ranks=num_ranks)
    data = build.datamodule(config, splits, run_dir)
    ckpt = go_on(config, splits, trainer, data)
    data.trainer = trainer
    with translate_errors(run_dir):
        try:
            data.start_workers()
            return _trained(config, splits, trainer, data, ckpt, run_dir=run_dir, choices=choices)
        finally:
            data.stop_workers()


def _trained(
    config: dict[str, Any],
    splits: Splits,
    trainer: lightning.Trainer,
    data: ImageDataModule,
    ckpt: Path | None,
    *,
    run_dir: Path,
    choices: dict[str, str],
) -> dict[str, float]:
    module = build.classifier(config, splits, record=record(config, choices))
    weights = None if ckpt else build.pretrained(config, module.net, splits)
    if weights is not None:
        weights.load_into(module.net)
    if trainer.is_global_zero:
        open_loggers(trainer.loggers)
        describe(config, splits, module, trainer)
        for line in weights.lines() if weights else ():
            log.info("weights: %s", line)
        if splits.auto_split:
            splits.write_manifest(run_dir / layout.MANIFEST)
    if isinstance(trainer.strategy, TwoTowerStrategy):
        module.net = Tower(module.net, ranks.rank())
    boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoard)]
    if config["data"]["preview"] and trainer.is_global_zero:
        grid = preview_grid(data, num_images=config["data"]["preview"], mix=module.mix)
        write_preview(grid, run_dir / layout.PREVIEW, boards)
    for board in boards:
        board.start_hparams(hparams(config, choices), ["best/top1", "best/top5"])

    start_s = time.perf_counter()
    try:
        with signals.handler(lambda signum: None):  # the ranks agree on when they stop
            trainer.fit(module, datamodule=data, ckpt_path=ckpt, weights_only=True)
        signals.raise_pending()
        if isinstance(module.net, Tower) and trainer.is_global_zero:
            log.info("%s", exchanged(module.net, trainer.global_step))
        scores = {f"best/{name}": value for name, value in module.best.items()}
        if scores:
            scores["train_s"] = time.perf_counter() - start_s
            scores |= score_best(config, trainer, module, data, run_dir / layout.BEST)
    finally:
        for board in boards:
            board.close()
    if scores and data.unreadable is not None and trainer.is_global_zero:
        scores["skipped"] = data.unreadable.finish()
    return scores


def exchanged(tower: Tower, steps: int) -> str:
    """What a run of two towers has sent, beside what DDP would."""
    sizes = [4 * shape.numel() / 1e6 for shape in tower.shapes.values()]
    own = sum(value.nbytes for value in tower.parameters()) / 1e6
    sent = tower.peer.sent_bytes / max(1, steps) / 1e6
    return (
        f"two towers: {own:.1f} MB of parameters each, {sent:.2f} MB sent by each in a step with its share of the "
        f"validations; DDP: {sum(sizes):.1f} MB of parameters each, and as many of gradients averaged in a step"
    )


def go_on(config: dict[str, Any], splits: Splits, trainer: lightning.Trainer, data: ImageDataModule) -> Path | None:
    """Make the data and the loggers continue where the checkpoint to resume from stands; return it, None without one.

    Raises:
        ConfigError: if there are checkpoints, and none of them is whole.
    """
    last = Path(trainer.default_root_dir) / layout.LAST

    def chosen_here() -> dict[str, Any]:
        if not any(last.parent.glob("*.ckpt")):
            return {"name": last.name, "best_is_lost": False}
        return choose_checkpoint(last, build.classifier(config, splits, device="meta"), trainer)

    chosen = ranks.broadcast("checkpoint", chosen_here)
    path = last.with_name(chosen["name"])
    if trainer.num_nodes > 1:
        transfer.broadcast_file(path, "checkpoint")
    if not path.is_file():
        return None
    reached = load_file(path)
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, CheckpointCallback):
            callback.best_is_lost = chosen["best_is_lost"]
    checkpoint_io.rescale_progress(reached, trainer.accumulate_grad_batches)
    data.resume_at = checkpoint_io.position(reached)
    epochs, batches = data.resume_at
    inside = f", batch {batches} of epoch {epochs + 1}" if batches else ""
    log.info("going on after %d epochs%s, step %d", epochs, inside, reached["global_step"])
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoard | EpochCSV):
            logger.resume(epoch=epochs - 1, step=reached["global_step"])
    return path


def score_best(
    config: dict[str, Any], trainer: lightning.Trainer, module: Classifier, data: ImageDataModule, best: Path
) -> dict[str, float]:
    """Scores the best checkpoint on the test split, where there is one, and over the views that `test.views` asks for.

    The views are those of the test split, or of the validation split where there is no test split.
    """
    if trainer.num_nodes > 1:
        transfer.broadcast_file(best, "best")
    kept = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, CheckpointCallback)]
    views, splits = build.extra_views(config), data.splits
    if not best.is_file() and all(callback.best_score is None for callback in kept):
        if splits.test is not None or views is not None:
            log.info("no checkpoint was saved, so the test split and test.views are not scored")
        return {}
    limit = trainer.limit_test_batches
    wanted: dict[str, Any] = {"test": data.eval_loader(splits.test, limit=limit)} if splits.test is not None else {}
    if views is not None:
        wanted[config["test"]["views"]] = data.eval_loader(splits.test or splits.val, views, limit=limit)
    if wanted or trainer.is_global_zero:  # read back even if nothing is to be scored: it is what the run has made
        # Not by ckpt_path: Lightning would hand the checkpoint to the callbacks too, and the moving average's puts the
        # weights that were averaged in the place of their average.
        load_best(module, best)
    scores: dict[str, float] = {}
    for prefix, loader in wanted.items():
        module.test_metric_prefix = prefix
        trainer.test(module, dataloaders=loader, verbose=False)
        found = {
            name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith(f"{prefix}/")
        }
        values = " ".join(f"{name.split('/')[1]} {value:.4f}" for name, value in found.items())
        log.info("%s, best checkpoint: %s", prefix, values)
        scores |= found | {f"{prefix}/count": module.num_scored_images}
    return scores


def record(config: dict[str, Any], choices: dict[str, str]) -> dict[str, Any]:
    """What a checkpoint must say of its run, as plain data."""
    versions = {}
    for package in ("alexlab", "torch", "torchvision", "lightning"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # a checkout that is not installed
            continue
    return {"config": config, "choices": choices, "versions": versions}


def hparams(config: dict[str, Any], choices: dict[str, str]) -> dict[str, Any]:
    """The keys by which runs are compared in TensorBoard's HParams tab."""
    return {
        **{group: shown(choices.get(group, "")) for group in HPARAM_GROUPS},
        "width": float(config["model"].get("width", 1.0)),
        "lr": float(config["optimizer"]["lr"]),
        "batch_size": config["data"]["batch_size"],
        "devices": shown(config["trainer"]["devices"]),
        "seed": config["seed"],
    }


def describe(config: dict[str, Any], splits: Splits, module: Classifier, trainer: lightning.Trainer) -> None:
    """Logs what is about to be trained, and what a person should know of the data."""
    sizes = ", ".join(f"{name} {len(split)}" for name, split in splits.items())
    log.info(
        "data: %s: %d classes, images: %s", config["data"]["root"] or config["data"]["url"], len(splits.classes), sizes
    )
    for note in splits.notes:
        log.info("data: %s", note)
    limits = {"val": trainer.limit_val_batches, "test": trainer.limit_test_batches}
    for split_name, split in splits.items():
        count = num_eval_images(split, build.data(config), limits.get(split_name, 1.0))
        if 0 < count < len(split):
            log.info(
                "data: scores are of a fixed sample of %d of the %d %s images, stratified by class (trainer.limit_%s_batches)",
                *(count, len(split), split_name, split_name),
            )
    if len(splits.classes) < 5:
        log.info("top-5 is top-%d: there are only %d classes", len(splits.classes), len(splits.classes))
    name = config["model"]["_target_"].rsplit(".", 1)[-1]
    by_kind = parameters_by_kind(module.net).items()
    counts = [f"{kind} {sum(map(torch.numel, parameters)):,}" for kind, parameters in by_kind if parameters]
    log.info("net: %s, %s parameters: %s", name, f"{_count(module.net.parameters()):,}", ", ".join(counts))
    for group in module.parameter_groups(module.net):
        values = {"lr": config["optimizer"]["lr"], "weight_decay": config["optimizer"].get("weight_decay", 0.0)} | group
        log.info(
            "optimizer: %s: %s parameters, lr %g, weight decay %g",
            group.get("name", "all"),
            f"{_count(group['params']):,}",
            values["lr"],
            values["weight_decay"],
        )
    batch, accumulate, ranks = config["data"]["batch_size"], trainer.accumulate_grad_batches, trainer.world_size
    share = batch // (ranks * accumulate)
    on = f" on {trainer.num_nodes} nodes" if trainer.num_nodes > 1 else ""
    log.info("batch: %d = %d devices%s x %d accumulated x %d images", batch, ranks, on, accumulate, share)
    log.info("threads: %d for each device; precision: %s", torch.get_num_threads(), trainer.precision)


def _count(parameters: Iterable[torch.nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def print_scores(scores: dict[str, float], run_dir: Path) -> None:
    """Prints the final scores, the run folder and the command that shows its curves."""
    table = Table(title=f"trained in {scores['train_s']:.0f} s")
    for column in ("split", "images", "top-1", "top-5", "loss", "of"):
        table.add_column(column, justify="left" if column in ("split", "of") else "right")
    saved = "the best" if (run_dir / layout.BEST).is_file() else "not saved"
    rows = [("val", "best", f"epoch {scores['best/epoch'] + 1:.0f}, {saved}")]
    if "test/top1" in scores:
        rows.append(("test", "test", "the same checkpoint"))
    for views in ("five", "ten_crop"):
        if f"{views}/top1" in scores:
            rows.append(("test" if "test/top1" in scores else "val", views, f"the same, {views}"))
    for split, prefix, which in rows:
        values = [f"{scores[f'{prefix}/{name}']:.4f}" for name in ("top1", "top5", "loss")]
        table.add_row(split, f"{scores.get(f'{prefix}/count', 0):.0f}", *values, which)
    Terminal().print(table)
    folder = os.path.relpath(run_dir)
    if scores.get("skipped"):
        print_line(
            f"{scores['skipped']:.0f} images could not be read and were left out: {Path(folder) / layout.SKIPPED}"
        )
    print_line(f"run folder: {folder}")
    print_line(f"tensorboard --logdir {folder}")
