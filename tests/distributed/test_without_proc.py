"""Systems without /proc, CPU affinity and prctl, such as macOS: nothing fails, and what needs them says so."""

import ctypes
import os
import sys
from pathlib import Path

import pytest

from alexlab.config import rehearsal
from alexlab.distributed import hardware, ranks, supervisor
from alexlab.errors import ConfigError
from alexlab.tasks import benchmark


@pytest.fixture(autouse=True)
def _macos(monkeypatch):
    read, exists = Path.read_text, Path.exists

    def read_text(path, *args, **kwargs):
        if path.is_relative_to("/proc"):
            raise FileNotFoundError(path)
        return read(path, *args, **kwargs)

    def refuse(*args, **kwargs):
        raise AssertionError("glibc is used")

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(
        Path, "exists", lambda path, **kwargs: not path.is_relative_to("/proc") and exists(path, **kwargs)
    )
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.delattr(os, "sched_setaffinity")
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda name, **kwargs: object() if not kwargs else refuse())


def test_ranks_start_without_them(monkeypatch):
    monkeypatch.delenv(hardware.CORES, raising=False)
    monkeypatch.delenv("SLURM_CPUS_ON_NODE", raising=False)
    assert hardware.num_cores() == os.cpu_count()
    assert (hardware.cores(), hardware.core_sets(2)) == ([], [[], []])
    hardware.bind_to([])
    hardware.die_with_parent(1)
    hardware.keep_memory()
    hardware.return_memory()
    assert hardware.describe_hardware()["cores"] == os.cpu_count()
    assert not supervisor._is_suspended(os.getpid())
    monkeypatch.setenv(ranks.RUN_ID, "x")
    assert ranks._run_dir_file() is None


def test_the_rehearsal_limits_no_memory():
    with pytest.raises(OSError, match="statm"):  # which it ignores
        rehearsal._address_space()


def test_the_suite_memory_is_left_out_or_refused():
    assert benchmark.suites(None) == ["loader", "step", "epochs", "startup", "scaling"]
    with pytest.raises(ConfigError, match="suite=memory needs Linux, where /proc lists the memory of processes"):
        benchmark.suites(["step", "memory"])
