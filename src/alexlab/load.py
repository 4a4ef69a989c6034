"""Reading checkpoints and weights, which may be a stranger's: tensors and plain data, not more than the file holds."""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from alexlab.errors import ConfigError

FORCED = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"  # with which torch.load runs any code, whatever it is asked


def load_file(path: Path) -> Any:
    """The content of a checkpoint or of a file of weights (.ckpt, .pt, .pth, .safetensors).

    Raises:
        ConfigError: when it cannot be read, or holds more than tensors and plain data.
    """
    if os.environ.get(FORCED, "0") not in ("0", ""):
        raise ConfigError(f"{FORCED} must not be set: a checkpoint could run any code; unset {FORCED}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file as load_safetensors

            found = load_safetensors(path)
            # The file does not keep the order of the layers, by which they may have to be matched.
            return {key: found[key] for key in sorted(found, key=_natural)}
        _check_size(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in as many ways as there are parsers
        if isinstance(error, pickle.UnpicklingError) and "weights_only" in str(error).lower():
            reason = "it holds more than tensors and plain data"
        else:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"cannot read the weights in {path}: {reason}") from error


def _check_size(path: Path) -> None:
    """PyTorch stores tensors as they are; a compressed one could be a thousand times larger than the file."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            if file.read(2) == b"PK":
                raise ValueError("its end is missing")
        return
    with zipfile.ZipFile(path) as archive:
        held = sum(entry.file_size for entry in archive.infolist())
        if held > path.stat().st_size or any(entry.compress_type for entry in archive.infolist()):
            raise ValueError(
                f"it holds {held / 1e6:.0f} MB in {path.stat().st_size / 1e6:.1f} MB, which PyTorch never writes"
            )


def _natural(key: str) -> list[tuple[int, int, str]]:
    """features.10 after features.9."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in key.split(".")]
