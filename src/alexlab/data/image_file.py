"""One image file before it is decoded: the settings of decoding, size limits, and why a file is refused. Imports no torch."""

import errno
import math
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from alexlab.data.file_types import HAS_HEIF
from alexlab.errors import ConfigError, ImageError
from alexlab.output.escape import shown

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "AVIF", *(("HEIF",) if HAS_HEIF else ()))
# Small files can ask for any amount of memory: these limits are ours, so that it is an error and no warning.
MAX_MEGAPIXELS = 90.0  # of a picture, 270 MB decoded; Pillow suspects larger ones too
MAX_ASPECT = 100  # of the sides: an 87-byte PNG of 2500 x 1, resized to 256 in height, would be 640,000 x 256
BYTES_PER_PIXEL = 8  # of the largest plain format: four channels of 16 bits
APPENDED_BYTES = 64_000_000  # that a file may have besides its pixels: metadata, the video of a motion photo

REASONS = {
    "missing": "there is no such file",
    "no_permission": "no permission to read it",
    "not_regular": "it is not a regular file",
    "empty": "it is empty",
    "too_large_file": "the file is too large",
    "unknown_format": f"its content is none of {', '.join(FORMATS)}",
    "no_decoder": "no installed decoder reads its kind of file",
    "too_large": "it has too many pixels",
    "too_oblong": f"one side is more than {MAX_ASPECT} times the other",
    "too_many_scans": "decoding its scans would take too long",
    "unknown_range": "it does not declare which of its values are black and white",
    "damaged": "its content is damaged",
    "truncated": "its end is missing",
    "changed": "its content is not what the manifest says",
}
KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a FIFO",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Settings by which image files become pixels; keys of `data`.

    Args:
        channels: 3 for RGB, 1 for grey.
        max_megapixels: size of the largest picture that is decoded, in 10^6 pixels.
        intensity_range: the values that are black and white in images of more than 8 bits, where the file declares none.

    Raises:
        ConfigError: for values out of range.
    """

    channels: int = 3
    max_megapixels: float = MAX_MEGAPIXELS
    intensity_range: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ConfigError(f"an image has 1 or 3 channels; got model.in_channels={self.channels}")
        if not 0 < self.max_megapixels < math.inf:
            raise ConfigError(f"data.max_megapixels must be a positive number; got {self.max_megapixels}")
        if self.intensity_range is None:
            return
        values = list(self.intensity_range)
        if len(values) != 2 or not all(map(math.isfinite, values)) or values[0] >= values[1]:
            raise ConfigError(
                f"data.intensity_range must be null or two numbers, black and a larger white, such as [0,4095]; got {values}"
            )

    @property
    def max_pixels(self) -> int:
        """Pixels of the largest picture."""
        return int(self.max_megapixels * 1e6)

    @property
    def max_bytes(self) -> int:
        """Bytes of the largest file: more than any picture within `max_pixels` needs."""
        return BYTES_PER_PIXEL * self.max_pixels + APPENDED_BYTES


DEFAULT_DECODING = Decoding()


def unreadable(path: str | Path, code: str, detail: str = "") -> ImageError:
    """Return the error of a file: `code` is a key of REASONS, `detail` what the decoder said."""
    reason = REASONS[code] + (f" ({detail})" if detail else "")
    text = f"cannot read the image {shown(path)}: {reason}"
    return ImageError(text, path=os.fspath(path), code=code, reason=reason, detail=detail)


def open_image(path: str | Path, decoding: Decoding) -> BinaryIO:
    """Open a regular file of acceptable size; FIFOs, devices and sockets are refused without waiting for them.

    Raises:
        ImageError: if it is missing, empty, too large, not regular or not readable.
    """
    try:
        # Opening a FIFO without O_NONBLOCK waits for a writer. The check is made on what was opened, so nothing can be
        # exchanged in between.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except ValueError as error:  # a zero byte in the name
        raise unreadable(path, "missing", str(error)) from error
    except OSError as error:
        raise _not_opened(path, error) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            kind = next((kind for is_kind, kind in KINDS.items() if is_kind(status.st_mode)), "")
            raise unreadable(path, "not_regular", kind)
        if not status.st_size:
            raise unreadable(path, "empty")
        if status.st_size > decoding.max_bytes:
            detail = (
                f"{status.st_size / 1e9:,.2f} GB, more than any picture of data.max_megapixels={decoding.max_megapixels:g} "
                f"needs, {decoding.max_bytes / 1e9:,.2f} GB"
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
        return unreadable(path, "missing", "a link to nowhere" if os.path.islink(path) else "")
    if error.errno == errno.ENXIO:  # what opening a socket, or a device without hardware, gives
        return unreadable(path, "not_regular", "a socket or a device")
    return unreadable(path, "damaged", str(error.strerror))


def read_image(path: str | Path, decoding: Decoding) -> bytes:
    """Return the content of a file.

    Raises:
        ImageError: as `open_image`, or if the disk fails.
    """
    with open_image(path, decoding) as file:
        try:
            return file.read(os.fstat(file.fileno()).st_size)
        except OSError as error:
            raise unreadable(path, "damaged", str(error.strerror)) from error
