"""From a file to an upright picture: the one place where images are decoded. Imports no torch.

Pillow is the reference. JPEGs, which take most of the time, are decoded by simplejpeg where it is installed (both are
libjpeg-turbo, without Pillow's copies); what it refuses goes to Pillow, which has the last word on what is readable.
"""

import hashlib
import math
import re
import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError, features

from alexlab.data.bit_depth import UnknownRangeError, conversion, depth_of, use_native_order
from alexlab.data.file_types import HAS_HEIF, HEIF_PACKAGE
from alexlab.data.image_file import DEFAULT_DECODING, FORMATS, MAX_ASPECT, Decoding, read_image, unreadable
from alexlab.errors import ImageError

try:
    import simplejpeg
except ImportError:  # a platform without a wheel
    simplejpeg = None
if HAS_HEIF:
    import pillow_heif

    pillow_heif.register_heif_opener()

MODES = {1: "L", 3: "RGB"}
# WebP's decoder holds the picture four times; AVIF and HEIC took 10 and 8 bytes a pixel, JPEG half of that.
SHARES = {"WEBP": 5 / 9, "AVIF": 5 / 9, "HEIF": 5 / 9}  # of data.max_megapixels
# A progressive JPEG has some ten scans, each of which may touch every pixel and take 60 bytes: a megabyte could take hours.
MAX_SCANS = 17  # of the largest picture; a smaller one may have more
# ITU T.81, B.1.1.3: markers but for those within the compressed data, where a 0 follows each 255, and restarts (D0 to D7).
START_OF_SCAN, END_OF_IMAGE, FIRST_WITH_LENGTH = 0xDA, 0xD9, 0xC0
MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
ORIENTATION = 0x0112  # the EXIF tag
STRIP = 512  # rows that are converted at a time
BRANDS = {  # of ISO base media files: bytes 8 to 12, after "ftyp"
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"), f"HEIC needs {HEIF_PACKAGE}"),
    **dict.fromkeys((b"avif", b"avis"), "this Pillow was built without AVIF"),
}


def decode(path: str | Path, decoding: Decoding = DEFAULT_DECODING, sha256: bytes | None = None) -> np.ndarray:
    """Decode a file into an upright picture, uint8 (H, W, channels), grey for 1 channel and RGB for 3.

    Transparency is dropped, of an animation the first picture is taken, more than 8 bits are scaled to 8.

    Args:
        path: of the file.
        decoding: the settings.
        sha256: which the file must have, if any.

    Raises:
        ImageError: with the path and the reason.
    """
    content = read_image(path, decoding)
    if sha256 is not None and hashlib.sha256(content).digest() != sha256:
        raise unreadable(path, "changed")
    return decode_bytes(content, decoding, path)


def decode_bytes(content: bytes, decoding: Decoding = DEFAULT_DECODING, path: str | Path = "") -> np.ndarray:
    """Decode the content of a file as `decode` does; `path` is for messages.

    Raises:
        ImageError: with the path and the reason.
    """
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            check_size(path, image, decoding)
            if image.format in ("JPEG", "MPO"):
                _check_scans(path, image, content, decoding)
            pixels = _by_simplejpeg(content, image, decoding.channels)
            if pixels is None:
                pixels = _by_pillow(image, content, decoding)
    except ImageError:
        raise
    except UnknownRangeError as error:
        raise unreadable(path, "unknown_range", str(error)) from error
    except UnidentifiedImageError as error:
        raise _unidentified(path, content) from error
    except Exception as error:  # damaged files make decoders fail in every way
        detail = (str(error).splitlines() or [type(error).__name__])[0]
        code = "truncated" if "truncated" in detail.lower() else "damaged"
        raise unreadable(path, code, detail) from error
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _unidentified(path: str | Path, content: bytes) -> ImageError:
    """Return the error of a file that no decoder has recognised."""
    if content[4:8] == b"ftyp" and content[8:12] in BRANDS:
        is_there = features.check("avif") if content[8:10] == b"av" else HAS_HEIF
        return unreadable(path, "damaged" if is_there else "no_decoder", "" if is_there else BRANDS[content[8:12]])
    if content.startswith(tuple(TiffImagePlugin.PREFIXES)):
        try:
            TiffImagePlugin.TiffImageFile(BytesIO(content))
        except Exception as error:  # why Pillow does not read this kind of TIFF, which Image.open does not say
            code = "no_decoder" if str(error).startswith("unknown") else "damaged"
            return unreadable(path, code, f"TIFF: {error}")
    return unreadable(path, "unknown_format")


