"""Fast decoding of JPEGs with simplejpeg (libjpeg-turbo without Pillow's copies), as far as a crop needs it.

- At 1/2, 1/4 and 1/8 scale the inverse DCT returns 4 x 4, 2 x 2 and 1 pixel per block of 8 x 8. What remains is the Huffman
  decoding, half of the time for a photograph of 12 megapixels.
- The rows below a crop are not decoded at all: the file is given a smaller height. A random resized crop ends at 86 % of the
  height on average. Truncated files are still detected, other damage below the crop is not.
"""

import math
import re
from functools import partial

import numpy as np
from PIL import Image

from alexlab.data.crop import Crop
from alexlab.data.orientation import apply_orientation, orientation_of, stored_crop, upright_size

try:
    import simplejpeg
except ImportError:  # a platform without a wheel
    simplejpeg = None

EIGHTHS = (1, 2, 4)  # of each side; libjpeg-turbo has vector code for these scales only
SPARE_ROWS = 32  # decoded below a crop: the tallest block, from which chroma is interpolated
MAX_FRACTION = 0.95  # of the height; copying the file would cost more than it saves above
UNREAD = re.compile(
    "Corrupt JPEG data: [0-9]+ extraneous bytes before marker 0xd9"
)  # libjpeg's message about unread rows
# ITU T.81, B.1.1.3: all markers except restarts (D0 to D7); in the compressed data, each byte FF is followed by 00.
START_OF_SCAN, END_OF_IMAGE, RESTART_INTERVAL, FIRST_WITH_LENGTH = 0xDA, 0xD9, 0xDD, 0xC0
START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)  # among the starts of frames
MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")


def decode_jpeg(content: bytes, image: Image.Image, channels: int, crop: Crop | None) -> np.ndarray | None:
    """Return the pixels of a JPEG as `decode_bytes` does, (H, W) if they are grey; None if simplejpeg cannot decode it.

    Args:
        content: content of the file.
        image: the same file, opened by Pillow.
        channels: 3 for RGB, 1 for grey.
        crop: the part to return; None for the whole image.
    """
    if simplejpeg is None or image.format not in ("JPEG", "MPO") or image.mode not in ("RGB", "L"):
        return None
    orientation = orientation_of(image)
    width, height = upright_size(image)
    stored = stored_crop(crop or Crop(0, 0, height, width, (height, width)), orientation, height, width)
    eighths = _eighths(stored)
    try:
        pixels = _decode_rows(content, image, channels, eighths, stored.top + stored.height)
    except ValueError:
        return None
    part = stored.cut(pixels) if eighths == 8 else _resize(pixels, stored, eighths / 8)
    return apply_orientation(part, orientation)


def _decode_rows(content: bytes, image: Image.Image, channels: int, eighths: int, num_rows: int) -> np.ndarray:
    """Decode at least the first rows of the stored image at a scale.

    Raises:
        ValueError: if simplejpeg cannot decode it.
    """
    decode = partial(
        simplejpeg.decode_jpeg,
        colorspace="RGB" if channels == 3 else "GRAY",
        min_width=_scaled(image.width, eighths),
        min_factor=8 / eighths,
    )
    num_rows += SPARE_ROWS
    height_at = height_position(content) if num_rows < MAX_FRACTION * image.height else None
    if height_at is not None:
        shortened = bytearray(content)
        shortened[height_at : height_at + 2] = num_rows.to_bytes(2)
        pixels = np.empty((_scaled(num_rows, eighths), _scaled(image.width, eighths), channels), np.uint8)
        try:
            decode(shortened, min_height=len(pixels), buffer=pixels)
        except ValueError as error:
            if UNREAD.fullmatch(str(error)):
                return pixels
    whole: np.ndarray = decode(content, min_height=_scaled(image.height, eighths))
    return whole


def _scaled(side: int, eighths: int) -> int:
    """Return the length of a side at a scale, which libjpeg rounds up."""
    return -(-side * eighths // 8)


def _eighths(crop: Crop) -> int:
    """Return the smallest scale at which a crop has at least as many pixels as its size, in eighths."""
    rows, columns = crop.size
    return next((n for n in EIGHTHS if n * crop.height >= 8 * rows and n * crop.width >= 8 * columns), 8)


def _resize(pixels: np.ndarray, crop: Crop, scale: float) -> np.ndarray:
    """Resize a crop of an image that was decoded at a scale, with torchvision's filter: antialiased, triangle.

    A crop of whole pixels is only cut, and resized by torchvision, which takes half the time. Rounding the edges of the others
    would shift the result by up to half a pixel, which is three times as far from full decoding.
    """
    edges = crop.left, crop.top, crop.left + crop.width, crop.top + crop.height
    left, top, right, bottom = (scale * edge for edge in edges)
    first_row, first_column = math.floor(top), math.floor(left)
    box = left - first_column, top - first_row, right - first_column, bottom - first_row
    part = pixels[first_row : math.ceil(bottom), first_column : math.ceil(right)]
    if all(edge.is_integer() for edge in box):
        return part
    image = Image.fromarray(part.squeeze(2) if part.shape[2] == 1 else part)
    return np.array(image.resize(crop.size[::-1], Image.Resampling.BILINEAR, box=box))


def num_scans(content: bytes) -> int:
    """Return the number of scans of the first image in a JPEG file."""
    return _read_markers(content)[0]


def height_position(content: bytes) -> int | None:
    """Return the position of the two bytes with the height of the first image; None if all of its rows must be decoded.

    That is so if it has several scans, each of which covers all rows, or restart markers, after which libjpeg would not report
    the unread rows in the same way.
    """
    return _read_markers(content)[1]


def _read_markers(content: bytes) -> tuple[int, int | None]:
    """Go from marker to marker as libjpeg does; return `num_scans` and `height_position`."""
    scans, position, frame, num_components, restarts = 0, 2, None, -1, False
    while (match := MARKER.search(content, position)) is not None:
        marker, position = content[match.end() - 1], match.end()
        if marker == END_OF_IMAGE:
            break
        if marker in START_OF_FRAME:
            frame, num_components = position + 3, -1 if marker in PROGRESSIVE else _byte(content, position + 7)
        elif marker == RESTART_INTERVAL:
            restarts = any(content[position + 2 : position + 4])
        elif marker == START_OF_SCAN:
            scans += 1
            if _byte(content, position + 2) == num_components:  # all of them at once: libjpeg refuses another scan
                return scans, None if restarts else frame
        if marker >= FIRST_WITH_LENGTH:  # lower ones are undefined; libjpeg skips them without a length
            position += max(2, int.from_bytes(content[position : position + 2]))
    return scans, None


def _byte(content: bytes, position: int) -> int:
    """Return a byte of a file; 0 after its end."""
    return int.from_bytes(content[position : position + 1])
