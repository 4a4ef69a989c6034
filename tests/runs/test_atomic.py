"""A disk that takes no more: named in one sentence, or outlived with everything that was measured."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alexlab.data.unreadable import UnreadableLog
from alexlab.errors import DiskError, ImageError
from alexlab.runs import atomic
from alexlab.runs.record import RunRecord
from alexlab.training.events import EventFile
from alexlab.training.module import Classifier
from support.runs import ROOT, environment, rows, scalars

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
def test_an_error_names_the_file_and_the_room(error: OSError, text: str) -> None:
    found = atomic.disk_error(error, Path("run"))
    assert found is not None and found.exit_code == 1
    with pytest.raises(DiskError, match=text):
        raise found


def test_another_error_is_none_of_the_disk() -> None:
    assert atomic.disk_error(FileNotFoundError(errno.ENOENT, "No such file", "x"), Path("run")) is None
    with pytest.raises(FileNotFoundError), atomic.disk_errors(Path("x")):
        Path("/nowhere/x").write_text("")


def test_a_folder_that_takes_nothing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DiskError, match=f"cannot write {tmp_path}/gone: No such file or directory; "):
        atomic.check_free_space(tmp_path / "gone")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EDQUOT, "Disk quota exceeded")))
    with pytest.raises(DiskError, match=rf"cannot write {tmp_path}: Disk quota exceeded; [\d.]+ MB are free in"):
        atomic.check_free_space(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def filled(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets the disk of a run be full in some of its epochs, counted from 0."""

    def put(epochs: range) -> None:
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

    return put


GO_ON = ("trainer.max_epochs=5", "callbacks.checkpoint.on_error=warn")


