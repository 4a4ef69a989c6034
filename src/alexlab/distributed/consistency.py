"""Whether the nodes of a run train the same: the same config, on the same images, with the same versions. Imports no torch."""

from collections.abc import Iterator, Mapping
from typing import Any

from alexlab.data.fingerprint import describe_images
from alexlab.data.splits import Splits
from alexlab.errors import ConfigError
from alexlab.runs.provenance import versions

# Where a node has its images, and how it reads them, is its own affair.
NODE_LOCAL_KEYS = (
    "data.root",
    "data.url",
    "data.stream.prefetch_shards",
    "data.stream.cache_gb",
    "data.cache_dir",
    "data.num_workers",
    "data.manifest",
    "elastic.",
)


def fingerprint(config: Mapping[str, Any], splits: Splits, ranks: int) -> dict[str, Any]:
    """What must be equal on all nodes, as plain data: a dict of dicts.

    Args:
        config, splits: of the run.
        ranks: of this node, which `trainer.devices=auto` leaves to the machine.
    """
    keys = {key: value for key, value in flat(config) if not key.startswith(NODE_LOCAL_KEYS)} | {
        "trainer.devices": ranks
    }
    state = describe_images(splits)
    counts = {f"images of {name}": count for name, count in state["counts"].items()}
    data = {"classes": list(splits.classes), **counts, "files and sizes": state["fingerprint"]}
    return {"config": keys, "data": data, "versions": versions()}


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The keys of a nested dict with dots, and their values."""
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def require_same(first: Mapping[str, Any], own: Mapping[str, Any], *, name: str) -> None:
    """Refuses a node that would train something else.

    Args:
        first, own: the fingerprints of the first node and of this one.
        name: of this node.

    Raises:
        ConfigError: with the first keys that differ.
    """
    for what in ("config", "data", "versions"):
        keys = [key for key in {**first[what], **own[what]} if first[what].get(key) != own[what].get(key)]
        if keys:
            shown = ", ".join(f"{key}: {own[what].get(key)} instead of {first[what].get(key)}" for key in keys[:3])
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise ConfigError(f"node {name} is refused, its {what} must be the first node's; {shown}{more}")
