"""Recognition of files that contain no readable weights by their first bytes, with a remedy for each."""

import tarfile
import zipfile
from pathlib import Path

CONVERT = 'python -c "import torch; {}"'  # for a user who trusts the file
# First bytes of files that are not weights.
MAGIC = {
    b"version https://git-lfs": "it is a Git LFS pointer, not the file itself: run `git lfs pull` where it was cloned",
    b"\x1f\x8b": "it is compressed with gzip: unpack it first",
    b"BZh": "it is compressed with bzip2: unpack it first",
    b"\xfd7zXZ": "it is compressed with xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "it is compressed with zstd: unpack it first",
    b"7z\xbc\xaf": "it is a 7z archive: unpack it first",
    b"Rar!": "it is a RAR archive: unpack it first",
    b"\x89HDF": "it is an HDF5 file, such as Keras writes: export its weights as a state dict of PyTorch",
    b"\x93NUMPY": "it is a NumPy array: save a state dict with torch.save instead",
    b"GGUF": "it is a GGUF file: save a state dict with torch.save instead",
    b"\x89PNG": "it is a PNG image",
    b"\xff\xd8\xff": "it is a JPEG image",
    b"%PDF": "it is a PDF document",
    b"\x7fELF": "it is a program",
}
TORCH_SAVE = b"l\xfc\x9cF\xf9 j\xa8P\x19"  # magic number of files of PyTorch before 1.6
HEAD = 512  # bytes


def is_safetensors(path: Path) -> bool:
    """Return whether a file starts like a safetensors file: with the length of a JSON object, then that object."""
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size


def misfit(path: Path) -> str | None:
    """Return why a file cannot contain readable weights, with the remedy; None if it may."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not size:
        return "it is empty: copy or download it again"
    if not any(head):
        return "it begins with zeros only, as an interrupted copy leaves it: copy or download it again"
    for magic, reason in MAGIC.items():
        if head.startswith(magic):
            return reason
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return "it is an HTML page, as servers return it instead of a file: download it again from its direct link"
    if path.suffix == ".onnx":
        return "it is an ONNX model: take the checkpoint that it was exported from"
    if zipfile.is_zipfile(path):
        return _archive_misfit(path)
    if head.startswith(b"\x80") and TORCH_SAVE not in head and not is_safetensors(path):
        line = CONVERT.format(f"import pickle; torch.save(pickle.load(open('{path}', 'rb')), 'weights.pth')")
        return f"it is a pickle that was not written by torch.save; if you trust it, convert it: {line}"
    if head.startswith(b"PK"):
        return "its end is missing: copy or download it again"
    if tarfile.is_tarfile(path):
        return _tar_misfit(path)
    if is_safetensors(path) or TORCH_SAVE in head:
        return None
    if text.startswith((b"{", b"[")):
        return "it is a JSON text"
    return "it was not written by torch.save or safetensors, or it is corrupt"


def check_sums(path: Path) -> None:
    """Raise ValueError if a record of a zip archive has a wrong checksum, which PyTorch does not verify.

    For our own files only: other programs may have disabled checksums (torch.serialization.set_crc32_options).
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            record = archive.testzip()
        if record is not None:
            raise ValueError(f"it is corrupt: the checksum of its record {record} is wrong")


def _archive_misfit(path: Path) -> str | None:
    """Return why a zip archive was not written by torch.save; None if it was.

    PyTorch stores tensors uncompressed: a compressed archive could unpack to a thousand times its size.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    names = [entry.filename for entry in entries]
    inside = [name.partition("/")[2] for name in names]
    if any(name == "constants.pkl" or name.startswith("code/") for name in inside):
        line = CONVERT.format(f"torch.save(torch.jit.load('{path}').state_dict(), 'weights.pth')")
        return f"it is a TorchScript archive, which contains code; if you trust it, convert it: {line}"
    if any("serialized_exported_program" in name or "archive_format" in name for name in names) or any(
        name.startswith("models/") and name.endswith(".json") for name in inside
    ):
        line = CONVERT.format(f"torch.save(torch.export.load('{path}').state_dict, 'weights.pth')")
        return f"it is a program of torch.export, which contains code; if you trust it, convert it: {line}"
    if "data.pkl" not in inside:
        some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        return f"it is a zip archive that was not written by torch.save ({some or 'empty'}): unpack it and name a file in it"
    held = sum(entry.file_size for entry in entries)
    if held > path.stat().st_size or any(entry.compress_type for entry in entries):
        return f"it unpacks to {held / 1e6:.0f} MB from {path.stat().st_size / 1e6:.1f} MB, which PyTorch never writes"
    return None


def _tar_misfit(path: Path) -> str:
    try:
        with tarfile.open(path) as archive:
            names = [member.name for member in archive]
    except tarfile.TarError:
        return "it is a tar archive whose end is missing: copy or download it again"
    if "pickle" in {name.rpartition("/")[2] for name in names}:
        line = CONVERT.format(f"torch.save(torch.load('{path}', weights_only=False), 'weights.pth')")
        return f"it is in the format of PyTorch before 0.1.10; if you trust it, convert it: {line}"
    return "it is a tar archive: unpack it and name the file of weights in it"
