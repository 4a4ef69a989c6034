"""Task of `python src/train.py`: check a config, then train on every requested device."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from alexlab.config.data import data_config, find_splits
from alexlab.data.splits import Splits
from alexlab.data.unreadable import suggest_skipping
from alexlab.distributed import ranks
from alexlab.distributed.failures import translate_errors
from alexlab.distributed.hardware import describe_hardware
from alexlab.distributed.imports import import_lightning
from alexlab.distributed.signals import Interrupted, signals
from alexlab.errors import AlexlabError, ConfigError, DiskError, PrunedError, exit_code_of
from alexlab.output.command_line import command_line, short_path
from alexlab.output.log_handler import WHOLE
from alexlab.output.numbers import counted
from alexlab.records.layout import LAST, MEAN_IMAGE_FILE, RUN_JSON, STATISTICS
from alexlab.records.lock import RunLock
from alexlab.records.record import FAILED, FINISHED, INTERRUPTED, PRUNED, RunRecord, images_to_match
from alexlab.records.run import Run

log = logging.getLogger(__name__)


def main(run: Run) -> float | None:
    """Train, print the scores and return the best value of the optimized metric; `debug=doctor` compares remedies instead.

    An error before the training leaves nothing in the run folder. From then on `run.json` records the outcome.

    Raises:
        AlexlabError: if the config cannot be used or the training fails.
        Interrupted: if a signal ended the run.
    """
    if run.config.get("doctor") is not None:
        _compare_remedies(run)
        return None
    if run.resumed and ranks.rank() == 0 and (run.dir / RUN_JSON).is_file():
        _check_checkpoint(run.dir)
    if ranks.is_distributed() and not run.resumed and (run.dir / RUN_JSON).is_file():  # restarted by torchrun
        run = replace(
            run, resumed=True, recorded_images=images_to_match(RunRecord(run.dir).read()["data"], classes_only=False)
        )
    if run.resumed and not any((run.dir / LAST).parent.glob("*.ckpt")):
        log.info("no checkpoint found: training from the start")
    with signals.install(), RunLock(run.dir) if ranks.rank() == 0 else nullcontext():
        with _before_any_work():
            splits = find_splits(run.config)  # before torch is imported, so that a missing folder fails at once
            if ranks.rank() == 0 and not run.isolated:  # at once: importing torch takes seconds
                log.info("checking the config; the run folder will be %s", short_path(run.dir), extra=WHOLE)
            import_lightning()

            from alexlab.config.monitors import optimized_metric
            from alexlab.config.preflight import check_run
            from alexlab.distributed.launch import Limits, launch
            from alexlab.tasks.rank import train
            from alexlab.training.console import print_end

            run, num_ranks, images = check_run(run, splits)
            optimized = optimized_metric(run.config)
        with _recording(run, data=images, optimized=asdict(optimized)) as scores:
            run, splits = _prepare(run, splits)
            scores |= launch(
                partial(train, run, splits),
                num_ranks=num_ranks,
                isolated=run.isolated,
                limits=Limits(**run.config["elastic"]),
                on_restart=lambda causes: RunRecord(run.dir).update(restarts=causes),
            )
            if ranks.rank() == 0:
                print_end(scores, run.dir, optimized)
    ranks.forget_run_dir()
    return scores.get(f"best/{optimized.key}")


def _check_checkpoint(run_dir: Path) -> None:
    """Raise ConfigError if a run to resume has completed epochs and has no checkpoint: it would overwrite its results."""
    record = RunRecord(run_dir).read()
    num_epochs = record["last"].get("epoch", 0)
    if (num_epochs or record["status"] == FINISHED) and not any((run_dir / LAST).parent.glob("*.ckpt")):
        error = ConfigError(
            f"a run of {counted(num_epochs, 'epoch')} needs a checkpoint to be resumed; {run_dir / LAST} is missing. "
            f"To train again in a new folder, use {command_line('train', f'rerun={short_path(run_dir)}')}"
        )
        error.refused = True
        raise error


def _compare_remedies(run: Run) -> None:
    """Let `debug=doctor` examine the config instead of training it."""
    import_lightning()

    from alexlab.tasks.doctor import compare_remedies

    with _before_any_work(), suggest_skipping(run.config["data"]):
        compare_remedies(run, **run.config["doctor"])


def check(config: dict[str, Any], *, remote: bool = False) -> None:
    """Check everything that can be known before training, without side effects.

    Args:
        config: composed config as plain data.
        remote: the run is for another machine, so the devices of this one do not matter.

    Raises:
        AlexlabError: for the first value that cannot be used.
    """
    find_splits(config)  # before torch is imported
    import_lightning()

    from alexlab.config.preflight import check_config

    check_config(config, remote=remote)


@contextmanager
def _before_any_work() -> Iterator[None]:
    """Mark errors as raised before any work, so that the command removes the new run folder."""
    try:
        yield
    except AlexlabError as error:
        error.refused = ranks.rank() == 0
        raise


@contextmanager
def _recording(run: Run, **entries: Any) -> Iterator[dict[str, float]]:
    """Record the start and the outcome of a run on rank 0; the block fills the yielded dict with the scores.

    Args:
        run: the run.
        entries: further entries of its record.
    """
    scores: dict[str, float] = {}
    if ranks.rank() > 0:
        yield scores
        return
    record = RunRecord(run.dir)
    if run.changes:
        record.store_attempt(run.config, run.changes)
    record.start(run.config, dict(run.choices), hardware=describe_hardware())
    record.update(**entries)
    try:
        with translate_errors(run.dir), suggest_skipping(run.config["data"]):
            yield scores
    except Interrupted as error:
        _finish(record, INTERRUPTED, reason=str(error), exit_code=error.exit_code)
        if not run.isolated:
            log.warning("%s; to resume:", error)
            log.warning("%s", command_line("train", f"resume={short_path(run.dir)}"), extra=WHOLE)
        raise
    except PrunedError as error:
        _finish(record, PRUNED, reason=str(error))
        raise
    except BaseException as error:
        _finish(record, FAILED, reason=f"{type(error).__name__}: {error}", exit_code=exit_code_of(error))
        raise
    best = {name.removeprefix("best/"): value for name, value in scores.items() if name.startswith("best/")}
    record.finish(FINISHED, scores=scores, best=best)


def _finish(record: RunRecord, status: str, **values: Any) -> None:
    """Record the end of a failed run; a full disk must not hide the error that ended it."""
    try:
        record.finish(status, **values)
    except DiskError as error:
        log.error("%s", error)


def _prepare(run: Run, splits: Splits) -> tuple[Run, Splits]:
    """Measure the statistics and pack the images that the config asks for."""
    from alexlab.config.build_data import packed_splits
    from alexlab.config.resolve import broadcast_statistics

    config, statistics = broadcast_statistics(run.config, splits)
    if ranks.rank() == 0:
        RunRecord(run.dir).update(config=config)
        if statistics is not None:
            statistics.write(run.dir / STATISTICS)
    splits = packed_splits(config, splits)
    if data_config(config).mean_image:
        _measure_mean_image(run, config, splits)
    return replace(run, config=config), splits


def _measure_mean_image(run: Run, config: dict[str, Any], splits: Splits) -> None:
    """Write the mean image of the training split to the run folder of every node, unless an earlier attempt has."""
    from alexlab.config.build_data import mean_image
    from alexlab.data.mean_image import write_image
    from alexlab.distributed.transfer import broadcast_file

    path = run.dir / MEAN_IMAGE_FILE

    def measure() -> bool:
        image = None if path.is_file() else mean_image(config, splits)
        if image is not None:
            write_image(image, path)
        return True

    ranks.broadcast("mean image", measure)
    if ranks.num_nodes() > 1:
        broadcast_file(path, "mean image file")
