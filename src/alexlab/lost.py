"""Why the ranks of a run have ended: each leaves a word at once, and the parent looks at those that could not.

When one rank is gone, the others fail for its absence and may be heard first; so the words carry their time, and the parent
asks the system how each process has ended before it ends the others itself.
"""

import json
import logging
import multiprocessing.process
import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from alexlab import errors
from alexlab.errors import AlexlabError, RankError
from alexlab.failures import explained
from alexlab.rounds import Report
from alexlab.signals import Stopped, signals

FOLDER = "ALEXLAB_WORDS"  # the environment variable that names the folder of the ranks' words
ATTEMPT = "ALEXLAB_ATTEMPT"  # the one with the number of the round
ELASTIC_LOGS = ("torch.distributed.elastic", "torch.distributed.elastic.agent.server.api")
LAUNCHER_LOGS = ("torch.multiprocessing.spawn", "torch.distributed.elastic.multiprocessing.api")

earlier_causes: list[str] = []  # what has ended the earlier attempts at this run


def restarts() -> int:
    """How often the launcher has started the ranks again."""
    return int(os.environ.get(ATTEMPT) or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def begin(folder: Path, attempt: int, causes: Sequence[str] = ()) -> None:
    """Says which process this rank is, where its word belongs, and what has ended the earlier attempts."""
    os.environ[FOLDER], os.environ[ATTEMPT] = str(folder), str(attempt)
    earlier_causes[:] = causes
    _path("pid").write_text(str(os.getpid()))


def report(error: BaseException) -> None:
    """Leaves word of what ended this rank, the first time; in a process that is no rank it does nothing."""
    if FOLDER not in os.environ or _path("json").exists():
        return
    word = {"time_s": time.time(), "type": type(error).__name__, "text": str(error), "stopped": _stopped()}
    if isinstance(error, Stopped):
        word["signum"] = error.signum
    with suppress(OSError):  # no room for it: the exit code says less
        _path("json").write_text(json.dumps(word))


class Reports(Callback):
    """Reports an error as soon as the Trainer meets it, before it takes the process group down."""

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        if not (isinstance(exception, Stopped) and exception.agreed):
            report(explained(exception, Path(trainer.default_root_dir)) or exception)


class Witness(logging.Handler):
    """Notes how the ranks have ended as soon as PyTorch's launcher sees the first dead one, before it ends the others itself.

    The others get `shutdown_s`: PyTorch waits half a minute for a rank that cannot hear a signal, since it is stopped or
    inside of a collective operation.

    Args:
        folder: of the words.
        shutdown_s: what a rank gets to end by itself.
    """

    def __init__(self, folder: Path, shutdown_s: float) -> None:
        super().__init__()
        self.folder, self.shutdown_s = folder, shutdown_s

    def __enter__(self) -> "Witness":
        for name in ELASTIC_LOGS:  # a page for each lost rank
            logging.getLogger(name).setLevel(logging.CRITICAL)
        for name in LAUNCHER_LOGS:
            log = logging.getLogger(name)
            log.setLevel(logging.WARNING)
            log.propagate = False
            log.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        for name in LAUNCHER_LOGS:
            logging.getLogger(name).removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps what a line says of its rank, and what the system says of the others that are dead."""
        attempt = last_attempt(self.folder)
        noted = self.folder / f"dead_{attempt}.json"
        processes = {_rank(path): int(path.read_text() or 0) for path in self.folder.glob(f"rank*_{attempt}.pid")}
        if not noted.exists():
            noted.write_text(json.dumps(dict(_dead(processes))))
            threading.Thread(target=self._end, args=([*processes.values()],), daemon=True).start()
        found = re.match(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+) \(pid: (\d+)\)", record.getMessage())
        if found is not None:
            code, rank, pid = map(int, found.groups())
            noted.write_text(json.dumps(json.loads(noted.read_text()) | {str(rank): [pid, code]}))

    def _end(self, processes: list[int]) -> None:
        """Kills what is left when the time is up."""
        end_s = time.monotonic() + self.shutdown_s
        while any(map(_alive, processes)):
            if time.monotonic() > end_s:
                for pid in filter(_alive, processes):
                    os.kill(pid, signal.SIGKILL)
                return
            time.sleep(0.05)


def last_attempt(folder: Path) -> int:
    """The number of the last attempt whose ranks have begun."""
    return max((int(path.stem.rpartition("_")[2]) for path in folder.glob("rank*.pid")), default=0)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _dead(processes: dict[int, int]) -> Iterator[tuple[int, tuple[int, int]]]:
    """Ranks that have ended, with their processes and exit codes, negative for a signal.

    The launcher tells of one only, and has asked the system for the others already. Every process that this one has started
    and still knows stands in a set of Python's `multiprocessing`.
    """
    ranks = {pid: rank for rank, pid in processes.items()}
    for process in list(multiprocessing.process._dangling):  # type: ignore[attr-defined]
        if process.pid in ranks and process.exitcode is not None:
            yield ranks[process.pid], (process.pid, process.exitcode)


def words(folder: Path, attempt: int) -> dict[str, str]:
    """What the ranks of this node have left in an attempt, and what the launcher has noted, by file name."""
    files = [*folder.glob(f"rank*_{attempt}.json"), *folder.glob(f"dead_{attempt}.json")]
    return {path.name: path.read_text() for path in files}


def judge(folder: Path, reports: Sequence[Report]) -> AlexlabError | Stopped:
    """What has ended a round, from the words of all nodes, which are put together in the folder of this one."""
    attempt = reports[0].attempt
    noted: dict[str, Any] = {}
    for report in reports:
        for name, text in report.words.items():
            if name.startswith("dead"):
                noted |= json.loads(text)
            else:
                (folder / Path(name).name).write_text(text)
    (folder / f"dead_{attempt}.json").write_text(json.dumps(noted))
    return cause(folder, attempt)


def cause(folder: Path, attempt: int) -> AlexlabError | Stopped:
    """What ended an attempt at a run: an error of ours, a signal to stop, a killed rank, a stopped one, or the first error."""
    words = {_rank(path): json.loads(path.read_text()) for path in folder.glob(f"rank*_{attempt}.json")}
    first = sorted(words, key=lambda rank: words[rank]["time_s"])
    for rank in first:
        known = getattr(errors, words[rank]["type"], None)
        if isinstance(known, type) and issubclass(known, AlexlabError):
            return known(words[rank]["text"])
    for rank in first:
        if "signum" in words[rank]:
            return Stopped(words[rank]["signum"])
    if signals.first is not None:
        return Stopped(signals.first)
    noted = folder / f"dead_{attempt}.json"
    dead = {int(rank): end for rank, end in json.loads(noted.read_text()).items()} if noted.exists() else {}
    for rank, (pid, code) in dead.items():
        if code < 0:
            name = signal.Signals(-code).name
            return RankError(f"rank {rank} (process {pid}) was ended by {name}; the other ranks were stopped")
    for rank in first:
        for other, pid in words[rank]["stopped"]:
            return RankError(
                f"rank {other} (process {pid}) does not run on, it is stopped; rank {rank} has waited for it in vain "
                "and all were ended"
            )
    if first:
        word = words[first[0]]
        return RankError(f"rank {first[0]} raised {word['type']}: {word['text']}; the other ranks were stopped")
    if dead:
        rank, (pid, code) = next(iter(dead.items()))
        return RankError(f"rank {rank} (process {pid}) ended with exit code {code} and left no word")
    return RankError("a rank ended without a word")


def _path(suffix: str) -> Path:
    return Path(os.environ[FOLDER]) / f"rank{os.environ.get('RANK', '0')}_{restarts()}.{suffix}"


def _rank(path: Path) -> int:
    return int(path.stem.removeprefix("rank").partition("_")[0])


def _stopped() -> list[tuple[int, int]]:
    """The ranks that are stopped, with their processes: by SIGSTOP, Ctrl-Z or a debugger. Linux only."""
    found = []
    for path in Path(os.environ[FOLDER]).glob(f"rank*_{restarts()}.pid"):
        pid = int(path.read_text() or 0)
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state in "Tt":
            found.append((_rank(path), pid))
    return found
