"""Shards in a folder and in an object store: each image once, verified, in a cache of limited size."""

import contextlib
import functools
import hashlib
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alexlab.config.data import data_config
from alexlab.data.decode import decode
from alexlab.data.discovery import find_splits
from alexlab.data.image_file import Decoding
from alexlab.data.splits import Split, Splits
from alexlab.data.streaming import fetcher
from alexlab.data.streaming import writer as shard_writer
from alexlab.data.streaming.fetcher import Fetcher
from alexlab.data.streaming.index import SPARE_SHARDS, StreamConfig, find_sharded_splits
from alexlab.data.streaming.reader import ShardedImages
from alexlab.data.streaming.store import Store
from alexlab.data.streaming.writer import write_shards
from alexlab.errors import ConfigError, DataError, ImageError
from alexlab.records.run import Run
from alexlab.tasks import prepare
from alexlab.tasks.evaluate import main as evaluate
from support.images import replace_unseen, write_images
from support.runs import ROOT, names, plain, rows
from support.s3 import s3

pytestmark = pytest.mark.slow

Train = Callable[..., float | None]

SHARD = 60_000  # bytes, about four images


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with s3() as client:
        yield client


@pytest.fixture(scope="module")
def folder(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the test images in a folder."""
    location = tmp_path_factory.mktemp("shards")
    write(images, str(location / "out"), location / "cache")
    return location / "out"


@pytest.fixture(scope="module")
def url(client: Any, images: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Shards of the test images in an object store."""
    write(images, "s3://bucket/whole", tmp_path_factory.mktemp("cache"))
    return "s3://bucket/whole"


@pytest.fixture(params=["folder", "store"])
def location(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> str:
    """A copy of the shards that a test may corrupt."""
    if request.param == "folder":
        return str(shutil.copytree(folder, tmp_path / "corrupt"))
    client = request.getfixturevalue("client")
    for path in folder.iterdir():
        client.upload_file(str(path), "bucket", f"{tmp_path.name}/{path.name}")
    return f"s3://bucket/{tmp_path.name}"


def splits_of(images: Path) -> Splits:
    return find_splits(str(images), val_fraction=0.2, test_fraction=0.0)


def write(images: Path, out: str, cache_dir: Path, **options: Any) -> dict[str, Any]:
    manifest = str(images) if images.is_file() else None
    options = {"shard_bytes": SHARD, "cache_dir": cache_dir, "manifest": manifest} | options
    return write_shards(splits_of(images), out, **options)


def open_splits(location: str | Path, tmp_path: Path, **options: Any) -> Splits:
    return find_sharded_splits(str(location), StreamConfig(**options), cache_dir=tmp_path / "cache")


def sharded_images(split: Split) -> ShardedImages:
    assert isinstance(split.images, ShardedImages)
    return split.images


def total_size(folder: Path) -> int:
    """Return the total size of the files in a folder, some of which disappear meanwhile."""
    total = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += path.lstat().st_size
    return total


def replace_file(client: Any, location: str, name: str, change: Callable[[bytes], bytes | None]) -> None:
    """Replace the content of a file; None removes it."""
    if location.startswith("s3://"):
        key = f"{location.removeprefix('s3://bucket/')}/{name}"
        content = change(client.get_object(Bucket="bucket", Key=key)["Body"].read())
        if content is None:
            client.delete_object(Bucket="bucket", Key=key)
        else:
            client.put_object(Bucket="bucket", Key=key, Body=content)
        return
    path = Path(location, name)
    content = change(path.read_bytes())
    path.unlink()
    if content is not None:
        path.write_bytes(content)


def test_shards_are_tar_files_of_the_original_files(images: Path, folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    splits = splits_of(images)
    for name, split in splits.items():
        shards = index["splits"][name]["shards"]
        assert len(shards) > 1 and sum(count for *_, count in shards) == len(split)
        content: dict[int, tuple[bytes, int]] = {}
        for shard, size, *_ in shards:
            assert (folder / shard).stat().st_size == size <= SHARD + 2 * tarfile.RECORDSIZE
            with tarfile.open(folder / shard) as tar:
                members = tar.getmembers()
                for image, label in zip(members[::2], members[1::2], strict=True):
                    key, suffix = image.name.split(".")
                    assert (suffix, label.name) == ("png", f"{key}.cls")
                    parts = [tar.extractfile(member) for member in (image, label)]
                    assert parts[0] and parts[1]
                    content[int(key)] = parts[0].read(), int(parts[1].read())
        for row, label in enumerate(split.labels.tolist()):
            assert content[row] == ((images / split.paths[row]).read_bytes(), label)
    assert names(folder) == {
        "index.json",
        *(about["table"][0] for about in index["splits"].values()),
        *(shard for about in index["splits"].values() for shard, *_ in about["shards"]),
    }


@pytest.mark.parametrize("kind", ["folder", "url"])
def test_every_image_is_read_once_from_a_small_cache(
    kind: str, images: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    location = str(request.getfixturevalue(kind))
    splits, limit = open_splits(location, tmp_path, shuffle_shards=1, prefetch_shards=1, cache_gb=1e-3), 0
    assert splits.train.shuffled and not splits.val.shuffled
    objects = sharded_images(splits.train).store.folder
    sharded_images(splits.train).store.limit = limit = 4 * (SHARD + 2 * tarfile.RECORDSIZE)
    seen = set()
    for name, split in splits.items():
        of_folder = dict(splits_of(images).items())[name]
        assert list(split.classes) == list(of_folder.classes)
        for number in range(len(split)):
            path = split.paths[number]
            seen.add(path)
            assert split.classes[split.labels[number]] == Path(path).parent.name
            assert np.array_equal(split.load(number, Decoding()), decode(images / path))
            assert split.file_size(number) == (images / path).stat().st_size
            taken = min(total_size(objects) for _ in range(3))  # files that are replaced meanwhile may be counted twice
            assert taken <= limit
    assert len(seen) == 24 + 11 + 7
    assert list(splits.val.paths) == list(splits_of(images).val.paths), "the order of ImageFolder"
    assert list(splits.train.paths) != sorted(splits.train.paths)
    if kind == "url":
        assert taken > limit / 3, "the cache is used"


def test_cached_shards_are_not_fetched_again(client: Any, url: str, images: Path, tmp_path: Path) -> None:
    splits = open_splits(url, tmp_path)
    images_of = sharded_images(splits.train)
    for number in range(len(splits.train)):
        images_of.content(number)
    before = {path.name: path.stat().st_ino for path in images_of.store.folder.iterdir()}
    again = sharded_images(open_splits(url, tmp_path).train)
    again.store.get = None  # type: ignore[method-assign, assignment]
    assert [again.content(number) for number in range(24)] == [
        (images / path).read_bytes() for path in splits.train.paths
    ]
    now = {path.name: path.stat().st_ino for path in images_of.store.folder.iterdir()}
    assert {name: now[name] for name in before if name != "index.json"} == {
        name: inode for name, inode in before.items() if name != "index.json"
    }


def test_upcoming_shards_are_prefetched(url: str, tmp_path: Path) -> None:
    train = sharded_images(open_splits(url, tmp_path, shuffle_shards=2, prefetch_shards=2).train)
    order = np.roll(np.arange(len(train.shards)), 3)[:-1]  # the last one is read by another rank
    train.set_shard_order(order)
    train.content(int(np.flatnonzero(train.shard == order[0])[0]))
    wanted = {train.shards[number].file[1] for number in order[:3]}
    end_s = time.monotonic() + 20
    while not wanted <= {path.name for path in train.store.folder.iterdir()}:
        assert time.monotonic() < end_s
        time.sleep(0.02)
    tars = {path.name for path in train.store.folder.iterdir() if path.name.endswith(".tar")}
    assert tars == wanted, "and no others"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: None, "it does not exist"),
        (lambda content: content[:-512], r"it has [\d,]+ bytes; the index lists [\d,]+"),
        (
            lambda content: content[:700] + bytes([content[700] ^ 1]) + content[701:],
            "its SHA-256 differs from the one in the index",
        ),
    ],
)
def test_missing_and_corrupt_files_are_named(
    client: Any, location: str, tmp_path: Path, change: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_file(client, location, "train-000001.tar", change)
    split = open_splits(location, tmp_path).train
    bad = np.flatnonzero(sharded_images(split).shard == 1)
    assert len(bad)
    for number in range(len(split)):
        if number in bad:
            with pytest.raises(DataError, match=rf"^cannot read .*train-000001\.tar: {reason}$"):
                split.load(number, Decoding())
            break
        split.load(number, Decoding())
    replace_file(client, location, "val.npz", change)
    with pytest.raises(DataError, match=rf"^cannot read .*val\.npz: {reason}$"):
        open_splits(location, tmp_path / "other")
    replace_file(client, location, "index.json", lambda content: None)
    with pytest.raises(DataError, match=r"data.url must be a location written by alexlab prepare action=shard; got"):
        open_splits(location, tmp_path / "third")


def test_a_shard_that_changes_is_verified_again(folder: Path, tmp_path: Path) -> None:
    location = shutil.copytree(folder, tmp_path / "copy")
    split = open_splits(location, tmp_path).train
    split.load(0, Decoding())
    replace_file(None, str(location), "train-000000.tar", lambda content: content[:600] + bytes(8) + content[608:])
    with pytest.raises(DataError, match="its SHA-256 differs from the one in the index"):
        split.load(0, Decoding())


def test_an_unreadable_image_is_named_with_its_shard(images: Path, tmp_path: Path) -> None:
    root = shutil.copytree(images, tmp_path / "root")
    (root / "val/bee/001.png").write_bytes(b"not an image")
    write(root, str(tmp_path / "out"), tmp_path)
    split = open_splits(tmp_path / "out", tmp_path).val
    number = list(split.paths).index("val/bee/001.png")
    with pytest.raises(ImageError, match=r"val-00000\d\.tar: val/bee/001\.png: it is not a JPEG"):
        split.load(number, Decoding())


def test_an_interrupted_upload_is_resumed(
    client: Any, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store accepts three shards and then no more."""
    put, taken = Store.put, []

    def some(store: Store, source: Path, name: str) -> None:
        if len(taken) == 3:
            raise DataError("the store is full")
        put(store, source, name)
        taken.append(name)

    monkeypatch.setattr(shard_writer, "num_cores", lambda: 1)
    monkeypatch.setattr(Store, "put", some)
    with pytest.raises(DataError, match="the store is full"):
        write(images, "s3://bucket/ended", tmp_path)
    with pytest.raises(DataError, match=r"index\.json: it does not exist"):
        open_splits("s3://bucket/ended", tmp_path)
    client.delete_object(Bucket="bucket", Key=f"ended/{taken[1]}")
    monkeypatch.setattr(Store, "put", lambda store, source, name: (put(store, source, name), taken.append(name))[0])
    index = write(images, "s3://bucket/ended", tmp_path)
    assert [name for name in taken if taken.count(name) > 1] == 2 * [taken[1]], (
        "only the deleted shard is written again"
    )
    assert len(set(taken)) == 1 + sum(1 + len(about["shards"]) for about in index["splits"].values())
    with pytest.raises(ConfigError, match=r"out must be a new location; s3://bucket/ended/index\.json exists"):
        write(images, "s3://bucket/ended", tmp_path)
    assert len(open_splits("s3://bucket/ended", tmp_path).train) == 24


def test_resuming_notices_a_replaced_file(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = shutil.copytree(images, tmp_path / "root"), tmp_path / "out"
    with monkeypatch.context() as patched:
        store_file = shard_writer._Writer._store_file

        def no_index(writer: Any, name: str, content: bytes) -> Any:
            if name == "index.json":
                raise DataError("ended")
            return store_file(writer, name, content)

        patched.setattr(shard_writer._Writer, "_store_file", no_index)
        with pytest.raises(DataError, match="ended"):
            write(root, str(out), tmp_path)
    replace_unseen(root / "train/ant/003.png")
    write(root, str(out), tmp_path)
    content = (root / "train/ant/003.png").read_bytes()
    assert any(content in path.read_bytes() for path in out.glob("train-*.tar"))


def test_manifests_can_only_copy_images_from_outside(tmp_path: Path) -> None:
    root = write_images(tmp_path / "root", {"a": 2, "b": 2})
    write_images(tmp_path, {"far": 1})
    (tmp_path / "far/secret.jpg").write_bytes(b"a private key")
    rows = ["a/000.png,a,train", "b/000.png,b,train", "a/001.png,a,val", "../far/000.png,b,val"]
    (root / "list.csv").write_text("\n".join(["path,class,split", *rows]))
    write(root / "list.csv", str(tmp_path / "good"), tmp_path)
    (root / "b/link.jpg").symlink_to(tmp_path / "far/secret.jpg")
    listed = [f"{path},b,val" for path in ("../far/secret.jpg", f"{tmp_path}/far/secret.jpg", "b/link.jpg")]
    lists = ["\n".join(["path,class,split", *rows, line]) for line in listed]
    rooted = [f"{root}/{row},{tmp_path}/far" for row in rows[:3]]
    lists.append("\n".join(["path,class,split,root", *rooted, f"secret.jpg,b,val,{tmp_path}/far"]))
    for content in lists:
        (root / "list.csv").write_text(content)
        with pytest.raises(DataError, match=r"only images may be copied from outside of .*/root, .* is not one"):
            write(root / "list.csv", str(tmp_path / "bad"), tmp_path)


def test_unusable_files_and_locations_are_rejected(images: Path, tmp_path: Path) -> None:
    root = shutil.copytree(images, tmp_path / "root")
    (root / "train/ant/003.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"train/ant/003.png: it is empty"):
        write(root, str(tmp_path / "out"), tmp_path)
    index = write(root, str(tmp_path / "out"), tmp_path, skip=True)
    assert sum(count for *_, count in index["splits"]["train"]["shards"]) == 23
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*file.*: (Not a directory|File exists)"):
        write(images, str(tmp_path / "file"), tmp_path)
    with pytest.raises(DataError, match=r"out must be a folder or start with s3://, .*; got ftp://a/b"):
        write(images, "ftp://a/b", tmp_path)


def test_the_command(client: Any, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ("action=shard", f"data.root={images}", "shard_mb=0.06", f"data.cache_dir={tmp_path}")
    prepare.main(Run(config=plain(*overrides, "out=s3://bucket/command", name="prepare"), dir=tmp_path))
    output = capsys.readouterr().out
    assert f"train: 24 images of {images} in " in output
    assert output.endswith("alexlab train data=streaming data.url=s3://bucket/command\n")
    for more, reason in (
        (("out=null",), "out must be given"),
        (("out=a", "shard_mb=0"), "shard_mb must be positive; got 0"),
    ):
        with pytest.raises(ConfigError, match=reason):
            prepare.main(Run(config=plain(*overrides, *more, name="prepare"), dir=tmp_path))


def test_two_processes_fetch_a_shard_once_and_a_killed_one_leaves_no_file(
    client: Any, url: str, tmp_path: Path
) -> None:
    stores = [Store(url, tmp_path, 10**9) for _ in range(2)]
    shard = sharded_images(open_splits(url, tmp_path / "index").train).shards[0]
    for store in stores:
        store.prefetch([shard.file] * 3)
    paths = {store.get(*shard.file) for store in stores}
    inode = paths.pop().stat().st_ino
    assert not paths and stores[0].get(*shard.file).stat().st_ino == inode
    left = stores[0].folder / f"x.tar.{os.uname().nodename}.999999999{fetcher.PARTIAL}"
    left.write_bytes(b"left")
    process = stores[0].process
    assert process is not None
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(DataError, match=r"the fetcher process .*exited"):
        stores[0].get("train-000001.tar", "b.tar")
    assert stores[0].get("train-000001.tar", "c.tar").stat().st_size, "a new fetcher is started"
    assert not left.exists()
    for store in stores:
        store.close()


def test_the_fetcher_exits_with_its_parent(folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from alexlab.data.streaming.store import Store\n"
        f"store = Store({str(folder)!r}, Path({str(tmp_path)!r}), 10**9); store.get('index.json', 'i')\n"
        "print(store.process.pid, flush=True); time.sleep(60)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    end_s = time.monotonic() + 10
    while Path(f"/proc/{child}").exists():
        assert time.monotonic() < end_s
        time.sleep(0.05)


def test_a_full_disk_is_reported(client: Any, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Fetcher(url, str(tmp_path / "objects"), 10**9)
    monkeypatch.setattr("alexlab.data.streaming.fetcher.shutil.disk_usage", lambda path: os.statvfs_result and shutil._ntuple_diskusage(1, 1, 10))  # type: ignore[attr-defined] # fmt: skip

    class Whole:
        meta = {"size": 1000}

    server._store = type("Store", (), {"get": staticmethod(lambda name: Whole())})()
    with pytest.raises(OSError, match=r"no room for 1,000 bytes in .*, 10 are free"):
        server.get("a", "a", 1000, "0")
    assert fetcher.error_reason(OSError(28, "no room")) == "no room"


def test_failed_downloads_are_retried_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Fetcher("s3://bucket/a", str(tmp_path / "objects"), 10**9)
    monkeypatch.setattr(fetcher, "RETRY_DELAY_S", 0.0)
    requests = []

    class Answer:
        meta = {"size": 3}

        def stream(self, min_chunk_size: int) -> list[bytes]:
            requests.append(min_chunk_size)
            return [b"abc"] if len(requests) == 3 else [b"ab", b"x"]

    server._store = type("Store", (), {"get": staticmethod(lambda name: Answer())})()
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    server.get("a", "a", 3, digest)
    assert (tmp_path / "objects/a").read_bytes() == b"abc" and len(requests) == 3
    with pytest.raises(fetcher.CorruptObjectError):
        server.get("a", "b", 3, digest)
    assert names(tmp_path / "objects") == {"a"}


def test_credentials_from_a_file_and_missing_credentials(
    client: Any, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    with pytest.raises(DataError, match=r"cannot read s3://bucket/whole/index\.json: .*403 Forbidden"):
        open_splits(url, tmp_path)
    monkeypatch.delenv("AWS_SKIP_SIGNATURE")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(DataError, match=r"index\.json: no credentials are set: AWS_ACCESS_KEY_ID and .*public bucket$"):
        open_splits(url, tmp_path)
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id = key\naws_secret_access_key = secret\n")
    assert len(open_splits(url, tmp_path).val) == 11


def test_shards_on_a_web_server(folder: Path, tmp_path: Path) -> None:
    handler = functools.partial(Silent, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        splits = open_splits(f"http://127.0.0.1:{server.server_port}", tmp_path)
        assert splits.val.load(0, Decoding()).shape == (70, 73, 3)
        sharded_images(splits.val).store.close()
        server.shutdown()
        thread.join()


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def test_the_size_of_the_cache_is_compared_in_bytes(folder: Path, tmp_path: Path) -> None:
    """A size divided by 1e9 and multiplied again is often another number."""
    sizes = np.random.default_rng(0).integers(1, 10**13, 1000).tolist()
    assert [StreamConfig(cache_gb=size / 1e9).cache_bytes for size in sizes] == sizes
    index = json.loads((folder / "index.json").read_text())
    sizes = [size for about in index["splits"].values() for _, size, *_ in about["shards"]]
    needed = min(sum(sizes), (1 + SPARE_SHARDS) * max(sizes))
    open_splits(folder, tmp_path, shuffle_shards=1, prefetch_shards=0, cache_gb=needed / 1e9)
    with pytest.raises(ConfigError, match=f"bytes, {needed / 1e9} GB; got {(needed - 1) / 1e9}"):
        open_splits(folder, tmp_path, shuffle_shards=1, prefetch_shards=0, cache_gb=(needed - 1) / 1e9)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (
            {"cache": "packed"},
            "data.cache must be null with data.url, whose images are read shard by shard; got 'packed'",
        ),
        ({"sampler": "balanced"}, "data.sampler must be shuffle with data.url"),
        ({"manifest": "a.csv"}, "data.manifest must be null with data.url"),
        ({"root": "a"}, "data.root must be null with data.url"),
        ({"url": None}, "data.root must be a folder of images; set data.root=DIR"),
        ({"url": None, "root": "s3://a/b"}, "shards are read with data=streaming data.url=s3://a/b"),
        (
            {"url": "ftp://a/b"},
            "data.url must be a folder or start with s3://, gs://, az://, https://, http://; got ftp",
        ),
        ({"url": "nowhere"}, "got .*nowhere: No such file or directory"),
        ({"stream": {"shuffle_shards": 0}}, "data.stream must have shuffle_shards of at least 1"),
        ({"stream": {"cache_gb": 1e-6}}, r"data.stream.cache_gb must hold shuffle_shards \+ .* got 1e-06"),
        ({"val_split": "both"}, "data.val_split must be val or test; got 'both'"),
    ],
)
def test_invalid_configs_are_rejected(folder: Path, tmp_path: Path, overrides: dict[str, Any], reason: str) -> None:
    keys = {"root": None, "url": str(folder), "cache_dir": str(tmp_path), "image_size": 64, "channels": 3}
    with pytest.raises((ConfigError, DataError), match=reason):
        data_config({"data": keys | {"mean": None, "std": None, "batch_size": 8} | overrides}).find_splits()


def test_other_index_files_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text('{"kind": "alex')
    with pytest.raises(DataError, match=r"action=shard; got .*: index\.json is corrupt \(Unterminated string"):
        open_splits(tmp_path, tmp_path)
    (tmp_path / "index.json").write_text("[]")
    with pytest.raises(DataError, match=r"index\.json is not an alexlab shard index"):
        open_splits(tmp_path, tmp_path)
    (tmp_path / "index.json").write_text(json.dumps({"kind": "alexlab shards", "version": 0}))
    with pytest.raises(DataError, match="were written by another version of alexlab; write them again"):
        open_splits(tmp_path, tmp_path)


def test_malicious_indexes_are_rejected(folder: Path, tmp_path: Path) -> None:
    location = shutil.copytree(folder, tmp_path / "copy")
    path = location / "index.json"
    index = json.loads(path.read_text())
    name = index["splits"]["train"]["table"][0]
    with np.load(location / name) as table:
        arrays = dict(table)

    def changed(change: Callable[[Any], object]) -> None:
        other = json.loads(json.dumps(index))
        change(other)
        path.write_text(json.dumps(other))
        with pytest.raises(DataError, match=r"index\.json or one of its tables is corrupt"):
            open_splits(location, tmp_path)

    shards: Callable[[Any], Any] = lambda other: other["splits"]["train"]["shards"]  # noqa: E731
    for bad in ("../train-000000.tar", "/etc/passwd", "a/b", ""):
        changed(lambda other, bad=bad: shards(other)[0].__setitem__(0, bad))
        changed(lambda other, bad=bad: shards(other)[0].__setitem__(2, bad))
        changed(lambda other, bad=bad: other["splits"]["train"]["table"].__setitem__(0, bad))
    changed(lambda other: shards(other)[0].__setitem__(1, "1"))
    changed(lambda other: shards(other)[0].__setitem__(3, 999))
    changed(lambda other: shards(other).pop())
    changed(lambda other: other["splits"].pop("val"))
    changed(lambda other: other.pop("classes"))
    changed(lambda other: other["classes"].pop())
    for key, value in (("starts", -1), ("starts", 10**12), ("lengths", 2**62), ("labels", -1), ("labels", 3)):
        wrong = arrays | {key: arrays[key].copy()}
        wrong[key][3] = value
        np.savez(location / "wrong.npz", **wrong)
        content = (location / "wrong.npz").read_bytes()
        entry = ["wrong.npz", len(content), hashlib.sha256(content).hexdigest()]
        changed(lambda other, entry=entry: other["splits"]["train"].__setitem__("table", entry))
    (location / "wrong.npz").write_bytes(b"no table")
    entry = ["wrong.npz", 8, hashlib.sha256(b"no table").hexdigest()]
    changed(lambda other: other["splits"]["train"].__setitem__("table", entry))


def test_validation_on_the_test_split(folder: Path, tmp_path: Path) -> None:
    splits = find_sharded_splits(str(folder), StreamConfig(), cache_dir=tmp_path, val_split="test")
    assert (len(splits.val), splits.test) == (7, None)
    assert any("validating on the test split" in note for note in splits.notes)


def test_training_from_a_store_equals_training_from_a_folder(
    url: str, folder: Path, images: Path, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For any number of workers; and the evaluation equals that on the original images."""
    base = (
        "data.root=null",
        "+data.stream={shuffle_shards: 2, prefetch_shards: 1}",
        "trainer.max_epochs=2",
    )
    runs = {
        "folder": (f"+data.url={folder}",),
        "store": (f"+data.url={url}",),
        "workers": (f"+data.url={url}", "data.num_workers=2"),
    }
    for name, overrides in runs.items():
        train(*base, *overrides, run_dir=tmp_path / name)
    metrics = [rows(tmp_path / name / "metrics.csv") for name in runs]
    for table in metrics:
        for row in table:
            del row["train/images_per_s"]
    assert metrics[0] == metrics[1] == metrics[2]
    predictions = []
    for name, overrides in {"shards": (), "images": (f"data.root={images}",)}.items():
        out = tmp_path / name
        out.mkdir()
        config = plain(f"ckpt={tmp_path / 'store'}", "split=val", *overrides, name="evaluate")
        evaluate(Run(config=config, dir=out))
        predictions.append([{**row, "path": row["path"][-7:]} for row in rows(out / "predictions.csv")])
    assert predictions[0] == predictions[1] and len(predictions[0]) == 11
    record = json.loads((tmp_path / "store/run.json").read_text())
    assert record["data"]["counts"] == {"train": 24, "val": 11, "test": 7}
