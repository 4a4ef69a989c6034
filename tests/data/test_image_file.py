"""Special files, huge files and files that would block a reader are rejected immediately, by name."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from alexlab.data.audit.audit import audit_dataset
from alexlab.data.audit.split import assign_splits, write_split
from alexlab.data.audit.unsplit import find_unsplit
from alexlab.data.cache.build_pack import open_pack
from alexlab.data.cache.pack import PackConfig
from alexlab.data.decode import decode
from alexlab.data.discovery import find_splits
from alexlab.data.image_file import Decoding, read_image
from alexlab.data.listing import list_images
from alexlab.data.streaming.writer import write_shards
from alexlab.errors import ConfigError, DataError, ImageError
from support.bad_images import encoded
from support.images import write_images


def bind_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # socket paths have at most 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(20_000_000_000)


def make_link_to_fifo(path: Path) -> None:
    os.mkfifo(path.with_suffix(".fifo"))
    path.symlink_to(path.with_suffix(".fifo"))


TRAPS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "fifo.jpg": (os.mkfifo, "not_regular", "a FIFO"),
    "linked_fifo.jpg": (make_link_to_fifo, "not_regular", "a FIFO"),
    "zero.jpg": (lambda path: path.symlink_to("/dev/zero"), "not_regular", "a device"),
    "null.jpg": (lambda path: path.symlink_to("/dev/null"), "not_regular", "a device"),
    "socket.jpg": (bind_socket, "not_regular", "a socket"),
    "kernel.jpg": (lambda path: path.symlink_to("/proc/self/mem"), "empty", "it is empty"),
    "sparse.jpg": (
        make_sparse,
        "too_large_file",
        "20.00 GB; images of data.max_megapixels=90 need at most 0.78 GB",
    ),
}

# Other files are not even listed.
LISTED = {name: code for name, (_, code, _) in TRAPS.items() if code != "not_regular"}


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """Interrupt a test that blocks on a file."""

    def interrupt(*_: object) -> None:
        raise TimeoutError("blocked on a file")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def trapped(tmp_path: Path) -> Path:
    """A dataset with one of each special file in class a."""
    root = write_images(tmp_path / "data", {"train/a": 2, "train/b": 2, "val/a": 2, "val/b": 2})
    for name, (make, _, _) in TRAPS.items():
        make(root / "train/a" / name)
    return root


@pytest.mark.parametrize("name", TRAPS)
@pytest.mark.scenario(name="special_files")
def test_only_regular_files_of_limited_size_are_read(name: str, tmp_path: Path) -> None:
    make, code, message = TRAPS[name]
    make(tmp_path / name)
    with pytest.raises(ImageError, match=message) as caught:
        decode(tmp_path / name)
    assert (caught.value.code, caught.value.path) == (code, str(tmp_path / name))


def test_folders_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"it is not a regular file \(a folder\)"):
        decode(tmp_path)


def test_file_names_with_null_bytes_are_missing_files() -> None:
    with pytest.raises(ImageError, match="no such file") as caught:
        decode("a\0.jpg")
    assert caught.value.code == "missing"


def test_the_file_size_limit_follows_the_image_size_limit(tmp_path: Path) -> None:
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(65_000_000)
    with pytest.raises(ImageError, match=r"images of data.max_megapixels=0.01 need at most 0.06 GB"):
        read_image(tmp_path / "a.jpg", Decoding(max_megapixels=0.01))
    assert len(read_image(tmp_path / "a.jpg", Decoding())) == 65_000_000


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_the_image_size_limit_must_be_positive(value: float) -> None:
    with pytest.raises(ConfigError, match=r"data.max_megapixels must be a positive number; got"):
        Decoding(max_megapixels=value)


def test_a_larger_limit_admits_a_larger_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    with pytest.raises(ImageError, match=r"\(60 x 40 needs data.max_megapixels=1; it is 0.002\)"):
        decode(tmp_path / "a.png", Decoding(max_megapixels=0.002))
    assert decode(tmp_path / "a.png", Decoding(max_megapixels=0.0024)).shape == (40, 60, 3)


@pytest.mark.scenario(name="special_files")
def test_an_audit_reports_special_files(trapped: Path) -> None:
    codes_by_path = {finding.path: finding.code for finding in audit_dataset(str(trapped)).findings}
    codes = {name: f"unreadable_{LISTED[name]}" if name in LISTED else "special_file" for name in TRAPS}
    assert codes_by_path == {f"train/a/{name}": code for name, code in codes.items()}


@pytest.mark.parametrize("crop", ["center", "full"])
@pytest.mark.scenario(name="special_files")
def test_packs_skip_or_name_unreadable_files(trapped: Path, crop: str, tmp_path: Path) -> None:
    listing, pack = list_images(str(trapped), "train"), PackConfig(size=32, crop=crop)
    packed = open_pack(listing, pack, decoding=Decoding(), cache_dir=tmp_path / "skip", skip=True)
    names = {os.path.basename(error.path): error.code for error in packed.bad.values()}
    assert names == LISTED
    with pytest.raises(ImageError, match="cannot read the image"):
        open_pack(listing, pack, decoding=Decoding(), cache_dir=tmp_path / "raise")


@pytest.mark.scenario(name="special_files")
def test_shards_skip_or_name_unreadable_files(trapped: Path, tmp_path: Path) -> None:
    splits = find_splits(str(trapped), val_fraction=0.2, test_fraction=0.0)
    options = {"shard_bytes": 100_000, "cache_dir": tmp_path / "cache"}
    with pytest.raises(ImageError, match=r"it is empty|the file is too large"):
        write_shards(splits, str(tmp_path / "raised"), **options)
    index = write_shards(splits, str(tmp_path / "shards"), skip=True, **options)
    assert sum(images for *_, images in index["splits"]["train"]["shards"]) == 4


@pytest.mark.parametrize("link", ["copy", "hardlink"])
@pytest.mark.scenario(name="special_files")
def test_devices_are_not_copied(link: str, tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", {"a": 4, "b": 4})
    (root / "a/zero.png").symlink_to("/dev/zero")
    source = find_unsplit(str(root), labels=None, pattern="", group=None)
    write_split(source, assign_splits(source, {"val": 0.5}, 0), tmp_path / "out", link)
    assert {path.name for path in (tmp_path / "out").rglob("*.png")} == {f"00{number}.png" for number in range(4)}
