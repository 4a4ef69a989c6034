"""`data.cache=device` yields the images of `data.cache=packed`. The device of these tests is the CPU."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from alexlab.config import build_data
from alexlab.config.data import data_config
from alexlab.data.cache.on_device import CropSampler, crop, load_on_device, resize_weights, resized_crop
from alexlab.data.samplers import derived_seed
from alexlab.data.transforms import CenterView, RandomCropView
from alexlab.errors import ConfigError, ImageError
from alexlab.records.record import RunRecord
from alexlab.records.safe_load import load_file
from support.runs import TINY, plain, rows

pytestmark = pytest.mark.slow

Train = Callable[..., float | None]
SIDE = 73
RECIPES: dict[str, Any] = {
    "center": v2.Compose([CenterView(64)]),
    "crop": v2.Compose([RandomCropView(64, square=True)]),
    "crop and flip": v2.Compose([RandomCropView(64, square=True), v2.RandomHorizontalFlip()]),
    "two flips": v2.Compose([RandomCropView(64, square=True), v2.RandomHorizontalFlip(), v2.RandomHorizontalFlip(0.3)]),
    "resized crop and flip": v2.Compose(
        [v2.RandomResizedCrop(64, scale=(0.08, 1.0), antialias=True), v2.RandomHorizontalFlip()]
    ),
    "enlarged crop": v2.Compose([v2.RandomResizedCrop(64, scale=(0.05, 0.2), antialias=True)]),
}


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    """Noise and edges, on which filters differ most."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randint(0, 256, (6, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)
    noise[3:] = (torch.arange(SIDE) // 9 % 2 * 255).to(torch.uint8)[None, :, None, None]
    return noise


@pytest.mark.parametrize("name", list(RECIPES))
def test_crops_equal_the_transforms(name: str, pixels: torch.Tensor) -> None:
    recipe = RECIPES[name]
    sampler = CropSampler(recipe, SIDE)
    crops, expected, mirrored = [], [], 0
    for index in range(60):
        row = index % len(pixels)
        torch.manual_seed(derived_seed(index))
        expected.append(recipe(pixels[row].permute(2, 0, 1)))
        torch.manual_seed(derived_seed(index))
        crops.append(torch.tensor([row, *sampler.draw()]))
        mirrored += int(crops[-1][-1])
    result = (resized_crop if sampler.resizes else crop)(pixels, torch.stack(crops), sampler.size)
    assert result.dtype == torch.uint8
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert (mirrored > 10) == ("flip" in name)
    differences = (result.int() - torch.stack(expected).int()).abs()
    if not sampler.resizes:
        assert differences.max() == 0
    else:
        assert differences.max() <= 2
        assert (differences > 1).float().mean() < 1e-3
        assert differences.float().mean() < 0.1


def test_resize_weights_sum_to_one_inside_the_segment() -> None:
    offset, length = torch.tensor([0, 10, 72]), torch.tensor([73, 5, 1])
    result = resize_weights(offset, length, 8, SIDE)
    assert result.sum(-1).allclose(torch.ones(3, 8))
    assert result[1, :, :10].abs().max() == 0
    assert result[1, :, 15:].abs().max() == 0
    assert result[2, :, 72].allclose(torch.ones(8))


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        (
            v2.Compose([CenterView(64), v2.ColorJitter(0.1)]),
            "only crops and horizontal flips run on the device; got ColorJitter",
        ),
        (v2.Compose([v2.Resize((64, 64))]), "the first transform must crop a square; got Resize"),
        (v2.Compose([v2.RandomResizedCrop((64, 32))]), r"must crop a square; got \(64, 32\)"),
    ],
)
def test_unsupported_transforms_are_rejected(recipe: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        CropSampler(recipe, SIDE)


@pytest.mark.parametrize("overrides", [(), ("data.num_workers=2", "trainer.devices=2")], ids=["one rank", "two ranks"])
def test_training_equals_that_on_packed_images_bit_for_bit(
    train: Train, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    for cache in ("packed", "device"):
        train(f"data.cache={cache}", "trainer.max_epochs=2", *overrides, run_dir=tmp_path / cache)
    packed, device = (load_file(tmp_path / name / "checkpoints/last.ckpt") for name in ("packed", "device"))
    for name, value in packed["state_dict"].items():
        assert torch.equal(device["state_dict"][name], value), name
    losses = [[row["val/loss"] for row in rows(tmp_path / name / "metrics.csv")] for name in ("packed", "device")]
    assert losses[0] == losses[1]


def test_resized_crops_and_ten_crops_in_one_run(train: Train, tmp_path: Path) -> None:
    """The ten crops of the final test are not made on the device."""
    score = train("data.cache=device", "augmentation=inception", "test.views=ten_crop", "trainer.max_epochs=2")
    scores = RunRecord(tmp_path / "run").read()["scores"]
    assert score == scores["best/top1"]
    assert scores["ten_crop/count"] == 7


def test_unreadable_images_are_skipped(images: Path, train: Train, tmp_path: Path) -> None:
    root = tmp_path / "with_a_corrupt_file"
    shutil.copytree(images, root)
    bad = root / "train/ant/000.png"
    bad.write_bytes(bad.read_bytes()[:60])
    overrides = (f"data.root={root}", "data.on_error=skip", "trainer.max_epochs=1")
    for cache in ("packed", "device"):
        train(*overrides, f"data.cache={cache}", run_dir=tmp_path / cache)
        assert "ant/000.png" in (tmp_path / cache / "skipped.csv").read_text()
    scores = [rows(tmp_path / name / "metrics.csv")[-1] for name in ("packed", "device")]
    assert scores[0]["train/loss"] == scores[1]["train/loss"]
    with pytest.raises(ImageError, match=r"000\.png"):
        train(f"data.root={root}", "data.cache=device", run_dir=tmp_path / "raises")


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["augmentation=color"], "augmentation.train cannot run with data.cache=device: .* got ColorJitter; use"),
        (
            ["data.pack.crop=full"],
            "data.cache=device needs square images: data.pack.crop=center or data.pack.resize=squash",
        ),
    ],
)
def test_invalid_configs_are_rejected(train: Train, overrides: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        train("data.cache=device", *overrides)


def test_a_pack_is_loaded_once(images: Path, tmp_path: Path) -> None:
    config = plain(*TINY, f"data.root={images}", f"data.cache_dir={tmp_path / 'cache'}", "data.cache=device")
    splits = build_data.packed_splits(config, data_config(config).find_splits())
    assert splits.train.images is not None
    one = load_on_device(splits.train.images, torch.device("cpu"))
    assert load_on_device(splits.train.images, torch.device("cpu")) is one
    assert np.array_equal(one.numpy(), splits.train.images.pixels)
