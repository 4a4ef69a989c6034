"""Sweeps on Ray: unit tests without it, then a real sweep on a Ray that it starts itself."""

import glob
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from alexlab.cli.resume_sweep import find_resumed_sweep
from alexlab.distributed import hardware
from alexlab.errors import ConfigError
from alexlab.records.layout import LAST
from alexlab.records.lock import lock_holder
from alexlab.sweeps import ray_cluster
from alexlab.sweeps.jobs import FAILED, FINISHED, RUNNING, Job
from alexlab.sweeps.ray import Ray, RayTasks
from alexlab.sweeps.ray_job import RayWork
from alexlab.sweeps.record import SweepRecord
from alexlab.sweeps.table import JobTable
from support.runs import ROOT, TINY, environment, trains_on

pytestmark = pytest.mark.slow

TIMEOUT_S = 180.0  # of any step of a test
NODES = [{"CPU": 8.0, "GPU": 4.0}, {"CPU": 16.0}]
WITHOUT_GPUS = [{"CPU": 2.0}]


def job(folder: Path = Path("sweep"), *, number: int = 0, accelerator: str = "auto", devices: object = 1) -> Job:
    config = OmegaConf.create({"trainer": {"accelerator": accelerator, "devices": devices}})
    return Job(number, [f"seed={number}"], folder / str(number), config)


@pytest.mark.parametrize(
    ("settings", "trainer", "nodes", "needed"),
    [
        ({}, {}, WITHOUT_GPUS, {"CPU": 1}),
        ({}, {"devices": 2}, WITHOUT_GPUS, {"CPU": 2}),
        ({"cpus_per_device": 0.5}, {}, WITHOUT_GPUS, {"CPU": 0.5}),
        ({"cpus_per_device": 0.5}, {"devices": 3}, WITHOUT_GPUS, {"CPU": 2}),  # above 1, Ray takes whole CPUs only
        ({"gpus_per_device": 0.5}, {}, WITHOUT_GPUS, {"CPU": 1}),
        ({}, {}, NODES, {"CPU": 1, "GPU": 1}),
        ({"gpus_per_device": 0.25, "cpus_per_device": 3}, {}, NODES, {"CPU": 3, "GPU": 0.25}),
        ({"gpus_per_device": 0.25, "cpus_per_device": 3}, {"devices": 2}, NODES, {"CPU": 6, "GPU": 2}),
        ({}, {"devices": "auto"}, NODES, {"CPU": 4, "GPU": 4}),
        ({}, {"devices": 12, "accelerator": "cpu"}, NODES, {"CPU": 12}),
    ],
)
def test_resources_of_a_job(
    settings: dict[str, float], trainer: dict[str, Any], nodes: list[dict[str, float]], needed: dict[str, float]
) -> None:
    assert Ray(**settings).needs(job(**trainer), nodes) == needed


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        (
            {"devices": 5},
            "the job needs a node with 5 CPU, 5 GPU; the nodes of the Ray cluster have 16 CPU; 8 CPU, 4 GPU",
        ),
        (
            {"devices": [2, 3]},
            r"trainer.devices must be a number with launcher=ray, which selects the GPUs; got \[2, 3\]",
        ),
        ({"devices": "two"}, "trainer.devices must be a number"),
    ],
)
def test_a_job_that_no_node_can_run_is_refused(trainer: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Ray().needs(job(**trainer), NODES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cpus_per_device": 0}, "launcher.cpus_per_device must be positive; got 0"),
        ({"gpus_per_device": 0}, "launcher.gpus_per_device must be above 0 and at most 1; got 0"),
        ({"gpus_per_device": 2}, "launcher.gpus_per_device must be above 0 and at most 1; got 2"),
    ],
)
def test_settings_are_checked(settings: dict[str, float], message: str, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(ConfigError, match=message):
        Ray(**settings).prepare(tmp_path)


def test_a_missing_ray_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"launcher=ray needs the package ray: run pip install -e '.\[ray\]' in the repository"
    ):
        Ray().prepare(tmp_path)


