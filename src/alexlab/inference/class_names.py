"""Names that are shown in the place of folder names, and letters that a plot's fonts must have. Imports no torch."""

import json
import logging
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alexlab.errors import ConfigError
from alexlab.output.escape import shown

log = logging.getLogger(__name__)


def read_class_names(path: str | Path) -> dict[str, str]:
    """Folder names to names shown, from a JSON file.

    Raises:
        ConfigError: when there is no such file, or it is no object of texts.
    """
    try:
        found = json.loads(Path(path).read_bytes())  # as UTF-8 or UTF-16, with or without a byte order mark
    except OSError as error:
        raise ConfigError(f"class_names must be a JSON file; cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"class_names must be a JSON file in UTF-8; {path} is not: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"class_names must be a JSON file; {path} is none: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise ConfigError(f'class_names={path} must map folder names to names shown: {{"n02084071": "dog", ...}}')
    return found


def shown_names(classes: Sequence[str], names: Mapping[str, str] | None) -> list[str]:
    """The name shown of each class; a class that is not among the names keeps its own.

    Raises:
        ConfigError: when the names are of no class at all.
    """
    known = {unicodedata.normalize("NFC", folder): name for folder, name in (names or {}).items()}
    found = [known.get(unicodedata.normalize("NFC", folder)) for folder in classes]
    if known and not any(found):
        raise ConfigError(
            f"class_names must name the classes {_some(classes)}; it names {_some(list(known))} and none of them"
        )
    return [name or folder for name, folder in zip(found, classes, strict=True)]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def choose_fonts(texts: Iterable[str]) -> str:
    """Makes matplotlib take each letter from the first font of this machine that has it.

    Returns:
        The letters that no font has; they are told in the log, and drawn as boxes.
    """
    import matplotlib
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    wanted = {letter for text in texts for letter in shown(text) if ord(letter) > 127}
    family = ["DejaVu Sans"]
    wanted -= _letters(FT2Font(font_manager.findfont("DejaVu Sans")), wanted)
    if wanted:
        for entry in font_manager.fontManager.ttflist:
            if entry.name.startswith("Last Resort"):
                continue  # which comes with matplotlib, and draws a box with a number for any letter
            try:
                found = _letters(FT2Font(entry.fname), wanted)
            except (OSError, RuntimeError):  # a font that is gone or damaged
                continue
            if found:
                family.append(entry.name)
                wanted -= found
            if not wanted:
                break
    matplotlib.rcParams["font.family"] = family
    missing = "".join(sorted(wanted))
    if missing:
        log.warning("no font of this machine has the letters %s: plots show boxes in their place", missing)
    return missing


def _letters(font: Any, wanted: set[str]) -> set[str]:
    known = font.get_charmap()
    return {letter for letter in wanted if ord(letter) in known}
