"""Colour images of more than 8 bits are scaled like grey ones, with all of their bits."""

import struct
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from alexlab.data.decode import decode_bytes
from alexlab.data.deep_values import STRIP
from alexlab.data.image_file import Decoding
from alexlab.errors import ImageError
from support.bad_images import tiff

RAMP = np.linspace(0, 1, 2400).reshape(40, 60)
SCENE = np.stack([RAMP, 1 - RAMP, np.full_like(RAMP, 0.3)], -1)
OPACITY = np.full((40, 60, 1), 9, np.uint16)


def scene(white: int) -> np.ndarray:
    return (SCENE * white).round().astype(np.uint16)


def png(values: np.ndarray, significant_bits: int | None = None) -> bytes:
    """Return a PNG file of 16 bits in 2 (grey), 3 or 4 channels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    depth = b"" if significant_bits is None else chunk(b"sBIT", bytes([significant_bits] * channels))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + depth
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def planar(values: np.ndarray, *, order: str = "<", deflate: bool = False) -> bytes:
    """Return a TIFF file that stores one channel after the other."""
    planes = [values[..., channel].astype(f"{order}u2").tobytes() for channel in range(3)]
    planes = [zlib.compress(plane) if deflate else plane for plane in planes]
    ends = np.cumsum([8, *map(len, planes)]).tolist()
    tags: dict[int, Any] = {273: ("I", *ends[:3]), 279: ("I", *map(len, planes)), 284: ("H", 2)}
    content = tiff(values, {**tags, 259: ("H", 8 if deflate else 1)}, order=order)
    return content[:8] + b"".join(planes) + content[ends[3] :]


def ppm(values: np.ndarray) -> bytes:
    return b"P6 60 40 65535\n" + values.astype(">u2").tobytes()


def decoded(content: bytes, **settings: Any) -> np.ndarray:
    return decode_bytes(content, Decoding(**settings)).astype(int)


def with_opacity(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values, OPACITY], -1)


FILES: dict[str, Callable[[np.ndarray], bytes]] = {
    "png": png,
    "png with opacity": lambda values: png(with_opacity(values)),
    "tiff": tiff,
    "tiff, big-endian": partial(tiff, order=">"),
    "tiff, deflated": partial(tiff, deflate=True),
    "tiff, big-endian, deflated": partial(tiff, order=">", deflate=True),
    "tiff with opacity": lambda values: tiff(with_opacity(values), {338: ("H", 2)}),
    "tiff, planar": planar,
    "tiff, planar, big-endian": partial(planar, order=">"),
    "ppm": ppm,
}


@pytest.mark.parametrize("name", FILES)
def test_a_range_from_the_settings_scales_colours(name: str) -> None:
    pixels = decoded(FILES[name](scene(4095)), intensity_range=[0, 4095])
    assert np.abs(pixels - SCENE * 255).max() <= 1.01


@pytest.mark.parametrize("name", FILES)
def test_colours_at_full_range_keep_their_high_bytes(name: str) -> None:
    content = FILES[name](scene(65535))
    for settings in ({}, {"intensity_range": [0, 65535]}):
        assert np.array_equal(decoded(content, **settings), scene(65535) >> 8)


@pytest.mark.parametrize("name", FILES)
def test_dark_colours_need_a_range(name: str) -> None:
    content = FILES[name](scene(4000))
    with pytest.raises(
        ImageError, match="16 bits, unsigned: this file's values are 0 to 4000; give the range of the device"
    ):
        decoded(content)
    with pytest.raises(
        ImageError, match=r"values outside data\.intensity_range \(this file's values are 0 to 4000, outside"
    ):
        decoded(content, intensity_range=[0, 2000])
    assert np.array_equal(decoded(content, intensity_range=[0, 65535]), scene(4000) >> 8)
    assert decoded(FILES[name](scene(0))).max() == 0, "black is black in any range"


@pytest.mark.parametrize("kind", ["planar", "multiplied by the opacity"])
def test_colours_whose_low_bytes_cannot_be_read_are_read_at_full_range_only(kind: str) -> None:
    def content(white: int) -> bytes:
        if kind == "planar":
            return planar(scene(white), deflate=True)
        return tiff(np.concatenate([scene(white), np.full_like(OPACITY, 65535)], -1), {338: ("H", 1)})

    for settings in ({}, {"intensity_range": [0, 65535]}):
        assert np.abs(decoded(content(65535), **settings) - SCENE * 255).max() <= 1.01
    for settings in ({}, {"intensity_range": [0, 4095]}):
        with pytest.raises(
            ImageError, match=r"can only be read at full range: set data\.intensity_range=\[0,65535\], or"
        ):
            decoded(content(4095), **settings)


def test_grey_with_opacity_has_all_bits() -> None:
    values = (RAMP * 4095).round().astype(np.uint16)[..., None]
    pixels = decoded(png(with_opacity(values)), intensity_range=[0, 4095])
    assert np.abs(pixels - RAMP[..., None] * 255).max() <= 1.01


def test_inks_are_scaled() -> None:
    """CMYK: the largest value is the most ink."""
    inks = np.concatenate([4095 - scene(4095), 0 * OPACITY], -1)
    pixels = decoded(tiff(inks, {262: ("H", 5)}), intensity_range=[0, 4095])
    assert np.abs(pixels - SCENE * 255).max() <= 2


@pytest.mark.parametrize(
    "content",
    [
        tiff(scene(4095), {341: ("H", 4095, 4095, 4095)}),
        tiff(scene(4095), {281: ("H", 4095, 4095, 4095)}),
        png(scene(4095), 12),
        png((scene(4095) * 65535.0 / 4095).round().astype(np.uint16), 12),
    ],
)
def test_a_declared_range_scales_colours(content: bytes) -> None:
    assert np.abs(decoded(content) - SCENE * 255).max() <= 1.01


def test_a_rotated_deep_tiff_file_is_scaled() -> None:
    pixels = decoded(tiff(scene(4095), {274: ("H", 6)}), intensity_range=[0, 4095])
    assert np.abs(pixels - np.rot90(SCENE, -1) * 255).max() <= 1.01


def test_a_large_image_is_scaled_strip_by_strip() -> None:
    """The range is that of the whole image, not of a strip."""
    values = np.repeat(scene(4095)[:, :1], 40, 1).repeat(30, 0)
    assert len(values) > 2 * STRIP
    pixels = decoded(png(values), intensity_range=[0, 4095])
    assert np.abs(pixels - values / 4095 * 255).max() <= 1.01