def test_a_cluster_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    with pytest.raises(ConfigError, match=r"cannot connect to nowhere: .*Invalid address"):
        Ray("nowhere").prepare(tmp_path)
    monkeypatch.setattr(ray_cluster, "CONNECT_S", 0.1)
    with pytest.raises(ConfigError, match=r"launcher\.address must be .* to 127.0.0.1:1: no answer within 0.1 s"):
        Ray("127.0.0.1:1").prepare(tmp_path)


def test_the_cluster_address_of_a_recorded_sweep_must_be_confirmed(tmp_path: Path) -> None:
    SweepRecord([{"key": "seed", "choices": [1, 2]}], "ray", {"address": "ray://evil.example:10001"}).write(tmp_path)
    with pytest.raises(ConfigError, match=r"if you trust it, add launcher\.address=ray://evil.example:10001"):
        find_resumed_sweep(["-m", f"resume={tmp_path}"])
    typed = find_resumed_sweep(["-m", f"resume={tmp_path}", "launcher.address=ray://evil.example:10001"])
    assert typed is not None and "launcher=ray" in typed.arguments
    assert find_resumed_sweep(["-m", f"resume={tmp_path}", "launcher=parallel"]) is not None
    SweepRecord([{"key": "seed", "choices": [1, 2]}], "ray", {"cpus_per_device": 2}).write(tmp_path)
    kept = find_resumed_sweep(["-m", f"resume={tmp_path}"])
    assert kept is not None and "launcher.cpus_per_device=2" in kept.arguments


def test_a_job_uses_the_cores_that_it_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "64")
    monkeypatch.setenv(hardware.CORES, "1")
    assert hardware.num_cores() == 1


class FakeRay:
    """Stub of Ray: the task of job n loses its worker n times."""

    class exceptions:  # noqa: N801 - as in Ray
        class RayError(Exception):
            pass

        class RayTaskError(RayError):
            pass

    def __init__(self) -> None:
        self.started: list[tuple[int, bool]] = []
        self.tasks: dict[int, int] = {}

    def remote(self, **options: Any) -> Any:
        assert options["max_retries"] == 0
        return lambda function: self

    def wait(self, refs: list[int], **options: Any) -> Any:
        return refs, []

    def get(self, ref: int) -> Any:
        number = self.tasks[ref]
        if sum(each == number for each, _ in self.started) <= number:
            raise self.exceptions.RayError
        return FINISHED, 0.5, None


def test_a_lost_job_is_retried_three_times(caplog: pytest.LogCaptureFixture) -> None:
    ray = FakeRay()

    def remote(function: Any) -> Any:
        class Task:
            @staticmethod
            def remote(work: Any, job: Job, num_cores: int, retried: bool) -> int:
                ray.started.append((job.number, retried))
                ray.tasks[len(ray.started)] = job.number
                return len(ray.started)

        return Task

    ray.remote = lambda **options: remote  # type: ignore[method-assign]
    tasks = RayTasks(ray, RayWork(lambda job: None, lambda: None, "."), JobTable())
    jobs = [job(number=number) for number in (0, 1, 4)]
    for each in jobs:
        tasks.start(each, {"CPU": 1})
    assert not tasks.has_room({"CPU": 1}, [{"CPU": 3.0}]) and tasks.has_room({"CPU": 1}, [{"CPU": 4.0}])
    while tasks.running:
        list(tasks.collect())
    assert [each.state for each in jobs] == [FINISHED, FINISHED, FAILED]
    assert jobs[2].cause == (
        f"its Ray worker was lost (RayError) 4 times; resume the sweep with -m resume={jobs[2].folder.parent}"
    )
    assert sorted(ray.started) == [(0, False), (1, False), (1, True), (4, False), (4, True), (4, True), (4, True)]
    assert "job 1: its Ray worker was lost (RayError); retrying" in caplog.text


