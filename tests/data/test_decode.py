import os
import re
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from alexlab.data import decode as module
from alexlab.data.decode import decode, upright_size
from alexlab.data.image_file import REASONS, Decoding
from alexlab.errors import DataError, ImageError
from bad_inputs import READABLE, UNREADABLE, encoded, gradient, oriented
from conftest import ROOT, environment

CATS = ROOT.parent / "shared/data/cats_and_dogs/val/cat"


@pytest.mark.parametrize("name", READABLE)
def test_what_is_readable(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(READABLE[name])
    pixels = decode(tmp_path / name)
    assert (pixels.dtype, pixels.ndim, pixels.shape[2]) == (np.uint8, 3, 3)
    assert decode(tmp_path / name, Decoding(channels=1)).shape == (*pixels.shape[:2], 1)
    if not name.startswith(("one", "exif", "deep", "ycck")):
        grey = name in ("la.png", "grey.jpg")
        expected = np.asarray(Image.fromarray(gradient()).convert("L"))[..., None] if grey else gradient()
        assert np.abs(pixels.astype(int) - expected).mean() < 6


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_not_and_why(name: str, tmp_path: Path) -> None:
    content, code = UNREADABLE[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError) as caught:
        decode(tmp_path / name)
    assert caught.value.code == code
    assert str(caught.value).startswith(f"cannot read the image {tmp_path / name}: {REASONS[code]}")


def test_what_is_not_there_and_what_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to("nowhere.png")
    for name, words in (
        ("gone.png", "there is no such file"),
        ("link.png", r"there is no such file \(a link to nowhere\)"),
    ):
        with pytest.raises(DataError, match=words):
            decode(tmp_path / name)


def test_a_file_without_permission(tmp_path: Path) -> None:
    """Root may read every file, so another user tries where this is root."""
    path = tmp_path / "a.png"
    path.write_bytes(encoded("PNG"))
    path.chmod(0)
    if os.geteuid() != 0:
        with pytest.raises(DataError, match="no permission to read it"):
            decode(path)
        return
    for folder in [tmp_path, *tmp_path.parents][:3]:
        folder.chmod(0o755)
    code = f"from alexlab.data.decode import decode; decode({str(path)!r})"
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(PYTHONPATH=str(ROOT / "src")))
    if "Permission denied" in done.stderr and "alexlab" not in done.stderr:
        pytest.skip("another user cannot start this Python")
    assert "no permission to read it" in done.stderr


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
        monkeypatch.setattr(module, "simplejpeg", None)
    (tmp_path / "turned.jpg").write_bytes(oriented(orientation))
    with Image.open(BytesIO(oriented(orientation))) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
        assert upright_size(image) == expected.shape[1::-1]
    pixels = decode(tmp_path / "turned.jpg")
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= 2


@pytest.mark.skipif(module.simplejpeg is None, reason="simplejpeg has no wheel here")
@pytest.mark.parametrize("channels", [1, 3])
def test_the_fast_decoder_gives_what_pillow_gives(
    channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 2 grey levels in 99 of 100 values, at all qualities and samplings of colour."""
    generator = np.random.default_rng(0)
    smooth = Image.fromarray(generator.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize((300, 200))
    files = sorted(CATS.glob("*.jpg"))[:20]
    for quality in (50, 90):
        for subsampling in (0, 1, 2):
            path = tmp_path / f"{quality}_{subsampling}.jpg"
            path.write_bytes(encoded("JPEG", smooth, quality=quality, subsampling=subsampling))
            files.append(path)
    fast = [decode(path, Decoding(channels=channels)) for path in files]
    monkeypatch.setattr(module, "simplejpeg", None)
    for path, pixels in zip(files, fast, strict=True):
        difference = np.abs(decode(path, Decoding(channels=channels)).astype(int) - pixels)
        assert np.percentile(difference, 99) <= 2, path


def test_damaged_files_never_end_the_process(tmp_path: Path) -> None:
    """1000 truncations and 1000 flipped bits: each is a picture or an ImageError."""
    generator = np.random.default_rng(1)
    whole = encoded("JPEG", Image.fromarray(generator.integers(0, 255, (50, 70, 3), dtype=np.uint8)))
    path = tmp_path / "a.jpg"
    refused = {"cut": 0, "flipped": 0}
    for kind in refused:
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
                refused[kind] += 1
    assert refused["cut"] == 1000, "no truncated file passes as a picture"
    assert 0 < refused["flipped"] < 1000


def test_every_reason_is_reached() -> None:
    assert set(REASONS) == {code for _, code in UNREADABLE.values()} | {
        "missing",
        "no_permission",
        "changed",
        "not_regular",
        "too_large_file",
    }
    assert re.match(r"its content is none of JPEG, PNG", REASONS["unknown_format"])
