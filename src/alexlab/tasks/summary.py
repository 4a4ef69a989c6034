"""Task of `python src/summary.py`: a table of the layers of a network."""

from alexlab.distributed.imports import import_lightning
from alexlab.records.run import Run


def main(run: Run) -> None:
    """Print a row per layer and write `summary.csv`.

    Raises:
        ConfigError: if the image is too small for the network, or an argument of the model is invalid.
    """
    import_lightning()

    import torch

    from alexlab.config import build
    from alexlab.errors import ConfigError
    from alexlab.models.summary import layer_rows, print_layers, write_rows
    from alexlab.output.terminal import Terminal

    config = run.config
    size, channels = config["data"]["image_size"], config["model"].get("in_channels", 3)
    num_classes = config["model"]["num_classes"] or config["num_classes"]
    with torch.device("meta"):
        net = build.net(config, num_classes)
    try:
        rows = layer_rows(net, channels=channels, size=size)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"data.image_size={size} does not fit the net: {error}") from error
    title = f"model={run.choices['model']}: {channels} channels, {size} x {size}, {num_classes} outputs"
    print_layers(Terminal(), rows, title)
    write_rows(rows, run.dir / "summary.csv")
