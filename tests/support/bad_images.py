"""Unusual image files: readable ones, and unreadable ones with the reason."""

import os
import struct
import zlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from alexlab.data.file_types import HAS_HEIF

SIZE = 60, 40


def gradient() -> np.ndarray:
    """Return an image that shows its orientation: dark at the top, red on the right."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, 60)
    pixels[..., 1] = np.linspace(0, 255, 40)[:, None]
    return pixels


def encoded(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    file = BytesIO()
    (image or Image.fromarray(gradient())).save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int) -> bytes:
    """Return a PNG file of a few bytes with any width and height."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((1 + (width + 7) // 8) * min(height, 4000)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def rescanned(side: int, scans: int) -> bytes:
    """Return a progressive JPEG of one colour whose last scan, about 60 bytes that touch every pixel, is repeated."""
    whole = encoded("JPEG", Image.new("RGB", (side, side), (100, 50, 20)), progressive=True, quality=10, subsampling=0)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + last * scans + b"\xff\xd9"


def tiff(
    values: np.ndarray, tags: Mapping[int, tuple[str, float]] | None = None, *, order: str = "<", deflate: bool = False
) -> bytes:
    """Return a grey, RGB or other TIFF file (TIFF 6.0) of unconverted values, with additional or different tags.

    Args:
        values: (H, W) or (H, W, channels).
        tags: struct letter of the type and value by tag number; they override the default tags.
        order: byte order, `<` or `>`.
        deflate: whether the values are compressed.
    """
    kinds = {"H": 3, "I": 4, "h": 8, "i": 9, "f": 11}
    height, width, *channels = values.shape
    content = values.astype(values.dtype.newbyteorder(order)).tobytes()
    content = zlib.compress(content, 9) if deflate else content
    entries = {
        256: ("I", width),
        257: ("I", height),
        258: ("H", 8 * values.itemsize),
        259: ("H", 8 if deflate else 1),
        262: ("H", 2 if channels else 1),
        273: ("I", 8),
        277: ("H", channels[0] if channels else 1),
        278: ("I", height),
        279: ("I", len(content)),
        339: ("H", {"u": 1, "i": 2, "f": 3}[values.dtype.kind]),
        **(tags or {}),
    }
    if channels:
        entries |= {258: ("H", *[entries[258][1]] * channels[0]), 339: ("H", *[1] * channels[0])}
    content += bytes(len(content) % 2)
    table, more = struct.pack(f"{order}H", len(entries)), b""
    behind = 8 + len(content) + 2 + 12 * len(entries) + 4
    for tag, (letter, *numbers) in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(numbers)}{letter}", *numbers)
        if len(packed) > 4:
            packed, more = struct.pack(f"{order}I", behind + len(more)), more + packed
        table += struct.pack(f"{order}HHI", tag, kinds[letter], len(numbers)) + packed.ljust(4, b"\0")
    header = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8 + len(content))
    return header + content + table + bytes(4) + more


def in_mpo(first: bytes) -> bytes:
    """Return a multi-image file (CIPA DC-007) whose first image is replaced."""
    whole = encoded("MPO", Image.new("RGB", (16, 16)), save_all=True, append_images=[Image.new("RGB", (16, 16))])
    start = whole.index(b"\xff\xe2")
    end = start + 2 + int.from_bytes(whole[start + 2 : start + 4])
    return first[:2] + whole[start:end] + first[2:]


def oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded("JPEG", exif=exif, quality=95)


def ycck() -> bytes:
    """A CMYK JPEG as Adobe stores it: the marker's transform byte set to YCCK."""
    content = encoded("JPEG", Image.fromarray(gradient()).convert("CMYK"), quality=95)
    at = content.index(b"Adobe")
    return content[: at + 11] + b"\x02" + content[at + 12 :]


# name -> content
READABLE: dict[str, bytes] = {
    "cmyk.jpg": encoded("JPEG", Image.fromarray(gradient()).convert("CMYK"), quality=95),
    "ycck.jpg": ycck(),
    "deep.png": encoded("PNG", Image.fromarray(np.full((40, 60), 40_000, np.uint16))),
    "palette.png": encoded("PNG", Image.fromarray(gradient()).quantize(256)),
    "la.png": encoded("PNG", Image.fromarray(gradient()).convert("LA")),
    **{f"exif{number}.jpg": oriented(number) for number in range(1, 9)},
    "animated.webp": encoded("WEBP", save_all=True, append_images=[Image.new("RGB", SIZE)], lossless=True),
    "one_pixel.png": encoded("PNG", Image.new("RGB", (1, 1))),
    "UPPER.PNG": encoded("PNG"),
    "unicode é 文 and space.png": encoded("PNG"),
    "png_named.jpg": encoded("PNG"),
    "progressive.jpg": encoded("JPEG", progressive=True),
    "photo.jfif": encoded("JPEG"),
    "photo.JPE": encoded("JPEG"),
    "photo.avif": encoded("AVIF", quality=90),
    "grey.jpg": encoded("JPEG", Image.fromarray(gradient()).convert("L")),
}

# name -> content, code of the reason
UNREADABLE: dict[str, tuple[bytes, str]] = {
    "truncated.jpg": (encoded("JPEG")[:-300], "truncated"),
    "truncated.png": (encoded("PNG")[:-60], "truncated"),
    "zero_bytes.jpg": (b"", "empty"),
    "text.jpg": (b"this is not an image", "unknown_format"),
    "html.png": (b"<!DOCTYPE html><html><body>404</body></html>", "unknown_format"),
    "gif_named.jpg": (encoded("GIF", save_all=True, append_images=[Image.new("RGB", SIZE)]), "unknown_format"),
    "oblong.png": (png(20_000, 20), "too_oblong"),
    "bomb.png": (png(30_000, 30_000), "too_large"),
    "thin.png": (png(2500, 1), "too_oblong"),
    "scans.jpg": (rescanned(1000, 2000), "too_many_scans"),
    "float.tif": (encoded("TIFF", Image.fromarray(gradient()[..., 0].astype(np.float32))), "unknown_range"),
    "heic_named.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "corrupt" if HAS_HEIF else "no_decoder"),
    "14_bits.tif": (tiff(np.zeros((40, 60), np.uint16), {258: ("H", 14)}), "no_decoder"),
    "broken_data.png": (encoded("PNG")[:60] + bytes(20) + encoded("PNG")[80:], "corrupt"),
}

# name -> content; these files are skipped without being opened
IGNORED: dict[str, bytes] = {
    "unknown.xyz": encoded("PNG"),
    "animated.gif": encoded("GIF"),
    "photo.jxl": b"jxl",
    "._apple_double.jpg": b"\x00\x05\x16\x07",
    "__MACOSX/inner.jpg": encoded("JPEG"),
    ".hidden.png": encoded("PNG"),
}


def write_odd_files(folder: Path) -> dict[str, str]:
    """Write all of these files and a broken link; return the codes of the unreadable ones by name."""
    for name, content in {
        **READABLE,
        **IGNORED,
        **{name: content for name, (content, _) in UNREADABLE.items()},
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    Path(os.fsdecode(os.fsencode(folder) + b"/not_utf8_\xff.png")).write_bytes(encoded("PNG"))
    (folder / "dangling.png").symlink_to("nowhere.png")
    return {**{name: code for name, (_, code) in UNREADABLE.items()}, "dangling.png": "missing"}
