"""Two machines that train one net: each a network namespace with a disk of its own."""

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alexlab import members, runs
from alexlab.cards import Card
from alexlab.classifier import Classifier
from alexlab.errors import AlexlabError
from alexlab.load import load_file
from alexlab.resuming import find_resumption
from alexlab.signals import Stopped
from conftest import TINY, plain, rows
from network import FIRST, PORT, Machine, Network, network

NODES = (
    *TINY,
    "trainer.num_nodes=2",
    f"elastic.rendezvous={FIRST}:{PORT}",
    "elastic.timeout_s=60",
    "elastic.silence_s=2",
    "elastic.join_s=1",
    "model.dropout=0",
    "optimizer=sgd",
    "callbacks.checkpoint.every_steps=1",
)


@pytest.fixture
def net() -> Iterator[Network]:
    with network() as made:
        yield made


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> float:
    """Makes a step take so long, so that something can happen between two."""
    own, step_s = Classifier.training_step, 0.25

    def training_step(module: Classifier, batch: Any, batch_idx: int) -> Any:
        time.sleep(step_s)
        return own(module, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", training_step)
    return step_s


def command(*words: str, resumed: bool = False) -> int:
    """What `train.py` does with these words, in the folder `run` of this machine's disk."""
    from alexlab.tasks.train import run

    config = plain(*words)
    try:
        members.join_nodes(config)
        folder = Path("run")
        run_dir = Path(runs.agreed_folder(lambda: folder.mkdir(exist_ok=True) or str(folder)))  # type: ignore[func-returns-value]
        run(config, run_dir=run_dir, choices={}, resumed=resumed)
    except (AlexlabError, Stopped) as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        return error.exit_code
    return 0


def resume(*words: str) -> int:
    """What `train.py resume=run` does with these words."""
    from alexlab.tasks.train import run

    try:
        meeting = json.loads(Path("run/run.json").read_text())["config"]["elastic"]["rendezvous"]
        earlier = find_resumption(["resume=run", f"elastic.rendezvous='{meeting}'", *words])
        assert earlier is not None
        earlier.run(run, Path("run"))
    except (AlexlabError, Stopped) as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        return error.exit_code
    return 0


def machines(
    net: Network, folder: Path, *words: str, other: tuple[str, ...] = (), shared: bool = False
) -> tuple[Machine, Machine]:
    """Both at once; the other one with further words, and without a view of the first one's disk unless it is shared."""
    first = Machine(net, "first", folder / "first", lambda: command(*NODES, *words))
    hidden = None if shared else folder / "first"
    return first, Machine(net, "other", folder / "other", lambda: command(*NODES, *words, *other), hidden=hidden)


def same_as_one(train: Any, folder: Path, run_dir: Path, *words: str) -> None:
    """The run has taken the steps of one on one machine, and scored every image once."""
    shutil.rmtree(folder / "alone", ignore_errors=True)
    train(*NODES, *words, "trainer.num_nodes=1", "elastic.rendezvous=null", run_dir=folder / "alone")
    assert len(rows(run_dir / "metrics.csv")) == len(rows(folder / "alone/metrics.csv"))
    for one, two in zip(rows(folder / "alone/metrics.csv"), rows(run_dir / "metrics.csv"), strict=True):
        assert (one["val/top1"], one["val/top5"]) == (two["val/top1"], two["val/top5"])
        assert float(two["val/loss"]) == pytest.approx(float(one["val/loss"]), rel=1e-5)
        assert float(two["train/loss"]) == pytest.approx(float(one["train/loss"]), rel=1e-5)
    steps = [load_file(place / runs.LAST)["global_step"] for place in (folder / "alone", run_dir)]
    assert steps[0] == steps[1]


def test_two_nodes_train_as_one(net: Network, train: Any, images: Path, tmp_path: Path) -> None:
    """On disks of their own: the first has the run, the other a card."""
    words = (f"data.root={images}", "trainer.max_epochs=2")
    first, other = machines(net, tmp_path, *words)
    assert (first.wait(), other.wait()) == (0, 0), first.said() + other.said()
    same_as_one(train, tmp_path, tmp_path / "first/run", *words)
    assert "8 = 2 devices on 2 nodes x 1 accumulated x 4 images" in first.said()
    assert Card(tmp_path / "other/run").read()["status"] == "finished"
    assert not list((tmp_path / "other/run").glob("events*"))

    longer = (f"data.root={images}", "trainer.max_epochs=3")
    first = Machine(net, "first", tmp_path / "first", lambda: resume("trainer.max_epochs=3"))
    other = Machine(net, "other", tmp_path / "other", lambda: resume("trainer.max_epochs=3"), hidden=tmp_path / "first")
    assert (first.wait(), other.wait()) == (0, 0), first.said() + other.said()
    assert "going on after 2 epochs, step 6" in first.said()
    same_as_one(train, tmp_path, tmp_path / "first/run", *longer)
    assert (tmp_path / "other/run" / runs.LAST).is_file()  # where it got it from the first


def test_a_cut_link_and_a_node_that_comes_back(
    net: Network, train: Any, images: Path, tmp_path: Path, slow: float
) -> None:
    """With min_nodes=1 the first goes on alone; when the link is back, the other joins; the steps are those of one run."""
    words = (f"data.root={images}", "trainer.max_epochs=8", "elastic.min_nodes=1", "elastic.shutdown_s=1")
    first, other = machines(net, tmp_path, *words)
    first.says("epoch 1/8")
    net.cut()
    first.says("was lost: no word for 2 s")
    other.says("was lost: no answer for 2 s")
    first.says("8 = 1 devices x 2 accumulated x 4 images")
    net.restore()
    first.says("a node has come; going on from the last checkpoint")
    assert (first.wait(), other.wait()) == (0, 0), first.said() + other.said()
    assert first.said().count("8 = 2 devices on 2 nodes x 1 accumulated x 4 images") == 2
    causes = Card(tmp_path / "first/run").read()["restarts"]
    assert [cause.partition(":")[0] for cause in causes] == [
        f"node {causes[0].split()[1]} (10.77.0.2) was lost",
        "a node has come",
    ]
    same_as_one(train, tmp_path, tmp_path / "first/run", *words)


def test_a_killed_node_and_one_that_is_asked_to_end(
    net: Network, train: Any, images: Path, tmp_path: Path, slow: float
) -> None:
    words = (f"data.root={images}", "trainer.max_epochs=8", "elastic.min_nodes=1")
    first, other = machines(net, tmp_path, *words, shared=True)
    first.says("epoch 1/8")
    other.kill()
    first.says("was lost: its process has ended")
    first.says("8 = 1 devices x 2 accumulated x 4 images")
    other = Machine(net, "other", tmp_path / "other", lambda: command(*NODES, *words))
    first.says("a node has come")
    first.says("round 3")
    time.sleep(1)
    assert other.process.pid is not None
    os.kill(other.process.pid, signal.SIGTERM)
    assert other.wait() == 75
    first.says("a node was stopped by SIGTERM and has left; going on")
    assert first.wait() == 0, first.said()
    same_as_one(train, tmp_path, tmp_path / "first/run", *words)


def test_without_min_nodes_a_lost_node_ends_the_run(
    net: Network, train: Any, images: Path, tmp_path: Path, slow: float
) -> None:
    words = (f"data.root={images}", "trainer.max_epochs=4")
    first, other = machines(net, tmp_path, *words)
    first.says("epoch 1/4")
    other.kill()
    assert first.wait(30) == 5
    assert "a round needs 2 nodes; there are 1" in first.said()
    assert Card(tmp_path / "first/run").read()["status"] == "failed"


def test_another_node_is_refused_by_name(net: Network, images: Path, tmp_path: Path) -> None:
    """Once for its config, once for its data; the first waits on, for one that fits."""
    words = (f"data.root={images}", "trainer.max_epochs=1")
    first, other = machines(net, tmp_path, *words, other=("optimizer.lr=0.5",))
    assert other.wait() == 1
    assert "is refused, its config must be the first node's; optimizer.lr: 0.5 instead of" in other.said()
    first.says("has left: node")
    (tmp_path / "data").mkdir()
    shutil.copytree(images, tmp_path / "data/images")
    (tmp_path / "data/images/train/ant/000.png").unlink()
    less = (*words, f"data.root={tmp_path / 'data/images'}")
    other = Machine(net, "other", tmp_path / "second", lambda: command(*NODES, *less))
    assert other.wait() == 1
    assert "its data must be the first node's; images of train: 23 instead of 24" in other.said()
    other = Machine(net, "other", tmp_path / "third", lambda: command(*NODES, *words))
    assert (first.wait(), other.wait()) == (0, 0)
