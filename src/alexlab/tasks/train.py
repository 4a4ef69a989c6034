"""`python src/train.py`: from a composed config to a trained net in a run folder. Imports no torch at its top."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from alexlab import members
from alexlab.cards import FAILED, FINISHED, INTERRUPTED, PRUNED, Card, Lock, data_state
from alexlab.culprits import explain
from alexlab.data.folder import Splits
from alexlab.data.settings import Data
from alexlab.errors import AlexlabError, ConfigError, PrunedError
from alexlab.fingerprint import check_equal, fingerprint
from alexlab.nodes import bind
from alexlab.runs import STATISTICS, agreed, rank, started_outside, world
from alexlab.signals import Stopped, signals
from alexlab.trust import check_targets

log = logging.getLogger(__name__)


def run(
    config: dict[str, Any],
    *,
    run_dir: Path,
    choices: dict[str, str],
    isolated: bool = False,
    resumed: bool = False,
) -> float | None:
    """Checks the config, trains on every device that it asks for, prints the scores and returns the best val/top1.

    Whatever happens, `run.json` in the run folder says so.

    Args:
        config: the composed config, plain data.
        run_dir: the folder that the run writes to.
        choices: the option chosen in each config group, for the HParams tab.
        isolated: run in a process of its own even on one device, as a job of a sweep must.
        resumed: go on from the last checkpoint in the run folder.

    Raises:
        AlexlabError: in one sentence.
        Stopped: when a signal has ended it.
    """
    with members.taking_part():
        return _run(config, run_dir, choices, isolated, resumed)


def _run(config: dict[str, Any], run_dir: Path, choices: dict[str, str], isolated: bool, resumed: bool) -> float | None:
    if rank() > 0:  # started by torchrun, or on a node that shares the disk of the first: that one keeps the card
        with signals.heard():
            return _train(config, run_dir, choices, isolated, resumed).get("best/top1")
    card = Card(run_dir)
    with signals.heard(), Lock(run_dir):
        card.start(config, choices)
        try:
            scores = _train(config, run_dir, choices, isolated, resumed)
        except Stopped as error:
            card.finish(INTERRUPTED, reason=str(error), exit_code=error.exit_code)
            if not isolated:
                log.warning("%s; python src/train.py resume=%s goes on", error, os.path.relpath(run_dir))
            raise
        except PrunedError as error:
            card.finish(PRUNED, reason=str(error))
            raise
        except BaseException as error:
            code = error.exit_code if isinstance(error, AlexlabError) else AlexlabError.exit_code
            card.finish(FAILED, reason=f"{type(error).__name__}: {error}", exit_code=code)
            raise
        card.finish(FINISHED, scores=scores)
    return scores.get("best/top1")


def check(config: dict[str, Any]) -> None:
    """Looks at everything that can be known before training, without doing anything.

    Raises:
        AlexlabError: in one sentence.
    """
    with naming_keys(config):
        _check(config)


def _check(config: dict[str, Any]) -> None:
    from alexlab import build

    splits, ranks = _found(config)
    config = build.measured(build.named(config, splits), splits, pretended=True)[0]
    build.check(config, splits, num_ranks=ranks)
    rehearse(config, splits, num_ranks=ranks)


def rehearse(config: dict[str, Any], splits: Splits, *, num_ranks: int) -> None:
    """Trains a small net in a child process, see `alexlab.rehearsal`; tests of other things leave it out."""
    from alexlab import rehearsal

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


def _found(config: dict[str, Any]) -> tuple[Splits, int]:
    """The data, and the number of processes."""
    check_targets(config)
    bind(Data, "data", **config["data"])
    splits = Data(**config["data"]).find_splits()  # a missing folder is told before torch is imported

    from alexlab.launch import Limits, num_ranks
    from alexlab.training import hush_lightning

    hush_lightning()
    bind(Limits, "elastic", **config["elastic"])
    Limits(**config["elastic"])
    trainer = config["trainer"]
    nodes = world()[1]
    if nodes > trainer["num_nodes"]:
        raise ConfigError(f"trainer.num_nodes must be the {nodes} nodes of torchrun; got {trainer['num_nodes']}")
    if not started_outside() and members.here.num_nodes == 1 < trainer["num_nodes"]:
        raise ConfigError(
            f"trainer.num_nodes={trainer['num_nodes']} needs elastic.rendezvous=HOST:PORT, the same on every node, HOST "
            "being one of them; a sweep runs each job on one node"
        )
    return splits, num_ranks(accelerator=trainer["accelerator"], devices=trainer["devices"])


def _train(
    config: dict[str, Any], run_dir: Path, choices: dict[str, str], isolated: bool, resumed: bool
) -> dict[str, float]:
    with naming_keys(config):
        config, splits, ranks = _prepared(config, run_dir)

    from alexlab import build
    from alexlab.launch import Limits, launch
    from alexlab.training import print_scores, train

    splits = build.packed(config, splits)
    members.here.fits = lambda nodes: build.accumulation(config, nodes * ranks) is not None
    task = partial(train, config, splits, run_dir=run_dir, choices=choices, resumed=resumed)
    scores: dict[str, float] = launch(task, num_ranks=ranks, isolated=isolated, limits=Limits(**config["elastic"]))
    if scores and rank() == 0 and members.is_first():
        print_scores(scores, run_dir)
    return scores


def _prepared(config: dict[str, Any], run_dir: Path) -> tuple[dict[str, Any], Splits, int]:
    """The config with what is measured, the data and the number of processes, when everything has been checked."""
    splits, ranks = _found(config)

    from alexlab import build

    config = build.named(config, splits)
    check_nodes(config, splits, ranks)
    config, statistics = build.agreed_measures(config, splits)
    if rank() == 0:
        Card(run_dir).update(data=data_state(splits), config=config)
    all_ranks = ranks * config["trainer"]["num_nodes"]
    build.check(config, splits, num_ranks=all_ranks)
    rehearse(config, splits, num_ranks=all_ranks)
    if statistics is not None and rank() == 0:
        statistics.write(run_dir / STATISTICS)
    return config, splits, ranks


def check_nodes(config: dict[str, Any], splits: Splits, ranks: int) -> None:
    """Compares this node, which has so many ranks, with the first one, in a run of several.

    Raises:
        ConfigError: when it would train something else.
    """
    if config["trainer"]["num_nodes"] == 1:
        return
    own = fingerprint(config, splits, ranks)
    check_equal(agreed("fingerprint", lambda: own), own, name=socket.gethostname())
