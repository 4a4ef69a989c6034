"""Option of the group `data` for images that are named by `data=DIR`, `data.root=` or `data.url=`."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from alexlab.config import CONFIG_DIR

STREAMING = ("data.url=", "data.stream.")  # keys of data=streaming alone


def select_data(arguments: Sequence[str], *, config_dirs: Sequence[Path] = (CONFIG_DIR,)) -> list[str]:
    """Write `data=DIR` as `data.root=DIR` and `data=URL` as `data.url=URL`, and select a dataset if none is given.

    A folder selects `data=folder`, a URL `data=streaming`: the default dataset is the digits, and photographs need another image
    size and mirrored views. An experiment may select an option itself, see `compose_with_data`.

    Args:
        arguments: arguments of the command.
        config_dirs: folders whose options in `data/` are not folders of images.
    """
    arguments = [
        f"{'data.url' if '://' in argument else 'data.root'}={argument[5:]}"
        if argument.startswith("data=") and _are_locations(argument[5:], config_dirs)
        else argument
        for argument in arguments
    ]
    keys = {argument.partition("=")[0] for argument in arguments}
    selected = keys & {"data", "experiment", "resume", "rerun"}
    for key, option in (("data.root", "folder"), ("data.url", "streaming")):
        if key in keys and not selected:
            return [*arguments, f"data={option}"]
    return arguments


def _are_locations(value: str, config_dirs: Sequence[Path]) -> bool:
    """Return whether the value of `data=` names folders, manifests or URLs and no options."""
    names = [value] if Path(value).exists() else value.split(",")
    is_option = any((folder / "data" / f"{name}.yaml").is_file() for folder in config_dirs for name in names)
    return not is_option and all(os.sep in name or (name and Path(name).exists()) for name in names)


def compose_with_data(
    compose: Callable[[list[str]], DictConfig], overrides: Sequence[str], *, is_sweep: bool
) -> DictConfig:
    """Compose a config, and replace an option of `data` that would not read the images named, unless `data=` is typed.

    Otherwise an experiment that does not select an option would train with the image size of the digits, and a missing folder
    would be filled with digits.

    Args:
        compose: composes overrides.
        overrides: overrides as typed.
        is_sweep: leave the new option out of the overrides of the jobs, since their experiments may differ.
    """
    files = [override for override in overrides if not override.startswith(STREAMING)]
    config = compose(files)  # without keys that only data=streaming has
    option = _replacement(config, {override.lstrip("+").partition("=")[0] for override in overrides})
    if option is None and files == [*overrides]:
        return config
    config = compose([*overrides, *([option] if option else [])])
    if is_sweep:
        config.hydra.overrides.task = [each for each in config.hydra.overrides.task if each != option]
    return config


def _replacement(config: DictConfig, keys: set[str]) -> str | None:
    """Return the override with which the images named by `keys` or a file are read and none are generated; None if not needed."""
    option = config.hydra.runtime.choices.get("data")
    if option is None or "data" in keys:
        return None
    data: Any = OmegaConf.to_container(config.data)
    generate = data.get("generate")
    if "data.url" in keys and "url" not in data:
        return "data=streaming"
    if generate is None or "data.generate" in keys:
        return None
    if option != generate:  # an option of the user, which may have another folder
        return "data.generate=null" if "data.root" in keys else None
    return None if data["root"] == f"data/{generate}" else "data=folder"
