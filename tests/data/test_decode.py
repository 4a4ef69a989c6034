import os
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from alexlab.data import decode as module
from alexlab.data import jpeg
from alexlab.data.crop import Crop
from alexlab.data.decode import decode, decode_bytes
from alexlab.data.file_types import HAS_HEIF
from alexlab.data.image_file import REASONS, Decoding
from alexlab.data.in_memory import from_pil
from alexlab.data.orientation import upright_size
from alexlab.errors import DataError, ImageError
from support.bad_images import READABLE, UNREADABLE, encoded, gradient, in_mpo, oriented, rescanned, tiff
from support.runs import ROOT, environment

CATS = ROOT.parent / "shared/data/cats_and_dogs/val/cat"


@pytest.mark.parametrize("name", READABLE)
def test_readable_files(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(READABLE[name])
    pixels = decode(tmp_path / name)
    assert (pixels.dtype, pixels.ndim, pixels.shape[2]) == (np.uint8, 3, 3)
    assert decode(tmp_path / name, Decoding(channels=1)).shape == (*pixels.shape[:2], 1)
    if not name.startswith(("one", "exif", "deep", "ycck")):
        grey = name in ("la.png", "grey.jpg")
        expected = np.asarray(Image.fromarray(gradient()).convert("L"))[..., None] if grey else gradient()
        assert np.abs(pixels.astype(int) - expected).mean() < 6


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_files_raise_the_reason(name: str, tmp_path: Path) -> None:
    content, code = UNREADABLE[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError) as caught:
        decode(tmp_path / name)
    assert caught.value.code == code
    assert str(caught.value).startswith(f"cannot read the image {tmp_path / name}: {REASONS[code]}")


def test_missing_files(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to("nowhere.png")
    for name, message in (
        ("gone.png", "no such file"),
        ("link.png", r"no such file \(a broken link\)"),
    ):
        with pytest.raises(DataError, match=message):
            decode(tmp_path / name)


def test_files_without_read_permission(tmp_path: Path) -> None:
    """Root can read every file; if the test runs as root, another user opens it."""
    path = tmp_path / "a.png"
    path.write_bytes(encoded("PNG"))
    path.chmod(0)
    if os.geteuid() != 0:
        with pytest.raises(DataError, match="permission denied"):
            decode(path)
        return
    for folder in [tmp_path, *tmp_path.parents][:3]:
        folder.chmod(0o755)
    code = f"from alexlab.data.decode import decode; decode({str(path)!r})"
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(PYTHONPATH=str(ROOT / "src")))
    if "Permission denied" in done.stderr and "alexlab" not in done.stderr:
        pytest.skip("another user cannot start this Python")
    assert "permission denied" in done.stderr


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    deep = np.linspace(0, 65535, 2400).astype(np.uint16).reshape(40, 60)
    Image.fromarray(deep).save(tmp_path / f"deep.{suffix}")
    assert np.array_equal(decode(tmp_path / f"deep.{suffix}", Decoding(channels=1))[..., 0], deep >> 8)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(
    tmp_path: Path, orientation: int, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fast:
        monkeypatch.setattr(jpeg, "simplejpeg", None)
    (tmp_path / "turned.jpg").write_bytes(oriented(orientation))
    with Image.open(BytesIO(oriented(orientation))) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
        assert upright_size(image) == expected.shape[1::-1]
    pixels = decode(tmp_path / "turned.jpg")
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= 2


@pytest.mark.skipif(jpeg.simplejpeg is None, reason="simplejpeg has no wheel here")
@pytest.mark.parametrize("channels", [1, 3])
def test_simplejpeg_agrees_with_pillow(channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 2 grey levels in 99 of 100 values, for all qualities and chroma subsamplings."""
    generator = np.random.default_rng(0)
    smooth = Image.fromarray(generator.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize((300, 200))
    files = sorted(CATS.glob("*.jpg"))[:20]
    for quality in (50, 90):
        for subsampling in (0, 1, 2):
            path = tmp_path / f"{quality}_{subsampling}.jpg"
            path.write_bytes(encoded("JPEG", smooth, quality=quality, subsampling=subsampling))
            files.append(path)
    fast = [decode(path, Decoding(channels=channels)) for path in files]
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    for path, pixels in zip(files, fast, strict=True):
        difference = np.abs(decode(path, Decoding(channels=channels)).astype(int) - pixels)
        assert np.percentile(difference, 99) <= 2, path


def test_scans_outside_of_the_image_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Motion photos have a video after the image, and thumbnails are in segments before it."""
    monkeypatch.setattr(module, "MAX_SCANS", 1)
    decoding = Decoding(max_megapixels=40 * 60 * 10 / 1e6)
    photo, scans = oriented(1), b"\xff\xda" * 1_000_000
    thumbnail = b"\xff\xe5" + (2 + 60_000).to_bytes(2) + scans[:60_000]
    for content in (photo, photo + scans, photo[:2] + thumbnail + photo[2:] + scans):
        assert np.array_equal(decode_bytes(content, decoding), decode_bytes(photo))


@pytest.mark.parametrize(
    "hidden", [b"", b"\xff\xff", b"\xff\x00", b"\xff\xd3", b"\xff\x02\xff\xff", b"\xff\xfe\x00\x00"]
)
@pytest.mark.parametrize("wrap", [bytes, in_mpo])
def test_scans_count_after_any_padding(hidden: bytes, wrap: Callable[[bytes], bytes]) -> None:
    whole = rescanned(1000, 2000)
    position = whole.rindex(b"\xff\xda")
    content = wrap(whole[:position] + hidden + whole[position:])
    with pytest.raises(ImageError, match=r"would take too long \(1000 x 1000 in 201\d scans, at most 1530\)") as caught:
        decode_bytes(content)
    assert caught.value.code == "too_many_scans"


BROKEN_EXIF = {
    "no header": b"Exif\0\0garbage",
    "text as orientation": b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0",
    "orientation 99": b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",
    "cut": b"II+\0\x08\0\0\0",
    "empty": b"II*\0\xff\xff\xff\xff",
}


@pytest.mark.parametrize("exif", BROKEN_EXIF)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_corrupt_exif_does_not_affect_pixels(kind: str, exif: str) -> None:
    content = encoded(kind, exif=BROKEN_EXIF[exif])
    assert np.array_equal(decode_bytes(content), decode_bytes(encoded(kind)))
    with Image.open(BytesIO(content)) as image:
        assert upright_size(image) == (60, 40)
        assert from_pil(image, 3).shape == (40, 60, 3)


def test_a_corrupt_raw_profile_does_not_affect_pixels() -> None:
    content = encoded("PNG")
    position, chunk = (
        content.index(b"IDAT") - 4,
        b"zTXtRaw profile type exif\0\0" + zlib.compress(b"\nexif\n  5\n4578zz\n"),
    )
    added = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    assert np.array_equal(decode_bytes(content[:position] + added + content[position:]), decode_bytes(content))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_tiff_file_is_applied_once(orientation: int) -> None:
    content = tiff(gradient(), {274: ("H", orientation)})
    with Image.open(BytesIO(content)) as image:
        assert upright_size(image) == decode_bytes(content).shape[1::-1]
        assert np.array_equal(np.asarray(ImageOps.exif_transpose(image)), decode_bytes(content))


def with_xmp(kind: str, orientation: int) -> bytes:
    """Return an image whose orientation is only in its XMP metadata."""
    xmp = f'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{orientation}"/>'
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp)
        return encoded(kind, pnginfo=info)
    return encoded(kind, **({"tiffinfo": {700: xmp.encode()}} if kind == "TIFF" else {"xmp": xmp.encode()}))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "WEBP", "AVIF", "TIFF"])
