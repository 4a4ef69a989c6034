"""Opening of image files: decoding settings, size limits, and the reasons why a file is unreadable."""

import errno
import math
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from alexlab.data.file_types import HAS_HEIF
from alexlab.errors import ConfigError, DataError, ImageError
from alexlab.output.escape import shown

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "AVIF", *(("HEIF",) if HAS_HEIF else ()))
# A small file can demand any amount of memory. Pillow would only warn, so these limits are our own.
MAX_MEGAPIXELS = 90.0  # 270 MB decoded; Pillow warns about larger images too
MAX_ASPECT = 100  # of the sides: an 87-byte PNG of 2500 x 1, resized to a height of 256, would be 640,000 x 256
BYTES_PER_PIXEL = 8  # of the largest uncompressed format: four channels of 16 bits
APPENDED_BYTES = 64_000_000  # allowed besides pixels: metadata, the video of a motion photo

REASONS = {
    "missing": "no such file",
    "no_permission": "permission denied",
    "not_regular": "it is not a regular file",
    "empty": "it is empty",
    "too_large_file": "the file is too large",
    "unknown_format": f"it is not a {', '.join(FORMATS)} file",
    "no_decoder": "no installed decoder supports its format",
    "too_large": "it has too many pixels",
    "too_oblong": f"one side is more than {MAX_ASPECT} times the other",
    "too_many_scans": "decoding its scans would take too long",
    "unknown_range": "it does not declare which of its values are black and white",
    "outside_range": "it has values outside data.intensity_range",
    "corrupt": "it is corrupt",
    "truncated": "it is truncated",
    "changed": "its SHA-256 differs from the one in the manifest",
    "not_read": "reading it failed",  # not a property of the file: a network disk may answer the next time
}
FILE_KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a FIFO",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Decoding settings, keys of `data`.

    Args:
        channels: 3 for RGB, 1 for grey.
        max_megapixels: size limit of an image in 10^6 pixels; larger ones are unreadable.
        intensity_range: the values that are black and white in images of more than 8 bits without a declared range; images with
            values outside it are unreadable.
        jpeg_scaling: decode JPEGs at 1/2, 1/4 or 1/8 scale if that is all that the first step of a recipe needs.

    Raises:
        ConfigError: for values out of range.
    """

    channels: int = 3
    max_megapixels: float = MAX_MEGAPIXELS
    intensity_range: Sequence[float] | None = None
    jpeg_scaling: bool = True

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ConfigError(f"model.in_channels must be 1 (grey) or 3 (colour); got {self.channels}")
        if not 0 < self.max_megapixels < math.inf:
            raise ConfigError(f"data.max_megapixels must be a positive number; got {self.max_megapixels}")
        if not isinstance(self.jpeg_scaling, bool):
            raise ConfigError(f"data.jpeg_scaling must be true or false; got {self.jpeg_scaling!r}")
        if self.intensity_range is None:
            return
        values = list(self.intensity_range)
        if len(values) != 2 or not all(map(math.isfinite, values)) or values[0] >= values[1]:
            raise ConfigError(
                f"data.intensity_range must be null or two numbers, black and a larger white, such as [0,4095]; got {values}"
            )

    @property
    def max_pixels(self) -> int:
        """Size limit of an image in pixels."""
        return round(self.max_megapixels * 1e6)

    @property
    def max_bytes(self) -> int:
        """Size limit of a file in bytes: more than any image of `max_pixels` needs."""
        return BYTES_PER_PIXEL * self.max_pixels + APPENDED_BYTES


DEFAULT_DECODING = Decoding()


def unreadable(path: str | Path, code: str, detail: str = "") -> ImageError:
    """Return the error for a file. `code` is a key of REASONS, `detail` the error of the decoder."""
    reason = REASONS[code] + (f" ({detail})" if detail else "")
    text = f"cannot read the image {shown(path)}: {reason}"
    return ImageError(text, path=os.fspath(path), code=code, reason=reason, detail=detail)


def none_readable(owner: str) -> DataError:
    """Return the error for images of which none can be read; `owner` names them, such as a split."""
    return DataError(
        f"at least one image of {owner} must be readable; none is: prepare.py action=check data.root=DIR lists the reasons"
    )


def open_image(path: str | Path, decoding: Decoding) -> BinaryIO:
    """Open a regular file of acceptable size; FIFOs, devices and sockets are rejected without blocking.

    Raises:
        ImageError: if the file is missing, empty, too large, not regular or not readable.
    """
    try:
        # Opening a FIFO without O_NONBLOCK waits for a writer. The checks below use the open descriptor, so that the file
        # cannot be exchanged between check and use.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except ValueError as error:  # a null byte in the name
        raise unreadable(path, "missing", str(error)) from error
    except OSError as error:
        raise _not_opened(path, error) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            kind = next((kind for is_kind, kind in FILE_KINDS.items() if is_kind(status.st_mode)), "")
            raise unreadable(path, "not_regular", kind)
        if not status.st_size:
            raise unreadable(path, "empty")
        if status.st_size > decoding.max_bytes:
            detail = (
                f"{status.st_size / 1e9:,.2f} GB; images of data.max_megapixels={decoding.max_megapixels:g} need at most "
                f"{decoding.max_bytes / 1e9:,.2f} GB"
            )
            raise unreadable(path, "too_large_file", detail)
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _not_opened(path: str | Path, error: OSError) -> ImageError:
    if isinstance(error, PermissionError):
        return unreadable(path, "no_permission")
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return unreadable(path, "missing", "a broken link" if os.path.islink(path) else "")
    if error.errno == errno.ENXIO:  # raised for sockets, and for devices without hardware
        return unreadable(path, "not_regular", "a socket or a device")
    return unreadable(path, "not_read", str(error.strerror))


def read_image(path: str | Path, decoding: Decoding) -> bytes:
    """Return the content of an image file.

    Raises:
        ImageError: as `open_image`, or if the disk fails.
    """
    with open_image(path, decoding) as file:
        try:
            return file.read(os.fstat(file.fileno()).st_size)
        except OSError as error:
            raise unreadable(path, "not_read", str(error.strerror)) from error
