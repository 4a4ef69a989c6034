"""Files and folders are written completely or not at all."""

import contextlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from alexlab.errors import DiskError
from alexlab.records.atomic import atomic_dir, atomic_path, replace_dir, write_atomic
from support.runs import ROOT, environment


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with contextlib.suppress(KeyboardInterrupt), atomic_path(path) as partial:
        partial.write_text("new")
        raise KeyboardInterrupt
    assert [file.name for file in tmp_path.iterdir()] == ["a"] and path.read_text() == "old"
    with atomic_path(path) as partial:
        partial.write_text("new")
    assert [file.name for file in tmp_path.iterdir()] == ["a"] and path.read_text() == "new"


def test_write_atomic_creates_the_folder(tmp_path: Path) -> None:
    write_atomic(tmp_path / "b/a", lambda file: file.write(b"content") and None)
    assert (tmp_path / "b/a").read_bytes() == b"content"
    with pytest.raises(DiskError, match=r"cannot write .*/b/a/c, 0\.0 MB: .*; [\d.]+ MB are free in [^;]*$"):
        write_atomic(tmp_path / "b/a/c", b"")
    (tmp_path / "folder/old").mkdir(parents=True)
    with pytest.raises(DiskError, match=r"MB are free in .*; the old file is kept$"):
        write_atomic(tmp_path / "folder", b"")


def test_a_folder_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    with contextlib.suppress(KeyboardInterrupt), atomic_dir(tmp_path / "a") as partial:
        (partial / "file").touch()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with atomic_dir(tmp_path / "a") as partial:
        (partial / "file").touch()
        assert not (tmp_path / "a").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "file"]


def test_a_folder_of_another_process_is_kept(tmp_path: Path) -> None:
    with atomic_dir(tmp_path / "a") as partial:
        (partial / "ours").touch()
        (tmp_path / "a").mkdir()
        (tmp_path / "a/theirs").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "theirs"]


def test_replace_dir(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    replace_dir(tmp_path / "new", tmp_path / "old")
    assert [path.name for path in tmp_path.rglob("*")] == ["old", "new"]


SMALL = """
import os, sys
from pathlib import Path
from alexlab.records.atomic import write_atomic
from alexlab.records.disk_errors import check_free_space
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
def test_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    mount = 'mount -t tmpfs -o size=1m none "$1" || exit 77; exec "$2" -c "$3" "$1"'
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("a small disk needs the command unshare")
    arguments = ["--mount", "--map-root-user", "sh", "-c", mount, "sh", str(tmp_path), sys.executable, SMALL]
    result = subprocess.run(
        [unshare, *arguments], capture_output=True, text=True, env=environment(PYTHONPATH=str(ROOT / "src")), timeout=60
    )
    if result.returncode in (1, 77) and "Error" not in result.stderr:
        pytest.skip(f"a small disk cannot be mounted here: {result.stderr.strip()}")
    check, write, files = result.stdout.splitlines()
    assert check == f"cannot write {tmp_path}: No space left on device; 0.0 MB are free in {tmp_path}"
    assert write.startswith(f"cannot write {tmp_path}/kept, 0.1 MB: No space left on device; 0.0 MB are free")
    assert files == "['filler', 'kept'] old"
