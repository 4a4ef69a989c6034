"""Names of hidden files and folders, which are not part of a dataset."""

# Left behind by operating systems, file managers, NAS boxes and notebooks; in lower case. Names that start with a dot are
# hidden anyway and are listed here so that messages count them by name.
SYSTEM_NAMES = frozenset(
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


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden: it starts with a dot, or is one of SYSTEM_NAMES."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def hidden_kind(name: str) -> str:
    """Return the label under which a hidden entry is counted: its name if that is known, else `._*` or `.*`."""
    if name.lower() in SYSTEM_NAMES or name.startswith(".Trash"):
        return name
    return "._*" if name.startswith("._") else ".*"


def format_counts(counts: dict[str, int]) -> str:
    """Format counts as `3 @eaDir, 1 Thumbs.db`."""
    return ", ".join(f"{count} {name.strip()}" for name, count in sorted(counts.items()))
