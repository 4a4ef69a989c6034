from pathlib import Path

import numpy as np
import torch

from alexlab.data.dataset import ImageDataset, to_tensor
from alexlab.data.image_file import Decoding
from alexlab.data.scan import scan_folder
from support.bad_images import gradient
from support.images import write_images


def test_images_have_one_channel_if_the_network_has(tmp_path: Path) -> None:
    root = write_images(tmp_path, {"a": 1, "b": 1})
    image, label = ImageDataset(scan_folder(str(root)), decoding=Decoding(channels=1))[1]
    assert (image.shape, image.dtype, label) == ((1, 70, 71), torch.uint8, 1)


def test_the_tensor_has_the_same_pixels() -> None:
    tensor = to_tensor(gradient())
    assert tensor.shape == (3, 40, 60)
    assert np.array_equal(tensor.permute(1, 2, 0).numpy(), gradient())


def test_the_transform_receives_the_tensor(tmp_path: Path) -> None:
    root = write_images(tmp_path, {"a": 1, "b": 1})
    assert ImageDataset(scan_folder(str(root)), transform=lambda image: image.shape)[0] == ((3, 70, 70), 0)
