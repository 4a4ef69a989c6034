"""Decoding and cropping a file of at most 1 MB takes at most 1 GB of memory and 10 s, and never crashes the process."""

import multiprocessing
import resource
import struct
import sys
import time
import zlib
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from alexlab.data.dataset import to_tensor
from alexlab.data.decode import MAX_SCANS, PIXEL_LIMIT_FACTORS, decode
from alexlab.data.image_file import DEFAULT_DECODING
from alexlab.data.transforms import CenterView
from alexlab.errors import ImageError
from support.bad_images import encoded, gradient, in_mpo, rescanned, tiff

pytestmark = [pytest.mark.scenario(name="decompression_bombs"), pytest.mark.slow]

MEMORY, TIME_S, SIZE = 1_000_000_000, 10.0, 1_000_000
SIDE = int(DEFAULT_DECODING.max_pixels**0.5)
WEBP_SIDE = int((DEFAULT_DECODING.max_pixels * PIXEL_LIMIT_FACTORS["WEBP"]) ** 0.5)  # also of AVIF


def deflated_png(depth: int, color: int, bits: int) -> bytes:
    """A grey PNG of the maximum size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    compress = zlib.compressobj(9)
    row = b"\0" + b"\x40" * (SIDE * bits // 8)
    rows = b"".join([*(compress.compress(row) for _ in range(SIDE)), compress.flush()])
    palette = chunk(b"PLTE", bytes(768)) + chunk(b"tRNS", bytes(256)) if color == 3 else b""
    header = struct.pack(">IIBBBBB", SIDE, SIDE, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def plain(side: int) -> Image.Image:
    return Image.new("RGB", (side, side), (100, 50, 20))


BOMBS: dict[str, Callable[[], bytes]] = {
    "rgba16.png": lambda: deflated_png(16, 6, 64),
    "grey16.png": lambda: deflated_png(16, 0, 16),
    "palette.png": lambda: deflated_png(8, 3, 8),
    "progressive.jpg": lambda: encoded("JPEG", plain(9000), progressive=True, quality=10, subsampling=0),
    "scans.jpg": lambda: rescanned(6000, MAX_SCANS * DEFAULT_DECODING.max_pixels // 6000**2 - 11),
    "too_many_scans.jpg": lambda: rescanned(6000, 9000),
    "cmyk.jpg": lambda: encoded("JPEG", Image.new("CMYK", (4600, 4600)), progressive=True, quality=10, exif=rotated()),
    "lossless.webp": lambda: encoded("WEBP", plain(WEBP_SIDE), lossless=True, method=0),
    "plain.avif": lambda: encoded("AVIF", plain(WEBP_SIDE), speed=10),
    "scans.mpo": lambda: in_mpo(rescanned(6000, MAX_SCANS * DEFAULT_DECODING.max_pixels // 6000**2 - 11)),
    "too_many_scans.mpo": lambda: in_mpo(rescanned(6000, 9000)),
    "deep.tif": lambda: tiff(np.zeros((SIDE, SIDE), np.int32), {340: ("i", 0), 341: ("i", 1000)}, deflate=True),
    "fax.tif": lambda: encoded("TIFF", Image.new("1", (SIDE, SIDE)), compression="group4"),
}


def limited(work: Callable[[], Any]) -> tuple[str, float, float]:
    """Run a function in a process limited to 1 GB of additional memory; return its outcome, seconds and megabytes."""

    def body(pipe: Connection) -> None:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        start_s = time.monotonic()
        try:
            work()
            outcome = "read"
        except ImageError as error:
            outcome = error.code
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pipe.send((outcome, time.monotonic() - start_s, (peak - before) / 1e3))

    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=body, args=(theirs,))
    process.start()
    theirs.close()
    process.join(3 * TIME_S)
    if process.is_alive():
        process.kill()
        return "too slow", 3 * TIME_S, 0.0
    try:
        return ours.recv()  # type: ignore[no-any-return]
    except EOFError:
        return f"exited with {process.exitcode}", 0.0, 0.0


def decode_and_crop(path: Path) -> None:
    """Process an image as a run does."""
    image = to_tensor(decode(path))
    for view in (CenterView(224), v2.RandomResizedCrop(224, antialias=True)):
        assert view(image).shape == (3, 224, 224)


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory limits need Linux")


@linux
@pytest.mark.parametrize("name", BOMBS)
def test_small_files_with_large_images_are_decoded_within_limits(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(BOMBS[name]())
    assert path.stat().st_size <= SIZE
    CenterView(224)(torch.zeros(3, 300, 300, dtype=torch.uint8))  # loads libraries, whose cost must not count
    outcome, took_s, megabytes = limited(lambda: decode_and_crop(path))
    assert outcome == ("too_many_scans" if name.startswith("too_many_scans") else "read")
    assert took_s < TIME_S, f"{megabytes:.0f} MB"


@linux
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP", "PPM", "JPEG", "AVIF"])
def test_corrupt_files_never_crash_the_process(kind: str, tmp_path: Path) -> None:
    """500 truncated files and 500 with flipped bits: each is decoded or raises ImageError."""
    options = {"TIFF": {"compression": "tiff_lzw"}}.get(kind, {})
    whole = encoded(kind, Image.fromarray(gradient()), **options)

    def decode_all() -> None:
        generator = np.random.default_rng(1)
        path = tmp_path / "corrupt"
        for number in range(1000):
            content = bytearray(whole)
            if number % 2:
                content = content[: generator.integers(1, len(whole))]
            else:
                for position in generator.integers(0, len(whole), 3):
                    content[position] ^= 1 << int(generator.integers(0, 8))
            path.write_bytes(content)
            try:
                assert decode(path).dtype == np.uint8
            except ImageError:
                continue

    assert limited(decode_all)[0] == "read"
    assert (tmp_path / "corrupt").exists()
