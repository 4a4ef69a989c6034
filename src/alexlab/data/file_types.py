"""File types: extensions of images, and directory entries that are not regular files."""

import os
import stat
from importlib.util import find_spec

from alexlab.data.hidden_names import is_hidden

HEIF_EXTENSIONS = (".heic", ".heif")
HAS_HEIF = find_spec("pillow_heif") is not None
HEIF_PACKAGE = "pillow-heif (pip install pillow-heif)"
# The first line is torchvision.datasets.folder.IMG_EXTENSIONS: a folder with only these gives the same list of files. The
# second has other names of JPEG, and formats that torchvision leaves out.
IMAGE_EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"),
    *(".jfif", ".jpe", ".avif"),
    *(HEIF_EXTENSIONS if HAS_HEIF else ()),
)
# Entries that may have the name of an image, but block a reader or never end.
SPECIAL_FILES = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def file_type(entry: "os.DirEntry[str] | os.DirEntry[bytes]") -> int:
    """Return the type of a directory entry, following links: `stat.S_IFREG`, `stat.S_IFDIR`, ...

    A broken link counts as a regular file: reading one that is named like an image reports the reason.
    """
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    try:
        return stat.S_IFMT(entry.stat().st_mode)
    except OSError:
        return stat.S_IFREG


def is_broken_link(entry: "os.DirEntry[str] | os.DirEntry[bytes]") -> bool:
    """Return whether an entry is a link that cannot be resolved, such as to a folder on a disk that is not mounted."""
    return entry.is_symlink() and not os.path.exists(entry.path)


def broken_links(top: str) -> list[str]:
    """Return the sorted names of the links in `top` that cannot be resolved, without hidden ones and those named like images."""
    with os.scandir(top) as entries:
        found = [entry.name for entry in entries if not is_hidden(entry.name) and is_broken_link(entry)]
    return sorted(name for name in found if not name.lower().endswith(IMAGE_EXTENSIONS))


def class_folders(top: str) -> list[str]:
    """Return the sorted names of the folders in `top`, without hidden ones."""
    with os.scandir(top) as entries:
        return sorted(entry.name for entry in entries if not is_hidden(entry.name) and file_type(entry) == stat.S_IFDIR)


def count_images(top: str) -> int:
    """Return the number of image files directly in `top`."""
    with os.scandir(top) as entries:
        names = [entry.name for entry in entries if not is_hidden(entry.name) and file_type(entry) == stat.S_IFREG]
    return sum(name.lower().endswith(IMAGE_EXTENSIONS) for name in names)
