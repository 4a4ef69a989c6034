"""Packs hold the pixels that the files give, are built all or nothing, and are rejected once the files have changed."""

import errno
import hashlib
import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from alexlab.data.audit.relabel import corrected_rows
from alexlab.data.cache import pack as packed
from alexlab.data.cache.build_pack import open_pack
from alexlab.data.cache.pack import PackConfig, PackedImages, pack_path
from alexlab.data.dataset import to_tensor
from alexlab.data.decode import decode
from alexlab.data.discovery import find_splits
from alexlab.data.image_file import Decoding
from alexlab.data.listing import list_images
from alexlab.data.manifest import ManifestRow, write_manifest
from alexlab.data.transforms import CenterView
from alexlab.errors import ConfigError, DataError, ImageError
from support.images import replace_unseen
from support.runs import rows, scalars

pytestmark = pytest.mark.slow

Train = Callable[..., float | None]
PACKED = "data.cache=packed"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images of many shapes, JPEG and PNG, one rotated by EXIF."""
    generator = np.random.default_rng(0)
    root = tmp_path / "photos"
    for number in range(70):
        width, height = (int(side) for side in generator.integers(60, 150, 2))
        image = Image.fromarray(generator.integers(0, 255, (9, 9, 3), dtype=np.uint8)).resize((width, height))
        path = root / "ab"[number % 2] / f"{number:02d}.{'jpg' if number % 3 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6 if number == 1 else 1
        image.save(path, exif=exif)
    return root


def build(root: Path, cache: Path, **options: Any) -> PackedImages:
    keys = {name: options.pop(name) for name in ("size", "resize", "crop") if name in options}
    return open_pack(list_images(str(root)), PackConfig(**{"size": 73, **keys}), decoding=Decoding(channels=options.pop("channels", 3)), cache_dir=cache, **options)  # fmt: skip


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("resize", "crop"), [("shorter", "center"), ("shorter", "full"), ("squash", "full"), ("nearest", "full")]
)
def test_a_pack_holds_the_output_of_its_view(
    photos: Path, tmp_path: Path, resize: str, crop: str, channels: int
) -> None:
    pack = PackConfig(size=73, resize=resize, crop=crop)
    packed_images = build(photos, tmp_path / "cache", resize=resize, crop=crop, channels=channels)
    paths = list_images(str(photos)).paths
    assert len(packed_images) == len(paths) == 70
    for row, path in enumerate(paths):
        expected = pack.view()(to_tensor(decode(photos / path, Decoding(channels=channels))))
        assert torch.equal(to_tensor(packed_images[row]), expected), path


def test_a_pack_is_readable_with_numpy_alone(photos: Path, tmp_path: Path) -> None:
    path = build(photos, tmp_path / "cache").path
    about = json.loads((path / "index.json").read_text())
    images = np.load(path / "images.npy", mmap_mode="r")
    assert (images.shape, images.dtype) == ((70, 73, 73, 3), np.uint8)
    assert about["files"][:2] == ["a/00.png", "a/02.jpg"]
    assert about["labels"] == [0] * 35 + [1] * 35
    assert about["classes"] == ["a", "b"]
    assert about["decoder"].startswith("simplejpeg ")
    assert sorted(file.name for file in path.iterdir()) == ["hashes.npy", "images.npy", "index.json", "stats.npy"]
    assert np.load(path / "hashes.npy")[1].tobytes() == hashlib.sha256((photos / "a/02.jpg").read_bytes()).digest()
    full = build(photos, tmp_path / "cache", crop="full").path
    shapes = json.loads((full / "index.json").read_text())["shapes"]
    assert np.load(full / "images.npy").size == sum(height * width * 3 for height, width in shapes)


def test_the_central_view_is_that_of_the_central_square() -> None:
    """For odd and even margins."""
    for width in range(73, 110):
        image = torch.randint(0, 255, (3, 73, width), dtype=torch.uint8)
        assert torch.equal(CenterView(64)(CenterView(73, 1.0)(image)), CenterView(64)(image))


@pytest.mark.parametrize("crop", ["center", "full"])
def test_training_from_a_pack_equals_training_from_files(train: Train, photos: Path, tmp_path: Path, crop: str) -> None:
    """Bit for bit, also on two devices and with the views of the final test."""
    options = [f"data.root={photos}", "augmentation.train.crop.square=true", "test.views=ten_crop"]
    train(*options, run_dir=tmp_path / "files")
    train(*options, PACKED, f"data.pack.crop={crop}", run_dir=tmp_path / "packed")
    files, packs = (scalars(tmp_path / name) for name in ("files", "packed"))
    for name in ("train/loss", "val/loss", "val/top1", "ten_crop/loss"):
        assert files[name] == packs[name], name
    train(
        *options, PACKED, f"data.pack.crop={crop}", "trainer.devices=2", "data.num_workers=1", run_dir=tmp_path / "two"
    )
    assert scalars(tmp_path / "two")["val/loss"] == pytest.approx(files["val/loss"], rel=1e-4)


@pytest.mark.parametrize(("augmentation", "resize"), [("vertical_flip", "squash"), ("keras", "nearest")])
def test_squashed_images_come_from_a_squashed_pack(
    train: Train, photos: Path, tmp_path: Path, augmentation: str, resize: str
) -> None:
    options = [f"data.root={photos}", f"augmentation={augmentation}"]
    train(*options, run_dir=tmp_path / "files")
    train(*options, PACKED, f"data.pack.resize={resize}", run_dir=tmp_path / "packed")
    assert scalars(tmp_path / "files")["val/loss"] == scalars(tmp_path / "packed")["val/loss"]


def test_a_pack_is_built_once_and_reused(
    train: Train, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for name in ("one", "two"):
        train(f"data.root={photos}", PACKED, run_dir=tmp_path / name)
    assert caplog.text.count("packing 70 images of") == 1
    assert "packing 70 images of" in caplog.text
    assert "0.00 GB in" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["augmentation=squash"], "augmentation.eval cannot read the pack of data.cache=packed: it resizes both sides: use data.pack.resize=squash data.pack.size=64"),
        (["augmentation=keras", "data.pack.resize=squash"], "it resizes both sides: use data.pack.resize=nearest data.pack.size=64"),
        (["augmentation.train.crop.square=false"], "augmentation.train cannot read the pack .*: it crops from the whole image: use data.pack.crop=full, or square=true for the crop"),
        (["data.pack.size=256"], "augmentation.eval cannot .*: it resizes the shorter side to 73: use data.pack.resize=shorter data.pack.size=73"),
        (["augmentation=inception", "data.pack.resize=squash"], "augmentation.eval cannot"),
        (["augmentation=squash", "data.pack.resize=squash", "test.views=five"], "test.views=five needs the central crop"),
        (["data.pack.crop=middle"], "data.pack.crop must be center or full; got 'middle'"),
        (["data.pack.resize=longer"], "data.pack.resize must be shorter, squash or nearest; got 'longer'"),
        (["data.pack.size=0"], "data.pack.size must be a positive number of pixels; got 0"),
        (["data.cache=ram"], "data.cache must be null, packed or device; got 'ram'"),
        (["+data.pack.quality=9"], "data.pack.quality is not an argument of"),
        (["~augmentation.train.crop"], "augmentation.train cannot read .*: the first transform must crop or resize; got RandomHorizontalFlip"),
    ],
)  # fmt: skip
def test_recipes_that_no_pack_can_replace_are_rejected(
    train: Train, photos: Path, options: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(f"data.root={photos}", PACKED, *options)


def test_random_crops_work_on_any_pack_that_is_large_enough(train: Train, photos: Path) -> None:
    train(f"data.root={photos}", PACKED, "augmentation=mixup", "data.pack.crop=full")
    reason = packed.pack_mismatch(packed.v2.RandomResizedCrop(64), PackConfig(size=60))
    assert reason == "it needs data.pack.resize=shorter and a data.pack.size of at least 64"


def test_a_pack_with_other_decoding_settings_is_rejected(photos: Path, tmp_path: Path) -> None:
    listing, pack, keys = list_images(str(photos)), PackConfig(size=73), {"cache_dir": tmp_path / "cache"}
    first = open_pack(listing, pack, decoding=Decoding(intensity_range=(0, 4095)), **keys)
    assert open_pack(listing, pack, decoding=Decoding(intensity_range=[0.0, 4095.0]), **keys).path == first.path
    with pytest.raises(
        DataError,
        match=r"it was packed with other values of data.max_megapixels, data.intensity_range or data.jpeg_scaling",
    ):
        open_pack(listing, pack, decoding=Decoding(), **keys)
    open_pack(listing, pack, decoding=Decoding(), replace=True, **keys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: shutil.copy(root / "a/00.png", root / "a/new.png"), "1 new, such as a/new.png"),
        (lambda root: (root / "b/01.jpg").unlink(), "1 deleted, such as b/01.jpg"),
        (lambda root: (root / "b/01.jpg").write_bytes((root / "b/05.jpg").read_bytes()), "1 modified, such as b/01.jpg"),
        (lambda root: replace_unseen(root / "b/01.jpg"), "1 modified, such as b/01.jpg"),
    ],
)  # fmt: skip
def test_a_changed_folder_is_rejected_or_packed_again(
    photos: Path, tmp_path: Path, change: Callable[[Path], Any], message: str
) -> None:
    build(photos, tmp_path / "cache")
    change(photos)
    with pytest.raises(
        DataError,
        match=rf"the pack of .* cannot be used: {message}. To pack the images again, remove the folder \S+",
    ):
        build(photos, tmp_path / "cache")
    packed_images = build(photos, tmp_path / "cache", replace=True)
    paths = list_images(str(photos)).paths
    assert len(packed_images) == len(paths)
    assert np.array_equal(
        packed_images[36][..., 0], PackConfig(size=73).view()(to_tensor(decode(photos / paths[36])))[0].numpy()
    )


def test_an_unreadable_file_is_reported_as_without_a_pack(train: Train, photos: Path, tmp_path: Path) -> None:
    (photos / "a/02.jpg").write_bytes(b"not an image")
    expected = f"cannot read the image {photos}/a/02.jpg: it is not a JPEG"
    with pytest.raises(ImageError, match=expected):
        train(f"data.root={photos}", PACKED)
    with pytest.raises(ImageError, match=expected):
        train(f"data.root={photos}")
    for name, options in (("packed", [PACKED]), ("full", [PACKED, "data.pack.crop=full"]), ("files", [])):
        train(f"data.root={photos}", "data.on_error=skip", *options, run_dir=tmp_path / name)
    lists = [rows(tmp_path / name / "skipped.csv") for name in ("packed", "full", "files")]
    assert lists[0] == lists[1] == lists[2]
    assert [row["path"] for row in lists[0]] == [f"{photos}/a/02.jpg"]
    with pytest.raises(ImageError, match=expected):
        train(f"data.root={photos}", PACKED, run_dir=tmp_path / "again")


def test_a_disk_that_is_too_small_is_reported_before_decoding(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type(shutil.disk_usage(tmp_path))(10**9, 10**9, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        DataError, match=r"a pack of 0.00 GB does not fit into .*, where 0.00 GB are free; use another data.cache_dir"
    ):
        build(photos, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("images.npy"))


def build_slowly(root: Path, cache: Path) -> None:
    view = PackConfig.view

    def slow(self: PackConfig) -> Any:
        inner = view(self)

        def wait(image: Any) -> Any:
            time.sleep(0.02)
            return inner(image)

        return wait

    PackConfig.view = slow  # type: ignore[method-assign]
    os.setpgrp()
    build(root, cache)


def test_packing_resumes_after_a_kill(photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    cache = tmp_path / "cache"
    process = multiprocessing.get_context("fork").Process(target=build_slowly, args=(photos, cache))
    process.start()
    marks = (
        pack_path(cache, str(photos), "", PackConfig(size=73), 3).with_name("pack-shorter-center-73x3.unfinished")
        / "done.bin"
    )
    deadline_s = time.monotonic() + 30
    while not (marks.exists() and marks.read_text()) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    assert not pack_path(cache, str(photos), "", PackConfig(size=73), 3).exists()
    packed_images = build(photos, cache)
    assert "resuming the packing" in caplog.text
    for row, path in enumerate(list_images(str(photos)).paths):
        assert torch.equal(to_tensor(packed_images[row]), PackConfig(size=73).view()(to_tensor(decode(photos / path))))


def test_files_that_no_split_uses_need_no_hash(photos: Path, tmp_path: Path) -> None:
    listing = list_images(str(photos))
    hashes = np.zeros((len(listing.paths), 32), np.uint8)
    hashes[0] = np.frombuffer(hashlib.sha256((photos / listing.paths[0]).read_bytes()).digest(), np.uint8)
    options: dict[str, Any] = {"decoding": Decoding(), "cache_dir": tmp_path}
    assert len(open_pack(listing, PackConfig(size=73), hashes=hashes, **options)) == len(listing.paths)
    hashes[1] = 1
    for size in (72, 73):  # a new pack and the one that was built with other hashes
        with pytest.raises(DataError, match=f"{re.escape(listing.paths[1])}: its SHA-256"):
            open_pack(listing, PackConfig(size=size), hashes=hashes, **options)
        packed_images = open_pack(listing, PackConfig(size=size), hashes=hashes, skip=True, **options)
        assert {row: error.code for row, error in packed_images.bad.items()} == {1: "changed"}
    assert not open_pack(listing, PackConfig(size=72), hashes=None, **options).bad


def test_each_manifest_has_a_pack_of_its_images(photos: Path, tmp_path: Path) -> None:
    """Images that are removed or have no split are not decoded."""
    splits = find_splits(str(photos), val_fraction=0.25, test_fraction=0.0)
    (photos / "a/bad.jpg").write_bytes(b"x")
    first, second = tmp_path / "one/corrected.csv", tmp_path / "two/corrected.csv"
    for file, removed in ((first, set()), (second, {splits.train.paths[0]})):
        file.parent.mkdir()
        rows = [row for row in corrected_rows(splits, []) if row.path not in removed]
        write_manifest([*rows, ManifestRow("a/bad.jpg", label="a", root=str(photos))], file, with_root=True)
    for file, count in ((first, 70), (second, 69), (first, 70)):
        listing = find_splits(str(file), val_fraction=0.25, test_fraction=0.0).train.listing
        assert listing is not None
        packed_images = open_pack(listing, PackConfig(size=73), decoding=Decoding(), cache_dir=tmp_path / "cache")
        assert len(packed_images) == count
    assert len([path for path in tmp_path.glob("cache/*/pack-corrected.csv-*") if path.is_dir()]) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write into every folder")
def test_a_pack_in_a_read_only_folder_can_be_used(photos: Path, tmp_path: Path) -> None:
    path = build(photos, tmp_path / "cache").path
    path.parent.chmod(0o555)
    try:
        assert len(build(photos, tmp_path / "cache")) == 70
    finally:
        path.parent.chmod(0o755)


def test_a_second_process_waits_and_logs_why(photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    cache = tmp_path / "cache"
    process = multiprocessing.get_context("fork").Process(target=build_slowly, args=(photos, cache))
    process.start()
    lock = pack_path(cache, str(photos), "", PackConfig(size=73), 3).with_name("pack-shorter-center-73x3.lock")
    while not (lock.exists() and lock.read_text()):
        time.sleep(0.01)
    assert len(build(photos, cache)) == 70
    assert f"waiting for process {process.pid}, which is packing" in caplog.text
    assert "packing 70 images" not in caplog.text, "it used the pack of the other process"
    process.join()
    assert process.exitcode == 0


def test_transforms_that_work_in_place_do_not_change_the_pack(photos: Path, tmp_path: Path) -> None:
    images = build(photos, tmp_path / "cache")
    before = images[0].copy()
    images.load(0, Decoding())[:] = 0
    assert np.array_equal(images.load(0, Decoding()), before)


@pytest.mark.parametrize("crop", ["center", "full"])
def test_a_disk_that_fails_once_makes_no_file_unreadable(
    photos: Path, tmp_path: Path, crop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network disk may not answer while the images are packed; the file itself is fine."""
    failing = {"b/01.jpg"}
    opened = os.open

    def open_or_fail(path: Any, flags: int, *arguments: Any, **keywords: Any) -> int:
        if any(str(path).endswith(name) for name in failing):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
        return opened(path, flags, *arguments, **keywords)

    monkeypatch.setattr(os, "open", open_or_fail)
    with pytest.raises(ImageError, match=r"b/01.jpg: reading it failed \(Stale file handle\)"):
        build(photos, tmp_path / "cache", crop=crop, skip=True)
    failing.clear()
    assert not build(photos, tmp_path / "cache", crop=crop, skip=True).bad


def test_a_file_that_a_new_decoder_can_read_is_packed_again(photos: Path, tmp_path: Path) -> None:
    path = build(photos, tmp_path / "cache").path
    index = json.loads((path / "index.json").read_text())
    index["bad"] = {"3": ["no_decoder", ""]}
    (path / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"the pack of .* cannot be used: .*\.png was unreadable and can be read now"):
        build(photos, tmp_path / "cache", skip=True)
    assert not build(photos, tmp_path / "cache", skip=True, replace=True).bad
