"""Class names: rules for the names of class folders, and display names to show instead of them."""

import json
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from alexlab.data.hidden_names import is_hidden
from alexlab.errors import ConfigError, DataError
from alexlab.output.escape import shown, writable

MAX_NAME_BYTES = 255  # on ext4, XFS, Btrfs and NTFS


def folder_name_problem(name: str) -> str | None:
    """Return the reason why a class of this name cannot have a folder, or None if it can."""
    if not name.strip():
        return "it is empty"
    if "/" in name or "\\" in name:
        return "it contains a path separator"
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name):
        return "it contains control characters or bytes that are not UTF-8"
    if is_hidden(name):
        return "hidden folders and folders that other programs leave behind are skipped"
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"it is longer than {MAX_NAME_BYTES} bytes"
    return None


def check_class_names(names: Sequence[str], where: str) -> None:
    """Check that class names can be written and distinguished on every file system.

    Args:
        names: names of class folders.
        where: folder or file that they come from, for the message.

    Raises:
        DataError: if a name is not UTF-8, or two names differ only in case or Unicode form.
    """
    for name in names:
        if writable(name) != name:
            raise DataError(f"the names of class folders must be UTF-8; {shown(where)} has {shown(name)}")
    for first, second in confusable_names(names):
        raise DataError(
            f"the names of classes must differ in more than case or Unicode form; {shown(where)} has "
            f"{first!r} and {second!r} ({first!a}, {second!a}): rename or merge them"
        )


def confusable_names(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs of names that differ only in case or Unicode form, each with the earlier name first."""
    earlier: dict[str, str] = {}
    pairs = []
    for name in names:
        first = earlier.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if first != name:
            pairs.append((first, name))
    return pairs


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

    Each name is unique: of classes with the same one, as two of ImageNet are called crane, the folder is added, or the number of
    the class if that is the same too.

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
    texts = [name or folder for name, folder in zip(found, classes, strict=True)]
    counts = Counter(texts)
    return [
        name if counts[name] == 1 else f"{name} ({number if name == folder else folder})"
        for number, (name, folder) in enumerate(zip(texts, classes, strict=True))
    ]


def sorted_classes(names: Collection[str]) -> list[str]:
    """Return folder names in the order of their labels: the numbers of the classes from 0 by number, other names as text."""
    numbers = [str(number) for number in range(len(names))]
    return numbers if {*names} == {*numbers} else sorted(names)


def _first_five(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
