"""Layout of a dataset: split folders, recognized by their names or named by `data.splits`."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alexlab.data.file_types import IMAGE_EXTENSIONS, broken_links, class_folders
from alexlab.data.hidden_names import format_counts, hidden_kind, is_hidden
from alexlab.errors import DataError
from alexlab.output.escape import shown

SPLITS = ("train", "val", "test")
HELD_OUT = ("val", "test")  # splits that no network is trained on
_WORDS = {
    "train": "training|train|trn",
    "val": "validation|validate|valid|val|development|dev|evaluation|eval",
    "test": "testing|test|tst",
}
# Common additions to the name of a split: training_set, TrainImages, val2017, images-test, "test (1)".
_ADDED = r"(?:set|images?|imgs?|pictures|photos|data|split|files|samples|folder|dir|\d)*"
_NAMES = {split: re.compile(f"{_ADDED}(?:{words}){_ADDED}") for split, words in _WORDS.items()}


@dataclass(frozen=True)
class Layout:
    """Split folders of a dataset.

    Args:
        folders: folders of each split that was found, relative to the dataset's folder, where "" is that folder itself. Several
            for one split only if the layout is ambiguous.
        ambiguity: reason why it is unclear which folder is which split, as a message; None if it is clear.
        notes: remarks for the user: unusual names that were recognized, and folders that are not used.
    """

    folders: Mapping[str, Sequence[str]]
    ambiguity: str | None = None
    notes: Sequence[str] = ()

    def check(self) -> None:
        """Check that it is clear which folder is which split.

        Raises:
            DataError: if the layout is ambiguous.
        """
        if self.ambiguity is not None:
            raise DataError(self.ambiguity)

    def folder(self, split: str) -> str | None:
        """Return the folder of a split, or None.

        Raises:
            DataError: if the layout is ambiguous.
        """
        self.check()
        return next(iter(self.folders.get(split, ())), None)


def split_from_name(name: str) -> str | None:
    """Return the split that the name of a folder or the cell of a table stands for: `Training_Set` gives train."""
    letters = re.sub(r"[\W_]+", "", name.lower())
    return next((split for split, pattern in _NAMES.items() if pattern.fullmatch(letters)), None)


def find_layout(root: str, folders: Mapping[str, str | None] | None = None) -> Layout:
    """Find the split folders of a dataset.

    A folder is a split if it has the name of one and it, or another such folder, contains folders. Anything that could be meant
    otherwise is an ambiguity: two folders for one split, or split folders next to class folders.

    Args:
        root: folder of the dataset.
        folders: `data.splits`, the folder of each split; if it names any, only those are used.

    Raises:
        DataError: if `root` cannot be read, or `folders` names folders that are not inside it.
    """
    try:
        names = class_folders(root)
    except OSError as error:
        raise DataError(f"data.root must be a readable folder; got {shown(root)}: {error.strerror}") from error
    chosen = {split: str(folder) for split, folder in (folders or {}).items() if folder is not None}
    if chosen:
        return _chosen_layout(root, chosen, names)
    by_split = {split: [name for name in names if split_from_name(name) == split] for split in SPLITS}
    found = {split: matches for split, matches in by_split.items() if matches}
    split_names = [name for matches in found.values() for name in matches]
    others = [name for name in names if name not in split_names]
    if not any(_subfolders(root, name) for name in split_names):
        return Layout({}, _unclear_classes(root, split_names, others))
    notes = _hidden_notes(root)
    if any([split] != matches for split, matches in found.items()):
        notes.append(f"the splits of {shown(root)} are {_format_pairs(found)}")
    if others:
        notes.append(f"not used in {shown(root)}: {_format_names(others)}")
    return Layout(found, _unclear_splits(root, found, others), notes)


def _chosen_layout(root: str, chosen: Mapping[str, str], names: Sequence[str]) -> Layout:
    found: dict[str, str] = {}
    for split, given in chosen.items():
        folder = os.path.normpath(given)
        if os.path.isabs(folder) or folder.split(os.sep)[0] == ".." or not os.path.isdir(os.path.join(root, folder)):
            raise DataError(
                f"data.splits.{split} must be a folder inside {shown(root)}, which has {_format_names(names) or 'none'}; "
                f"got {shown(given)!r}"
            )
        found[split] = "" if folder == os.curdir else folder
    for split, folder in found.items():
        for other, inner in found.items():
            if split != other and f"{inner}/".startswith(f"{folder}/" if folder else ""):
                raise DataError(
                    f"the folders of data.splits must not contain one another; {split} is {folder or '.'} and {other} is "
                    f"{inner or '.'}"
                )
    used = {folder.split(os.sep)[0] for folder in found.values()}
    others = [] if "" in used else [name for name in names if name not in used]
    notes = [] if "" in used else _hidden_notes(root)
    if others:
        notes.append(f"not used in {shown(root)}: {_format_names(others)}")
    return Layout({split: [folder] for split, folder in found.items()}, None, notes)


def _hidden_notes(root: str) -> list[str]:
    counts = Counter(hidden_kind(name) for name in os.listdir(root) if is_hidden(name))
    return [f"{shown(root)}: skipped hidden files and folders: {format_counts(counts)}"] if counts else []


def _unclear_classes(root: str, split_names: Sequence[str], others: Sequence[str]) -> str | None:
    """Return why the folders may not be classes, although no folder with the name of a split contains folders."""
    splits = {split_from_name(name) for name in split_names}
    if len(splits) > 1 and not others:
        return _ambiguity(
            root, f"{_format_names(split_names)} are named like splits but contain no class folders", split_names
        )
    # A class of photographs may be called train, the vehicle; no class is called validation.
    odd = [name for name in split_names if name.lower() != "train"]
    if odd and others:
        reason = (
            f"some folders are named like splits ({_format_names(odd)}), others like classes ({_format_names(others)})"
        )
        return _ambiguity(root, reason, odd)
    hints = {name: _split_hint(name) for name in others}
    hinted = [name for name, hint in hints.items() if hint]
    if 2 * len(hinted) > len(others) and len({hints[name] for name in hinted}) > 1:
        return _ambiguity(root, f"{_format_names(hinted)} look like splits", hinted)
    return _unclear_nesting(root, others)


def _unclear_nesting(root: str, names: Sequence[str]) -> str | None:
    """Return why folders that all contain the same folders may not be classes."""
    if len(names) < 2:
        return None
    inner = _subfolders(root, names[0])
    # Reading a class folder takes as long as listing it: the first one usually settles it.
    if len(inner) < 2 or any(_subfolders(root, name) != inner for name in names[1:]):
        return None
    if len({split_from_name(name) for name in inner} - {None}) > 1:
        reason = f"each of {_format_names(names)} contains {_format_names(inner)}, but classes must be inside splits: "
        return _ambiguity(root, f"{reason}{inner[-1]}/{names[0]}", [])
    if len(names) <= len(SPLITS) and not any(_has_images(root, name) for name in names):
        reason = f"{_format_names(names)} contain folders of the same names, {_format_names(inner)}, as splits do"
        return _ambiguity(root, reason, [])
    return None


def _unclear_splits(root: str, found: Mapping[str, Sequence[str]], others: Sequence[str]) -> str | None:
    """Return why the folders that are named like splits may be too many, too few, or not splits."""
    split_names = [name for names in found.values() for name in names]
    broken = broken_links(root)
    if broken:
        one = len(broken) == 1
        remedy = "restore its target or remove it" if one else "restore their targets or remove them"
        reason = f"{_format_names(broken)} {'is a link' if one else 'are links'} that cannot be resolved: {remedy}"
        return _ambiguity(root, reason, split_names)
    for split, names in found.items():
        if len(names) > 1:
            return _ambiguity(root, f"{_format_names(names)} are all named like {split}", split_names)
    hinted = [name for name in others if _split_hint(name) not in (None, *found) and _subfolders(root, name)]
    if hinted:
        reason = f"{_format_names(hinted)} may be another split next to {_format_names(split_names)}"
        return _ambiguity(root, reason, [*split_names, *hinted])
    classes = [name for name in others if len(found) == 1 and _has_images(root, name)]
    if classes:
        reason = f"some folders are named like splits ({_format_names(split_names)}), others like classes "
        reason += f"({_format_names(classes)})"
        return _ambiguity(root, reason, split_names)
    return None


def _ambiguity(root: str, reason: str, names: Sequence[str]) -> str:
    likely = {str(split_from_name(name) or _split_hint(name)): name for name in reversed(names)}
    likely.setdefault("train", "FOLDER")
    overrides = " ".join(f"data.splits.{split}={shown(likely[split])}" for split in SPLITS if split in likely)
    return (
        f"it must be clear which folders of {shown(root)} are splits: {reason}. Name them, such as {overrides}, or "
        "data.splits.train=. if every folder is a class"
    )


def _split_hint(name: str) -> str | None:
    """Return the split that one of the words in a name stands for: `seg_train` and `trainA` give train."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
    return next((split for split in map(split_from_name, words) if split), None)


def _subfolders(root: str, name: str) -> list[str]:
    try:
        return class_folders(os.path.join(root, name))
    except OSError:
        return []  # reported when its files are listed


def _has_images(root: str, name: str) -> bool:
    try:
        with os.scandir(os.path.join(root, name)) as entries:
            return any(entry.name.lower().endswith(IMAGE_EXTENSIONS) for entry in entries)
    except OSError:
        return False


def _format_pairs(found: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(f"{split}={shown(name)}" for split, names in found.items() for name in names)


def _format_names(names: Sequence[str]) -> str:
    more = f", ... ({len(names)} folders)" if len(names) > 10 else ""
    return ", ".join(map(shown, names[:10])) + more
