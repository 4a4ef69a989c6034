"""Sweeps and single runs on a real SLURM, whose daemons the tests start."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from alexlab.config.trainer import build_trainer
from alexlab.errors import ConfigError
from alexlab.records.layout import LAST
from alexlab.sweeps import squeue
from alexlab.sweeps.jobs import Job
from alexlab.sweeps.slurm import Submitit
from alexlab.sweeps.table import JobTable
from support.runs import ROOT, TINY, environment, plain, rows, trains_on
from support.slurm import Cluster, cluster

pytestmark = pytest.mark.slow

TIMEOUT_S = 180.0  # of any step of a test


@pytest.fixture(scope="module")
def queue() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="al") as folder, cluster(Path(folder)) as made:
        yield made


@pytest.fixture
def two_nodes() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="al") as folder, cluster(Path(folder), num_nodes=2) as made:
        yield made


def until(ready: Callable[[], object], process: "subprocess.Popen[str] | None" = None) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not ready():
        assert time.monotonic() < end, "it took too long"
        assert process is None or process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.05)


def train(queue: Cluster, cwd: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start `python src/train.py` on the machine that jobs are submitted from."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "src/train.py"), *arguments],
        cwd=cwd,
        env=environment(PYTHONUNBUFFERED="1", COLUMNS="200", **queue.environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    found = torch.load(run_dir / LAST, weights_only=True)
    return dict(found["state_dict"])


def test_a_job_requeues_itself_at_its_time_limit_and_a_cancelled_one_is_resumed(
    queue: Cluster, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two jobs of an array: one gets the signal of its time limit and requeues itself, the other is cancelled. Meanwhile Ctrl-C
    stops the sweep; the resumed sweep waits for the first job and submits the second."""
    epochs = "trainer.max_epochs=60"
    overrides = [*TINY, epochs, f"data.root={images}", "launcher=submitit", "launcher.cpus_per_task=1"]
    head = train(
        queue, tmp_path, "-m", *overrides, "seed=1,2", "hydra.sweep.dir=sw", "hydra.sweep.subdir=${hydra.job.num}"
    )
    runs = [tmp_path / "sw/0", tmp_path / "sw/1"]

    def record(run: Path) -> dict[str, object]:
        return dict(json.loads((run / "run.json").read_text()))

    until((runs[0] / LAST).exists, head)
    ids = json.loads((tmp_path / "sw/.submitit/jobs.json").read_text())
    first, second = ids["0"], ids["1"]
    assert first.split("_")[0] == second.split("_")[0]  # an array
    queue.run("scancel", "--signal=USR1", first)
    until((runs[1] / LAST).exists, head)
    queue.run("scancel", second)

    until(lambda: all(record(run)["status"] == "interrupted" for run in runs), head)
    os.killpg(head.pid, signal.SIGINT)
    output = head.communicate(timeout=60)[0]
    assert head.returncode == 130, output
    assert "src/train.py -m resume=sw\n" in output

    head = train(queue, tmp_path, "-m", "resume=sw", "launcher=submitit", "launcher.cpus_per_task=1")
    output = head.communicate(timeout=TIMEOUT_S)[0]
    assert head.returncode == 0, output
    assert f"slurm {first}" in output and f"slurm {second}" not in output and "Callback" not in output
    assert 'href="0/slurm.log"' in (tmp_path / "sw/report.html").read_text()
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "1")  # sums depend on the number of threads
    for seed, run in enumerate(runs, 1):
        assert record(run)["status"] == "finished" and len(record(run)["attempts"]) == 2  # type: ignore[arg-type]
        assert os.readlink(run / "slurm.log").startswith("../.submitit/") and (run / "slurm.log").exists()
        assert "top-5 equals top-3" in (run / "output.log").read_text()
        trains_on(images, tmp_path)(epochs, f"seed={seed}", isolated=True, run_dir=tmp_path / f"whole{seed}")
        once, twice = weights(tmp_path / f"whole{seed}"), weights(run)
        assert once.keys() == twice.keys()
        assert all(torch.equal(once[name], twice[name]) for name in once)


def test_a_single_run_prints_its_scores_or_error(queue: Cluster, images: Path, tmp_path: Path) -> None:
    overrides = [*TINY, f"data.root={images}", "launcher=submitit", "launcher.cpus_per_task=1"]
    good = train(queue, tmp_path, *overrides, "hydra.run.dir=good")
    bad = train(queue, tmp_path, *overrides, "hydra.run.dir=bad", "optimizer.lr=1e30")
    for head, code, text in ((good, 0, "top-1"), (bad, 4, "loss")):
        output = head.communicate(timeout=TIMEOUT_S)[0]
        assert head.returncode == code, output
        assert text in output and "Traceback" not in output
    assert json.loads((tmp_path / "bad/run.json").read_text())["status"] == "failed"
    assert (tmp_path / "bad/output.log").read_text().strip()


