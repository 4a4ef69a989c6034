"""Conversion of images of more than 8 bits per value to 8 bits, by their range from black to white.

Files of 16 bits often hold the 10 or 12 bits of a camera or scanner, and are almost black if read at full range. Signed, 32-bit
and floating-point values have no natural range. The range that a file declares is used; an unknown range is an error.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
from PIL import Image

from alexlab.data.bit_depth import FULL, Depth
from alexlab.data.deep_values import GREY_MODES, colour_values, grey_values, read_low_bytes, strips, without_opacity
from alexlab.data.image_file import Decoding

# A 16-bit image whose brightest value is below 1/16 of white has at most 16 of 256 grey levels, all of which look black. It is
# far more likely to be a 12-bit image than a photograph.
DARK = 4096
SCALE = 255.999  # just below 256, so that white becomes 255 and 16-bit values keep their high byte


class RangeError(Exception):
    """Error for a file whose values cannot be scaled.

    Args:
        message: the reason.
        code: key of `alexlab.data.image_file.REASONS`.
    """

    def __init__(self, message: str, code: str = "unknown_range") -> None:
        super().__init__(message)
        self.code = code


def uint8_strips(
    image: Image.Image, content: bytes, depth: Depth, decoding: Decoding
) -> Iterator[tuple[int, Image.Image]]:
    """Yield strips of a deep image, scaled to 8 bits, each with its first row.

    Args:
        image: loaded image.
        content: content of its file.
        depth: declarations of the file.
        decoding: decoding settings.

    Raises:
        RangeError: if neither the file nor the settings declare black and white, or if values are outside the range of the
            settings.
    """
    in_colour = image.mode not in GREY_MODES and depth.bits > 8
    if in_colour and _has_full_range(image, depth, decoding):
        yield from strips(image)  # the high bytes
        return
    values: Callable[[], Iterator[tuple[int, np.ndarray]]] = partial(grey_values, image, depth)
    if in_colour:
        low_bytes = read_low_bytes(image, content)
        if low_bytes is None:
            raise RangeError(
                "planar or premultiplied images of 16 bits can only be read at full range: set data.intensity_range=[0,65535], "
                "or save them interleaved and without premultiplied opacity"
            )
        values = partial(colour_values, image, low_bytes)
    black, white = _range((without_opacity(part, image.mode) for _, part in values()), depth, decoding)

    def scale(part: np.ndarray) -> np.ndarray:
        scaled = part.astype(np.float64)
        scaled -= black
        scaled *= SCALE / (white - black)
        scaled = np.fmin(np.fmax(scaled, 0, out=scaled), 255, out=scaled)  # NaN becomes black
        pixels: np.ndarray = scaled.astype(np.uint8)
        return 255 - pixels if depth.inverted else pixels

    # A table needs less memory than the floats of three channels.
    mode, convert = (image.mode, scale(np.arange(65536)).take) if in_colour else ("L", scale)
    for top, part in values():
        yield top, Image.frombytes(mode, part.shape[1::-1], convert(part).tobytes())


def _has_full_range(image: Image.Image, depth: Depth, decoding: Decoding) -> bool:
    """Return whether the high bytes of a deep colour image suffice to know that its range is the full one."""
    if depth.white not in (None, FULL):
        return False
    if decoding.intensity_range is not None:
        return list(decoding.intensity_range) == [0, FULL]
    if depth.significant_bits or depth.likely_white not in (None, FULL):
        return False
    return any(without_opacity(np.asarray(strip), image.mode).max() >= DARK // 256 for _, strip in strips(image))


def _range(values: Iterable[np.ndarray], depth: Depth, decoding: Decoding) -> tuple[float, float]:
    """Return the black and white values of an image, given as strips of its values.

    Raises:
        RangeError: see `uint8_strips`.
    """
    low, high, unscaled = math.inf, -math.inf, False
    for part in values:
        low = min(low, float(np.fmin.reduce(part, axis=None)))
        high = max(high, float(np.fmax.reduce(part, axis=None)))
        if depth.significant_bits:
            # The PNG standard requires values to be scaled to 16 bits, which leaves 0 in the other bits, or 1 after rounding.
            unscaled |= bool((part % 2 ** (16 - depth.significant_bits) > 1).any())
    given = decoding.intensity_range
    measured = f"this file's values are {low:g} to {high:g}"
    hint = f"{measured}; give the range of the device, such as data.intensity_range=[0,4095] for 12 bits"
    if given is None and not math.isfinite(high - low):
        raise RangeError("not all of its values are finite numbers")
    if depth.black is not None and depth.white is not None:
        if depth.black <= low and high <= depth.white and depth.black < depth.white:
            return depth.black, depth.white
        if given is None:
            raise RangeError(f"it declares {depth.black:g} to {depth.white:g}, but {hint}")
    if given is not None:
        # A bound such as 0.1 is compared as the 32-bit number that a file of floating-point numbers can hold.
        bounds = [float(np.float32(bound)) if depth.kind == "floating-point" else bound for bound in given]
        if low < bounds[0] or high > bounds[1]:
            raise RangeError(
                f"{measured}, outside [{given[0]:g},{given[1]:g}]; give the range of the device", "outside_range"
            )
        return given[0], given[1]
    if depth.likely_white is not None and high <= depth.likely_white:
        return 0.0, depth.likely_white
    if depth.kind == "unsigned" and depth.bits == 16:
        significant = depth.significant_bits or 16
        if significant < 16 and unscaled and high < 2**significant:
            return 0.0, 2.0**significant - 1
        if high >= DARK or high == 0 or (significant < 16 and not unscaled):
            return 0.0, FULL
    raise RangeError(f"{depth.bits} bits, {depth.kind}: {hint}")
