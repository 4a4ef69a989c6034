from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from alexlab.data.dataset import ImageDataset, SeveralReaders, ViewReader, to_tensor
from alexlab.data.image_file import Decoding
from alexlab.data.own_dataset import DatasetImages
from alexlab.data.scan import scan_folder
from alexlab.data.splits import Split, Splits
from alexlab.data.streaming.index import StreamConfig, find_sharded_splits
from alexlab.data.streaming.writer import write_shards
from support.bad_images import gradient
from support.images import write_images


def test_images_have_one_channel_if_the_network_has(tmp_path: Path) -> None:
    root = write_images(tmp_path, {"a": 1, "b": 1})
    image, label = ImageDataset(scan_folder(str(root)), ViewReader(None, Decoding(channels=1)))[1]
    assert (image.shape, image.dtype, label) == ((1, 70, 71), torch.uint8, 1)


def test_the_tensor_has_the_same_pixels() -> None:
    tensor = to_tensor(gradient())
    assert tensor.shape == (3, 40, 60)
    assert np.array_equal(tensor.permute(1, 2, 0).numpy(), gradient())


def test_the_transform_receives_the_tensor(tmp_path: Path) -> None:
    root = write_images(tmp_path, {"a": 1, "b": 1})
    assert ImageDataset(scan_folder(str(root)), ViewReader(lambda image: image.shape, Decoding()))[0] == (
        (3, 70, 70),
        0,
    )


@pytest.mark.parametrize("store", ["files", "shards", "own dataset"])
def test_each_of_several_readers_gets_the_image_as_it_decodes_it(store: str, tmp_path: Path) -> None:
    """Members of an ensemble may differ in channels and intensity range; an own dataset has no deep files."""
    deep = store != "own dataset"
    pixels = np.full((8, 8), 1000, np.uint16) if deep else np.full((8, 8, 3), (255, 0, 0), np.uint8)
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a/0.png")
    split = Split(str(tmp_path), ["a"], ["a/0.png"], np.array([0]))
    if store == "own dataset":
        split = Split("", ["a"], ["val/0"], split.labels, images=DatasetImages([(pixels, 0)], split.labels))
    if store == "shards":
        write_shards(Splits(split, split), str(tmp_path / "shards"), shard_bytes=10**6, cache_dir=tmp_path / "cache")
        split = find_sharded_splits(str(tmp_path / "shards"), StreamConfig(), cache_dir=tmp_path / "cache").val
    ranges = ([0, 2000], [0, 4000]) if deep else (None, None)
    members = [Decoding(channels=n, intensity_range=each) for n, each in zip((3, 1), ranges, strict=True)]
    read = SeveralReaders([ViewReader(nn.Identity(), member) for member in members])
    colour, grey = read(partial(split.load, 0))
    assert colour.shape == (3, 8, 8) and grey.shape == (1, 8, 8)
    assert (int(colour[0, 0, 0]), int(grey[0, 0, 0])) == ((127, 63) if deep else (255, 76))