def test_xmp_has_the_orientation_if_exif_has_none(kind: str, orientation: int) -> None:
    content = with_xmp(kind, orientation)
    with Image.open(BytesIO(content)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    for crop in (None, lambda height, width: Crop(0, 0, height, width, (height, width))):
        pixels = decode_bytes(content, crop=crop)
        assert pixels.shape == expected.shape
        assert np.abs(pixels.astype(int) - expected).max() <= 6
    with Image.open(BytesIO(content)) as image:
        assert upright_size(image) == expected.shape[1::-1]
        assert np.array_equal(from_pil(image, 3), expected)


def test_a_missing_decoder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HAS_HEIF", False)
    monkeypatch.setattr(module, "FORMATS", ("JPEG",))
    monkeypatch.setattr(module.features, "check", lambda _: False)
    for content, message in (
        (UNREADABLE["heic_named.jpg"][0], r"HEIC needs pillow-heif \(pip install pillow-heif\)"),
        (encoded("AVIF"), "this Pillow was built without AVIF"),
    ):
        with pytest.raises(ImageError, match=rf"no installed decoder supports its format \({message}\)"):
            decode_bytes(content)


@pytest.mark.skipif(not HAS_HEIF, reason="pillow-heif is not installed")
def test_heic_is_read_if_its_package_is_installed(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(encoded("HEIF", quality=95))
    assert np.abs(decode(tmp_path / "a.heic").astype(int) - gradient()).mean() < 6


def test_corrupt_files_are_decoded_or_raise_image_error(tmp_path: Path) -> None:
    """1000 truncated files and 1000 with flipped bits."""
    generator = np.random.default_rng(1)
    whole = encoded("JPEG", Image.fromarray(generator.integers(0, 255, (50, 70, 3), dtype=np.uint8)))
    path = tmp_path / "a.jpg"
    rejected = {"cut": 0, "flipped": 0}
    for kind in rejected:
        for _ in range(1000):
            content = bytearray(whole)
            if kind == "cut":
                content = content[: generator.integers(1, len(whole) - 2)]
            else:
                content[generator.integers(0, len(whole))] ^= 1 << int(generator.integers(0, 8))
            path.write_bytes(content)
            try:
                assert decode(path).dtype == np.uint8
            except ImageError:
                rejected[kind] += 1
    assert rejected["cut"] == 1000, "no truncated file is decoded"
    assert 0 < rejected["flipped"] < 1000


def test_every_reason_is_tested() -> None:
    assert set(REASONS) == {code for _, code in UNREADABLE.values()} | {
        "missing",
        "no_permission",
        "changed",
        "outside_range",
        "not_regular",
        "too_large_file",
        "not_read",
    }
    assert re.match("it is not a JPEG, PNG", REASONS["unknown_format"])
