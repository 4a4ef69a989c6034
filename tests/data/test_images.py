import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alexlab.data.folder import scan
from alexlab.data.images import ImageSplit, load_image, to_tensor
from alexlab.errors import DataError
from conftest import write_images


def gradient() -> np.ndarray:
    """A picture whose corners tell which way is up: dark above, red on the right."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, 60)
    pixels[..., 1] = np.linspace(0, 255, 40)[:, None]
    return pixels


def test_colour_grey_palette_and_transparent_pictures_are_rgb(tmp_path: Path) -> None:
    picture = Image.fromarray(gradient())
    for mode in ("RGB", "L", "P", "RGBA", "LA", "1"):
        picture.convert(mode).save(tmp_path / f"{mode}.png")
        image = load_image(tmp_path / f"{mode}.png")
        assert (image.mode, image.size) == ("RGB", (60, 40)), mode
    assert np.array_equal(np.asarray(load_image(tmp_path / "RGBA.png")), gradient())


def test_cmyk_is_rgb(tmp_path: Path) -> None:
    Image.fromarray(gradient()).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=98)
    difference = np.asarray(load_image(tmp_path / "cmyk.jpg")).astype(int) - gradient()
    assert np.abs(difference).mean() < 3


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    deep = np.linspace(0, 65535, 2400).astype(np.uint16).reshape(40, 60)
    Image.fromarray(deep).save(tmp_path / f"deep.{suffix}")
    image = load_image(tmp_path / f"deep.{suffix}", channels=1)
    assert image.mode == "L"
    assert np.array_equal(np.asarray(image), deep >> 8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's number of the transposition that makes it lie so
    picture = Image.fromarray(gradient())
    stored = picture.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else picture
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(np.asarray(load_image(tmp_path / "turned.png")), gradient())


def test_one_channel_where_the_net_wants_it(tmp_path: Path) -> None:
    root = write_images(tmp_path, {"a": 1, "b": 1})
    image, label = ImageSplit(scan(str(root)), channels=1)[1]
    assert (image.shape, image.dtype, label) == ((1, 70, 71), torch.uint8, 1)


def test_tensor_holds_the_pixels(tmp_path: Path) -> None:
    tensor = to_tensor(Image.fromarray(gradient()))
    assert tensor.shape == (3, 40, 60)
    assert np.array_equal(tensor.permute(1, 2, 0).numpy(), gradient())


def test_transform_gets_the_tensor(tmp_path: Path) -> None:
    root = write_images(tmp_path, {"a": 1, "b": 1})
    assert ImageSplit(scan(str(root)), transform=lambda image: image.shape)[0] == ((3, 70, 70), 0)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("text.jpg", b"hello", "its content is none of JPEG, PNG, WEBP, BMP, TIFF, PPM"),
        ("empty.png", b"", "its content is none of JPEG"),
        ("gone.png", None, "there is no such file"),
    ],
)
def test_words_for_a_bad_file(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=re.escape(f"cannot read the image {tmp_path / name}: {words}")):
        load_image(tmp_path / name)


def test_words_for_a_truncated_file_and_for_floats(tmp_path: Path) -> None:
    Image.fromarray(gradient()).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.jpg: .*[Tt]runcated"):
        load_image(tmp_path / "cut.jpg")
    Image.fromarray(gradient()[..., 0].astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(DataError, match=r"float\.tif: its values are floating-point numbers of unknown range"):
        load_image(tmp_path / "float.tif")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_words_for_a_file_without_permission(tmp_path: Path) -> None:
    root = write_images(tmp_path, {"a": 1})
    (root / "a/000.png").chmod(0)
    with pytest.raises(DataError, match="no permission to read it"):
        load_image(root / "a/000.png")
