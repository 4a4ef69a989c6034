import contextlib
import errno
import io
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from rich.console import Console

from alexlab.distributed import devices, hardware
from alexlab.distributed.signals import Interrupted, signals
from alexlab.errors import ConfigError
from alexlab.records.lock import RunLock
from alexlab.records.record import FINISHED as RECORD_FINISHED
from alexlab.records.record import PRUNED as RECORD_PRUNED
from alexlab.records.record import RunRecord
from alexlab.sweeps.jobs import FAILED, FINISHED, PRUNED, RUNNING, WAITING, Job, previous_attempt
from alexlab.sweeps.local import Parallel
from alexlab.sweeps.slots import SlotPool
from alexlab.sweeps.table import JobTable
from hydra_plugins.alexlab_launcher import SweepLauncher
from support.runs import composed


def job(number: int, folder: Path, devices: object = 1) -> Job:
    trainer = {"accelerator": "auto", "devices": devices, "max_epochs": 4}
    config = OmegaConf.create({"trainer": trainer, "optimized_metric": "val/top1"})
    return Job(number, [f"seed={number}"], folder / str(number), config)


def run(
    runner: Parallel,
    jobs: Iterable[Job],
    work: Callable[[Job], None],
    on_end: Callable[[Job], None] = lambda job: None,
) -> list[int]:
    """Run jobs and return their numbers in the order in which they ended."""
    order: list[int] = []

    def ended(job: Job) -> None:
        order.append(job.number)
        on_end(job)

    runner.run(iter(jobs), work, table=JobTable(), on_end=ended, restore=lambda: None)
    return order


def test_parallel_jobs_have_their_own_cores_and_output(tmp_path: Path) -> None:
    def work(job: Job) -> None:
        (job.folder / "cores").write_text(repr(hardware.cores()))
        (job.folder / "started").touch()
        if job.number < 2:  # the first two wait for each other
            while not (tmp_path / str(1 - job.number) / "started").exists():
                time.sleep(0.01)
        print("printed by", job.number)
        job.end(FINISHED, score=job.number / 10)

    jobs = [job(number, tmp_path) for number in range(3)]
    run(Parallel(jobs=2), jobs, work)
    assert [(job.state, job.score, job.cause) for job in jobs] == [(FINISHED, number / 10, None) for number in range(3)]
    core_sets = [(tmp_path / str(number) / "cores").read_text() for number in (0, 1)]
    assert core_sets == [repr(cores) for cores in hardware.core_sets(2)]
    assert [(tmp_path / str(number) / "output.log").read_text() for number in range(3)] == [
        f"printed by {number}\n" for number in range(3)
    ]


def test_a_killed_or_crashed_job_does_not_stop_the_others(tmp_path: Path) -> None:
    def work(job: Job) -> None:
        if job.number == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if job.number == 1:
            raise RuntimeError("a bug")
        job.end(FINISHED, score=1.0)

    jobs = [job(number, tmp_path) for number in range(3)]
    assert sorted(run(Parallel(jobs=2), jobs, work)) == [0, 1, 2]
    assert [job.state for job in jobs] == [FAILED, FAILED, FINISHED]
    assert jobs[0].cause == f"its process was killed by SIGKILL; see {tmp_path}/0/output.log"
    assert jobs[1].cause == f"its process exited with code 1; see {tmp_path}/1/output.log"
    assert "RuntimeError: a bug" in (tmp_path / "1/output.log").read_text()


def test_the_next_job_is_taken_when_there_is_room(tmp_path: Path) -> None:
    """A search needs that: it proposes the next job from the scores of earlier ones."""
    ended: list[int] = []
    known: list[int] = []

    def proposals() -> Iterator[Job]:
        for number in range(5):
            known.append(len(ended))
            yield job(number, tmp_path)

    run(Parallel(jobs=2), proposals(), lambda job: job.end(FINISHED, score=0.5), lambda job: ended.append(job.number))
    assert sorted(ended) == list(range(5))
    assert known[:2] == [0, 0]
    assert all(count >= number - 1 for number, count in enumerate(known))


