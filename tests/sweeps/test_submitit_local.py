"""Jobs that submitit starts on this machine."""

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from alexlab.distributed import devices
from alexlab.distributed.signals import Interrupted, signals
from alexlab.errors import ConfigError
from alexlab.sweeps.jobs import FINISHED, Job
from alexlab.sweeps.slurm import Submitit
from alexlab.sweeps.table import JobTable

TIMEOUT_S = 60.0  # of each step of a job


def until(ready: Callable[[], bool]) -> None:
    end_s = time.monotonic() + TIMEOUT_S
    while not ready() and time.monotonic() < end_s:
        time.sleep(0.05)


def interrupt_job(folder: Path, *, save_s: float, events: Sequence[str]) -> None:
    """Run a job that needs `save_s` to save a checkpoint, and interrupt this process after each event of the job."""

    def work(job: Job) -> None:
        from alexlab.distributed.signals import signals

        # Ctrl-C in a terminal reaches submitit's controller and the job as well.
        for pid in (os.getppid(), os.getpid()):
            os.kill(pid, signal.SIGINT)
        received: list[int] = []
        with signals.handler(received.append):
            (folder / "started").touch()
            while not received:
                time.sleep(0.05)
        (folder / "stopped").write_text(f"{received[0]} {os.getpid()}")
        time.sleep(save_s)
        (folder / "saved").touch()
        job.end(FINISHED, score=1.0)

    def interrupt() -> None:
        for event in events:
            until((folder / event).exists)
            os.kill(os.getpid(), signal.SIGINT)

    runner = Submitit(cluster="local")
    runner.prepare(folder)
    jobs = iter([Job(0, [], folder / "0", None)])
    with signals.install():
        threading.Thread(target=interrupt).start()
        with pytest.raises(Interrupted):
            runner.run(jobs, work, table=JobTable(), on_end=lambda job: None, restore=lambda: None)


def test_ctrl_c_waits_until_the_jobs_have_saved_a_checkpoint(tmp_path: Path) -> None:
    interrupt_job(tmp_path, save_s=2, events=["started"])
    assert (tmp_path / "stopped").read_text().startswith(f"{int(signal.SIGTERM)} ")
    assert (tmp_path / "saved").exists()


def test_a_second_ctrl_c_kills_the_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alexlab.distributed.signals.DEBOUNCE_S", 0.0)
    interrupt_job(tmp_path, save_s=TIMEOUT_S, events=["started", "stopped"])
    process = Path("/proc", (tmp_path / "stopped").read_text().split()[-1])
    until(lambda: not process.exists())
    assert not process.exists() and not (tmp_path / "saved").exists()


def test_gpus_need_another_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "num_gpus", lambda: 2)
    monkeypatch.setenv("PATH", "")  # without sbatch
    with pytest.raises(ConfigError, match=r"^launcher\.cluster=local .* has 2 GPUs; use launcher=parallel"):
        Submitit().prepare(tmp_path)
