"""Config nodes: what they may hold, the objects that they make, and every check before a run."""

from pathlib import Path

CONFIG_DIR = Path(__file__).parents[3] / "conf"
