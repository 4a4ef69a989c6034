"""Images of more than 8 bits per value: what their files declare, and the raw modes in which Pillow must read them."""

import math
import sys
from dataclasses import dataclass
from typing import Any

from PIL import Image

FULL = 65535.0
BITS, PHOTOMETRIC, PLANAR, SAMPLE_FORMAT = 258, 262, 284, 339  # TIFF 6.0, sections 8 and 19
MAX_SAMPLE_VALUE, S_MIN_SAMPLE_VALUE, S_MAX_SAMPLE_VALUE = 281, 340, 341
MAX_VALUES = [2.0**bits - 1 for bits in range(8, 33)]
KINDS = {1: "unsigned", 2: "signed", 3: "floating-point"}
# Raw modes of big-endian TIFF files, and the modes after libtiff has decompressed them into native byte order.
NATIVE = {"I;16BS": "I;16S", "I;32BS": "I;32S", "F;32BF": "F;32F"} if sys.byteorder == "little" else {}


@dataclass(frozen=True)
class Depth:
    """Declared bit depth, range and sign of the values of a file.

    Args:
        bits: bits per value.
        kind: one of KINDS.
        black, white: declared range; None if it is not declared.
        likely_white: value that is white if neither the file nor the settings declare another.
        inverted: whether the smallest value is white.
        significant_bits: value of the sBIT chunk of a PNG.
    """

    bits: int
    kind: str = "unsigned"
    black: float | None = None
    white: float | None = None
    likely_white: float | None = None
    inverted: bool = False
    significant_bits: int | None = None


def depth_of(image: Image.Image, content: bytes) -> Depth | None:
    """Return the declarations of an opened image that is not yet loaded, or None for unsigned values of at most 8 bits."""
    if image.format == "PNG" and content[24] == 16:
        return Depth(16, significant_bits=_significant_bits(content))
    if image.format == "TIFF":
        return _tiff_depth(image)
    if image.format == "PPM" and image.mode == "F":
        return Depth(32, "floating-point")
    if image.format == "PPM" and image.mode in ("I", "RGB"):
        tile = image.tile[0]  # type: ignore[attr-defined]
        if isinstance(tile.args, tuple) and tile.args[-1] != FULL:  # Pillow scales by this maximum, to 16 or 8 bits
            return Depth(16, black=0.0, white=FULL) if image.mode == "I" else None
        return Depth(16) if image.mode == "I" or tile.codec_name == "ppm" else None  # colours as text: 8 bits
    return None


def _significant_bits(content: bytes) -> int | None:
    position = content.find(b"sBIT", 0, content.find(b"IDAT"))
    return content[position + 4] if position >= 0 and 0 < content[position + 4] < 16 else None


def correct_raw_modes(image: Image.Image) -> None:
    """Correct what Pillow 13 assumes about the bytes of deep images, before the image is loaded."""
    tiles: list[Any] = image.tile  # type: ignore[attr-defined]
    for number, tile in enumerate(tiles):
        if tile.codec_name == "libtiff" and tile.args[0] in NATIVE:
            tiles[number] = tile._replace(args=(NATIVE[tile.args[0]], *tile.args[1:]))
        elif tile.codec_name == "ppm" and tile.args == ("RGB", FULL):  # Pillow would scale to 8 bits
            tiles[number] = tile._replace(codec_name="raw", args=("RGB;16B", 0, 1))
        elif tile.codec_name == "raw" and is_planar(image) and _number(image.tag_v2, BITS) == 16:  # type: ignore[attr-defined]
            order = "L" if image.tag_v2.prefix == b"II" else "B"  # type: ignore[attr-defined]
            tiles[number] = tile._replace(args=(f"{tile.args[0]};16{order}", *tile.args[1:]))


def is_planar(image: Image.Image) -> bool:
    """Return whether an image is a TIFF file that stores each channel on its own."""
    return image.format == "TIFF" and _number(image.tag_v2, PLANAR) == 2  # type: ignore[attr-defined]


def _tiff_depth(image: Image.Image) -> Depth | None:
    tags = image.tag_v2  # type: ignore[attr-defined]
    bits, kind = int(_number(tags, BITS) or 1), KINDS.get(int(_number(tags, SAMPLE_FORMAT) or 1), "unsigned")
    if bits <= 8 and kind == "unsigned":
        return None
    black, white, likely_white = _number(tags, S_MIN_SAMPLE_VALUE), _number(tags, S_MAX_SAMPLE_VALUE), None
    if kind == "unsigned":
        black = black or 0.0
        if white is None and bits < 16:
            white = 2.0**bits - 1
        # TIFF 6.0, section 8: a statistic of the values that occur. Cameras write the largest possible value of their 8 or more
        # bits, other programs the largest one of each image, by which images would be scaled differently.
        largest = _number(tags, MAX_SAMPLE_VALUE)
        likely_white = largest if largest in MAX_VALUES else None
    return Depth(bits, kind, black, white, likely_white, inverted=_number(tags, PHOTOMETRIC) == 0)


def _number(tags: object, name: int) -> float | None:
    """Return the finite number that a tag holds for the first channel, or None."""
    value = tags.get(name)  # type: ignore[attr-defined]
    try:
        number = float(value[0] if isinstance(value, tuple) else value)
    except (TypeError, ValueError, IndexError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) else None
