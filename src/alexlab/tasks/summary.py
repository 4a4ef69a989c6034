"""`python src/summary.py`: a net layer by layer. Imports no torch at its top."""

from pathlib import Path
from typing import Any


def run(config: dict[str, Any], *, run_dir: Path, choices: dict[str, str], isolated: bool = False) -> None:
    """Prints a row for each layer and writes `summary.csv`.

    Args:
        config: the composed config, plain data.
        run_dir: the folder that the table is written to.
        choices: the option chosen in each config group.
        isolated: of no use here, where nothing is computed.

    Raises:
        ConfigError: when the image is too small for the net, or the numbers make no net.
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
