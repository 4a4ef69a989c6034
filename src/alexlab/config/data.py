"""The `data` node: its settings, and the images that they select. Kept free of torch, so that a missing folder fails at once."""

from functools import partial

from alexlab.config.allowlist import check_targets
from alexlab.config.instantiate import Config, bind, parts
from alexlab.data.config import DataConfig
from alexlab.data.splits import Splits
from alexlab.data.streaming.index import StreamConfig
from alexlab.distributed.imports import import_lightning


def data_config(config: Config) -> DataConfig:
    """Return the settings of the `data` node."""
    bind(DataConfig, "data", **config["data"])
    bind(StreamConfig, "data.stream", **config["data"].get("stream", {}))
    node = config["data"]
    if node.get("dataset") is None:
        return DataConfig(**node)
    import_lightning()  # which your module imports more slowly

    from alexlab.data.own_datamodule import is_datamodule

    target, keywords = parts(node["dataset"], "data.dataset")
    bind(target, "data.dataset", *(() if is_datamodule(target) else ("train",)), **keywords)
    return DataConfig(**{**node, "dataset": partial(target, **keywords)})


def find_splits(config: Config) -> Splits:
    """Return the splits of the dataset that a config names.

    Raises:
        AlexlabError: if the config names a class that is not allowed, or the dataset is missing or malformed.
    """
    check_targets(config)
    return data_config(config).find_splits()