def test_ctrl_c_stops_the_jobs(tmp_path: Path) -> None:
    def interrupt(job: Job) -> None:
        signal.raise_signal(signal.SIGINT)

    def work(job: Job) -> None:
        if job.number:
            time.sleep(60)
        job.end(FINISHED, score=1.0)

    jobs = [job(number, tmp_path) for number in range(2)]
    with signals.install(), pytest.raises(Interrupted):
        run(Parallel(jobs=2), jobs, work, interrupt)
    assert not multiprocessing.active_children()


def test_a_second_ctrl_c_kills_jobs_that_ignore_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alexlab.distributed.signals.DEBOUNCE_S", 0.0)

    def interrupt(job: Job) -> None:
        while not (tmp_path / "ignoring").exists():
            time.sleep(0.05)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        signal.raise_signal(signal.SIGINT)

    def work(job: Job) -> None:
        with signals.handler(lambda signum: None):
            while job.number:
                (tmp_path / "ignoring").touch()
                time.sleep(1)
        job.end(FINISHED, score=1.0)

    before = signal.signal(signal.SIGALRM, lambda signum, frame: signal.raise_signal(signal.SIGINT))
    try:
        with signals.install(), pytest.raises(Interrupted):
            run(Parallel(jobs=2), [job(number, tmp_path) for number in range(2)], work, interrupt)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not multiprocessing.active_children()


def test_a_signal_to_one_job_stops_only_that_job(tmp_path: Path) -> None:
    def work(job: Job) -> None:
        if job.number:
            signal.raise_signal(signal.SIGTERM)
        job.end(FINISHED, score=1.0)

    jobs = [job(number, tmp_path) for number in range(2)]
    with signals.install():
        run(Parallel(jobs=2), jobs, work)
    assert [job.state for job in jobs] == [FINISHED, FAILED]
    assert jobs[1].cause == f"stopped by SIGTERM; resume the sweep with -m resume={jobs[1].folder.parent}"


def test_jobs_share_no_gpu_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    pool = SlotPool(4, jobs_per_gpu=1, num_gpus=3)
    one, two = pool.acquire(1), pool.acquire(2)
    assert one and two and (one.gpus, two.gpus, str(two)) == (["0"], ["1", "2"], "GPU 1, 2")
    assert pool.acquire(1) is None
    assert pool.acquire(0) is not None, "a job on the CPU needs no GPU"
    pool.release(one)
    assert pool.acquire([2]) is None, "a GPU given by index must be free"
    pool.release(two)
    named = pool.acquire([2])
    assert named and named.gpus is None and named.gpu_indices == [2], "the job selects it itself"
    shared = SlotPool(4, jobs_per_gpu=2, num_gpus=2)
    assert [slot and slot.gpus for slot in (shared.acquire(1) for _ in range(5))] == [["0"], ["1"], ["0"], ["1"], None]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    kept = SlotPool(2, jobs_per_gpu=1, num_gpus=2).acquire(2)
    assert kept and kept.gpus == ["5", "7"]


def test_a_job_process_sees_its_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "num_gpus", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def work(job: Job) -> None:
        (job.folder / "gpus").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
        time.sleep(0.3)
        job.end(FINISHED, score=1.0)

    jobs = [job(0, tmp_path), job(1, tmp_path), job(2, tmp_path, devices=2)]
    assert run(Parallel(jobs=3), jobs, work)[-1] == 2
    assert [(tmp_path / str(number) / "gpus").read_text() for number in range(3)] == ["0", "1", "0,1"]
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


