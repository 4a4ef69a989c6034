"""Decoding of image files into upright images; only `alexlab.data.jpeg` decodes too.

Pillow is the reference. JPEGs, which take most of the time, are decoded by simplejpeg if it is installed; files that it rejects
are passed on to Pillow, which decides what is readable.
"""

import hashlib
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError, features

from alexlab.data.bit_depth import correct_raw_modes, depth_of
from alexlab.data.crop import CropRule, part_of
from alexlab.data.deep_values import strips
from alexlab.data.file_types import HAS_HEIF, HEIF_PACKAGE
from alexlab.data.image_file import DEFAULT_DECODING, FORMATS, MAX_ASPECT, Decoding, read_image, unreadable
from alexlab.data.intensity import RangeError, uint8_strips
from alexlab.data.jpeg import decode_jpeg, num_scans
from alexlab.data.orientation import apply_orientation, orientation_of, upright_size
from alexlab.errors import ImageError

if HAS_HEIF:
    import pillow_heif

    pillow_heif.register_heif_opener()

MODES = {1: "L", 3: "RGB"}
# The WebP decoder holds four copies of the image; AVIF and HEIC took 10 and 8 bytes per pixel, JPEG half of that.
PIXEL_LIMIT_FACTORS = {"WEBP": 5 / 9, "AVIF": 5 / 9, "HEIF": 5 / 9}  # multiplied by data.max_megapixels
# A progressive JPEG has about ten scans. A scan that touches every pixel can take 60 bytes, so that decoding one megabyte could
# take hours.
MAX_SCANS = 17  # in an image of the maximum size; smaller ones may have more
BRANDS = {  # ISO base media files: bytes 8 to 12, after "ftyp"
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"), f"HEIC needs {HEIF_PACKAGE}"),
    **dict.fromkeys((b"avif", b"avis"), "this Pillow was built without AVIF"),
}


def decode(
    path: str | Path,
    decoding: Decoding = DEFAULT_DECODING,
    sha256: bytes | None = None,
    *,
    crop: CropRule | None = None,
) -> np.ndarray:
    """Decode a file into an upright image, uint8 (H, W, channels), grey for 1 channel and RGB for 3.

    Transparency is dropped, the first image of an animation is used, and more than 8 bits are scaled to 8.

    Args:
        path: path of the file.
        decoding: decoding settings.
        sha256: expected SHA-256 of the file; None to skip the check.
        crop: rule for the part of the image to return, with all pixels of its box, or, if a JPEG is decoded at a smaller scale,
            with at least those of its size. None for the whole image.

    Raises:
        ImageError: if the file cannot be decoded; with the path and the reason.
    """
    content = read_image(path, decoding)
    if sha256 is not None and hashlib.sha256(content).digest() != sha256:
        raise unreadable(path, "changed")
    return decode_bytes(content, decoding, path, crop=crop)


def decode_bytes(
    content: bytes,
    decoding: Decoding = DEFAULT_DECODING,
    path: str | Path = "",
    *,
    crop: CropRule | None = None,
) -> np.ndarray:
    """Decode the content of a file like `decode`; `path` is for messages.

    Raises:
        ImageError: if the file cannot be decoded; with the path and the reason.
    """
    with _decoding_errors(path, content):
        image = Image.open(BytesIO(content), formats=FORMATS)
    with image:
        is_jpeg = image.format in ("JPEG", "MPO")
        with _decoding_errors(path, content):
            check_size(path, image, decoding)
            if is_jpeg:
                _check_scans(path, image, content, decoding)
        # The orientation of other formats may follow their pixels in the file.
        part = crop(*reversed(upright_size(image))) if crop is not None and is_jpeg else None
        with _decoding_errors(path, content):
            pixels = decode_jpeg(content, image, decoding.channels, part)
            needs_pillow = pixels is None
            if pixels is None:
                pixels = _decode_with_pillow(image, content, decoding)
    if needs_pillow:
        pixels = part_of(pixels, crop) if part is None else part.cut(pixels)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


@contextmanager
def _decoding_errors(path: str | Path, content: bytes) -> Iterator[None]:
    """Raise the errors of decoders as ImageError."""
    try:
        yield
    except ImageError:
        raise
    except RangeError as error:
        raise unreadable(path, error.code, str(error)) from error
    except UnidentifiedImageError as error:
        raise _unidentified(path, content) from error
    except Exception as error:  # corrupt files can raise anything
        detail = (str(error).splitlines() or [type(error).__name__])[0]
        code = "truncated" if "truncated" in detail.lower() else "corrupt"
        raise unreadable(path, code, detail) from error


def _unidentified(path: str | Path, content: bytes) -> ImageError:
    """Return the error for a file that no decoder has recognized."""
    if content[4:8] == b"ftyp" and content[8:12] in BRANDS:
        has_decoder = features.check("avif") if content[8:10] == b"av" else HAS_HEIF
        if has_decoder:
            return unreadable(path, "corrupt")
        return unreadable(path, "no_decoder", BRANDS[content[8:12]])
    if content.startswith(tuple(TiffImagePlugin.PREFIXES)):
        try:
            TiffImagePlugin.TiffImageFile(BytesIO(content))
        except Exception as error:  # has the reason, which Image.open drops
            code = "no_decoder" if str(error).startswith("unknown") else "corrupt"
            return unreadable(path, code, f"TIFF: {error}")
    return unreadable(path, "unknown_format")


def check_size(path: str | Path, image: Image.Image, decoding: Decoding) -> None:
    """Raise ImageError for an opened image that would need too much memory."""
    width, height = image.size
    factor = PIXEL_LIMIT_FACTORS.get(image.format or "", 1)
    if width * height > decoding.max_pixels * factor:
        needed = math.ceil(width * height / factor / 1e6)
        detail = f"{width} x {height} needs data.max_megapixels={needed}; it is {decoding.max_megapixels:g}"
        raise unreadable(path, "too_large", detail)
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise unreadable(path, "too_oblong", f"{width} x {height}")


def _check_scans(path: str | Path, image: Image.Image, content: bytes, decoding: Decoding) -> None:
    """Raise ImageError for a JPEG that would take too long to decode."""
    limit, scans = MAX_SCANS * decoding.max_pixels // max(1, image.width * image.height), num_scans(content)
    if scans > limit:
        raise unreadable(path, "too_many_scans", f"{image.width} x {image.height} in {scans} scans, at most {limit}")


def _decode_with_pillow(image: Image.Image, content: bytes, decoding: Decoding) -> np.ndarray:
    """Convert strip by strip, so that a large image is not in memory in every mode at the same time."""
    depth = depth_of(image, content)
    correct_raw_modes(image)
    image.load()
    orientation = orientation_of(image)
    pixels = np.empty((image.height, image.width, decoding.channels), np.uint8)
    for top, strip in strips(image) if depth is None else uint8_strips(image, content, depth, decoding):
        if strip.mode == "P" and "transparency" in image.info:
            strip = strip.convert("RGBA")
        converted = np.asarray(strip.convert(MODES[decoding.channels]))
        pixels[top : top + strip.height] = converted.reshape(-1, image.width, decoding.channels)
    return apply_orientation(pixels, orientation)


# check_size raises an error before anything is decoded; Pillow's own limit would only warn.
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", ".*", Warning, r"PIL\..*")  # about corrupt metadata, which does not affect pixels
