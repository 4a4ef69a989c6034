"""Check that all nodes of a run have the same config, images and package versions."""

from collections.abc import Iterator, Mapping
from typing import Any

from alexlab.errors import ConfigError
from alexlab.output.numbers import listed

# Keys that may differ between nodes: where the images are, how they are read, and the limits of the launcher.
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


def fingerprint(
    config: Mapping[str, Any], *, data: Mapping[str, Any], versions: Mapping[str, Any], num_ranks: int
) -> dict[str, Any]:
    """Return the values that must be equal on all nodes, as plain data.

    Args:
        config: config of the run.
        data: classes, counts and fingerprint of the images.
        versions: versions of the packages.
        num_ranks: number of ranks on this node, which `trainer.devices=auto` does not give.
    """
    keys = {key: value for key, value in flatten(config) if not key.startswith(NODE_LOCAL_KEYS)}
    return {"config": keys | {"trainer.devices": num_ranks}, "data": dict(data), "versions": dict(versions)}


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of a nested dict and their values."""
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def require_same(first: Mapping[str, Any], other: Mapping[str, Any], *, name: str) -> None:
    """Check that the fingerprint of another node equals that of the first one.

    Args:
        first: fingerprint of the first node.
        other: fingerprint of the other node.
        name: name of the other node.

    Raises:
        ConfigError: with the first three keys that differ.
    """
    for part in ("config", "data", "versions"):
        theirs, ours = other[part], first[part]
        keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
        if keys:
            found = listed([f"{key}: {theirs.get(key)} instead of {ours.get(key)}" for key in keys], 3)
            raise ConfigError(f"node {name} must have the same {part} as the first node; got {found}")
