"""Safe reading of checkpoints and weights from untrusted files: tensors and plain data only."""

import os
import pickle
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from alexlab import compat
from alexlab.errors import ConfigError
from alexlab.records.file_kind import CONVERT, check_sums, is_safetensors, misfit

DEFAULTDICT = "collections.defaultdict"
FORCED = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"  # makes torch.load run any code, even with weights_only=True
PLAIN = {type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device}
MAX_NAMES = 200  # classes that a file may reference; the unpickler searches all of them for each object
# Names that torch.load allows by default.
ALLOWED = re.compile(
    r"torch\.\w+|torch\.(_utils|_tensor|storage|serialization|nn\.parameter)\..*|collections\.\w+|_codecs\.encode|builtins\.set"
)


class _PlaceholderType(type):
    """Metaclass of `Placeholder`: a call with any arguments returns an empty object."""

    def __call__(cls, *args: Any, **keywords: Any) -> Any:
        return object.__new__(cls)  # type: ignore[arg-type]  # a class, not an instance of one


class Placeholder(metaclass=_PlaceholderType):
    """Substitute for a class that a file references, so that its tensors can be read.

    The class itself is neither imported nor called. Pickle creates an object either by a call, which returns an empty one, or by
    `__new__`, which returns a mapping: it stores the entries of dict subclasses, and the attributes of other objects.
    """

    def __new__(cls, *args: Any, **keywords: Any) -> Any:
        return OrderedDict()

    def __setstate__(self, state: Any) -> None:
        pass


def _mapping(*args: Any) -> dict[Any, Any]:
    """Substitute for `collections.defaultdict`, which pickle calls before it sets entries."""
    return {}


def check_plain(content: Any, where: str = "") -> None:
    """Check that `load_file` can read what is to be saved, before a resume fails.

    Args:
        content: nested dicts and lists.
        where: key of the content, for the message.

    Raises:
        ConfigError: naming the first value that is neither a tensor nor plain data.
    """
    kind = type(content)  # a subclass, such as a number of NumPy, is pickled as an object of its own class
    if kind in (dict, OrderedDict):
        for name, value in content.items():
            check_plain(value, f"{where}.{name}" if where else str(name))
    elif kind in (list, tuple, set):
        for number, value in enumerate(content):
            check_plain(value, f"{where}.{number}")
    elif kind not in PLAIN and not isinstance(content, torch.Tensor):
        raise ConfigError(
            f"{where} must be a tensor or plain data, since a checkpoint stores it and is read without running code; "
            f"got {kind.__module__}.{kind.__qualname__}: leave it out of state_dict()"
        )


def load_file(path: Path) -> Any:
    """Return the content of a checkpoint, after verifying its checksums, or of a file of weights.

    Raises:
        ConfigError: if it cannot be read, or contains other objects than tensors and plain data.
    """
    return _read(path, with_placeholders=False)[0]


def load_foreign(path: Path) -> tuple[Any, list[str]]:
    """Return the content of a file written by another program, and the names of the classes that were not loaded.

    Objects of these classes (settings, NumPy scalars, whole modules) are replaced by placeholders.

    Raises:
        ConfigError: if it cannot be read.
    """
    return _read(path, with_placeholders=True)


def _read(path: Path, *, with_placeholders: bool) -> tuple[Any, list[str]]:
    if os.environ.get(FORCED, "0") not in ("0", ""):
        raise ConfigError(f"{FORCED} must not be set: a checkpoint could run any code; unset {FORCED}")
    names: list[str] = []
    try:
        reason = misfit(path)
        if reason is not None:
            raise ValueError(reason)
        if is_safetensors(path):
            return _safetensors(path), names
        if not with_placeholders:
            check_sums(path)
        try:
            return _torch_load(path), names
        except pickle.UnpicklingError:
            names = named_classes(path)
            if not with_placeholders or not names:
                raise
        stand_ins: list[Any] = [(_mapping if name == DEFAULTDICT else Placeholder, name) for name in names]
        with torch.serialization.safe_globals(stand_ins):
            return _torch_load(path), names
    except Exception as error:  # every parser fails in its own way on a corrupt file
        raise ConfigError(f"cannot read the weights in {path}: {_reason(path, error, names)}") from error


def _torch_load(path: Path) -> Any:
    # As an open file: for a path that ends in .safetensors, torch.load would expect that format.
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about rare formats, which the user cannot change
        return torch.load(file, map_location="cpu", weights_only=True)


def _safetensors(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file as load_safetensors

    found = load_safetensors(path)
    # The file does not preserve the order of the layers, which matching by position needs.
    return {key: found[key] for key in sorted(found, key=_natural)}


def named_classes(path: Path) -> list[str]:
    """Return the classes and functions that a file of torch.save references, except those that torch.load allows.

    Raises:
        ValueError: if there are too many of them, or the file is not a pickle.
    """
    found: set[str] = set()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            record = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(record) as file:
                _collect(file, found)
    else:  # before PyTorch 1.6: three pickles of constants, then that of the content
        with path.open("rb") as file:
            for _ in range(4):
                _collect(file, found)
    return sorted(name for name in found if not ALLOWED.fullmatch(name) or name == DEFAULTDICT)


def _collect(file: Any, found: set[str]) -> None:
    for operation, argument, _ in pickletools.genops(file):
        if operation.name != "GLOBAL":
            continue
        module, name = str(argument).split(" ", 1)
        module, name = compat.python3_name(module, name)
        found.add(f"{module}.{name}")
        if len(found) > MAX_NAMES:
            raise ValueError(f"it must reference at most {MAX_NAMES} classes")


def _reason(path: Path, error: Exception, names: list[str]) -> str:
    if names:
        return f"it contains other objects than tensors and plain data; {conversion(path, names)}"
    text = (str(error).splitlines() or [""])[0] or type(error).__name__
    if isinstance(error, OSError):
        return error.strerror or text
    return text if isinstance(error, ValueError) else f"it is corrupt ({type(error).__name__}: {text})"


def conversion(path: Path, names: list[str]) -> str:
    """Return how to convert a file with objects of these classes to a state dict."""
    some = f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
    line = CONVERT.format(f"x = torch.load('{path}', weights_only=False); torch.save(x.state_dict(), 'weights.pth')")
    return (
        f"objects of {some} are not loaded, because that could run code; if you trust the file, convert it: {line} "
        "(x['model'] if x is a dict)"
    )


def _natural(key: str) -> list[tuple[int, int, str]]:
    """Sort features.10 after features.9."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in key.split(".")]