def check_size(path: str | Path, image: Image.Image, decoding: Decoding) -> None:
    """Raise ImageError for an opened picture that would need too much memory."""
    width, height = image.size
    share = SHARES.get(image.format or "", 1)
    if width * height > decoding.max_pixels * share:
        needed = math.ceil(width * height / share / 1e6)
        detail = f"{width} x {height}: data.max_megapixels={needed} admits it, {decoding.max_megapixels:g} does not"
        raise unreadable(path, "too_large", detail)
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise unreadable(path, "too_oblong", f"{width} x {height}")


def _check_scans(path: str | Path, image: Image.Image, content: bytes, decoding: Decoding) -> None:
    """Raise ImageError for a JPEG that would take too long."""
    limit, scans = MAX_SCANS * decoding.max_pixels // max(1, image.width * image.height), _num_scans(content)
    if scans > limit:
        raise unreadable(path, "too_many_scans", f"{image.width} x {image.height} in {scans} scans, at most {limit}")


def _num_scans(content: bytes) -> int:
    """Return the number of scans of the first picture of a JPEG file, as libjpeg reads it: from marker to marker."""
    scans, place = 0, 2
    while (found := MARKER.search(content, place)) is not None:
        marker, place = content[found.end() - 1], found.end()
        if marker == END_OF_IMAGE:
            break
        scans += marker == START_OF_SCAN
        if marker >= FIRST_WITH_LENGTH:  # libjpeg skips lower ones, which nothing defines, without a length
            place += max(2, int.from_bytes(content[place : place + 2]))
    return scans


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where there is none or the metadata is broken, on which no pixel depends."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # it fails in as many ways as metadata can be broken
        return 1
    return orientation if isinstance(orientation, int) and orientation in range(1, 9) else 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height of an opened picture once it stands upright."""
    width, height = image.size
    turned = _orientation(image) >= 5 and image.format != "TIFF"  # whose size Pillow turns itself
    return (height, width) if turned else (width, height)


def _by_simplejpeg(content: bytes, image: Image.Image, channels: int) -> np.ndarray | None:
    """Return the picture, or None where this is nothing for simplejpeg."""
    if simplejpeg is None or image.format != "JPEG" or image.mode not in ("RGB", "L"):
        return None
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(content, colorspace="RGB" if channels == 3 else "GRAY")
    except ValueError:
        return None
    return _turned(pixels, _orientation(image) if "exif" in image.info else 1)


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return a stored picture as its EXIF orientation means it to be seen (EXIF 2.3, tag 0x0112)."""
    if orientation not in range(2, 9):
        return pixels
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _by_pillow(image: Image.Image, content: bytes, decoding: Decoding) -> np.ndarray:
    """Convert strip by strip, so that a large picture is not in memory in each of its forms."""
    depth = depth_of(image, content)
    use_native_order(image)
    image.load()
    orientation = _orientation(image)
    to_8_bits = None if depth is None else conversion(image.mode, (s for _, s in _strips(image)), depth, decoding)
    pixels = np.empty((image.height, image.width, decoding.channels), np.uint8)
    for top, strip in _strips(image):
        if to_8_bits is not None:
            strip = Image.fromarray(to_8_bits(strip))
        if strip.mode == "P" and "transparency" in image.info:
            strip = strip.convert("RGBA")
        converted = np.asarray(strip.convert(MODES[decoding.channels]))
        pixels[top : top + STRIP] = converted.reshape(-1, image.width, decoding.channels)
    return _turned(pixels, orientation)


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield parts of an image, each with its first row."""
    for top in range(0, image.height, STRIP):
        yield top, image.crop((0, top, image.width, min(top + STRIP, image.height)))


# Our own limit is an error before anything is decoded; Pillow's would be a warning first.
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", ".*", Warning, r"PIL\..*")  # of damaged metadata, which no pixel depends on
