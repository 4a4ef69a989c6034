"""Config nodes: their allowed content, the objects built from them, and all checks before a run."""

from pathlib import Path

# A link to the conf/ of a checkout, and a folder in an installed package.
CONFIG_DIR = (Path(__file__).parents[1] / "conf").resolve()
