"""Runs on two machines, each a network namespace with its own host name and disk, started by torchrun's engine.

The engine forks the ranks here, so that they need not import torch again; the `torchrun` command starts a program instead.
"""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import dynamic_rendezvous
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from alexlab.cli.command import run_command
from alexlab.records import layout
from alexlab.records.record import RunRecord
from alexlab.records.safe_load import load_file
from alexlab.training.module import Classifier
from support.network import FIRST, PORT, Machine, Network, network
from support.runs import TINY, rows

pytestmark = pytest.mark.slow

OVERRIDES = (
    *TINY,
    "elastic.timeout_s=20",
    "model.dropout=0",
    "optimizer=sgd",
    "callbacks.checkpoint.every_n_steps=1",
    "hydra.run.dir=outputs/${now:%H-%M-%S-%f}",  # a new folder in each attempt, as by default
)


@pytest.fixture
def net() -> Iterator[Network]:
    with network() as made:
        yield made


def train_py(overrides: tuple[str, ...]) -> None:
    sys.argv = ["train.py", *overrides]
    run_command("train")


def torchrun(
    net: Network,
    node: str,
    disk: Path,
    *overrides: str,
    nodes: tuple[int, int] = (2, 2),
    backend: str = "c10d",
    max_restarts: int = 0,
    hidden: Path | None = None,
) -> Machine:
    """Start `torchrun --nnodes=MIN:MAX --rdzv-backend=BACKEND src/train.py OVERRIDES` on a machine."""
    own = {"rank": int(node == "other")} if backend == "static" else {"is_host": node == "first"}
    times = {"timeout": 60, "last_call_timeout": 5, "keep_alive_interval": 1, "keep_alive_max_attempt": 10}
    config = LaunchConfig(
        min_nodes=nodes[0],
        max_nodes=nodes[1],
        nproc_per_node=1,
        run_id="none",
        rdzv_backend=backend,
        rdzv_endpoint=f"{FIRST}:{PORT}",
        rdzv_configs={**own, **(times if backend == "c10d" else {"timeout": 60})},
        max_restarts=max_restarts,
        start_method="fork",
    )

    def command() -> int:
        # PyTorch names each event by inspect.stack(), which takes seconds among the modules of a long test process. Two nodes
        # as slow as that overwrite each other's state again and again, and never meet.
        dynamic_rendezvous.get_method_name = lambda: "unnamed"
        try:
            elastic_launch(config, train_py)(overrides)
        except ChildFailedError as error:
            print(error, flush=True)
            return 1
        return 0

    return Machine(net, node, disk, command, hidden=hidden)


def both(net: Network, folder: Path, *overrides: str, shared: bool = False, **options: Any) -> tuple[Machine, Machine]:
    """Start both machines; the other one does not see the first one's disk unless they share it."""
    disks = {node: folder / ("first" if shared else node) for node in ("first", "other")}
    return (
        torchrun(net, "first", disks["first"], *overrides, **options),
        torchrun(net, "other", disks["other"], *overrides, hidden=None if shared else folder / "first", **options),
    )


def run_folder(disk: Path) -> Path:
    (found,) = (path for path in (disk / "outputs").iterdir() if path.is_dir())
    return found


