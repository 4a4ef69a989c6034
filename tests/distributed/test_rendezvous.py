"""Ranks started by srun, mpirun or environment variables alone, as by a Kubernetes PyTorchJob: one run, or one error."""

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from alexlab.cli.command import run_command
from alexlab.distributed import rendezvous
from alexlab.distributed.environment import LOOPBACK, MPIRUN, SRUN, TORCHRUN, VARIABLES, RankEnvironment, detect_rank
from alexlab.errors import ConfigError
from alexlab.records.record import RunRecord
from support.runs import TINY, rows
from support.slurm import free_ports

pytestmark = pytest.mark.slow

FORK = multiprocessing.get_context("fork")
OVERRIDES = (*TINY, "model.dropout=0", "optimizer=sgd", "trainer.max_epochs=2", "elastic.timeout_s=20")


class Rank:
    """A process with its own environment that runs `train.py` and logs its output."""

    def __init__(self, folder: Path, number: int, environment: dict[str, Any], *overrides: str) -> None:
        self.log = folder / f"{number}.log"

        def body() -> None:
            output = os.open(self.log, os.O_WRONLY | os.O_CREAT)
            for descriptor in (1, 2):
                os.dup2(output, descriptor)
            sys.stdout = sys.stderr = os.fdopen(output, "w", buffering=1)
            os.chdir(folder)
            os.environ.update({name: str(value) for name, value in environment.items()})
            sys.argv = ["train.py", *overrides]
            try:
                run_command("train")
            except SystemExit as error:
                os._exit(int(error.code or 0))

        self.process = FORK.Process(target=body)
        self.process.start()

    def wait(self) -> int:
        self.process.join(60)
        if self.process.exitcode is None:
            self.process.kill()
            pytest.fail(f"still running after a minute: {self.output()}")
        return self.process.exitcode

    def output(self) -> str:
        return " ".join(self.log.read_text().split())


def start_ranks(folder: Path, images: Path, kind: str, *overrides: str, count: int = 2) -> list[Rank]:
    port, step = free_ports(1)[0], os.getpid()
    meeting = {"MASTER_ADDR": LOOPBACK, "MASTER_PORT": port}
    found = []
    for rank in range(count):
        variables = {
            "variables": {"RANK": rank, "WORLD_SIZE": count, **meeting},
            "all variables": {
                "RANK": rank,
                "WORLD_SIZE": count,
                "LOCAL_RANK": rank,
                "LOCAL_WORLD_SIZE": count,
                **meeting,
            },
            "srun": {"SLURM_PROCID": rank, "SLURM_STEP_NUM_TASKS": count, "SLURM_LOCALID": rank, "SLURM_JOB_ID": step}
            | {"SLURM_STEP_ID": port, "SLURM_STEP_NODELIST": "localhost"},
            "mpirun": {f"OMPI_COMM_WORLD_{name}": rank for name in ("RANK", "LOCAL_RANK")}
            | {f"OMPI_COMM_WORLD_{name}": count for name in ("SIZE", "LOCAL_SIZE")}
            | {"MASTER_PORT": port},
        }[kind]
        found.append(Rank(folder, rank, variables, *OVERRIDES, f"data.root={images}", *overrides))
    return found


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        ("variables", ("trainer.devices=2",)),
        ("variables", ("trainer.num_nodes=2",)),
        ("all variables", ("trainer.devices=2",)),
        ("srun", ("trainer.devices=2",)),
        ("mpirun", ("trainer.devices=2",)),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_ranks_form_one_run(train: Any, images: Path, tmp_path: Path, kind: str, overrides: tuple[str, ...]) -> None:
    started = start_ranks(tmp_path, images, kind, *overrides)
    assert [rank.wait() for rank in started] == [0, 0], started[0].output() + started[1].output()
    (run_dir,) = (tmp_path / "outputs/train").glob("*/*")
    assert RunRecord(run_dir).read()["status"] == "finished"
    (tmp_path / "alone").mkdir()
    train(*OVERRIDES, run_dir=tmp_path / "alone")
    for one, two in zip(rows(tmp_path / "alone/metrics.csv"), rows(run_dir / "metrics.csv"), strict=True):
        assert (one["val/top1"], one["train/top1"]) == (two["val/top1"], two["train/top1"])
        assert float(two["val/loss"]) == pytest.approx(float(one["val/loss"]), rel=1e-5)


def test_a_world_size_that_contradicts_the_config_is_refused_by_every_rank(images: Path, tmp_path: Path) -> None:
    started = start_ranks(tmp_path, images, "variables")
    assert [rank.wait() for rank in started] == [1, 1]
    for rank in started:
        message = "trainer.devices x trainer.num_nodes must equal the world size, 2 according to RANK and WORLD_SIZE; got 1 x 1"
        assert message in rank.output()
    assert not (tmp_path / "outputs").exists()


def test_a_rank_with_another_config_is_refused_by_name(images: Path, tmp_path: Path) -> None:
    variables = {"WORLD_SIZE": 2, "MASTER_ADDR": LOOPBACK, "MASTER_PORT": free_ports(1)[0]}
    overrides = (*OVERRIDES, f"data.root={images}", "trainer.devices=2")
    started = [Rank(tmp_path, rank, {"RANK": rank, **variables}, *overrides, f"seed={rank}") for rank in range(2)]
    assert [rank.wait() for rank in started] == [1, 1]
    for rank in started:
        assert "(rank 1) must have the same config as the first node; got seed: 1 instead of 0" in rank.output()


