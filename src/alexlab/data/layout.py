"""The split folders of a data set: recognised by their names, or named by `data.splits`. Imports no torch."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alexlab.data.hidden_names import format_counts, hidden_kind, is_hidden
from alexlab.data.listing import IMAGE_EXTENSIONS, class_folders
from alexlab.errors import DataError
from alexlab.output.escape import shown

SPLITS = ("train", "val", "test")
_WORDS = {
    "train": "training|train|trn",
    "val": "validation|validate|valid|val|development|dev|evaluation|eval",
    "test": "testing|test|tst",
}
# What people add to the name of a split: training_set, TrainImages, val2017, images-test, "test (1)".
_ADDED = r"(?:set|images?|imgs?|pictures|photos|data|split|files|samples|folder|dir|\d)*"
_NAMES = {split: re.compile(f"{_ADDED}(?:{words}){_ADDED}") for split, words in _WORDS.items()}


@dataclass(frozen=True)
class Layout:
    """The folders that a data set's splits are read from.

    Args:
        folders: for each split that was found its folders, relative to the data set's folder (`""` is that folder itself).
            Several only if there is a problem.
        ambiguity: why it is unclear which folder is which split, as a sentence; None if it is clear.
        notes: what was recognised under another name, and what is not used.
    """

    folders: Mapping[str, Sequence[str]]
    ambiguity: str | None = None
    notes: Sequence[str] = ()

    def folder(self, split: str) -> str | None:
        """Return the one folder of a split, or None.

        Raises:
            DataError: if it is unclear which folder is which split.
        """
        if self.ambiguity is not None:
            raise DataError(self.ambiguity)
        return next(iter(self.folders.get(split, ())), None)


def split_from_name(name: str) -> str | None:
    """Return the split that a folder, or a cell of a table, is named after: `Training_Set` gives train."""
    plain = re.sub(r"[\W_]+", "", name.lower())
    return next((split for split, names in _NAMES.items() if names.fullmatch(plain)), None)


def find_layout(root: str, split_dirs: Mapping[str, str | None] | None = None) -> Layout:
    """Find the split folders of a data set.

    A folder is a split if its name says so and it, or another such folder, holds folders. Whatever else could be meant
    becomes the layout's `ambiguity`: two folders for one split, or splits beside classes.

    Args:
        root: the data set's folder.
        split_dirs: `data.splits`; if it names any folder, those are all that is used.

    Raises:
        DataError: if `root` cannot be read, or `named` names no folders inside of it.
    """
    try:
        folders = class_folders(root)
    except OSError as error:
        raise DataError(f"data.root must be a folder that can be read; got {shown(root)}: {error.strerror}") from error
    chosen = {split: str(folder) for split, folder in (split_dirs or {}).items() if folder is not None}
    if chosen:
        return _named(root, chosen, folders)
    by_split = {split: [name for name in folders if split_from_name(name) == split] for split in SPLITS}
    found = {split: names for split, names in by_split.items() if names}
    splits = [name for names in found.values() for name in names]
    others = [name for name in folders if name not in splits]
    if not any(_folders_in(root, name) for name in splits):
        return Layout({}, _unclear_classes(root, splits, others))
    problem = _unclear_splits(root, found, others)
    notes = _litter(root)
    if any([name] != names for name, names in found.items()):
        notes.append(f"the splits of {shown(root)} are {_pairs(found)}")
    if others:
        notes.append(f"not used in {shown(root)}: {_listed(others)}")
    return Layout(found, problem, notes)


def _named(root: str, chosen: Mapping[str, str], folders: Sequence[str]) -> Layout:
    found: dict[str, str] = {}
    for split, typed in chosen.items():
        folder = os.path.normpath(typed)
        if os.path.isabs(folder) or folder.split(os.sep)[0] == ".." or not os.path.isdir(os.path.join(root, folder)):
            raise DataError(
                f"data.splits.{split} must be a folder inside {shown(root)}, which has {_listed(folders) or 'none'}; "
                f"got {shown(typed)!r}"
            )
        found[split] = "" if folder == os.curdir else folder
    for split, folder in found.items():
        for other, inner in found.items():
            if split != other and f"{inner}/".startswith(f"{folder}/" if folder else ""):
                raise DataError(
                    f"the folders of data.splits must not hold one another; {split} is {folder or '.'} and {other} is "
                    f"{inner or '.'}"
                )
    used = {folder.split(os.sep)[0] for folder in found.values()}
    others = [] if "" in used else [name for name in folders if name not in used]
    notes = [] if "" in used else _litter(root)
    if others:
        notes.append(f"not used in {shown(root)}: {_listed(others)}")
    return Layout({split: [folder] for split, folder in found.items()}, None, notes)


def _litter(root: str) -> list[str]:
    counts = Counter(hidden_kind(name) for name in os.listdir(root) if is_hidden(name))
    return [f"{shown(root)}: hidden files and folders are left out: {format_counts(counts)}"] if counts else []


def _unclear_classes(root: str, splits: Sequence[str], others: Sequence[str]) -> str | None:
    """Return why the folders may be no classes though no folder with the name of a split holds folders."""
    kinds = {split_from_name(name) for name in splits}
    if len(kinds) > 1 and not others:
        return _problem(root, f"{_listed(splits)} are named like splits but hold no class folders", splits)
    # A train is also a thing in photographs, so a class may be called so; a validation is not.
    odd = [name for name in splits if name.lower() != "train"]
    if odd and others:
        return _problem(root, f"{_listed(odd)} is named like a split, {_listed(others)} like a class", splits)
    hinted = {name: _hint(name) for name in others}
    looks = [name for name, hint in hinted.items() if hint]
    if 2 * len(looks) > len(others) and len({hinted[name] for name in looks}) > 1:
        return _problem(root, f"{_listed(looks)} look like splits", looks)
    inner = [_folders_in(root, name) for name in others]
    if len(others) < 2 or len(inner[0]) < 2 or any(names != inner[0] for names in inner):
        return None
    if len({split_from_name(name) for name in inner[0]} - {None}) > 1:
        reason = f"each of {_listed(others)} holds {_listed(inner[0])}, but classes must lie inside splits: "
        return _problem(root, f"{reason}{inner[0][-1]}/{others[0]}", [])
    if len(others) <= len(SPLITS) and not any(_images_in(root, name) for name in others):
        reason = f"{_listed(others)} hold folders of the same names, {_listed(inner[0])}, as splits do"
        return _problem(root, reason, [])
    return None


def _unclear_splits(root: str, found: Mapping[str, Sequence[str]], others: Sequence[str]) -> str | None:
    """Return why the folders that are named like splits may not be all of the splits, and nothing else."""
    every = [name for names in found.values() for name in names]
    for split, names in found.items():
        if len(names) > 1:
            return _problem(root, f"{_listed(names)} are all named like {split}", every)
    hinted = [name for name in others if _hint(name) not in (None, *found) and _folders_in(root, name)]
    if hinted:
        return _problem(root, f"{_listed(hinted)} may be another split beside {_listed(every)}", [*every, *hinted])
    classes = [name for name in others if len(found) == 1 and _images_in(root, name)]
    if classes:
        return _problem(root, f"{_listed(every)} is named like a split, {_listed(classes)} like a class", every)
    return None


def _problem(root: str, reason: str, names: Sequence[str]) -> str:
    likely = {str(split_from_name(name) or _hint(name)): name for name in reversed(names)}
    likely.setdefault("train", "FOLDER")
    typed = " ".join(f"data.splits.{split}={shown(likely[split])}" for split in SPLITS if split in likely)
    return (
        f"it must be clear which folders of {shown(root)} are splits: {reason}. Name them, such as {typed}, or "
        "data.splits.train=. if every folder is a class"
    )


def _hint(name: str) -> str | None:
    """Return the split that one of the words in a name stands for: `seg_train` and `trainA` give train."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
    return next((split for split in map(split_from_name, words) if split), None)


def _folders_in(root: str, name: str) -> list[str]:
    try:
        return class_folders(os.path.join(root, name))
    except OSError:
        return []  # reported when its files are listed


def _images_in(root: str, name: str) -> bool:
    try:
        with os.scandir(os.path.join(root, name)) as entries:
            return any(entry.name.lower().endswith(IMAGE_EXTENSIONS) for entry in entries)
    except OSError:
        return False


def _pairs(found: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(f"{split}={shown(name)}" for split, names in found.items() for name in names)


def _listed(names: Sequence[str]) -> str:
    more = f", ... ({len(names)} folders)" if len(names) > 10 else ""
    return ", ".join(map(shown, names[:10])) + more
