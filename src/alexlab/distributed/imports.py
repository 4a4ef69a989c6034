"""Imports: torch and Lightning, which take most of the time to the first step, and this package in other processes."""

import atexit
import gc
import os
import sys
from pathlib import Path

from alexlab import compat


def python_path() -> str:
    """Return PYTHONPATH with the folder of this package first, for processes that import it, installed or not."""
    return os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])


def import_lightning() -> None:
    """Import torch, torchvision and Lightning, which takes 2.0 s instead of 4.7 s (AMD EPYC, 2026-11-27).

    The garbage collector, which would traverse everything imported so far again and again, is off meanwhile (1.1 s), and
    torchmetrics does not import SciPy and matplotlib (1.6 s). Afterwards everything imported is exempt from collections, so that
    these are fast, and do not touch memory that this process shares with its children.
    """
    if "lightning" in sys.modules:
        return
    gc.disable()
    try:
        import torchvision  # noqa: F401 - before `light_torchmetrics`, whose substitutes are meant for torchmetrics only

        with compat.light_torchmetrics():
            import lightning  # noqa: F401
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.unfreeze)  # Triton reports objects that the collection at exit misses
