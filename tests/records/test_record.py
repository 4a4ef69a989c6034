import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alexlab.data.discovery import find_splits
from alexlab.data.fingerprint import describe_images
from alexlab.distributed.signals import Interrupted
from alexlab.errors import AlexlabError, ConfigError, DataError
from alexlab.records import record
from alexlab.records.lock import RunLock, lock_holder
from alexlab.records.provenance import code_state
from alexlab.records.record import CorruptError, RunRecord
from alexlab.sweeps import jobs
from support.images import write_images
from support.runs import rows

Train = Callable[..., float | None]


def read_record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


def test_a_record_that_cannot_be_read_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = RunRecord(tmp_path)
    written.start({"seed": 1}, {}, hardware={})
    before = written.path.read_bytes()

    def fail(path: Path, *args: Any, **keywords: Any) -> str:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", fail)
        with pytest.raises(OSError, match="Input/output error"):
            written.update(last={"epoch": 2})
    assert written.path.read_bytes() == before
    written.path.unlink()
    written.finish("finished")
    assert read_record(tmp_path)["status"] == "finished"


def test_a_file_system_without_locks_is_reported_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(*args: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with RunLock(tmp_path):
        assert lock_holder(tmp_path) is None
    (message,) = caplog.messages
    assert message.startswith(f"the file system of {tmp_path}") and message.endswith(
        "has no locks: two processes could write to it at the same time"
    )


def test_the_record_of_a_finished_run(train: Train, images: Path, tmp_path: Path) -> None:
    best = train("trainer.max_epochs=2", "seed=3")
    found = read_record(tmp_path / "run")
    assert (found["status"], found["reason"], found["exit_code"], found["seed"]) == ("finished", None, 0, 3)
    assert found["best"]["top1"] == best
    table = rows(tmp_path / "run/metrics.csv")
    assert found["last"]["epoch"] == 2
    assert found["last"]["step"] == 6
    assert found["last"]["val/loss"] == float(table[-1]["val/loss"])
    assert found["best"]["epoch"] in (1, 2)
    assert found["optimized"] == {"name": "val/top1", "mode": "max"}
    assert found["scores"]["test/count"] == 7
    assert found["data"]["counts"] == {"train": 24, "val": 11, "test": 7}
    assert found["config"]["data"]["root"] == str(images)
    assert found["choices"]["model"] == "alexnet"
    assert found["versions"]["torch"]
    assert found["hardware"]["cores"] >= 1
    assert found["peak_memory_mb"]["process"] > 50
    assert found["images_per_s"] > 0
    assert 0 < found["elapsed_s"] < 100
    assert found["end_s"] - found["start_s"] == pytest.approx(found["elapsed_s"])
    assert found["code"]["commit"] is None or len(found["code"]["commit"]) == 40


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("data.batch_size=99", ConfigError, "data.batch_size must not exceed"),
        ("data.root=/nowhere", DataError, "data.root must be a folder"),
    ],
)
def test_a_rejected_run_leaves_no_record(
    train: Train, tmp_path: Path, override: str, error: type[AlexlabError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        train(override)
    assert caught.value.refused
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_the_record_of_a_failed_run(train: Train, images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "copy")
    (tmp_path / "copy/val/bee/001.png").write_bytes(b"no image")
    with pytest.raises(DataError):
        train(f"data.root={tmp_path / 'copy'}")
    found = read_record(tmp_path / "run")
    assert (found["status"], found["exit_code"]) == ("failed", 3)
    assert found["reason"].startswith("ImageError: cannot read the image")


def test_the_record_of_an_interrupted_run(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for signum, code in ((signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)):
        monkeypatch.setattr(
            "alexlab.distributed.launch.launch", lambda *args, signum=signum, **options: signal.raise_signal(signum)
        )
        run_dir = tmp_path / signum.name
        with pytest.raises(Interrupted, match=f"stopped by {signum.name}"):
            train(run_dir=run_dir)
        assert (read_record(run_dir)["status"], read_record(run_dir)["exit_code"]) == ("interrupted", code)
        assert read_record(run_dir)["reason"] == f"stopped by {signum.name}"


def _hold(folder: Path, held: Any) -> None:
    with RunLock(folder):
        RunRecord(folder).start({"seed": 1}, {}, hardware={"cpu": "x", "cores": 1})
        held.set()
        time.sleep(60)


def test_a_folder_has_one_writer_and_a_killed_run_is_interrupted(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    held = context.Event()
    process = context.Process(target=_hold, args=(tmp_path, held))
    process.start()
    assert held.wait(30)
    assert lock_holder(tmp_path) == str(process.pid)
    assert RunRecord(tmp_path).read()["status"] == "running"
    with pytest.raises(
        ConfigError, match=f"only one process at a time may write to {tmp_path}, and process {process.pid} does"
    ):
        RunLock(tmp_path)
    process.kill()
    process.join()
    assert lock_holder(tmp_path) is None
    found = RunRecord(tmp_path).read()
    assert (found["status"], found["reason"]) == (
        "interrupted",
        "the process was killed before it could record its status",
    )
    with RunLock(tmp_path):
        assert lock_holder(tmp_path) == str(os.getpid())


def test_malformed_records_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must be a run folder; it has no run.json"):
        RunRecord(tmp_path).read()
    (tmp_path / "run.json").mkdir()
    with pytest.raises(ConfigError, match=r"cannot read .*run\.json"):
        RunRecord(tmp_path).read()


GOOD = {"status": "failed", "attempts": [{"start_s": 0.0}], "config": {}, "choices": {}}


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "null", "[]", '"text"', "1", "NaN", "{}", "[" * 100_000, json.dumps(GOOD)[:-9], "\ufeff{}", "\x00" * 100,
        *(
            json.dumps(GOOD | changed)
            for changed in (
                {"status": "done"}, {"status": 1}, {"status": ["failed"]}, {"config": None}, {"config": []}, {"config": "x"},
                {"choices": []}, {"choices": {"model": 1}}, {"attempts": {}}, {"attempts": [1]}, {"attempts": [{}]},
                {"attempts": [{"start_s": "x"}]}, {"attempts": [{"start_s": 0, "command": "x"}]}, {"scores": [1]},
                {"scores": {"best/top1": "x"}}, {"scores": {"best/top1": [1]}}, {"best": {"top1": "x"}}, {"best": 1},
                {"last": {"epoch": {}}}, {"last": "x"}, {"data": []}, {"data": {"counts": {"train": "x"}}}, {"versions": [1]},
                {"versions": {"torch": 1}}, {"code": "x"}, {"code": {}}, {"hardware": 1}, {"hardware": {}}, {"seed": "x"},
                {"reason": 1}, {"exit_code": "x"}, {"command": "x"}, {"command": [1]}, {"parameters": {}},
                {"data": {"class_names": 5}}, {"images_per_s": "x"}, {"gpus": 5},
            )
        ),
    ],
    ids=lambda content: content[-40:] or "empty",
)  # fmt: skip
@pytest.mark.scenario(name="corrupt_files")
def test_corrupt_records_are_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content, encoding="utf-8")
    with pytest.raises(CorruptError, match=r"run\.json is corrupt: ") as caught:
        RunRecord(tmp_path).read()
    assert "\n" not in str(caught.value)
    assert jobs.previous_attempt(tmp_path).state == "failed"
    RunRecord(tmp_path).start({"seed": 1}, {}, hardware={"cpu": "x", "cores": 1})
    assert RunRecord(tmp_path).read()["status"] == "interrupted", "another attempt writes it anew"


def test_missing_entries_get_defaults(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(GOOD))
    found = RunRecord(tmp_path).read()
    assert (found["scores"], found["versions"], found["code"]) == ({}, {}, {"commit": None, "dirty": False})


def test_the_state_of_the_code(tmp_path: Path) -> None:
    assert code_state(tmp_path) == (None, b"")
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a.py").write_text("a = 1\n")
    for arguments in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"],
    ):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    commit, diff = code_state(tmp_path)
    assert commit is not None
    assert (len(commit), diff) == (40, b"")
    (tmp_path / "src/a.py").write_text("a = 2\n")
    (tmp_path / "src/b.py").write_text("")
    diff = code_state(tmp_path)[1]
    assert b"+a = 2" in diff
    assert b"?? src/b.py" in diff


def test_uncommitted_code_is_stored_next_to_the_record(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "code_state", lambda folder: ("f" * 40, b"+ changed"))
    train()
    assert (tmp_path / "run/code.diff").read_bytes() == b"+ changed"
    assert read_record(tmp_path / "run")["code"] == {"commit": "f" * 40, "dirty": True}


def test_the_fingerprint_of_the_data(tmp_path: Path) -> None:
    root = write_images(tmp_path / "a", {"x": 6, "y": 6})

    def fingerprint() -> str:
        return str(describe_images(find_splits(str(root), val_fraction=0.3, test_fraction=0.0))["fingerprint"])

    first = fingerprint()
    assert fingerprint() == first
    (root / "x/000.png").write_bytes((root / "x/000.png").read_bytes() + b" ")
    assert fingerprint() != first
