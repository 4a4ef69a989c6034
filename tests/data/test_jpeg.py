"""JPEGs that are decoded at a smaller scale look like those decoded in full, and nothing else depends on the scale."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from alexlab.data import jpeg
from alexlab.data.crop import Crop
from alexlab.data.dataset import ImageDataset, SeededDataset, ViewReader
from alexlab.data.decode import decode, decode_bytes
from alexlab.data.image_file import Decoding
from alexlab.data.scan import scan_folder
from alexlab.data.sources.synthetic import LARGE, random_photo
from alexlab.data.transforms import CenterView, RandomCropView, Views
from alexlab.errors import ConfigError, ImageError
from support.bad_images import UNREADABLE, encoded, in_mpo
from support.runs import ROOT

pytestmark = pytest.mark.skipif(jpeg.simplejpeg is None, reason="simplejpeg has no wheel here")

REAL = sorted((ROOT.parent / "shared/data/cats_and_dogs/val").glob("*/*.jpg"))[::50]  # if they are there
SCALED, FULL = Decoding(), Decoding(jpeg_scaling=False)
VIEWS: dict[str, Callable[[int], Any]] = {
    "center": CenterView,
    "ten crops": lambda size: Views(size, "ten_crop"),
    "random crop": RandomCropView,
    "random square crop": lambda size: RandomCropView(size, square=True),
    "resized crop": lambda size: v2.RandomResizedCrop(size, antialias=True),
    "resize": lambda size: v2.Resize(size),
    "squash": lambda size: v2.Resize([size, size]),
    "recipe": lambda size: v2.Compose([v2.RandomResizedCrop([size, size // 2]), v2.RandomHorizontalFlip()]),
}


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """Return a photograph with the spectrum of natural images."""
    pixels = random_photo(replace(LARGE, height=height, width=width), np.random.default_rng(seed))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def oriented_exif(orientation: int) -> Image.Exif:
    """Return metadata with an orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def read(content: bytes, view: Any, decoding: Decoding, seed: int = 0) -> np.ndarray:
    """Return the view of a file."""
    torch.manual_seed(seed)
    image = ViewReader(view, decoding)(partial(decode_bytes, content))
    return np.asarray(image).astype(int)


def difference(content: bytes, view: Any, seed: int = 0) -> np.ndarray:
    """Return the differences between a view of a scaled and of the full image, in grey levels."""
    scaled, full = (read(content, view, decoding, seed) for decoding in (SCALED, FULL))
    assert scaled.shape == full.shape
    return np.abs(scaled - full)


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return a list to which each decoded JPEG appends its height and width."""
    found: list[tuple[int, int]] = []
    original = jpeg._decode_rows

    def spy(*args: Any) -> np.ndarray:
        pixels = original(*args)
        found.append((pixels.shape[0], pixels.shape[1]))
        return pixels

    monkeypatch.setattr(jpeg, "_decode_rows", spy)
    return found


@pytest.mark.parametrize("name", VIEWS)
def test_photographs_look_as_if_they_were_decoded_in_full(name: str, sizes: list[tuple[int, int]]) -> None:
    """Within 3.5 of 256 levels on average over each view, and 50 in any pixel."""
    files = {path.name: path.read_bytes() for path in REAL}
    files |= {f"photo {seed}": encoded("JPEG", photo(375, 500, seed), quality=90) for seed in range(4)}
    for file, content in files.items():
        for seed in range(3):
            found = difference(content, VIEWS[name](64), seed)
            assert found.mean() < 3.5, file
            assert found.max() < 50, file
    assert min(map(min, sizes)) < 300, "some were decoded at a smaller scale"


@pytest.mark.parametrize("name", ["center", "resized crop"])
def test_photographs_of_12_megapixels(name: str) -> None:
    content = encoded("JPEG", photo(3024, 4032), quality=85)
    for seed in range(4):
        found = difference(content, VIEWS[name](224), seed)
        assert found.mean() < 3
        assert found.max() < 30


def test_patterns_finer_than_the_view_differ_most() -> None:
    """The worst cases: detail that the view cannot show, which the scaled DCT and the filter remove in different ways."""
    rows, columns = np.mgrid[:640, :640]
    patterns = {"noise": np.random.default_rng(0).integers(0, 256, rows.shape), "checks": 255 * ((rows + columns) % 2)}
    patterns |= {f"stripes of {width}": 255 * (columns // width % 2) for width in (3, 5, 6, 7, 9, 12)}
    for name, pattern in patterns.items():
        grey = Image.fromarray(pattern.astype(np.uint8)).convert("RGB")
        found = difference(encoded("JPEG", grey, quality=95, subsampling=0), CenterView(64))
        assert found.mean() < (32 if "stripes" in name else 3), name
        assert found.max() < (56 if "stripes" in name else 15), name


@pytest.mark.parametrize("name", VIEWS)
def test_no_view_is_enlarged_from_fewer_pixels_than_it_has(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each decoded crop has at least the pixels of its size; half the scale would not."""
    crops: list[tuple[Crop, float]] = []
    original = jpeg._resize

    def spy(pixels: np.ndarray, crop: Crop, scale: float) -> np.ndarray:
        crops.append((crop, scale))
        return original(pixels, crop, scale)

    monkeypatch.setattr(jpeg, "_resize", spy)
    generator = np.random.default_rng(0)
    for seed in range(40):
        height, width = generator.integers(20, 900, 2)
        read(encoded("JPEG", Image.new("RGB", (width, height))), VIEWS[name](32), SCALED, seed)
    assert {scale for _, scale in crops} == {1 / 2, 1 / 4, 1 / 8}
    for crop, scale in crops:
        spare = min(crop.height * scale / crop.size[0], crop.width * scale / crop.size[1])
        assert spare >= 1
        assert spare < 2 or scale == 1 / 8


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("size", [(60, 80), (99, 64), (640, 90)])
def test_images_that_are_too_small_to_scale_are_decoded_in_full(name: str, size: tuple[int, int]) -> None:
    content = encoded("JPEG", photo(*size))
    assert not difference(content, VIEWS[name](80)).any()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", VIEWS)
