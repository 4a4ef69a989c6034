"""Packs: the same pixels as from the files, whole or not at all, shared, and refused when the files have changed."""

import json
import logging
import multiprocessing
import os
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

from alexlab.data.cache import pack as packed
from alexlab.data.cache.build_pack import open_pack
from alexlab.data.cache.pack import PackConfig, PackedImages, pack_path
from alexlab.data.dataset import to_tensor
from alexlab.data.decode import decode
from alexlab.data.image_file import Decoding
from alexlab.data.listing import list_images
from alexlab.data.transforms import CenterView
from alexlab.errors import ConfigError, DataError, ImageError
from support.images import replace_unseen
from support.runs import rows, scalars

Train = Callable[..., float | None]
PACKED = "data.cache=packed"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Pictures of many shapes, JPEG and PNG, one turned by EXIF."""
    generator = np.random.default_rng(0)
    root = tmp_path / "photos"
    for number in range(70):
        width, height = (int(side) for side in generator.integers(60, 150, 2))
        picture = Image.fromarray(generator.integers(0, 255, (9, 9, 3), dtype=np.uint8)).resize((width, height))
        path = root / "ab"[number % 2] / f"{number:02d}.{'jpg' if number % 3 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6 if number == 1 else 1
        picture.save(path, exif=exif)
    return root


def made(root: Path, cache: Path, **options: Any) -> PackedImages:
    keys = {name: options.pop(name) for name in ("size", "resize", "crop") if name in options}
    return open_pack(list_images(str(root)), PackConfig(**{"size": 73, **keys}), decoding=Decoding(channels=options.pop("channels", 3)), cache_dir=cache, **options)  # fmt: skip


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("resize", "crop"), [("shorter", "center"), ("shorter", "full"), ("squash", "full")])
def test_a_pack_holds_what_the_view_gives(photos: Path, tmp_path: Path, resize: str, crop: str, channels: int) -> None:
    pack = PackConfig(size=73, resize=resize, crop=crop)
    found = made(photos, tmp_path / "cache", resize=resize, crop=crop, channels=channels)
    paths = list_images(str(photos)).paths
    assert len(found) == len(paths) == 70
    for row, path in enumerate(paths):
        expected = pack.view()(to_tensor(decode(photos / path, Decoding(channels=channels))))
        assert torch.equal(to_tensor(found[row]), expected), path


def test_numpy_alone_can_read_it(photos: Path, tmp_path: Path) -> None:
    place = made(photos, tmp_path / "cache").path
    about = json.loads((place / "index.json").read_text())
    images = np.load(place / "images.npy", mmap_mode="r")
    assert (images.shape, images.dtype) == ((70, 73, 73, 3), np.uint8)
    assert about["files"][:2] == ["a/00.png", "a/02.jpg"]
    assert about["labels"] == [0] * 35 + [1] * 35
    assert about["classes"] == ["a", "b"]
    assert about["decoder"].startswith("simplejpeg ")
    assert sorted(path.name for path in place.iterdir()) == ["images.npy", "index.json", "stats.npy"]
    full = made(photos, tmp_path / "cache", crop="full").path
    shapes = json.loads((full / "index.json").read_text())["shapes"]
    assert np.load(full / "images.npy").size == sum(height * width * 3 for height, width in shapes)


def test_the_central_square_gives_the_central_view() -> None:
    """Whatever the margins, odd or even."""
    for width in range(73, 110):
        image = torch.randint(0, 255, (3, 73, width), dtype=torch.uint8)
        assert torch.equal(CenterView(64)(CenterView(73, 1.0)(image)), CenterView(64)(image))


@pytest.mark.parametrize("crop", ["center", "full"])
def test_a_run_from_the_pack_is_the_run_from_the_files(train: Train, photos: Path, tmp_path: Path, crop: str) -> None:
    """Bit for bit, also on two devices, and with the views at the end."""
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


def test_the_whole_image_comes_from_a_squashed_pack(train: Train, photos: Path, tmp_path: Path) -> None:
    options = [f"data.root={photos}", "augmentation=vertical_flip"]
    train(*options, run_dir=tmp_path / "files")
    train(*options, PACKED, "data.pack.resize=squash", run_dir=tmp_path / "packed")
    assert scalars(tmp_path / "files")["val/loss"] == scalars(tmp_path / "packed")["val/loss"]


def test_a_pack_is_made_once_and_used_again(
    train: Train, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for name in ("one", "two"):
        train(f"data.root={photos}", PACKED, run_dir=tmp_path / name)
    assert caplog.text.count("packing 70 images of") == 1
    assert "packing 70 images of" in caplog.text
    assert "0.00 GB in" in caplog.text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["augmentation=squash"], "augmentation.eval cannot come from the pack of data.cache=packed: it squashes the whole image: take data.pack.resize=squash data.pack.size=64"),
        (["augmentation.train.crop.square=false"], "augmentation.train cannot come from the pack .*: it cuts from the whole image: take data.pack.crop=full, or its own square=true"),
        (["data.pack.size=256"], "augmentation.eval cannot .*: its shorter side is 73: take data.pack.resize=shorter data.pack.size=73"),
        (["augmentation=inception", "data.pack.resize=squash"], "augmentation.eval cannot"),
        (["augmentation=squash", "data.pack.resize=squash", "test.views=five"], "test.views cannot"),
        (["data.pack.crop=middle"], "data.pack.crop must be center or full; got 'middle'"),
        (["data.pack.resize=longer"], "data.pack.resize must be shorter or squash; got 'longer'"),
        (["data.pack.size=0"], "data.pack.size must be a number of pixels; got 0"),
        (["data.cache=ram"], "data.cache must be null, packed or device; got 'ram'"),
        (["+data.pack.quality=9"], "data.pack.quality is no argument of"),
        (["~augmentation.train.crop"], "augmentation.train cannot come .*: a pack cannot stand in for RandomHorizontalFlip"),
    ],
)  # fmt: skip
def test_what_a_pack_cannot_serve(train: Train, photos: Path, options: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        train(f"data.root={photos}", PACKED, *options)


def test_random_crops_come_from_any_large_enough_pack(train: Train, photos: Path) -> None:
    train(f"data.root={photos}", PACKED, "augmentation=mixup", "data.pack.crop=full")
    reason = packed.pack_mismatch(packed.v2.RandomResizedCrop(64), PackConfig(size=60))
    assert reason == "it needs data.pack.resize=shorter and a data.pack.size of at least 64"


def test_other_settings_of_decoding_are_refused(photos: Path, tmp_path: Path) -> None:
    listing, pack, keys = list_images(str(photos)), PackConfig(size=73), {"cache_dir": tmp_path / "cache"}
    first = open_pack(listing, pack, decoding=Decoding(intensity_range=(0, 4095)), **keys)
    assert open_pack(listing, pack, decoding=Decoding(intensity_range=[0.0, 4095.0]), **keys).path == first.path
    with pytest.raises(DataError, match=r"made with other values of data.max_megapixels or data.intensity_range"):
        open_pack(listing, pack, decoding=Decoding(), **keys)
    open_pack(listing, pack, decoding=Decoding(), anew=True, **keys)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: shutil.copy(root / "a/00.png", root / "a/new.png"), "1 files new, such as a/new.png"),
        (lambda root: (root / "b/01.jpg").unlink(), "1 files gone, such as b/01.jpg"),
        (lambda root: (root / "b/01.jpg").write_bytes((root / "b/05.jpg").read_bytes()), "1 files are not what they were, such as b/01.jpg"),
        (lambda root: replace_unseen(root / "b/01.jpg"), "1 files are not what they were, such as b/01.jpg"),
    ],
)  # fmt: skip
def test_a_folder_that_has_changed_is_refused_and_packed_anew(
    photos: Path, tmp_path: Path, change: Callable[[Path], Any], words: str
) -> None:
    made(photos, tmp_path / "cache")
    change(photos)
    with pytest.raises(
        DataError, match=rf"has changed since it was packed: {words}. python src/prepare.py action=pack"
    ):
        made(photos, tmp_path / "cache")
    found = made(photos, tmp_path / "cache", anew=True)
    paths = list_images(str(photos)).paths
    assert len(found) == len(paths)
    assert np.array_equal(
        found[36][..., 0], PackConfig(size=73).view()(to_tensor(decode(photos / paths[36])))[0].numpy()
    )


def test_a_bad_file_is_told_in_the_words_of_a_run(train: Train, photos: Path, tmp_path: Path) -> None:
    (photos / "a/02.jpg").write_bytes(b"no picture")
    expected = f"cannot read the image {photos}/a/02.jpg: its content is none of"
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


def test_a_disk_that_is_too_small_is_told_before(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage(tmp_path))(10**9, 10**9, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"a pack of 0.00 GB needs room in .*; 0.00 GB are free: take data.cache_dir="):
        made(photos, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("images.npy"))


def _slowly(root: Path, cache: Path) -> None:
    view = PackConfig.view

    def slow(self: PackConfig) -> Any:
        inner = view(self)

        def wait(image: Any) -> Any:
            time.sleep(0.02)
            return inner(image)

        return wait

    PackConfig.view = slow  # type: ignore[method-assign]
    os.setpgrp()
    made(root, cache)


def test_a_packing_that_was_killed_is_taken_up_again(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    cache = tmp_path / "cache"
    process = multiprocessing.get_context("fork").Process(target=_slowly, args=(photos, cache))
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
    found = made(photos, cache)
    assert "going on with the packing" in caplog.text
    for row, path in enumerate(list_images(str(photos)).paths):
        assert torch.equal(to_tensor(found[row]), PackConfig(size=73).view()(to_tensor(decode(photos / path))))


def test_a_second_process_waits_and_says_why(photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    cache = tmp_path / "cache"
    process = multiprocessing.get_context("fork").Process(target=_slowly, args=(photos, cache))
    process.start()
    lock = pack_path(cache, str(photos), "", PackConfig(size=73), 3).with_name("pack-shorter-center-73x3.lock")
    while not (lock.exists() and lock.read_text()):
        time.sleep(0.01)
    assert len(made(photos, cache)) == 70
    assert f"waiting for process {process.pid}, which is packing" in caplog.text
    assert "packing 70 images" not in caplog.text, "it found the other one's pack"
    process.join()
    assert process.exitcode == 0
