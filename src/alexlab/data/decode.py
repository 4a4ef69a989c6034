"""From a file to an upright picture: the one place where images are decoded. Imports no torch.

Pillow is the reference. JPEGs, which take most of the time, are decoded by simplejpeg where it is installed (both are
libjpeg-turbo, without Pillow's copies); what it refuses goes to Pillow, which has the last word on what is readable.
"""

import hashlib
import os
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from alexlab.errors import ImageError
from alexlab.shown import shown

try:
    import simplejpeg
except ImportError:  # a platform without a wheel
    simplejpeg = None

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")
MODES = {1: "L", 3: "RGB"}
# 16 bits a value; Pillow's own conversion to 8 bits clips them to white.
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
# Small files can ask for any amount of memory: these limits are ours, so that it is an error and no warning.
MAX_PIXELS = 89_478_485  # Pillow's limit of what is suspicious: 1 GiB / 4 / 3 bytes
MAX_ASPECT = 100  # of the sides: an 87-byte PNG of 2500 x 1, resized to 256 in height, would be 640,000 x 256
MAX_WEBP_PIXELS = 50_000_000  # its decoder holds the picture four times
# A progressive JPEG has some ten scans, each of which may touch every pixel and take 60 bytes: a megabyte could take hours.
MAX_SCANNED = 1_500_000_000  # pixels, times scans
START_OF_SCAN = b"\xff\xda"  # ITU T.81, B.1.1.3; in the compressed data a 0 follows each 255
ORIENTATION = 0x0112  # the EXIF tag
STRIP = 512  # rows that are converted at a time

REASONS = {
    "missing": "there is no such file",
    "no_permission": "no permission to read it",
    "empty": "it is empty",
    "unknown_format": f"its content is none of {', '.join(FORMATS)}",
    "too_large": "it has too many pixels",
    "too_oblong": f"one side is more than {MAX_ASPECT} times the other",
    "too_many_scans": f"its pixels times its scans are more than {MAX_SCANNED:,}",
    "float": "its values are floating-point numbers of unknown range",
    "damaged": "its content is damaged",
    "truncated": "its end is missing",
    "changed": "its content is not what the manifest says",
}


def unreadable(path: str | Path, code: str, detail: str = "") -> ImageError:
    """The error of a file: `code` is a key of REASONS, `detail` what the decoder said."""
    reason = REASONS[code] + (f" ({detail})" if detail else "")
    text = f"cannot read the image {shown(path)}: {reason}"
    return ImageError(text, path=os.fspath(path), code=code, reason=reason, detail=detail)


def decode(path: str | Path, channels: int = 3, sha256: bytes | None = None) -> np.ndarray:
    """Decodes a file into an upright picture, uint8 (H, W, channels), grey for 1 channel and RGB for 3.

    Transparency is dropped, of an animation the first picture is taken, 16 bits are scaled to 8.

    Args:
        path: of the file.
        channels: 3 or 1.
        sha256: which the file must have, if any.

    Raises:
        ImageError: with the path and the reason.
    """
    content = read(path)
    if sha256 is not None and hashlib.sha256(content).digest() != sha256:
        raise unreadable(path, "changed")
    return decode_bytes(content, channels, path)


def decode_bytes(content: bytes, channels: int = 3, path: str | Path = "") -> np.ndarray:
    """Decodes the content of a file as `decode` does; `path` is for messages.

    Raises:
        ImageError: with the path and the reason.
    """
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            check_size(path, *image.size, MAX_WEBP_PIXELS if image.format == "WEBP" else MAX_PIXELS)
            if image.format == "JPEG":
                _check_scans(path, image, content)
            pixels = _by_simplejpeg(content, image, channels)
            if pixels is None:
                pixels = _by_pillow(path, image, channels)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise unreadable(path, "unknown_format") from error
    except Exception as error:  # damaged files make decoders fail in every way
        detail = (str(error).splitlines() or [type(error).__name__])[0]
        code = "truncated" if "truncated" in detail.lower() else "damaged"
        raise unreadable(path, code, detail) from error
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def read(path: str | Path) -> bytes:
    """The content of a file.

    Raises:
        ImageError: when it is missing, empty, or not to be read.
    """
    try:
        content = Path(path).read_bytes()
    except PermissionError as error:
        raise unreadable(path, "no_permission") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        detail = "a link to nowhere" if os.path.islink(path) else ""
        raise unreadable(path, "missing", detail) from error
    except OSError as error:
        raise unreadable(path, "damaged", str(error.strerror)) from error
    if not content:
        raise unreadable(path, "empty")
    return content


def check_size(path: str | Path, width: int, height: int, limit: int = MAX_PIXELS) -> None:
    """Raises ImageError for a picture that would need too much memory."""
    if width * height > limit:
        raise unreadable(path, "too_large", f"{width} x {height}, more than {limit:,}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise unreadable(path, "too_oblong", f"{width} x {height}")


def _check_scans(path: str | Path, image: Image.Image, content: bytes) -> None:
    """Raises ImageError for a JPEG that would take too long."""
    scans = content.count(START_OF_SCAN)
    if scans * image.width * image.height > MAX_SCANNED:
        raise unreadable(path, "too_many_scans", f"{image.width} x {image.height} in {scans} scans")


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an opened picture once it stands upright."""
    width, height = image.size
    return (height, width) if image.getexif().get(ORIENTATION, 1) >= 5 else (width, height)


def _by_simplejpeg(content: bytes, image: Image.Image, channels: int) -> np.ndarray | None:
    """The picture, or None where this is nothing for simplejpeg."""
    if simplejpeg is None or image.format != "JPEG" or image.mode not in ("RGB", "L"):
        return None
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(content, colorspace="RGB" if channels == 3 else "GRAY")
    except ValueError:
        return None
    orientation = image.getexif().get(ORIENTATION, 1) if "exif" in image.info else 1
    return _turned(pixels, orientation)


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """A stored picture as its EXIF orientation means it to be seen (EXIF 2.3, tag 0x0112)."""
    if orientation not in range(2, 9):
        return pixels
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _by_pillow(path: str | Path, image: Image.Image, channels: int) -> np.ndarray:
    """Converts strip by strip, so that a large picture is not in memory in each of its forms."""
    image.load()
    orientation = image.getexif().get(ORIENTATION, 1)
    if image.mode == "F":
        raise unreadable(path, "float")
    pixels = np.empty((image.height, image.width, channels), np.uint8)
    for top in range(0, image.height, STRIP):
        strip = image.crop((0, top, image.width, min(top + STRIP, image.height)))
        if strip.mode in DEEP_MODES:
            strip = Image.fromarray((np.asarray(strip).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
        if strip.mode == "P" and "transparency" in image.info:
            strip = strip.convert("RGBA")
        pixels[top : top + STRIP] = np.asarray(strip.convert(MODES[channels])).reshape(-1, image.width, channels)
    return _turned(pixels, orientation)


# Our own limit is an error before anything is decoded; Pillow's would be a warning first.
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", ".*", Warning, r"PIL\..*")  # of damaged metadata, which no pixel depends on
