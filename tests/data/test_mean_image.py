import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from alexlab.config.data import data_config
from alexlab.data import mean_image
from alexlab.data.dataset import to_tensor
from alexlab.data.decode import decode
from alexlab.data.image_file import Decoding
from alexlab.data.mean_image import measure_mean_image
from alexlab.data.splits import Split
from alexlab.data.transforms import CenterView
from alexlab.errors import ConfigError, DataError, ImageError
from alexlab.inference.checkpoint import load_checkpoint
from alexlab.inference.export import FORMATS, largest_difference
from alexlab.inference.file_content import file_input, metadata
from alexlab.training.preprocessing import Inference
from support.exact_resume import RecordedRun, compare
from support.runs import plain

RECIPE = ("data.mean_image=true", "data.mean=null")


def test_the_mean_image_of_images_without_files_is_not_cached(tmp_path: Path) -> None:
    """Two datasets of a user may have the same length and the same names."""

    class Items:
        def __init__(self, level: int) -> None:
            self.level = level

        def load(self, row: int, decoding: Decoding, crop: Any = None) -> np.ndarray:
            return np.full((2, 2, 3), self.level, np.uint8)

    found = []
    for level in (10, 20):
        split = Split(
            "data.dataset", ["a", "b"], ["train/0", "train/1"], np.array([0, 1]), lengths=np.zeros(2, np.int64)
        )
        split = replace(split, images=Items(level))
        options: dict[str, Any] = {"decoding": Decoding(), "cache_dir": tmp_path, "view_name": "all"}
        found.append(measure_mean_image(split, nn.Identity(), **options)[0, 0, 0])
    assert found == [np.float32(10 / 255), np.float32(20 / 255)]


def test_the_mean_image_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Levels 10, 20 and 60 in the upper left pixel have the mean 30, that is 30/255; the others are 255."""
    for number, level in enumerate((10, 20, 60)):
        pixels = np.full((2, 2, 3), 255, np.uint8)
        pixels[0, 0] = level, 0, number
        path = tmp_path / f"images/{'ab'[number % 2]}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    names = ["a/0.png", "b/1.png", "a/2.png"]
    everything = Split(str(tmp_path / "images"), ["a", "b"], names, np.array([0, 1, 0]))
    options: dict[str, Any] = {"decoding": Decoding(), "cache_dir": tmp_path / "cache", "view_name": "all"}
    expected = np.ones((3, 2, 2), np.float32)
    expected[:, 0, 0] = np.array([30, 0, 1], np.float32) / 255
    for chunk in (1, 2, 64):  # images that a process adds up
        monkeypatch.setattr(mean_image, "CHUNK", chunk)
        found = measure_mean_image(everything, nn.Identity(), **{**options, "cache_dir": tmp_path / f"cache{chunk}"})
        assert found.dtype == np.float32 and np.array_equal(found, expected)
    measure_mean_image(everything, nn.Identity(), **options)
    (cached,) = (tmp_path / "cache/mean_images").iterdir()
    np.save(cached, 2 * expected)
    assert np.array_equal(measure_mean_image(everything, nn.Identity(), **options), 2 * expected), "from the cache"
    (tmp_path / "images/a/0.png").write_bytes(b"no image")  # another file is measured again
    with pytest.raises(ImageError):
        measure_mean_image(everything, nn.Identity(), **options)
    found = measure_mean_image(everything, nn.Identity(), **options, skip_unreadable=True)
    assert found[0, 0, 0] == np.float32(40 / 255)
    for path in (tmp_path / "images").rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"^at least one image of .* must be readable; none is: "):
        measure_mean_image(everything, nn.Identity(), **options, skip_unreadable=True)


def test_each_pixel_has_its_own_mean() -> None:
    image = torch.tensor([[[[10, 20], [30, 40]]] * 3], dtype=torch.uint8)
    mean = torch.tensor([[[10, 10], [20, 20]]] * 3) / 255
    normalized = Inference(nn.Identity(), mean=mean, std=[0.5 / 255, 1 / 255, 2 / 255]).normalize(image)
    expected = torch.tensor([[0.0, 10.0], [10.0, 20.0]])
    torch.testing.assert_close(normalized[0], torch.stack([2 * expected, expected, expected / 2]), rtol=1e-5, atol=1e-5)


def test_another_mean_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data.mean must be null with data.mean_image=true; got \[0.485, "):
        data_config(plain("data=folder", "data.root=x", "data.mean_image=true"))


def test_a_checkpoint_has_all_that_its_users_need(
    train: Callable[..., Any], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluation and exports subtract the image of the checkpoint, without the data and the run folder."""
    root = tmp_path / "moved"
    shutil.copytree(images, root)
    train(*RECIPE, f"data.root={root}")
    view = CenterView(64)
    train_images = [view(to_tensor(decode(path))) for path in sorted((root / "train").rglob("*.png"))]
    levels = torch.stack(train_images).double().mean(0)
    checkpoint = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    torch.testing.assert_close(checkpoint["alexlab"]["mean_image"].double(), levels / 255, rtol=1e-6, atol=0)
    assert checkpoint["alexlab"]["config"]["data"]["mean"] == [0, 0, 0]
    assert not any("mean_image" in name for name in checkpoint["state_dict"])
    shutil.rmtree(root)
    alone = tmp_path / "alone.ckpt"
    shutil.move(tmp_path / "run/checkpoints/best.ckpt", alone)
    shutil.rmtree(tmp_path / "run")
    model = load_checkpoint(str(alone), device="cpu")
    normalized = model.single.normalize(train_images[0][None])[0]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    torch.testing.assert_close(normalized.double(), (train_images[0] - levels) / 255 / std, rtol=1e-4, atol=1e-5)
    assert metadata(model)["mean"] == [0, 0, 0]
    batch = torch.stack(train_images[:5])
    for name, (suffix, write) in FORMATS.items():
        exported = write(model, tmp_path / f"net{suffix}", batch)
        assert largest_difference(model, exported, batch) < 1e-5, name
    again = load_checkpoint(str(tmp_path / "net.safetensors"), device="cpu")
    torch.testing.assert_close(again.inference.mean, model.inference.mean, rtol=1e-6, atol=0)
    import onnxruntime

    inputs = {"images": file_input(model.inference, batch).numpy()}
    (logits,) = onnxruntime.InferenceSession(tmp_path / "net.onnx").run(None, inputs)
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(logits), model.inference(batch), rtol=1e-4, atol=1e-5)
    del checkpoint["alexlab"]["mean_image"]
    torch.save(checkpoint, alone)
    with pytest.raises(ConfigError, match=r"its mean image must be a tensor of shape \(3, 64, 64\); got NoneType"):
        load_checkpoint(str(alone))


