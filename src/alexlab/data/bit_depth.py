"""Images of more than 8 bits per value: their range from black to white, and conversion to 8 bits.

Files of 16 bits often hold the 10 or 12 bits of a camera or scanner, and are almost black if read at full range. Signed, 32-bit
and floating-point values have no natural range. The range that a file declares is used; an unknown range is an error.
"""

import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from alexlab.data.image_file import Decoding

GREY_MODES = (
    "I",
    "I;16",
    "I;16B",
    "I;16L",
    "I;16N",
    "F",
)  # of Pillow; it reduces other deep images to their high bytes
FULL = 65535.0
# A 16-bit image whose brightest value is below 1/16 of white has at most 16 of 256 grey levels, all of which look black. It is
# far more likely to be a 12-bit image than a photograph.
DARK = 4096
SCALE = 255.999  # just below 256, so that white becomes 255 and 16-bit values keep their high byte
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # TIFF 6.0, sections 8 and 19
MIN_VALUES, MAX_VALUES = (340, 280), (341, 281)  # SMinSampleValue, MinSampleValue, ...
KINDS = {1: "unsigned", 2: "signed", 3: "floating-point"}


# Raw modes of big-endian TIFF files, and the modes after libtiff has decompressed them into native byte order, which Pillow 13
# does not take into account.
NATIVE = {"I;16BS": "I;16S", "I;32BS": "I;32S", "F;32BF": "F;32F"} if sys.byteorder == "little" else {}


class UnknownRangeError(Exception):
    """Error for a file that does not declare which values are black and white."""


@dataclass(frozen=True)
class Depth:
    """Declared bit depth, range and sign of the values of a file.

    Args:
        bits: bits per value.
        kind: one of KINDS.
        black, white: declared range; None if it is not declared.
        inverted: whether the smallest value is white.
        significant_bits: value of the sBIT chunk of a PNG.
    """

    bits: int
    kind: str = "unsigned"
    black: float | None = None
    white: float | None = None
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
    if image.format == "PPM" and image.mode == "I":
        arguments = image.tile[0].args  # type: ignore[attr-defined]
        max_value = arguments[-1] if isinstance(arguments, tuple) else FULL
        return Depth(16) if max_value == FULL else Depth(16, black=0.0, white=FULL)  # Pillow has scaled by the maximum
    return None


def _significant_bits(content: bytes) -> int | None:
    position = content.find(b"sBIT", 0, content.find(b"IDAT"))
    return content[position + 4] if position >= 0 and 0 < content[position + 4] < 16 else None


def use_native_order(image: Image.Image) -> None:
    """Correct the byte order that Pillow assumes for compressed big-endian TIFF files, before the image is loaded."""
    for tile in image.tile[:1] if image.format == "TIFF" else ():  # type: ignore[attr-defined]
        if tile.codec_name == "libtiff" and tile.args[0] in NATIVE:
            image.tile = [tile._replace(args=(NATIVE[tile.args[0]], *tile.args[1:]))]  # type: ignore[attr-defined]


def _tiff_depth(image: Image.Image) -> Depth | None:
    tags = image.tag_v2  # type: ignore[attr-defined]
    bits, kind = int(_number(tags, BITS) or 1), KINDS.get(int(_number(tags, SAMPLE_FORMAT) or 1), "unsigned")
    if bits <= 8 and kind == "unsigned":
        return None
    black, white = _number(tags, *MIN_VALUES), _number(tags, *MAX_VALUES)
    if kind == "unsigned":
        black = black or 0.0
        if white is None and bits < 16:
            white = 2.0**bits - 1
    inverted = _number(tags, PHOTOMETRIC) == 0
    return Depth(bits, kind, black, white, inverted)


def _number(tags: object, *names: int) -> float | None:
    """Return the value of the first of these tags that holds a finite number, for the first channel."""
    for name in names:
        value = tags.get(name)  # type: ignore[attr-defined]
        try:
            number = float(value[0] if isinstance(value, tuple) else value)
        except (TypeError, ValueError, IndexError, ZeroDivisionError):
            continue
        if math.isfinite(number):
            return number
    return None