def sweep(folder: Path, *overrides: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(ROOT / "src/train.py"), "-m", *overrides],
        cwd=folder,
        env=environment(PYTHONUNBUFFERED="1", COLUMNS="200"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def until(ready: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    end_s = time.monotonic() + TIMEOUT_S
    while not ready():
        assert time.monotonic() < end_s, "it took too long"
        assert process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.05)


def record(run_dir: Path) -> dict[str, Any]:
    return dict(json.loads((run_dir / "run.json").read_text()))


def session(leader: int) -> list[int]:
    """Return the processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(path.name)) == leader:
                found.append(int(path.name))
        except ProcessLookupError:
            continue
    return found


def listening(processes: list[int]) -> set[str]:
    """Return the addresses, as the kernel writes them, on which processes listen for TCP connections."""
    sockets = set()
    for process in processes:
        for path in Path(f"/proc/{process}/fd").glob("*"):
            try:
                sockets.add(os.readlink(path))
            except OSError:
                continue
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_sweep_survives_a_killed_worker_and_resumes_after_sigterm(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker of the first of two jobs is killed, then all processes of the sweep get SIGTERM, then it is resumed."""
    pytest.importorskip("ray")
    epochs = "trainer.max_epochs=30"
    own = [
        *TINY,
        epochs,
        f"data.root={images}",
        "seed=1,2",
        "hydra.sweep.dir=sw",
        "hydra.sweep.subdir=${hydra.job.num}",
    ]
    head = sweep(tmp_path, *own, "launcher=ray", "launcher.cpus_per_device=0.5")
    runs = [tmp_path / "sw/0", tmp_path / "sw/1"]
    until(lambda: all((run / LAST).exists() for run in runs), head)
    loopback = {"0100007F", "0000000000000000FFFF00000100007F"}
    assert listening(session(head.pid)) and listening(session(head.pid)) <= loopback
    started_by = Path(f"/proc/{lock_holder(runs[0])}/stat").read_text().rpartition(")")[2].split()[1]
    os.kill(int(started_by), signal.SIGKILL)
    until(lambda: len(record(runs[0])["attempts"]) == 2 and record(runs[0])["status"] == RUNNING, head)
    os.killpg(head.pid, signal.SIGTERM)
    output = head.communicate(timeout=TIMEOUT_S)[0]
    assert head.returncode == 75 and "src/train.py -m resume=sw\n" in output, output
    assert "job 0: its Ray worker was lost (WorkerCrashedError); retrying" in output
    assert "job 1: its Ray worker" not in output
    assert record(runs[0])["status"] == "interrupted" and record(runs[0])["reason"] == "stopped by SIGINT"
    assert len(record(runs[1])["attempts"]) == 1  # it may have finished before the signal
    attempts = [3, 1 + (record(runs[1])["status"] == "interrupted")]
    assert not session(head.pid) and not glob.glob(f"/tmp/alexlab_*/session_*_{head.pid}")

    head = sweep(tmp_path, "resume=sw")
    output = head.communicate(timeout=TIMEOUT_S)[0]
    assert head.returncode == 0 and "0.5 CPU" in output, output
    assert [len(record(run)["attempts"]) for run in runs] == attempts
    assert [record(run)["status"] for run in runs] == ["finished", "finished"]
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "1")  # sums depend on the number of threads
    alone = tmp_path / "alone"
    trains_on(images, tmp_path)(epochs, "seed=1", isolated=True, run_dir=alone)
    scores = [{**record(run)["scores"], "train_s": 0} for run in (runs[0], alone)]
    assert scores[0] == scores[1]
    once, twice = (torch.load(run / LAST, weights_only=True)["state_dict"] for run in (alone, runs[0]))
    assert all(torch.equal(once[name], twice[name]) for name in once)
