"""A full disk is reported in one sentence, or survived with all metrics."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alexlab.data.unreadable import UnreadableLog
from alexlab.errors import DiskError, ImageError
from alexlab.records.disk_errors import check_free_space, disk_error, disk_errors
from alexlab.records.record import RunRecord
from alexlab.training.events import EventFile
from alexlab.training.module import Classifier
from support.runs import rows, scalars

Train = Callable[..., float | None]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.ENOSPC, "No space left"), r"cannot write run: No space left; [\d.]+ MB are free in /"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/a/b"), "cannot write /a/b: Disk quota exceeded; "),
        (OSError(errno.EROFS, "Read-only", "/a", None, "/b"), "cannot write /b: Read-only; "),
        (OSError(errno.EIO, "Input/output error"), "cannot read or write run: Input/output error$"),
        (OSError("8 requested and 0 written"), "cannot write run: No space left on device; "),
        (OSError("Caught in worker\nOSError: [Errno 28] No space left: '/c'"), "cannot write /c: No space left; "),
    ],
)
@pytest.mark.scenario(name="disk_full_in_run")
def test_disk_errors_name_the_file_and_the_free_space(error: OSError, text: str) -> None:
    translated = disk_error(error, Path("run"))
    assert translated is not None and translated.exit_code == 1
    with pytest.raises(DiskError, match=text):
        raise translated


def test_other_errors_are_not_translated() -> None:
    assert disk_error(FileNotFoundError(errno.ENOENT, "No such file", "x"), Path("run")) is None
    with pytest.raises(FileNotFoundError), disk_errors(Path("x")):
        Path("/nowhere/x").write_text("")


def test_check_free_space_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DiskError, match=f"cannot write {tmp_path}/gone: No such file or directory; "):
        check_free_space(tmp_path / "gone")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EDQUOT, "Disk quota exceeded")))
    with pytest.raises(DiskError, match=rf"cannot write {tmp_path}: Disk quota exceeded; [\d.]+ MB are free in"):
        check_free_space(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def filled(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make the disk of a run full during some epochs, counted from 0."""

    def fill(epochs: range) -> None:
        full, sync, opened = False, os.fsync, Path.open

        def start(module: Classifier) -> None:
            nonlocal full
            full = module.current_epoch in epochs

        def refuse(path: Any = None) -> None:
            if full:
                raise OSError(errno.ENOSPC, "No space left on device", path)

        def open_unless_full(path: Path, mode: str = "r", *args: Any, **keywords: Any) -> Any:
            if mode in ("r+b", "a"):
                refuse(str(path))
            return opened(path, mode, *args, **keywords)

        monkeypatch.setattr(Classifier, "on_train_epoch_start", start, raising=False)
        monkeypatch.setattr(os, "fsync", lambda descriptor: refuse() or sync(descriptor))
        monkeypatch.setattr(Path, "open", open_unless_full)

    return fill


CONTINUE = ("trainer.max_epochs=5", "callbacks.checkpoint.on_error=warn")


@pytest.mark.scenario(name="disk_full_in_run")
def test_a_continued_run_writes_everything_once_the_disk_has_space(
    train: Train, tmp_path: Path, filled: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    filled(range(1, 4))
    train(*CONTINUE, "callbacks.epochs.curves=true")
    assert [row["epoch"] for row in rows(tmp_path / "run/metrics.csv")] == list("12345")
    assert len(scalars(tmp_path / "run")["val/top1"]) == 5
    record = RunRecord(tmp_path / "run").read()
    assert record["status"] == "finished" and record["last"]["epoch"] == 5 and record["parameters"]
    for name in ("run.json", "metrics.csv", "events.out", "last.ckpt"):
        assert any(name in line and "; the run continues" in line for line in caplog.messages), name
    assert (tmp_path / "run/curves.png").is_file()


@pytest.mark.scenario(name="disk_full_in_run")
def test_a_disk_that_stays_full_is_reported_at_the_end(
    train: Train, tmp_path: Path, filled: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    filled(range(3, 5))
    with pytest.raises(DiskError, match=r"cannot write .*run.json.*No space left on device; [\d.]+ MB are free"):
        train(*CONTINUE)
    assert len([line for line in caplog.messages if "metrics.csv" in line]) >= 2
    assert RunRecord(tmp_path / "run").read()["status"] == "interrupted", "the lock is released"


@pytest.mark.scenario(name="disk_full_in_run")
def test_a_stopped_run_is_recorded_as_interrupted(train: Train, tmp_path: Path, filled: Callable[..., None]) -> None:
    filled(range(1, 3))
    with pytest.raises(DiskError, match=r"cannot write /.*No space left on device; [\d.]+ MB are free in /"):
        train("trainer.max_epochs=3")
    assert RunRecord(tmp_path / "run").read()["status"] == "interrupted"
    assert [row["epoch"] for row in rows(tmp_path / "run/metrics.csv")] == ["1"], "the first epoch is kept"
    assert not list((tmp_path / "run").rglob(".*.json.*"))


@pytest.mark.scenario(name="disk_full_in_run")
def test_the_log_of_unreadable_images_continues_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    skipped, error = (
        UnreadableLog(tmp_path / "skipped.csv"),
        ImageError("", path="a.jpg", code="empty", reason="is empty"),
    )
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(DiskError, match=r"cannot write .*skipped.csv: full"):
        skipped.add(error)
    skipped.continue_on_full_disk = True
    skipped.add(error)
    assert "; the run continues" in caplog.text
    monkeypatch.setattr(Path, "open", opened)
    skipped.add(error)
    skipped.add(error)
    assert skipped.finish() == 1


@pytest.mark.scenario(name="disk_full_in_run")
def test_partially_written_events_are_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    one, other = EventFile(str(tmp_path)), EventFile(str(tmp_path))
    assert one.path != other.path
    one.flush()
    with one.path.open("ab") as file:
        file.write(b"half of an event")
    for step in (1, 2):
        one.add_event(Event(step=step))
    one.close()
    assert [event.step for event in EventFileLoader(str(one.path)).Load()] == [0, 1, 2]
