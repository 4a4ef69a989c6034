"""Sockets of multiprocessing have short paths for any temporary folder."""

import errno
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from alexlab.distributed.socket_paths import ensure_short_socket_paths
from alexlab.errors import DiskError
from support.runs import ROOT, environment

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
def test_sockets_have_short_paths_for_any_temporary_folder(name: str) -> None:
    with tempfile.TemporaryDirectory(prefix="alexlab_", dir="/tmp") as parent:  # tmp_path is too long for "short"
        check_socket(Path(parent) / name, is_short=name == "short")


def check_socket(folder: Path, *, is_short: bool) -> None:
    folder.mkdir()
    result = subprocess.run(
        [sys.executable, "-c", SOCKET],
        capture_output=True,
        text=True,
        env=environment(PYTHONPATH=str(ROOT / "src"), TMPDIR=str(folder), PYTHONUTF8="1"),
        timeout=60,
    )
    folder_used, socket = result.stdout.splitlines()
    assert folder_used == str(folder)
    assert socket.startswith(str(folder)) == is_short
    assert not Path(socket).parent.exists(), "the folder is removed at exit"


@pytest.mark.scenario(name="socket_paths")
def test_unusable_temporary_folders_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("x" * 100)))
    monkeypatch.setattr(
        "multiprocessing.util.get_temp_dir", lambda: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full"))
    )
    with pytest.raises(ValueError, match="TMPDIR must have at most 75 bytes if neither /tmp nor /var/tmp is"):
        ensure_short_socket_paths()
    monkeypatch.setattr("tempfile.gettempdir", lambda: (_ for _ in ()).throw(FileNotFoundError(2, "No usable folder")))
    with pytest.raises(
        DiskError, match="the temporary folder must be writable and have free space: No usable folder; set TMPDIR"
    ):
        ensure_short_socket_paths()
