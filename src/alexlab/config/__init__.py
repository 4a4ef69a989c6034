"""Config nodes: their allowed content, the objects built from them, and all checks before a run."""

from pathlib import Path

CONFIG_DIR = Path(__file__).parents[3] / "conf"
