"""Private names of the standard library."""

from __future__ import annotations

from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING


def python3_name(module: str, name: str) -> tuple[str, str]:
    """Return where Python 3 has a class that a pickle of Python 2 names.

    Works around: `pickle` applies this table while it unpickles and does not publish it. Checked with Python 3.11.
    """
    return NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
