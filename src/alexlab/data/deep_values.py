"""Values of images of more than 8 bits, with all bits, sign and byte order as their files have them."""

import sys
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from alexlab.data.bit_depth import Depth, correct_raw_modes, is_planar

STRIP = 512  # rows converted at a time
GREY_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")  # of Pillow; it keeps the high bytes of other deep images
OTHER_ORDER = {"B": "L", "L": "B", "N": "L" if sys.byteorder == "big" else "B"}  # of bytes, in raw modes of Pillow


def strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield strips of an image, each with its first row."""
    for top in range(0, image.height, STRIP):
        yield top, image.crop((0, top, image.width, min(top + STRIP, image.height)))


def grey_values(image: Image.Image, depth: Depth) -> Iterator[tuple[int, np.ndarray]]:
    """Yield strips of the values of a loaded grey image, (H, W), each with its first row."""
    for top, strip in strips(image):
        values = np.asarray(strip)
        if depth.bits == 8:
            values = values.view(np.int8)  # Pillow reads signed bytes as unsigned
        elif depth.bits == 32 and depth.kind == "unsigned":
            values = values.view(np.uint32)
        yield top, values


def colour_values(high_bytes: Image.Image, low_bytes: Image.Image) -> Iterator[tuple[int, np.ndarray]]:
    """Yield strips of the values of a colour image, uint16 (H, W, C), each with its first row."""
    for (top, high), (_, low) in zip(strips(high_bytes), strips(low_bytes), strict=True):
        yield top, np.asarray(high).astype(np.uint16) << 8 | np.asarray(low)


def without_opacity(values: np.ndarray, mode: str) -> np.ndarray:
    """Return the values of a strip that have a range, in an image of this mode of Pillow."""
    return values if values.ndim == 2 else values[..., : 4 if mode == "CMYK" else 3]


def read_low_bytes(image: Image.Image, content: bytes) -> Image.Image | None:
    """Read a colour image of 16 bits in the other byte order, which makes Pillow keep the low bytes.

    Args:
        image: the same image, opened.
        content: content of its file.

    Returns:
        The low bytes in the mode of the image, or None if Pillow cannot read them.
    """
    low = Image.open(BytesIO(content), formats=[image.format or ""])
    correct_raw_modes(low)
    tiles: list[Any] = low.tile
    raw_modes = [tile.args if isinstance(tile.args, str) else tile.args[0] for tile in tiles]
    # Of the planes of a file, libtiff decompresses the high bytes in any case. RGBa is divided by the opacity, byte by byte.
    is_16 = all(";16" in raw_mode and not raw_mode.startswith("RGBa") for raw_mode in raw_modes)
    if not is_16 or (tiles[0].codec_name == "libtiff" and is_planar(low)):
        return None
    if raw_modes == ["LA;16B"]:  # only this one has no other order: its four bytes are read as four channels
        tiles[0] = tiles[0]._replace(args="RGBA")
        _, grey, _, opacity = low.split()
        return Image.merge("RGBA", (grey, grey, grey, opacity))
    for number, (tile, raw_mode) in enumerate(zip(tiles, raw_modes, strict=True)):
        other = raw_mode[:-1] + OTHER_ORDER[raw_mode[-1]]
        tiles[number] = tile._replace(args=other if isinstance(tile.args, str) else (other, *tile.args[1:]))
    low.load()
    return low