def test_ranks_on_two_nodes(two_nodes: Cluster, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Started by srun directly, and submitted through submitit; the scores equal those of one process."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # the name n1 cannot be resolved
    overrides = [*TINY, f"data.root={images}", "model.dropout=0", "optimizer=sgd", "trainer.num_nodes=2"]
    program = [sys.executable, str(ROOT / "src/train.py"), *overrides, "hydra.run.dir=srun"]
    result = subprocess.run(
        ["srun", "--nodes=2", "--ntasks-per-node=1", *program],
        cwd=tmp_path,
        env=environment(**two_nodes.environment),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "8 = 2 devices on 2 nodes x 1 accumulation step x 4 images" in result.stdout + result.stderr

    head = train(two_nodes, tmp_path, *overrides, "hydra.run.dir=job", "launcher=submitit", "launcher.cpus_per_task=1")
    output = head.communicate(timeout=TIMEOUT_S)[0]
    assert head.returncode == 0, output
    trains_on(images, tmp_path)(*overrides[len(TINY) : -1], run_dir=tmp_path / "alone")
    found = [rows(tmp_path / name / "metrics.csv")[0] for name in ("alone", "srun", "job")]
    for row in found[1:]:
        assert (row["val/top1"], row["train/top1"]) == (found[0]["val/top1"], found[0]["train/top1"])
        assert float(row["val/loss"]) == pytest.approx(float(found[0]["val/loss"]), rel=1e-5)


def test_the_queue_is_queried(queue: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in queue.environment.items():
        monkeypatch.setenv(name, value)
    number = queue.run("sbatch", "--parsable", "--output=/dev/null", "--hold", "--wrap=sleep 60")
    assert re.fullmatch(r"\d+", number)
    assert squeue.states([number, "999999"]) == {number: "PENDING (JobHeldUser)", "999999": squeue.UNKNOWN}
    (tmp_path / ".submitit").mkdir()
    (tmp_path / ".submitit/jobs.json").write_text(json.dumps({"0": number, "1": "999999"}))
    runner = Submitit()
    runner.prepare(tmp_path)
    jobs = [Job(place, [], tmp_path / str(place), None) for place in range(3)]
    assert [runner.is_queued(job) for job in jobs] == [True, False, False]
    with pytest.raises(ConfigError, match=f"SLURM did not requeue job {number}: "):
        squeue.requeue(number)
    queue.run("scancel", number)
    found = squeue.states([number])
    assert found is not None and squeue.has_ended(found[number])
    # It has ended since `prepare`, and is not submitted again.
    (attached,) = runner.submit(jobs[:1], lambda job: None, table=JobTable(), restore=lambda: None)
    assert attached.handle.job_id == number
    assert not squeue.has_ended("PENDING (BeginTime)") and squeue.has_ended(squeue.UNKNOWN)
    runner.prepare(tmp_path)
    assert not runner.is_queued(jobs[0])  # of the next attempt
    monkeypatch.setenv("PATH", "")
    assert squeue.states([number]) is None


def test_a_requeue_that_ends_scontrol_too_is_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM ends all processes of a job that it requeues; scontrol may be one of them."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\nkill -TERM $$\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    squeue.requeue("1")
    scontrol.write_text("#!/bin/sh\necho no such job >&2\nexit 1\n")
    with pytest.raises(ConfigError, match="SLURM did not requeue job 1: no such job"):
        squeue.requeue("1")


def test_a_job_without_a_new_checkpoint_made_no_progress(tmp_path: Path) -> None:
    assert not squeue.made_progress(tmp_path), "before the run record is written"
    last = tmp_path / LAST
    last.parent.mkdir()
    last.write_bytes(b"")
    for start_s, expected in ((last.stat().st_mtime - 10, True), (last.stat().st_mtime + 10, False)):
        (tmp_path / "run.json").write_text(
            json.dumps({"status": "finished", "config": {}, "attempts": [{"start_s": start_s}]})
        )
        assert squeue.made_progress(tmp_path) == expected


def test_lightning_ignores_the_ranks_of_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        "SLURM_NTASKS": "2",
        "SLURM_JOB_NAME": "train",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
    }
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    made = build_trainer(plain(), tmp_path, num_ranks=1)
    assert isinstance(made._accelerator_connector.cluster_environment, LightningEnvironment)