def assert_equals_one_machine(train: Any, folder: Path, run_dir: Path, *overrides: str) -> None:
    """Assert that a run took the steps of a run on one machine and scored every image once."""
    (folder / "alone").mkdir()
    train(
        *(override for override in (*OVERRIDES, *overrides) if not override.startswith("hydra")),
        "trainer.num_nodes=1",
        run_dir=folder / "alone",
    )
    assert len(rows(run_dir / "metrics.csv")) == len(rows(folder / "alone/metrics.csv"))
    for one, two in zip(rows(folder / "alone/metrics.csv"), rows(run_dir / "metrics.csv"), strict=True):
        assert (one["val/top1"], one["val/top5"]) == (two["val/top1"], two["val/top5"])
        assert float(two["val/loss"]) == pytest.approx(float(one["val/loss"]), rel=1e-5)
        assert float(two["train/loss"]) == pytest.approx(float(one["train/loss"]), rel=1e-5)
    steps = [load_file(place / layout.LAST)["global_step"] for place in (folder / "alone", run_dir)]
    assert steps[0] == steps[1]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow the steps down, so that a test can act between two of them."""
    own = Classifier.training_step

    def training_step(module: Classifier, batch: Any, batch_idx: int) -> Any:
        time.sleep(0.25)
        return own(module, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", training_step)


@pytest.mark.parametrize("backend", ["static", "c10d"])
def test_two_nodes_train_like_one(net: Network, train: Any, images: Path, tmp_path: Path, backend: str) -> None:
    """On separate disks; when resumed, the first node sends its checkpoint."""
    overrides = (*OVERRIDES, f"data.root={images}", "trainer.num_nodes=2", "trainer.max_epochs=2")
    first, other = both(net, tmp_path, *overrides, backend=backend)
    assert (first.wait(), other.wait()) == (0, 0), first.output() + other.output()
    run_dir = run_folder(tmp_path / "first")
    assert_equals_one_machine(train, tmp_path, run_dir, f"data.root={images}", "trainer.max_epochs=2")
    assert "8 = 2 devices on 2 nodes x 1 accumulation step x 4 images" in first.output()
    assert RunRecord(run_dir).read()["status"] == "finished"
    copy = run_folder(tmp_path / "other")
    assert copy.name == run_dir.name and not list(copy.glob("events*"))

    (copy / layout.LAST).unlink(missing_ok=True)
    resume = (f"resume=outputs/{run_dir.name}", "trainer.max_epochs=3")
    shutil.copy(run_dir / "run.json", copy)
    first, other = both(net, tmp_path, *resume, backend=backend)
    assert (first.wait(), other.wait()) == (0, 0), first.output() + other.output()
    assert "resuming after 2 epochs, step 6" in first.output()
    assert (copy / layout.LAST).is_file()


def test_a_restart_resumes_in_the_same_folder(
    net: Network, train: Any, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, done = Classifier.training_step, tmp_path / "done"

    def training_step(module: Classifier, batch: Any, batch_idx: int) -> Any:
        if (module.global_rank, module.global_step) == (1, 4) and not done.exists():
            done.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return own(module, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", training_step)
    overrides = (*OVERRIDES, f"data.root={images}", "trainer.num_nodes=2", "trainer.max_epochs=2")
    first, other = both(net, tmp_path, *overrides, max_restarts=1)
    assert (first.wait(), other.wait()) == (0, 0), first.output() + other.output()
    assert done.exists()
    assert "resuming after 1 epoch, batch 1 of epoch 2, step 4" in first.output()
    run_dir = run_folder(tmp_path / "first")
    assert len(RunRecord(run_dir).read()["attempts"]) == 2
    assert_equals_one_machine(train, tmp_path, run_dir, f"data.root={images}", "trainer.max_epochs=2")


@pytest.mark.usefixtures("slow")
def test_a_run_shrinks_and_grows_again(
    net: Network, train: Any, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else no node can rejoin: it would wait for an address that PyTorch 2.15 publishes only once.
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    overrides = (*OVERRIDES, f"data.root={images}", "trainer.num_nodes=2", "trainer.max_epochs=8")
    options: dict[str, Any] = {"nodes": (1, 2), "max_restarts": 3, "shared": True}
    first, other = both(net, tmp_path, *overrides, **options)
    first.wait_for("epoch 1/8")
    other.kill()
    first.wait_for("8 = 1 device x 2 accumulation steps x 4 images")
    del options["shared"]
    other = torchrun(net, "other", tmp_path / "first", *overrides, **options)
    first.wait_for("epoch 5/8")
    assert (first.wait(), other.wait()) == (0, 0), first.output()
    assert first.output().count("8 = 2 devices on 2 nodes x 1 accumulation step x 4 images") == 2
    run_dir = run_folder(tmp_path / "first")
    events = EventAccumulator(str(run_dir))
    events.Reload()
    assert len(events.Scalars("val/top1")) == 8
    assert_equals_one_machine(train, tmp_path, run_dir, f"data.root={images}", "trainer.max_epochs=8")


@pytest.mark.usefixtures("slow")
def test_a_lost_node_stops_the_run(net: Network, images: Path, tmp_path: Path) -> None:
    overrides = (
        *OVERRIDES,
        f"data.root={images}",
        "trainer.num_nodes=2",
        "trainer.max_epochs=8",
        "elastic.timeout_s=5",
    )
    first, _ = both(net, tmp_path, *overrides)
    first.wait_for("epoch 1/8")
    net.cut()  # no connection is closed: only the time limit applies
    start_s = time.monotonic()
    assert first.wait(60) == 1
    assert time.monotonic() - start_s < 30
    assert RunRecord(run_folder(tmp_path / "first")).read()["status"] == "failed"


def test_a_node_with_another_config_is_refused_by_name(net: Network, images: Path, tmp_path: Path) -> None:
    overrides = (*OVERRIDES, f"data.root={images}", "trainer.num_nodes=2", "trainer.max_epochs=1")
    first = torchrun(net, "first", tmp_path / "first", *overrides)
    other = torchrun(net, "other", tmp_path / "other", *overrides, "optimizer.lr=0.5")
    assert (first.wait(), other.wait()) == (1, 1)
    for machine in (first, other):
        assert (
            "node other (rank 1) must have the same config as the first node; got optimizer.lr: 0.5" in machine.output()
        )
    assert not list((tmp_path / "first/outputs").glob("*/run.json"))


def test_a_missing_node_prints_how_it_can_join_later(net: Network, images: Path, tmp_path: Path) -> None:
    overrides = (*OVERRIDES, f"data.root={images}", "trainer.num_nodes=2", "trainer.max_epochs=1")
    first = torchrun(net, "first", tmp_path / "first", *overrides, nodes=(1, 2))
    assert first.wait() == 0, first.output()
    assert (
        "1 of 2 nodes have joined; for others to join later, start torchrun with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"
        in first.output()
    )
    assert "8 = 1 device x 2 accumulation steps x 4 images" in first.output()


def test_error_message_for_a_loopback_master_address(net: Network, images: Path, tmp_path: Path) -> None:
    environment = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": "1"}
    environment |= {"GROUP_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "other", "MASTER_PORT": "9"}
    environment |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}

    def command() -> int:
        os.environ.update(environment)
        try:
            train_py((*OVERRIDES, f"data.root={images}", "trainer.num_nodes=2"))
        except SystemExit as error:
            return int(error.code or 0)
        return 0

    machine = Machine(net, "other", tmp_path / "other", command)
    assert machine.wait() == 1
    assert "MASTER_ADDR=other must lead to the first node from every node; on other it is 127.0.1.1" in machine.output()
    assert json.dumps(machine.output()).count("--local-addr=IP")
