"""Default config of a run, for weights that are not from a run."""

from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.version import VersionBase
from omegaconf import OmegaConf

from alexlab.config import CONFIG_DIR


def default_config(*overrides: str) -> dict[str, Any]:
    """Return the config of `train.py` with overrides, plain data. A running Hydra application is left unchanged."""
    application, version = GlobalHydra.instance(), VersionBase.instance()
    hydra, version_base = application.hydra, version.version_base
    application.clear()
    try:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            composed = compose("train", [*overrides])
    finally:
        GlobalHydra.set_instance(application)
        application.hydra, version.version_base = hydra, version_base
    plain: Any = OmegaConf.to_container(composed, resolve=True)
    return dict(plain)
