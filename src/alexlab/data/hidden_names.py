"""Names of files and folders: those that are no part of a data set, and those that a class may have. Imports no torch."""

import unicodedata

# What operating systems, file managers, NAS boxes and notebooks leave behind, in lower case; names with a dot in front are
# hidden anyway and stand here to be reported by name.
LITTER = frozenset(
    {
        *("__macosx", ".ds_store", ".appledouble", ".fseventsd", ".spotlight-v100", ".trashes", ".temporaryitems"),
        *("network trash folder", "temporary items", "icon\r"),
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin", "system volume information"),
        *("lost+found", ".thumbnails", ".thumbs", ".xvpics", ".directory", ".nfs"),
        *("@eadir", "@tmp", "@sharebin", "@sharesnap", "@transcode", "#recycle", "#snapshot"),  # Synology
        *("@recycle", "@__thumb", ".@__thumb", "@recently-snapshot"),  # QNAP
        *(".snapshot", "~snapshot", ".zfs"),  # NetApp, ZFS
        *("__pycache__", ".ipynb_checkpoints", ".git", ".cache", ".dvc"),
    }
)
MAX_BYTES = 255  # of a name, on ext4, XFS, Btrfs and NTFS


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is no part of the data: dot files and LITTER."""
    return name.startswith(".") or name.lower() in LITTER


def hidden_kind(name: str) -> str:
    """Return the name under which a hidden entry is counted: its own if it is known, else a pattern."""
    if name.lower() in LITTER or name.startswith(".Trash"):
        return name
    return "._*" if name.startswith("._") else ".*"


def format_counts(counts: dict[str, int]) -> str:
    """Return counts as text: `3 @eaDir, 1 Thumbs.db`."""
    return ", ".join(f"{count} {name.strip()}" for name, count in sorted(counts.items()))


def folder_name_problem(name: str) -> str | None:
    """Return why a class of this name cannot have a folder of its own, or None if it can."""
    if not name.strip():
        return "it is empty"
    if "/" in name or "\\" in name:
        return "it holds a path separator"
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name):
        return "it holds control characters or bytes that are not UTF-8"
    if is_hidden(name):
        return "folders of this name are hidden or left behind by other programs, and are skipped"
    if len(name.encode()) > MAX_BYTES:
        return f"it is longer than {MAX_BYTES} bytes"
    return None
