"""Display names of classes, which reports, plots and predictions show instead of folder names."""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from alexlab.errors import ConfigError


def read_class_names(path: str | Path) -> dict[str, str]:
    """Read a JSON object that maps folder names to display names.

    Raises:
        ConfigError: if the file cannot be read, or is not a JSON object whose values are strings.
    """
    try:
        names = json.loads(Path(path).read_bytes())  # as UTF-8 or UTF-16, with or without a byte order mark
    except OSError as error:
        raise ConfigError(f"class_names must be a JSON file; cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"class_names must be a JSON file in UTF-8; {path} is not: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"class_names must be a JSON file; {path} is not: {error}") from error
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ConfigError(f'class_names={path} must map folder names to display names: {{"n02084071": "dog", ...}}')
    return names


def display_names(classes: Sequence[str], names: Mapping[str, str] | None) -> list[str]:
    """Return the display name of each class; a class missing from `names` keeps its folder name.

    Raises:
        ConfigError: if `names` has entries, but none for any of the classes.
    """
    by_folder = {unicodedata.normalize("NFC", folder): name for folder, name in (names or {}).items()}
    found = [by_folder.get(unicodedata.normalize("NFC", folder)) for folder in classes]
    if by_folder and not any(found):
        raise ConfigError(
            f"class_names must name at least one of the classes {_first_five(classes)}; it only names "
            f"{_first_five(list(by_folder))}"
        )
    return [name or folder for name, folder in zip(found, classes, strict=True)]


def _first_five(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
