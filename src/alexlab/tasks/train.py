"""`python src/train.py`: from a composed config to a trained net in a run folder. Imports no torch at its top."""

import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from alexlab.cli.resume import images_to_match, store_attempt
from alexlab.config.allowlist import check_targets
from alexlab.config.culprits import explain
from alexlab.config.instantiate import bind
from alexlab.data.config import DataConfig
from alexlab.data.fingerprint import describe_images, require_same_images
from alexlab.data.splits import Splits
from alexlab.distributed import hardware, ranks
from alexlab.distributed.consistency import fingerprint, require_same
from alexlab.distributed.failures import translate_errors
from alexlab.distributed.signals import Interrupted, signals
from alexlab.errors import AlexlabError, ConfigError, DiskError, PrunedError
from alexlab.runs.layout import LAST, RUN_JSON, STATISTICS
from alexlab.runs.lock import RunLock
from alexlab.runs.provenance import versions
from alexlab.runs.record import FAILED, FINISHED, INTERRUPTED, PRUNED, RunRecord

log = logging.getLogger(__name__)


def run(
    config: dict[str, Any],
    *,
    run_dir: Path,
    choices: dict[str, str],
    isolated: bool = False,
    resumed: bool = False,
    changes: Sequence[str] = (),
    began_with: Mapping[str, Any] | None = None,
) -> float | None:
    """Check the config, train on every device that it asks for, print the scores and return the best val/top1.

    What is refused before the training leaves nothing in the run folder. From then on `run.json` says what became of the run.

    Args:
        config: the composed config, plain data.
        run_dir: the folder that the run writes to.
        choices: the option chosen in each config group, for the HParams tab.
        isolated: run in a process of its own even on one device, as a job of a sweep must.
        resumed: resume from the last checkpoint in the run folder.
        changes: of a resumed run, the overrides by which its config was changed.
        began_with: of a resumed run, what its record says of its images, as far as it must still hold.

    Raises:
        AlexlabError: in one sentence.
        Interrupted: when a signal has ended it.
    """
    if (
        ranks.is_distributed() and not resumed and (run_dir / RUN_JSON).is_file()
    ):  # torchrun has started the ranks again, with the same command
        resumed, began_with = True, images_to_match(RunRecord(run_dir).read(), anyway=False)
    if resumed and not any((run_dir / LAST).parent.glob("*.ckpt")):
        log.info("there is no checkpoint yet: the run begins anew")
    checked = partial(_checked, config, run_dir, resumed=resumed, began_with=began_with or {})
    if ranks.rank() > 0:  # rank 0 keeps the record
        with signals.install():
            scores = _train(checked(), run_dir, choices, isolated)
            ranks.forget_run_dir()
            return scores.get("best/top1")
    with signals.install(), RunLock(run_dir):
        try:
            with naming_keys(config):
                found = checked()
        except AlexlabError as error:
            error.refused = True
            raise
        if changes:
            store_attempt(run_dir, config, changes)
        return _recorded(found, run_dir, choices, isolated)


def _recorded(checked: "Checked", run_dir: Path, choices: dict[str, str], isolated: bool) -> float | None:
    """Train, and say in the record of the run what became of it."""
    card = RunRecord(run_dir)
    card.start(checked.config, choices, hardware=hardware.describe_hardware())
    card.update(data=checked.data)
    try:
        with translate_errors(run_dir):
            scores = _train(checked, run_dir, choices, isolated)
    except Interrupted as error:
        _ended(card, INTERRUPTED, reason=str(error), exit_code=error.exit_code)
        if not isolated:
            log.warning("%s; python src/train.py resume=%s goes on", error, os.path.relpath(run_dir))
        raise
    except PrunedError as error:
        _ended(card, PRUNED, reason=str(error))
        raise
    except BaseException as error:
        code = error.exit_code if isinstance(error, AlexlabError) else AlexlabError.exit_code
        _ended(card, FAILED, reason=f"{type(error).__name__}: {error}", exit_code=code)
        raise
    card.finish(FINISHED, scores=scores)
    ranks.forget_run_dir()
    return scores.get("best/top1")


def _ended(card: RunRecord, status: str, **values: Any) -> None:
    """Says in the card of a run that is ending what has ended it; a full disk must not take the place of that."""
    try:
        card.finish(status, **values)
    except DiskError as error:
        log.error("%s", error)


def check(config: dict[str, Any], *, remote: bool = False) -> None:
    """Looks at everything that can be known before training, without doing anything.

    Args:
        config: the composed config, plain data.
        remote: the run is for another machine, so the devices of this one do not matter.

    Raises:
        AlexlabError: in one sentence.
    """
    with naming_keys(config):
        _check(config, remote=remote)


def _check(config: dict[str, Any], *, remote: bool = False) -> None:
    from alexlab.config import build

    splits, local_ranks = _found(config, remote=remote)
    config = build.measured(build.named(config, splits), splits, pretended=True)[0]
    build.check(config, splits, num_ranks=local_ranks, remote=remote)
    if not remote or config["trainer"]["accelerator"] not in ("gpu", "cuda", "mps"):  # else the job rehearses itself
        rehearse(config, splits, num_ranks=local_ranks)