@pytest.mark.scenario(name="disk_full_in_run")
def test_a_run_that_goes_on_writes_everything_when_there_is_room_again(
    train: Train, tmp_path: Path, filled: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    filled(range(1, 4))
    train(*GO_ON)
    assert [row["epoch"] for row in rows(tmp_path / "run/metrics.csv")] == list("01234")
    assert len(scalars(tmp_path / "run")["val/top1"]) == 5
    found = RunRecord(tmp_path / "run").read()
    assert found["status"] == "finished" and found["last"]["epoch"] == 4 and found["parameters"]
    for name in ("run.json", "metrics.csv", "events.out", "last.ckpt"):
        assert any(name in line and "; the run goes on" in line for line in caplog.messages), name
    assert (tmp_path / "run/curves.png").is_file()


@pytest.mark.scenario(name="disk_full_in_run")
def test_a_disk_that_stays_full_is_told_at_the_end(
    train: Train, tmp_path: Path, filled: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    filled(range(3, 5))
    with pytest.raises(DiskError, match=r"cannot write .*run.json.*No space left on device; [\d.]+ MB are free"):
        train(*GO_ON)
    assert len([line for line in caplog.messages if "metrics.csv" in line]) >= 2
    assert RunRecord(tmp_path / "run").read()["status"] == "interrupted", "the lock is free"


@pytest.mark.scenario(name="disk_full_in_run")
def test_a_run_that_stops_is_not_left_running(train: Train, tmp_path: Path, filled: Callable[..., None]) -> None:
    filled(range(1, 3))
    with pytest.raises(DiskError, match=r"cannot write /.*No space left on device; [\d.]+ MB are free in /"):
        train("trainer.max_epochs=3")
    assert RunRecord(tmp_path / "run").read()["status"] == "interrupted"
    assert [row["epoch"] for row in rows(tmp_path / "run/metrics.csv")] == ["0"], "what was there is kept"
    assert not list((tmp_path / "run").rglob(".*.json.*"))


@pytest.mark.scenario(name="disk_full_in_run")
def test_a_list_of_skipped_images_goes_on_where_the_run_does(
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
    assert "; the run goes on" in caplog.text
    monkeypatch.setattr(Path, "open", opened)
    skipped.add(error)
    skipped.add(error)
    assert skipped.finish() == 1


@pytest.mark.scenario(name="disk_full_in_run")
def test_events_that_were_half_written_are_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


SMALL = """
import os, sys
from pathlib import Path
from alexlab.runs.atomic import write_atomic
from alexlab.runs.disk_errors import check_free_space
from alexlab.errors import DiskError
folder = Path(sys.argv[1])
check_free_space(folder)
write_atomic(folder / "kept", b"old")
free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
(folder / "filler").write_bytes(bytes(free - 45_000))
for write in (lambda: check_free_space(folder), lambda: write_atomic(folder / "kept", bytes(100_000))):
    try:
        write()
    except DiskError as error:
        print(error)
print(sorted(path.name for path in folder.iterdir()), (folder / "kept").read_text())
"""


@pytest.mark.scenario(name="disk_full_in_run")
def test_a_real_disk_without_room(tmp_path: Path) -> None:
    mount = 'mount -t tmpfs -o size=1m none "$1" || exit 77; exec "$2" -c "$3" "$1"'
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("a small disk needs the command unshare")
    words = ["--mount", "--map-root-user", "sh", "-c", mount, "sh", str(tmp_path), sys.executable, SMALL]
    result = subprocess.run(
        [unshare, *words], capture_output=True, text=True, env=environment(PYTHONPATH=str(ROOT / "src")), timeout=60
    )
    if result.returncode in (1, 77) and "Error" not in result.stderr:
        pytest.skip(f"a small disk cannot be mounted here: {result.stderr.strip()}")
    room, write, left = result.stdout.splitlines()
    assert room == f"cannot write {tmp_path}: No space left on device; 0.0 MB are free in {tmp_path}"
    assert write.startswith(f"cannot write {tmp_path}/kept, 0.1 MB: No space left on device; 0.0 MB are free")
    assert left == "['filler', 'kept'] old"


SOCKET = """
import multiprocessing, os, tempfile
from multiprocessing.connection import Client, Listener
from alexlab.distributed.socket_paths import ensure_short_socket_paths
ensure_short_socket_paths()
ensure_short_socket_paths()
def connect(pipe):
    with Listener(family="AF_UNIX") as listener:
        Client(listener.address).close()
        pipe.send((tempfile.gettempdir(), listener.address))
ours, theirs = multiprocessing.Pipe()
process = multiprocessing.get_context("fork").Process(target=connect, args=(theirs,))
process.start()
print(*ours.recv(), sep="\\n")
process.join()
"""


@pytest.mark.parametrize("name", ["x" * 110, "späße 数据 " * 6, "short"])
@pytest.mark.scenario(name="socket_paths")
def test_sockets_have_a_short_path_whatever_the_temporary_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    result = subprocess.run(
        [sys.executable, "-c", SOCKET],
        capture_output=True,
        text=True,
        env=environment(PYTHONPATH=str(ROOT / "src"), TMPDIR=str(folder), PYTHONUTF8="1"),
        timeout=60,
    )
    own, socket = result.stdout.splitlines()
    assert own == str(folder)
    assert socket.startswith(str(folder)) == (name == "short")
    assert not Path(socket).parent.exists(), "the folder is removed at the end"


@pytest.mark.scenario(name="socket_paths")
def test_no_folder_for_sockets_is_short_enough_or_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("x" * 100)))
    monkeypatch.setattr(
        "multiprocessing.util.get_temp_dir", lambda: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full"))
    )
    with pytest.raises(ValueError, match="TMPDIR must have at most 75 bytes where neither /tmp nor /var/tmp is"):
        atomic.ensure_short_socket_paths()
    monkeypatch.setattr("tempfile.gettempdir", lambda: (_ for _ in ()).throw(FileNotFoundError(2, "No usable folder")))
    with pytest.raises(DiskError, match="a temporary folder must be writable and have room: No usable folder; TMPDIR"):
        atomic.ensure_short_socket_paths()
