"""Images of more than 8 bits are scaled by the range that they declare, or rejected if they declare none."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from alexlab.data.audit.audit import audit_dataset
from alexlab.data.decode import decode_bytes
from alexlab.data.image_file import Decoding
from alexlab.errors import ConfigError, ImageError
from support.bad_images import encoded, tiff
from support.images import write_images

RAMP = np.linspace(0, 1, 2400).reshape(40, 60)  # from black to white


def ramp(kind: str, black: float, white: float) -> np.ndarray:
    values = black + RAMP * (white - black)
    return (values if kind.startswith("f") else values.round()).astype(kind)


def grey(content: bytes, **settings: Any) -> np.ndarray:
    return decode_bytes(content, Decoding(channels=1, **settings))[..., 0].astype(int)


def assert_is_ramp(pixels: np.ndarray) -> None:
    assert np.abs(pixels - RAMP * 255).max() <= 1.01


def png(values: np.ndarray, significant_bits: int | None = None) -> bytes:
    content = encoded("PNG", Image.fromarray(values))
    if significant_bits is None:
        return content
    position, chunk = content.index(b"IDAT") - 4, b"sBIT" + bytes([significant_bits])
    return content[:position] + struct.pack(">I", 1) + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[position:]


def packed_12_bits(values: np.ndarray) -> np.ndarray:
    """Two values of 12 bits in three bytes."""
    first, second = values[:, 0::2], values[:, 1::2]
    parts = [first >> 4, (first & 15) << 4 | second >> 8, second & 255]
    return np.stack(parts, -1).reshape(len(values), -1).astype(np.uint8)


TWELVE = ramp("u2", 0, 4095)
WHITE_IS_ZERO = {262: ("H", 0)}
DECLARED: dict[str, bytes] = {
    "tiff, 16 bits": tiff(ramp("u2", 0, 65535)),
    "tiff, 12 bits": tiff(packed_12_bits(TWELVE), {256: ("I", 60), 258: ("H", 12)}),
    "tiff, MaxSampleValue": tiff(TWELVE, {280: ("H", 7), 281: ("H", 4095)}),
    "tiff, SMaxSampleValue": tiff(ramp("u2", 7, 3000), {340: ("H", 7), 341: ("H", 3000), 281: ("H", 4095)}),
    "tiff, signed 8 bits": tiff(ramp("i1", -128, 127), {340: ("i", -128), 341: ("i", 127)}),
    "tiff, signed 16 bits": tiff(ramp("i2", -1000, 2000), {340: ("h", -1000), 341: ("h", 2000)}),
    "tiff, unsigned 32 bits": tiff(ramp("u4", 0, 4e9), {341: ("I", 4_000_000_000)}),
    "tiff, signed 32 bits": tiff(ramp("i4", -9, 2e9), {340: ("i", -9), 341: ("i", 2_000_000_000)}),
    "tiff, floats": tiff(ramp("f4", -1, 1), {340: ("f", -1), 341: ("f", 1)}),
    "tiff, white is zero": tiff(ramp("u2", 65535, 0), WHITE_IS_ZERO),
    "tiff, white is zero, 12 bits": tiff(ramp("u2", 4095, 0), {**WHITE_IS_ZERO, 281: ("H", 4095)}),
    "tiff, white is zero, floats": tiff(ramp("f4", 1, 0), {**WHITE_IS_ZERO, 340: ("f", 0), 341: ("f", 1)}),
    "png, 16 bits": png(ramp("u2", 0, 65535)),
    "png, 12 bits scaled to 16": png((TWELVE * 65535.0 / 4095).round().astype("u2"), 12),
    "png, 12 bits unscaled": png(TWELVE, 12),
    "pgm, 12 bits": b"P5 60 40 4095\n" + TWELVE.astype(">u2").tobytes(),
    "pgm, as text": b"P2 60 40 4095\n" + b" ".join(b"%d" % value for value in TWELVE.ravel()) + b"\n",
}
UNKNOWN: dict[str, tuple[bytes, str]] = {
    "png, 12 bits": (
        png(TWELVE),
        r"16 bits, unsigned: this file's values are 0 to 4095; give the range of the device, such as data.intensity_range=",
    ),
    "png, 12 bits declared as 16": (png(TWELVE, 16), "values are 0 to 4095; give the range"),
    "pgm, 10 bits declared as 16": (b"P5 60 40 65535\n" + ramp(">u2", 0, 1023).tobytes(), "values are 0 to 1023; give"),
    "tiff, 12 bits": (tiff(TWELVE), "values are 0 to 4095; give"),
    "tiff, signed 16 bits": (
        tiff(ramp("i2", -1000, 2000)),
        r"16 bits, signed: this file's values are -1000 to 2000; give",
    ),
    "tiff, 32 bits": (tiff(ramp("i4", 0, 99_999)), "32 bits, signed: this file's values are 0 to 99999; give"),
    "tiff, floats": (tiff(ramp("f4", 0, 1)), "floating-point: this file's values are 0 to 1; give"),
    "tiff, an image's maximum": (tiff(ramp("u2", 0, 3900), {281: ("H", 3900)}), "values are 0 to 3900; give"),
    "tiff, MaxSampleValue of signed values": (tiff(ramp("i2", 0, 4095), {280: ("H", 0), 281: ("H", 4095)}), "signed"),
    "tiff, no numbers": (tiff(np.full((40, 60), np.nan, "f4")), "not all of its values are finite numbers"),
    "tiff, a wrong declaration": (
        tiff(TWELVE, {341: ("H", 255)}),
        "it declares 0 to 255, but this file's values are 0 to 4095; give",
    ),
}


@pytest.mark.parametrize("name", DECLARED)
def test_a_declared_range_is_used(name: str) -> None:
    assert_is_ramp(grey(DECLARED[name]))


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_range_is_rejected_with_a_hint(name: str) -> None:
    content, message = UNKNOWN[name]
    with pytest.raises(
        ImageError, match=f"does not declare which of its values are black and white .*{message}"
    ) as caught:
        grey(content)
    assert caught.value.code == "unknown_range"


@pytest.mark.parametrize(
    ("name", "black", "white"),
    [
        ("png, 12 bits", 0, 4095),
        ("pgm, 10 bits declared as 16", 0, 1023),
        ("tiff, signed 16 bits", -1000, 2000),
        ("tiff, floats", 0, 1),
    ],
)
def test_the_settings_can_declare_the_range(name: str, black: float, white: float) -> None:
    assert_is_ramp(grey(UNKNOWN[name][0], intensity_range=[black, white]))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize(("kind", "letter"), [("u2", "H"), ("i2", "h"), ("i4", "i"), ("f4", "f")])
def test_both_byte_orders_compressed_or_not(kind: str, letter: str, deflate: bool, order: str) -> None:
    black, white = (0, 65535) if kind == "u2" else (-900, 2000)
    declared = {340: (letter, black), 341: (letter, white)}
    assert_is_ramp(grey(tiff(ramp(kind, black, white), declared, order=order, deflate=deflate)))


def test_16_bits_at_full_range_keep_their_high_byte() -> None:
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert np.array_equal(grey(png(every)), every >> 8)


def test_a_range_from_the_settings_precedes_the_statistics_of_a_tiff_file() -> None:
    content = tiff(TWELVE, {281: ("H", 4095)})
    assert np.array_equal(grey(content, intensity_range=[0, 65535]), TWELVE >> 8)
    values = ramp("u2", 0, 20_000)
    values[0, 0] = 40_000
    assert np.array_equal(grey(tiff(values, {281: ("H", 40_000)})), values >> 8), "one bright pixel scales no image"


@pytest.mark.parametrize(
    ("content", "given", "found"),
    [
        (png(ramp("u2", 0, 16_000)), [0, 4095], r"0 to 16000, outside \[0,4095\]"),
        (png(ramp("u2", 5, 4000)), [6, 4095], r"5 to 4000, outside \[6,4095\]"),
        (tiff(ramp("f4", 0, 1.5)), [0, 1], r"0 to 1\.5, outside \[0,1\]"),
        (tiff(np.array([[0, np.inf]], "f4")), [0, 1], r"0 to inf, outside"),
        (tiff(ramp("u2", 0, 16_000), {341: ("H", 9)}), [0, 4095], "0 to 16000, outside"),
    ],
)
def test_a_file_with_values_outside_the_range_of_the_settings_is_refused(
    content: bytes, given: list[float], found: str
) -> None:
    message = (
        rf"values outside data\.intensity_range \(this file's values are {found}.*; give the range of the device\)"
    )
    with pytest.raises(ImageError, match=message) as caught:
        grey(content, intensity_range=given)
    assert caught.value.code == "outside_range"


def test_bounds_are_compared_in_the_precision_of_the_file() -> None:
    """The 32-bit number closest to 0.1 is larger than 0.1. NaN is outside no range."""
    values = ramp("f4", 0, 0.1)
    assert_is_ramp(grey(tiff(values), intensity_range=[0, 0.1]))
    values[0, 0] = np.nan
    assert_is_ramp(grey(tiff(values), intensity_range=[0, 0.1]))


def test_genuinely_dark_images_are_read() -> None:
    """A black frame is the same in any range, and one bright value is enough to show a full range."""
    assert grey(png(np.zeros((40, 60), np.uint16))).max() == 0
    night = ramp("u2", 0, 900)
    night[20, 30] = 50_000
    assert np.array_equal(grey(png(night)), night >> 8)
    assert np.array_equal(grey(png(TWELVE), intensity_range=[0, 65535]), TWELVE >> 8)


def test_tiff_files_that_pillow_cannot_read() -> None:
    with pytest.raises(ImageError, match=r"no installed decoder supports its format \(TIFF: unknown pixel mode\)"):
        grey(tiff(TWELVE, {258: ("H", 14)}))


@pytest.mark.parametrize("given", [[4095, 0], [0], [0, float("nan")], [0, float("inf")]])
def test_an_intensity_range_is_two_increasing_numbers(given: list[float]) -> None:
    with pytest.raises(
        ConfigError, match=r"data.intensity_range must be null or two numbers, black and a larger white"
    ):
        Decoding(intensity_range=given)


def test_an_audit_reports_unknown_ranges(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", {"a": 2, "b": 2})
    (root / "a/deep.png").write_bytes(png(TWELVE))
    findings = {(finding.code, finding.path) for finding in audit_dataset(str(root)).findings}
    assert findings == {("unreadable_unknown_range", "a/deep.png")}
    assert not audit_dataset(str(root), decoding=Decoding(intensity_range=[0, 4095])).findings
    (found,) = audit_dataset(str(root), decoding=Decoding(intensity_range=[0, 4000])).findings
    assert (found.code, found.path) == ("unreadable_outside_range", "a/deep.png")
