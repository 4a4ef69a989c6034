"""Task of `python src/summary.py`: a table of the layers of a network."""

from pathlib import Path
from typing import Any


def run(config: dict[str, Any], *, run_dir: Path, choices: dict[str, str], isolated: bool = False) -> None:
    """Print a row per layer and write `summary.csv`.

    Args:
        config: the composed config, plain data.
        run_dir: folder of `summary.csv`.
        choices: the option chosen in each config group.
        isolated: of no use here, where nothing is computed.

    Raises:
        ConfigError: if the image is too small for the network, or an argument of the model is invalid.
    """
    import torch

    from alexlab.config import build
    from alexlab.errors import ConfigError
    from alexlab.models.summary import layer_rows, layer_table, write_rows
    from alexlab.output.terminal import Terminal

    size, channels = config["data"]["image_size"], config["model"]["in_channels"]
    num_classes = config["model"]["num_classes"] or config["num_classes"]
    with torch.device("meta"):
        net = build.net(config, num_classes)
    try:
        rows = layer_rows(net, channels=channels, size=size)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    title = f"model={choices['model']}: {channels} channels, {size} x {size}, {num_classes} outputs"
    Terminal(width=None if Terminal().is_terminal else 160).print(layer_table(rows, title))
    write_rows(rows, run_dir / "summary.csv")