@pytest.mark.parametrize("rank", [0, 1])
def test_leftover_variables_do_not_disturb_a_run_of_one_process(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    monkeypatch.setattr(rendezvous, "PEER_TIMEOUT_S", 0.3)
    variables = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "MASTER_ADDR": LOOPBACK}
    elsewhere = {"MASTER_ADDR": "nowhere.invalid", "MASTER_PORT": free_ports(1)[0]}
    for number, more in enumerate(({"MASTER_PORT": free_ports(1)[0]}, elsewhere, {})):
        alone = Rank(tmp_path, number, variables | more, *OVERRIDES, f"data.root={images}")
        assert alone.wait() == 0, alone.output()
        assert (
            f"running alone and ignoring RANK and WORLD_SIZE, which started this process as rank {rank} of 2: "
            in alone.output()
        )
    assert len(list((tmp_path / "outputs/train").glob("*/*/checkpoints/best.ckpt"))) == 3


def test_a_late_rank_fails_if_rank_0_trains_alone(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "PEER_TIMEOUT_S", 0.3)
    variables = {"WORLD_SIZE": 2, "MASTER_ADDR": LOOPBACK, "MASTER_PORT": free_ports(1)[0]}
    overrides = (*OVERRIDES, f"data.root={images}", "trainer.max_epochs=100")
    first = Rank(tmp_path, 0, {"RANK": 0, **variables}, *overrides)
    while "running alone and ignoring" not in (first.output() if first.log.exists() else ""):
        assert first.process.is_alive()
    late = Rank(tmp_path, 1, {"RANK": 1, **variables}, *overrides)
    assert late.wait() == 1
    assert "rank 0 trains alone, with trainer.devices=1 and trainer.num_nodes=1" in late.output()
    first.process.kill()
    first.process.join()


def test_a_missing_rank_and_one_started_twice_are_named(images: Path, tmp_path: Path) -> None:
    variables = {"WORLD_SIZE": 2, "MASTER_ADDR": LOOPBACK, "MASTER_PORT": free_ports(1)[0]}
    overrides = (*OVERRIDES, f"data.root={images}", "trainer.devices=2", "elastic.timeout_s=2")
    first = Rank(tmp_path, 0, {"RANK": 0, **variables}, *overrides)
    twice = Rank(tmp_path, 1, {"RANK": 0, **variables}, *overrides)
    codes = {rank.wait(): rank.output() for rank in (first, twice)}
    assert set(codes) == {1, 5}
    assert "all 2 ranks must appear within 2 s; rank 1 did not" in codes[1]
    assert "must be free for rank 0" in codes[5]


def test_a_sweep_refuses_external_ranks(images: Path, tmp_path: Path) -> None:
    started = start_ranks(tmp_path, images, "variables", "-m", "seed=1,2")
    assert [rank.wait() for rank in started] == [1, 1]
    assert "must equal the world size, 2 according to RANK and WORLD_SIZE; got 1 x 1" in started[0].output()


SLURM = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": "node[07-08]"}


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, None),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"WORLD_SIZE": "2"}, None),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, None),  # a batch script
        ({"RANK": "1", "WORLD_SIZE": "2"}, RankEnvironment(VARIABLES, 1, 2)),
        (SLURM | {"MASTER_PORT": "7"}, RankEnvironment(SRUN, 3, 4, 1, None, "node07", 7)),
        (
            SLURM | {"MASTER_ADDR": "x", "MASTER_PORT": "7", "RANK": "0", "WORLD_SIZE": "2"},
            RankEnvironment(SRUN, 3, 4, 1, None, "x", 7),
        ),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, RankEnvironment(MPIRUN, 1, 2)),
        (
            {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2", "MASTER_PORT": "7"},
            RankEnvironment(MPIRUN, 1, 2, 1, 2, LOOPBACK, 7),
        ),
        (
            SLURM
            | {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
            RankEnvironment(TORCHRUN, 0, 2, 0, 1),
        ),
    ],
)
def test_detection_from_variables(
    variables: dict[str, str], found: RankEnvironment | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert detect_rank() == found


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK must be an integer; got 'one'"),
        ({"RANK": "0", "WORLD_SIZE": "-2"}, "WORLD_SIZE must be an integer; got '-2'"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "got rank 2 of 2 from RANK and WORLD_SIZE"),
        ({"PMI_SIZE": "2"}, "a rank started by mpirun must have the variables PMI_RANK and PMI_SIZE"),
    ],
)
def test_invalid_variables(variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        detect_rank()


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "there are 2 ranks according to RANK and WORLD_SIZE; they are not set"),
        (
            {"PMI_RANK": "1", "PMI_SIZE": "2", "MASTER_ADDR": "x"},
            "there are 2 ranks according to mpirun; they are not set",
        ),
    ],
)
def test_several_ranks_need_the_address_of_rank_0(
    variables: dict[str, str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"MASTER_ADDR and MASTER_PORT must be the address of rank 0, since {reason}"):
        rendezvous.join({"accelerator": "cpu", "devices": 2, "num_nodes": 1}, timeout_s=1.0)
