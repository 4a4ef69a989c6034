"""User errors for failures of the system, with cause and remedy."""

import errno
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from alexlab.distributed.failures import as_user_error, translate_errors
from alexlab.errors import AlexlabError, ConfigError, DiskError, RankError
from alexlab.training.module import Classifier

pytestmark = pytest.mark.scenario(name="loader_processes")


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            RankError,
            r"a DataLoader worker \(pid 7\) was killed by SIGKILL; .*out of memory: use a smaller data.num_workers, or 0",
        ),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that ... "),
            RankError,
            r"was killed by SIGBUS; [\d.]+ MB are free in /dev/shm: make it larger",
        ),
        (
            RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"),
            RankError,
            r"a DataLoader worker \(pid 7, 8\) exited unexpectedly; usually",
        ),
        (
            RuntimeError("unable to allocate shared memory(shm) for file </torch_7_1>: No space left on device (28)"),
            DiskError,
            r"DataLoader workers need shared memory: .*No space left.*or use data.num_workers=0",
        ),
        (BrokenProcessPool("terminated abruptly"), RankError, "a process that reads images was killed; usually"),
        (OSError(errno.ENOSPC, "No space left"), DiskError, "cannot write run: No space left; "),
    ],
)
def test_failures_become_user_errors(error: Exception, kind: type[AlexlabError], text: str) -> None:
    wrapped = ValueError("you tried to log 0.5")
    wrapped.__cause__ = error
    for each in (error, wrapped):
        with pytest.raises(kind, match=text) as raised, translate_errors(Path("run")):
            raise each
        assert raised.value.__cause__ is each


def test_bugs_and_user_errors_are_not_translated() -> None:
    assert as_user_error(KeyError("a bug"), Path("run")) is None
    assert as_user_error(EOFError(), Path("run")) is None, "not raised while reading from a DataLoader worker"
    own = ConfigError("a user error")
    with pytest.raises(ConfigError) as raised, translate_errors(Path("run")):
        raise own
    assert raised.value is own and own.__cause__ is None


def test_semaphores_without_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("multiprocessing.synchronize._multiprocessing.SemLock", full)
    with (
        pytest.raises(DiskError, match="DataLoader workers need shared memory: No space left on device; "),
        translate_errors(Path("run")),
    ):
        multiprocessing.get_context("fork").Queue()


@pytest.mark.parametrize("step", ["training_step", "validation_step", "test_step"])
def test_a_killed_loader_process_fails_the_run_with_a_user_error(
    train: Callable[..., float | None], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def killing(module: Classifier, *_: object) -> None:
        os.kill(next(process.pid for process in multiprocessing.active_children() if process.pid), signal.SIGKILL)
        time.sleep(0.5)

    monkeypatch.setattr(Classifier, step, killing)
    with pytest.raises(RankError, match=r"a DataLoader worker \(pid [\d, ]+\) .*data.num_workers") as raised:
        train("data.num_workers=2")
    assert raised.value.exit_code == 5
    assert not multiprocessing.active_children()