def uint8_converter(
    mode: str, strips: Iterable[Image.Image], depth: Depth, decoding: Decoding
) -> Callable[[Image.Image], np.ndarray] | None:
    """Return a function from a strip of a deep grey image to uint8 (H, W); None for deep colour images, which Pillow converts.

    Args:
        mode: Pillow mode of the loaded image.
        strips: all strips of the image.
        depth: declarations of the file.
        decoding: decoding settings.

    Raises:
        UnknownRangeError: if neither the file nor the settings declare black and white.
    """
    if mode not in GREY_MODES and depth.bits > 8:
        _check_high_bytes(strips, depth, decoding)
        return None
    low, high, unscaled = math.inf, -math.inf, False
    for strip in strips:
        values = _grey_values(strip, depth)
        low = np.fmin(low, np.fmin.reduce(values, axis=None))
        high = np.fmax(high, np.fmax.reduce(values, axis=None))
        if depth.significant_bits:
            unscaled |= bool((values % 2 ** (16 - depth.significant_bits) > 1).any())
    black, white = _range(depth, float(low), float(high), decoding, unscaled=unscaled)

    def convert(strip: Image.Image) -> np.ndarray:
        scaled = _grey_values(strip, depth).astype(np.float64)
        scaled -= black
        scaled *= SCALE / (white - black)
        scaled = np.fmin(np.fmax(scaled, 0, out=scaled), 255, out=scaled)  # NaN becomes black
        pixels: np.ndarray = scaled.astype(np.uint8)
        return 255 - pixels if depth.inverted else pixels

    return convert


def _grey_values(strip: Image.Image, depth: Depth) -> np.ndarray:
    """Return the values of a strip of a grey image, (H, W), with the sign and width that the file declares."""
    values = np.asarray(strip)
    if depth.bits == 8:
        return values.view(np.int8)  # Pillow reads signed bytes as unsigned
    if depth.bits == 32 and depth.kind == "unsigned":
        return values.view(np.uint32)
    return values


def _range(depth: Depth, low: float, high: float, decoding: Decoding, *, unscaled: bool) -> tuple[float, float]:
    """Return the black and white values of a grey image.

    Args:
        depth: declarations of the file.
        low, high: smallest and largest value.
        decoding: decoding settings.
        unscaled: whether a value uses the bits below the significant ones of a PNG. The standard requires values to be scaled
            to 16 bits, which leaves 0 in those bits, or 1 after rounding.

    Raises:
        UnknownRangeError: if neither the file nor the settings declare them.
    """
    if decoding.intensity_range is None and not math.isfinite(high - low):
        raise UnknownRangeError("not all of its values are finite numbers")
    if depth.black is not None and depth.white is not None:
        if depth.black <= low and high <= depth.white and depth.black < depth.white:
            return depth.black, depth.white
        if decoding.intensity_range is None:
            raise UnknownRangeError(
                f"it declares {depth.black:g} to {depth.white:g}, but its values are {low:g} to {high:g}; "
                + _range_hint(low, high)
            )
    if decoding.intensity_range is not None:
        return decoding.intensity_range[0], decoding.intensity_range[1]
    if depth.kind == "unsigned" and depth.bits == 16:
        significant = depth.significant_bits or 16
        if significant < 16 and unscaled and high < 2**significant:
            return 0.0, 2.0**significant - 1
        if high >= DARK or high == 0 or (significant < 16 and not unscaled):
            return 0.0, FULL
    raise UnknownRangeError(
        f"{depth.bits} bits, {depth.kind}: its values are {low:g} to {high:g}; {_range_hint(low, high)}"
    )


def _check_high_bytes(strips: Iterable[Image.Image], depth: Depth, decoding: Decoding) -> None:
    """Check that a deep colour image, of which Pillow keeps the high bytes, is not almost black."""
    highest = max(int(np.asarray(strip)[..., : 1 if strip.mode == "LA" else 3].max()) for strip in strips)
    dark = 256 * (highest + 1) <= DARK or (depth.white or FULL) < DARK
    if dark and (decoding.intensity_range is None or decoding.intensity_range[1] < FULL):
        raise UnknownRangeError(
            f"{depth.bits} bits in several channels, which are read at full range only, and its values are below "
            f"{256 * (highest + 1):,} of 65,535; scale the values, or data.intensity_range=[0,65535] reads them unscaled"
        )


def _range_hint(low: float, high: float) -> str:
    """Return a hint with a range that fits the values."""
    if low < 0:
        black, white = math.floor(low), math.ceil(high)
    else:
        black, white = 0, 1 if high <= 1 else 2 ** math.ceil(math.log2(high + 1)) - 1
    return f"data.intensity_range=[{black},{max(white, black + 1)}] declares it for all such files"