def test_orientation_and_odd_sizes(orientation: int, name: str) -> None:
    """A box that were mirrored or shifted by a pixel would differ much more."""
    exif = oriented_exif(orientation)
    for height, width in ((301, 523), (777, 434)):
        content = encoded("JPEG", photo(height, width, seed=height), exif=exif, quality=95)
        for seed in range(2):
            assert difference(content, VIEWS[name](24), seed).mean() < 3


@pytest.mark.parametrize("side", [*range(17, 33), 99, 1001])
@pytest.mark.parametrize("eighths", jpeg.EIGHTHS)
def test_scaled_sizes_are_rounded_up(side: int, eighths: int, sizes: list[tuple[int, int]]) -> None:
    needed = side * eighths // 8
    decode_bytes(
        encoded("JPEG", Image.new("RGB", (side + 5, side))),
        crop=lambda height, width: Crop(0, 0, height, width, (needed, needed)),
    )
    assert sizes == [(-(-side * eighths // 8), -(-(side + 5) * eighths // 8))]


ROWS: dict[str, dict[str, Any]] = {
    "4:4:4": {"subsampling": 0},
    "4:2:0": {"subsampling": 2},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "upside down": {"exif": oriented_exif(3)},
    "on its side": {"exif": oriented_exif(6)},
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ROWS)
def test_crops_do_not_depend_on_the_rows_below_them(
    kind: str, channels: int, sizes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, at all scales; several scans and restart markers are decoded to the end."""
    content = encoded("JPEG", photo(397, 603), **ROWS[kind])
    for size, height, top in ((10, 80, 3), (50, 100, 50), (10, 200, 120), (30, 60, 200)):
        heights = []
        images = []
        for fraction in (0.95, 0.0):
            monkeypatch.setattr(jpeg, "MAX_FRACTION", fraction)
            box = Crop(top, 20, height, 300, (size, size))
            images.append(decode_bytes(content, Decoding(channels=channels), crop=lambda *_, box=box: box))
            heights.append(sizes[-1][0])
        assert np.array_equal(*images)
        if kind in ("progressive", "restarts"):
            assert heights[0] == heights[1]
        elif kind in ("4:4:4", "4:2:0"):
            assert heights[0] < heights[1]


def test_truncated_photographs_are_detected_below_the_crop() -> None:
    content = encoded("JPEG", photo(400, 600))
    box = Crop(1, 1, 99, 99, (20, 20))
    assert decode_bytes(content, crop=lambda *_: box).shape == (20, 20, 3)
    for missing in (1, 2, 100, len(content) // 3):
        with pytest.raises(ImageError, match="it is truncated"):
            decode_bytes(content[:-missing], crop=lambda *_: box)


def test_damaged_photographs_are_read_as_in_full() -> None:
    """Pillow reads most of them, so that damage below the crop need not be detected."""
    content = encoded("JPEG", photo(400, 600))
    start = content.index(b"\xff\xda") + 20
    box = Crop(0, 0, 300, 600, (300, 600))
    generator = np.random.default_rng(0)
    for position in generator.integers(start, len(content), 200):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(generator.integers(8))
        whole, part = (outcome(bytes(damaged), crop) for crop in (None, lambda *_: box))
        if isinstance(whole, str):
            assert part == whole
        else:
            assert np.array_equal(part, whole[:300])


def outcome(content: bytes, crop: Any) -> np.ndarray | str:
    """Return the pixels, or the error."""
    try:
        return decode_bytes(content, crop=crop)
    except ImageError as error:
        return error.code


def test_random_numbers_do_not_depend_on_the_scale(tmp_path: Path) -> None:
    """Crops, flips and the noise after them; a decoder that fails does not draw twice."""
    recipe = v2.Compose([v2.RandomResizedCrop(32), v2.RandomHorizontalFlip(), v2.ColorJitter(0.4)])
    contents = [encoded("JPEG", photo(300, 400)), in_mpo(encoded("JPEG", photo(300, 400))), encoded("PNG")]
    contents += [encoded("JPEG", photo(300, 400).convert("CMYK"))]
    for content in contents:
        states = []
        for decoding in (SCALED, FULL):
            read(content, recipe, decoding, seed=3)
            states.append(torch.get_rng_state())
        assert torch.equal(*states)


KINDS: dict[str, Callable[[Image.Image], bytes]] = {
    "grey.jpg": lambda image: encoded("JPEG", image.convert("L")),
    "progressive.jpg": lambda image: encoded("JPEG", image, progressive=True),
    "mpo.jpg": lambda image: in_mpo(encoded("JPEG", image)),
    "cmyk.jpg": lambda image: encoded("JPEG", image.convert("CMYK")),
    "a.png": lambda image: encoded("PNG", image),
    "a.webp": lambda image: encoded("WEBP", image),
    "a.tif": lambda image: encoded("TIFF", image),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_format_is_read_with_and_without_scaling(kind: str, channels: int, sizes: list[tuple[int, int]]) -> None:
    content = KINDS[kind](photo(400, 600))
    for name in ("center", "resized crop"):
        images = [read(content, VIEWS[name](32), replace(each, channels=channels)) for each in (SCALED, FULL)]
        assert images[0].shape == (channels, 32, 32)
        if kind in ("grey.jpg", "progressive.jpg", "mpo.jpg"):
            assert np.abs(images[0] - images[1]).mean() < 3
            assert sizes[-2] == (50, 75) and sizes[-1] == (400, 600)
        else:
            assert np.array_equal(*images)
            assert not sizes


@pytest.mark.parametrize("name", [name for name in UNREADABLE if name.endswith(".jpg")])
def test_unreadable_files_have_the_same_reason_at_any_scale(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(UNREADABLE[name][0])
    errors = []
    for decoding in (SCALED, FULL):
        with pytest.raises(ImageError) as caught:
            ViewReader(CenterView(16), decoding)(partial(decode, path))
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


def test_a_truncated_photograph_is_truncated_at_any_scale() -> None:
    content = encoded("JPEG", photo(800, 1200))
    for length in np.linspace(len(content) // 2, len(content) - 100, 20).astype(int):
        with pytest.raises(ImageError, match="it is truncated"):
            read(content[:length], v2.RandomResizedCrop(32), SCALED, seed=int(length))


@pytest.mark.parametrize(
    "first",
    [
        v2.CenterCrop(64),
        v2.RandomCrop(64),
        v2.Resize(64, antialias=False),
        v2.Resize(64, interpolation=v2.InterpolationMode.BICUBIC),
        v2.Resize(64, max_size=90),
        v2.RandomResizedCrop(64, interpolation=v2.InterpolationMode.NEAREST),
        v2.RandomHorizontalFlip(),
        None,
    ],
)
def test_transforms_of_other_kinds_read_the_full_image(first: Any, sizes: list[tuple[int, int]]) -> None:
    content = encoded("JPEG", photo(300, 400))
    view = None if first is None else v2.Compose([first, v2.RandomHorizontalFlip()])
    assert not difference(content, view).any()
    assert set(sizes) == {(300, 400)}


def test_augmented_items_are_reproducible(tmp_path: Path) -> None:
    """Bit for bit, whichever items were read before."""
    for number in range(4):
        path = tmp_path / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded("JPEG", photo(300, 400, number)))
    recipe = v2.Compose([v2.RandomResizedCrop(32), v2.RandomHorizontalFlip()])

    def dataset() -> SeededDataset:
        return SeededDataset(ImageDataset(scan_folder(str(tmp_path)), ViewReader(recipe, Decoding())), seed=1)

    whole = dataset().__getitems__([(0, index) for index in range(4)])
    again = dataset().__getitems__([(0, index) for index in (2, 3)])
    for (image, label), (other, other_label) in zip(whole[2:], again, strict=True):
        assert torch.equal(image, other)
        assert label == other_label


def test_the_setting_is_true_or_false() -> None:
    with pytest.raises(ConfigError, match=r"data\.jpeg_scaling must be true or false; got 'half'"):
        Decoding(jpeg_scaling="half")  # type: ignore[arg-type]