def rehearse(config: dict[str, Any], splits: Splits, *, num_ranks: int) -> None:
    """Trains a small net in a child process, see `alexlab.config.rehearsal`; tests of other things leave it out."""
    from alexlab.config import rehearsal

    rehearsal.rehearse(config, splits, num_ranks=num_ranks)


@contextmanager
def naming_keys(config: dict[str, Any]) -> Iterator[None]:
    """Turns any error of a check into a ConfigError that names the key without which `_check` passes, if there is one."""
    try:
        yield
    except AlexlabError:
        raise
    except Exception as error:
        explain(error, config, _check)


@dataclass(frozen=True)
class Checked:
    """A run that nothing speaks against.

    Args:
        config: its config, with the content of the files that it names.
        splits: its images.
        local_ranks: the processes on this machine.
        data: what its record says of the images.
    """

    config: dict[str, Any]
    splits: Splits
    local_ranks: int
    data: dict[str, Any]


def _checked(config: dict[str, Any], run_dir: Path, *, resumed: bool, began_with: Mapping[str, Any]) -> Checked:
    """Look at everything that can be known before training, writing nothing."""
    splits, local_ranks = _found(config)

    from alexlab.config import build

    config = build.named(config, splits)
    check_ranks(config, splits, num_ranks=local_ranks)
    if ranks.is_distributed() and build.accumulation(config, ranks.world_size()) is None:
        raise ConfigError(
            f"data.batch_size={config['data']['batch_size']} cannot be divided among the {ranks.world_size()} ranks that are "
            "left so that none gets more images at once"
        )
    data = describe_images(splits)
    require_same_images(began_with, data, where=DataConfig(**config["data"]).location)
    tried = build.measured(config, splits, pretended=True)[0]
    if resumed and (run_dir / LAST).is_file():
        tried = {**tried, "model": {**tried["model"], "weights": None}}  # those of the checkpoint are taken
    all_ranks = max(local_ranks * config["trainer"]["num_nodes"], ranks.world_size())
    build.check(tried, splits, num_ranks=all_ranks)
    rehearse(tried, splits, num_ranks=all_ranks)
    return Checked(config, splits, local_ranks, data)


def _found(config: dict[str, Any], *, remote: bool = False) -> tuple[Splits, int]:
    """The data, and the number of processes."""
    check_targets(config)
    bind(DataConfig, "data", **config["data"])
    splits = DataConfig(**config["data"]).find_splits()  # a missing folder is told before torch is imported

    from alexlab.distributed.devices import num_ranks
    from alexlab.distributed.launch import Limits
    from alexlab.training.loop import hush_lightning

    hush_lightning()
    bind(Limits, "elastic", **config["elastic"])
    Limits(**config["elastic"])
    trainer = config["trainer"]
    nodes = ranks.num_nodes()
    if nodes > trainer["num_nodes"]:
        raise ConfigError(f"trainer.num_nodes must be the {nodes} nodes of torchrun; got {trainer['num_nodes']}")
    if not ranks.is_distributed() and trainer["num_nodes"] > 1 and not remote:
        raise ConfigError(
            f"trainer.num_nodes={trainer['num_nodes']} needs ranks on several nodes, which torchrun, srun or mpirun starts: "
            f"torchrun --nnodes={trainer['num_nodes']} ... src/train.py trainer.num_nodes={trainer['num_nodes']} ...; see "
            "docs/distributed.md"
        )
    return splits, num_ranks(accelerator=trainer["accelerator"], devices=trainer["devices"], remote=remote)


def _train(checked: Checked, run_dir: Path, choices: dict[str, str], isolated: bool) -> dict[str, float]:
    from alexlab.config import build
    from alexlab.distributed.launch import Limits, launch
    from alexlab.training.loop import print_scores, train

    config, statistics = build.agreed_measures(checked.config, checked.splits)
    if ranks.rank() == 0:
        RunRecord(run_dir).update(config=config)
        if statistics is not None:
            statistics.write(run_dir / STATISTICS)
    splits = build.packed(config, checked.splits)
    task = partial(train, config, splits, run_dir=run_dir, choices=choices)
    scores: dict[str, float] = launch(
        task,
        num_ranks=checked.local_ranks,
        isolated=isolated,
        limits=Limits(**config["elastic"]),
        on_restart=lambda causes: RunRecord(run_dir).update(restarts=causes),
    )
    if scores and ranks.rank() == 0:
        print_scores(scores, run_dir)
    return scores


def check_ranks(config: dict[str, Any], splits: Splits, *, num_ranks: int) -> None:
    """Check that all ranks, which may be on other nodes with other files, train the same.

    Raises:
        ConfigError: on every rank, naming the node that differs.
    """
    if ranks.world_size() == 1:
        return
    state = describe_images(splits)
    counts = {f"images of {name}": count for name, count in state["counts"].items()}
    data = {"classes": list(splits.classes), **counts, "files and sizes": state["fingerprint"]}
    name = f"{socket.gethostname()} (rank {ranks.rank()})"
    found = ranks.all_gather(
        "fingerprint", [name, fingerprint(config, data=data, versions=versions(), num_ranks=num_ranks)]
    )
    for other, theirs in found[1:]:
        require_same(found[0][1], theirs, name=other)
