"""Configs of `train.py` that are composed by other commands."""

from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from hydra.version import VersionBase
from omegaconf import OmegaConf

from alexlab.config import CONFIG_DIR


def run_config(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the config of `train.py` with overrides, plain data, with the search path of the running Hydra application.

    That path has the folder of --config-dir. Without an application the config is that of `default_config`.
    """
    application = GlobalHydra.instance()
    if not application.is_initialized():
        return default_config(*overrides)
    composed = application.config_loader().load_configuration("train", [*overrides], run_mode=RunMode.RUN)
    OmegaConf.set_struct(composed, False)
    del composed.hydra
    plain: Any = OmegaConf.to_container(composed, resolve=True)
    return dict(plain)


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