@pytest.mark.parametrize(
    ("count", "cores", "expected"),
    [
        (2, [0, 1, 2, 3, 4], [[0, 1], [2, 3, 4]]),
        (3, [4, 9], [[4], [4], [9]]),
        (2, [], [[], []]),
    ],
)
def test_core_sets(count: int, cores: list[int], expected: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cores", lambda: cores)
    assert hardware.core_sets(count) == expected


@pytest.mark.parametrize("key", ["jobs", "jobs_per_gpu"])
def test_settings_must_be_positive(key: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"launcher.{key} must be at least 1; got 0"):
        Parallel(**{key: 0}).prepare(tmp_path)
    with pytest.raises(ConfigError, match=f"launcher.{key} must be at least 1; got None"):
        Parallel(**{key: None}).prepare(tmp_path)  # type: ignore[arg-type]


def test_configs_are_checked_with_the_cores_of_one_job() -> None:
    before = hardware.cores()
    with Parallel(jobs=2).like_job():
        assert hardware.cores() == hardware.core_sets(1)[0] == before[len(before) // 2 :]
    assert hardware.cores() == before


def test_the_table_shows_running_jobs(tmp_path: Path) -> None:
    table = JobTable()
    for number in range(3):
        table.jobs.append(job(number, tmp_path))
        table.jobs[-1].overrides = [f"seed={number}", "model=alexnet"]
    first, second, _ = table.jobs
    first.end(PRUNED, cause="it fell behind")
    second.state, second.place = RUNNING, "GPU 1"
    second.folder.mkdir()
    RunRecord(second.folder).update(last={"epoch": 2}, best={"top1": 0.25})
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table.render())
    lines = console.export_text().splitlines()
    assert "3 jobs, 1 running, 1 waiting, 1 pruned" in lines[0]
    (row,) = [line for line in lines if "seed=1" in line]
    assert "running, epoch 2/4, GPU 1" in row and "0.2500" in row and "alexnet" not in row
    assert any("all with model=alexnet" in line for line in lines)
    console.print(table.render(max_rows=1))
    assert "seed=0" not in console.export_text()


def test_the_result_of_a_previous_attempt(tmp_path: Path) -> None:
    record = RunRecord(tmp_path)
    record.update(status=RECORD_PRUNED, reason="it fell behind", config={})
    assert (previous_attempt(tmp_path).state, previous_attempt(tmp_path).cause) == (PRUNED, "it fell behind")
    record.update(status=RECORD_FINISHED, scores={"best/top1": 0.5})
    assert (previous_attempt(tmp_path).state, previous_attempt(tmp_path).score) == (FINISHED, 0.5)
    assert previous_attempt(tmp_path / "none").state is None and job(0, tmp_path).state == WAITING


class Queued(Parallel):
    """A runner with some jobs in its queue."""

    numbers: tuple[int, ...] = ()

    def is_queued(self, job: Job) -> bool:
        return job.number in self.numbers


def test_a_running_job_is_left_to_the_runner_that_has_it_queued(tmp_path: Path) -> None:
    runner, jobs, ended = Queued(), [job(number, tmp_path) for number in range(2)], []
    runner.numbers = (1,)
    with contextlib.ExitStack() as locks:
        for each in jobs:
            each.folder.mkdir()
            RunRecord(each.folder).update(status="running", config={})
            locks.enter_context(RunLock(each.folder))
        found = list(SweepLauncher(lambda: runner)._remaining(iter(jobs), lambda job: ended.append(job.number)))
    assert [each.number for each in found] == [1] and ended == [0]
    assert jobs[0].state == FAILED and jobs[0].cause == f"process {os.getpid()} is still writing to its folder"


def test_the_launcher_group_chooses_the_runner_and_its_arguments() -> None:
    kinds = {"parallel": "Parallel", "submitit": "Submitit", "ray": "Ray"}
    for overrides, kind in (([], "Sequential"), *(([f"launcher={option}"], kind) for option, kind in kinds.items())):
        made = instantiate(composed(*overrides).hydra.launcher)
        # Hydra imports its plugins itself: its classes differ from those of an import here.
        assert (type(made).__name__, type(made.runner).__name__) == ("SweepLauncher", kind)
        assert made.retry_failed is False
    made = instantiate(composed("launcher=parallel", "launcher.jobs=3", "launcher.retry_failed=true").hydra.launcher)
    assert (made.runner.jobs, made.runner.jobs_per_gpu, made.retry_failed) == (3, 1, True)
    made = instantiate(composed("launcher=submitit", "+hydra.launcher.runner.slurm_constraint=a100").hydra.launcher)
    assert made.runner.options["slurm_constraint"] == "a100"


def test_a_full_disk_in_the_launcher_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Optuna's journal and SLURM's job numbers are written by the command itself, not by a job."""

    def run(*arguments: Any, **keywords: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "optuna.journal"))

    launcher = SweepLauncher(lambda: SimpleNamespace(run=run))
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    launcher.hydra_context, launcher.config, launcher.task = None, config, None  # type: ignore[assignment]
    with pytest.raises(SystemExit):
        launcher._run(iter([]), lambda job: None)
    assert re.search(r"cannot write .*optuna.journal: No space left on device; .* MB are free", capsys.readouterr().err)