def test_a_resumed_run_subtracts_the_image_of_its_checkpoint(train: Callable[..., Any], tmp_path: Path) -> None:
    run = RecordedRun(train, tmp_path)
    whole = run(*RECIPE, name="whole")
    resumed = run(*RECIPE, name="from_005", begin=whole / "005.ckpt")
    assert compare(whole, resumed, "005.ckpt") == 7
    changed = torch.load(whole / "005.ckpt", weights_only=True)
    changed["alexlab"]["mean_image"] += 0.5
    torch.save(changed, tmp_path / "whole_kept/005.ckpt")
    other = run(*RECIPE, name="changed", begin=tmp_path / "whole_kept/005.ckpt")
    last = torch.load(other / "012.ckpt", weights_only=True)
    assert torch.equal(last["alexlab"]["mean_image"], changed["alexlab"]["mean_image"])
    first = torch.load(whole / "012.ckpt", weights_only=True)
    assert not torch.equal(
        last["state_dict"]["net.features.conv1.weight"], first["state_dict"]["net.features.conv1.weight"]
    )


def test_two_devices_train_the_recipe_of_one(train: Callable[..., Any], tmp_path: Path) -> None:
    """The mean image, the colour noise until its last epoch, and the rates, with DataLoader workers that persist over epochs."""
    recipe = (
        *("augmentation=paper2012", "augmentation.train.pca.scale=std", "augmentation.train.pca.end_epoch=1"),
        *("optimizer=velocity_sgd", "param_groups.bias_lr=0.02", "trainer.max_epochs=2", "data.num_workers=1"),
        *("+param_groups.layer_lrs.conv1=[[1,1e-5]]", "model.dropout=0", "data.cache=packed"),
    )
    found = []
    for devices in (1, 2):
        overrides = (f"trainer.devices={devices}", f"data.cache_dir={tmp_path / str(devices)}")
        train(*RECIPE, *recipe, *overrides, run_dir=tmp_path / f"run{devices}")
        found.append(torch.load(tmp_path / f"run{devices}/checkpoints/last.ckpt", weights_only=True))
    assert torch.equal(found[0]["alexlab"]["mean_image"], found[1]["alexlab"]["mean_image"])
    for name, value in found[0]["state_dict"].items():
        torch.testing.assert_close(value, found[1]["state_dict"][name], rtol=1e-4, atol=1e-5)
