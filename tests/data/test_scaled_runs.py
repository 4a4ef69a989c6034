"""Runs on photographs that are decoded at a smaller scale: every program computes the same scores from them."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

import alexlab
from alexlab.data import jpeg
from alexlab.data.cache.build_pack import open_pack
from alexlab.data.cache.pack import PackConfig
from alexlab.data.dataset import ImageDataset, ViewReader
from alexlab.data.decode import decode
from alexlab.data.discovery import find_splits
from alexlab.data.image_file import Decoding
from alexlab.data.listing import list_images
from alexlab.data.sources.synthetic import SMALL, write_synthetic_photos
from alexlab.data.streaming.index import StreamConfig, find_sharded_splits
from alexlab.data.streaming.writer import write_shards
from alexlab.data.transforms import CenterView
from alexlab.errors import DataError
from alexlab.records.record import RunRecord
from alexlab.records.run import Run
from alexlab.tasks import evaluate, predict
from support.exact_resume import RecordedRun, Train, compare
from support.runs import plain, rows, scalars

pytestmark = [pytest.mark.slow, pytest.mark.skipif(jpeg.simplejpeg is None, reason="simplejpeg has no wheel here")]

SCALED, FULL = Decoding(), Decoding(jpeg_scaling=False)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training and 8 validation photographs of 500 x 375, half of them on their side."""
    root = tmp_path_factory.mktemp("photos") / "photos"
    write_synthetic_photos(str(root), replace(SMALL, num_fields=4, counts={"train": 24, "val": 8}))
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in sorted(root.rglob("*.jpg"))[::2]:
        with Image.open(path) as image:
            image.load()
        image.save(path, quality=90, exif=exif)
    return root


@pytest.fixture
def scales(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which each decoded JPEG appends its scale in eighths."""
    found: list[int] = []
    original = jpeg._decode_rows

    def spy(content: bytes, image: Image.Image, channels: int, eighths: int, num_rows: int) -> np.ndarray:
        found.append(eighths)
        return original(content, image, channels, eighths, num_rows)

    monkeypatch.setattr(jpeg, "_decode_rows", spy)
    return found


def test_all_programs_compute_the_scores_of_the_run(
    train: Train, photos: Path, tmp_path: Path, scales: list[int]
) -> None:
    train(f"data.root={photos}", "augmentation=inception", "trainer.max_epochs=2")
    assert {2, 4} <= set(scales)
    best = RunRecord(tmp_path / "run").read()["best"]
    folders = {name: tmp_path / name for name in ("scaled", "full", "predictions")}
    for folder in folders.values():
        folder.mkdir()
    command = (f"ckpt='{tmp_path / 'run'}'", "data.num_workers=0", "split=val")
    evaluate.main(Run(config=plain(*command, name="evaluate"), dir=folders["scaled"]))
    evaluate.main(Run(config=plain(*command, "data.jpeg_scaling=false", name="evaluate"), dir=folders["full"]))
    scaled, full = (json.loads((folders[name] / "scores.json").read_text()) for name in ("scaled", "full"))
    assert (scaled["top1"], scaled["images"]) == (best["top1"], 8)
    assert scaled["loss"] == pytest.approx(best["loss"], rel=1e-5)
    assert scaled["loss"] != full["loss"]
    assert scaled["loss"] == pytest.approx(full["loss"], rel=0.05)
    config = plain(f"ckpt='{tmp_path / 'run'}'", f"input='{photos / 'val'}'", name="predict")
    predict.main(Run(config=config, dir=folders["predictions"]))
    evaluated = {row["path"]: float(row["prob1"]) for row in rows(folders["scaled"] / "predictions.csv")}
    predicted = {row["path"]: float(row["prob"]) for row in rows(folders["predictions"] / "predictions.csv")}
    assert predicted == pytest.approx(evaluated, abs=1e-5)
    api = {
        found.path: found.prob for found in alexlab.load(tmp_path / "run", device="cpu").predict(str(photos / "val"))
    }
    assert api == pytest.approx(evaluated, abs=1e-5)


@pytest.mark.parametrize("augmentation", ["inception", "flip_crop"])
def test_resuming_is_exact(train: Train, photos: Path, tmp_path: Path, augmentation: str, scales: list[int]) -> None:
    run, overrides = RecordedRun(train, tmp_path), (f"data.root={photos}", f"augmentation={augmentation}")
    whole = run(*overrides, name="whole")
    for point in ("002.ckpt", "007.ckpt"):
        resumed = run(*overrides, name=f"from_{point}", begin=whole / point)
        assert compare(whole, resumed, point) == 12 - int(point[:3])
    assert min(scales) == 2


@pytest.mark.parametrize("resize", ["shorter", "squash"])
def test_packs_hold_the_pixels_that_the_files_give(
    photos: Path, tmp_path: Path, resize: str, scales: list[int]
) -> None:
    listing, pack = list_images(str(photos / "train")), PackConfig(size=73, resize=resize)
    images = open_pack(listing, pack, decoding=SCALED, cache_dir=tmp_path)
    read = ViewReader(pack.view(), SCALED)
    for row, path in enumerate(listing.paths):
        expected = read(partial(decode, photos / "train" / path))
        assert np.array_equal(images[row], expected.permute(1, 2, 0))
    assert 8 not in scales


def test_a_pack_of_another_setting_is_refused_or_replaced(photos: Path, tmp_path: Path) -> None:
    listing, pack = list_images(str(photos / "train")), PackConfig(size=73)
    scaled = open_pack(listing, pack, decoding=SCALED, cache_dir=tmp_path)
    assert json.loads((scaled.path / "index.json").read_text())["decoding"]["jpeg_scaling"] is True
    before = scaled.pixels.copy()
    with pytest.raises(DataError, match=r"packed with other values of .* or data\.jpeg_scaling"):
        open_pack(listing, pack, decoding=FULL, cache_dir=tmp_path)
    full = open_pack(listing, pack, decoding=FULL, cache_dir=tmp_path, replace=True)
    assert not np.array_equal(full.pixels, before)


def test_training_from_a_pack_equals_training_from_files(train: Train, photos: Path, tmp_path: Path) -> None:
    options = [f"data.root={photos}", "augmentation=flip_crop", "test.views=ten_crop"]
    train(*options, run_dir=tmp_path / "files")
    train(*options, "data.cache=packed", run_dir=tmp_path / "packed")
    files, packs = (scalars(tmp_path / name) for name in ("files", "packed"))
    for name in ("train/loss", "val/loss", "val/top1"):
        assert files[name] == packs[name], name


@pytest.mark.parametrize("view", [CenterView(64), v2.RandomResizedCrop(32)])
def test_shards_give_the_pixels_of_the_files(photos: Path, tmp_path: Path, view: Any, scales: list[int]) -> None:
    splits = find_splits(str(photos), val_fraction=0.2, test_fraction=0.0)
    write_shards(splits, str(tmp_path / "shards"), shard_bytes=200_000, cache_dir=tmp_path)
    sharded = find_sharded_splits(str(tmp_path / "shards"), StreamConfig(), cache_dir=tmp_path / "cache")
    datasets = [ImageDataset(each.val, ViewReader(view, Decoding())) for each in (splits, sharded)]
    for index in range(len(splits.val)):
        images = []
        for dataset in datasets:
            torch.manual_seed(index)
            images.append(dataset[index][0])
        assert torch.equal(*images)
    assert min(scales) < 8
