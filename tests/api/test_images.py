"""Images in memory as the pixels of files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from alexlab.api.images import is_single, load_images
from alexlab.data.decode import decode
from alexlab.data.image_file import Decoding
from alexlab.errors import DataError, ImageError

COLOR, GREY = Decoding(channels=3), Decoding(channels=1)
PIXELS = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
TENSOR = torch.from_numpy(PIXELS).permute(2, 0, 1)
IMAGE = Image.fromarray(PIXELS)


def read_images(images: Any, decoding: Decoding) -> list[tuple[str, np.ndarray]]:
    return [(path, load(decoding)) for path, load in load_images(images)]


@pytest.mark.parametrize(
    "images",
    [
        IMAGE,
        PIXELS,
        TENSOR,
        TENSOR.float() / 255,
        PIXELS / 255,
        (TENSOR / 255).to(torch.float64).requires_grad_(),
        np.asarray(IMAGE),
        np.frombuffer(PIXELS.tobytes(), np.uint8).reshape(7, 5, 3),
        np.dstack([PIXELS, np.zeros((7, 5, 1), np.uint8)]),
        PIXELS[::-1][::-1],
        [IMAGE],
        PIXELS[None],
        TENSOR[None],
    ],
)
def test_every_form_has_the_same_pixels(images: Any) -> None:
    ((path, pixels),) = read_images(images, COLOR)
    assert (path, pixels.dtype) == ("", np.uint8)
    assert (pixels == PIXELS).all()
    assert pixels.flags.writeable


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "1", "CMYK"])
@pytest.mark.parametrize("decoding", [COLOR, GREY])
def test_a_pil_image_has_the_pixels_of_its_file(tmp_path: Path, mode: str, decoding: Decoding) -> None:
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    IMAGE.convert(mode).save(path)
    ((_, pixels),) = read_images(Image.open(path), decoding)
    assert (pixels == decode(path, decoding)).all()


def test_the_orientation_of_a_pil_image_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    IMAGE.save(tmp_path / "image.png", exif=exif)
    ((_, pixels),) = read_images(Image.open(tmp_path / "image.png"), COLOR)
    assert pixels.shape == (5, 7, 3)
    assert (pixels == decode(tmp_path / "image.png", COLOR)).all()


def test_channels_are_converted_as_in_files(tmp_path: Path) -> None:
    IMAGE.save(tmp_path / "image.png")
    expected = decode(tmp_path / "image.png", GREY)
    for images in (PIXELS, TENSOR, IMAGE):
        ((_, pixels),) = read_images(images, GREY)
        assert (pixels == expected).all()
    ((_, grey),) = read_images(PIXELS[:, :, 0], COLOR)
    assert (grey == PIXELS[:, :, :1]).all() and grey.shape == (7, 5, 3)


def test_lists_folders_and_globs_hold_several_images(tmp_path: Path) -> None:
    for name in ("b.png", "a.png"):
        IMAGE.save(tmp_path / name)
    for images in (tmp_path, str(tmp_path / "*.png"), [tmp_path / "a.png", str(tmp_path / "b.png")]):
        assert [Path(path).name for path, _ in read_images(images, COLOR)] == ["a.png", "b.png"]
        assert not is_single(images)
    assert len(list(read_images([PIXELS, [TENSOR, IMAGE], TENSOR[None].repeat(3, 1, 1, 1)], COLOR))) == 6
    assert all(map(is_single, (IMAGE, PIXELS, TENSOR, tmp_path / "a.png", str(tmp_path / "a.png"))))
    assert not any(map(is_single, ([IMAGE], PIXELS[None], TENSOR[None])))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (3, "images must be a path, a PIL image, .*; got int"),
        (b"x", "got bytes"),
        (None, "got NoneType"),
        (TENSOR.float() - 128, "pixels that are floats must be between 0 and 1, not normalized; got -128 to 120"),
        (torch.full((3, 4, 4), torch.nan), "must be between 0 and 1, not normalized; got nan to nan"),
        (PIXELS.astype(np.int64), "pixels must be uint8, or floats between 0 and 1; got int64"),
        (np.zeros((4, 4, 2), np.uint8), r"an image must have 1, 3 or 4 channels; got shape \(4, 4, 2\)"),
        (PIXELS.transpose(2, 0, 1), r"an image must have 1, 3 or 4 channels; got shape \(3, 7, 5\)"),
        (np.zeros((0, 4, 3), np.uint8), r"got shape \(0, 4, 3\)"),
        (np.zeros(4, np.uint8), r"got ndarray of shape \(4,\)"),
        (Image.new("I;16", (4, 4)), "a PIL image must have 8 bits per channel; got mode I;16; pass the path"),
        ("missing.jpg", "missing.jpg does not exist"),
    ],
)
def test_error_messages(images: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(read_images(images, COLOR))


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("text")
    with pytest.raises(ImageError, match=r"bad\.png"):
        list(read_images(tmp_path / "bad.png", COLOR))
