"""Task of `python src/prepare.py`: download, check, relabel, split, pack and shard datasets."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from alexlab.config.grammar import to_text
from alexlab.config.instantiate import bind
from alexlab.data.audit import quarantine, report
from alexlab.data.audit.audit import audit_dataset
from alexlab.data.audit.split import assign_splits, write_split
from alexlab.data.audit.unsplit import find_unsplit
from alexlab.data.config import DataConfig
from alexlab.data.manifest import write_manifest
from alexlab.data.streaming.writer import write_shards
from alexlab.data.unreadable import suggest_skipping
from alexlab.errors import ConfigError, FindingsError
from alexlab.output.command_line import command_line, short_path
from alexlab.output.escape import print_line
from alexlab.output.numbers import counted
from alexlab.output.terminal import Terminal
from alexlab.records.run import Run
from alexlab.tasks import labels


def main(run: Run) -> None:
    """Run the action of the config: download, check, restore, labels, relabel, split, pack or shard.

    Raises:
        AlexlabError: if the action fails.
    """
    action = _action(run.config)
    _check_options(action, run.overrides)
    with suggest_skipping(run.config["data"]):
        ACTIONS[action][0](run.config, run.dir)


def check(config: dict[str, Any]) -> None:
    """Raise ConfigError if `action` is invalid."""
    _action(config)


def _action(config: dict[str, Any]) -> str:
    action = config["action"] or ("download" if config["dataset"] else None)
    if action not in ACTIONS:
        raise ConfigError(f"action must be one of {', '.join(ACTIONS)}; got {action!r}")
    return str(action)


def _check_options(action: str, overrides: Sequence[str]) -> None:
    """Check that the action reads every key that is given on the command line."""
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        readers = [name for name, (_, keys) in ACTIONS.items() if _contains(keys.split(), key)]
        if key != "action" and action not in readers:
            owners = ", ".join(readers)
            raise ConfigError(
                f"{key} must not be given with action={action}, which ignores it: it is an option of action={owners}"
            )


def _contains(keys: Sequence[str], given: str) -> bool:
    return any(given == key or given.startswith(f"{key}.") for key in keys)


def download(config: dict[str, Any], run_dir: Path) -> None:
    """Download a dataset and write it as a tree of image files."""
    from alexlab.data.sources.downloads import download_dataset  # imports torchvision, which takes seconds

    name = str(config["dataset"])
    out = Path(config["out"] or f"data/{name}")
    _print_counts(download_dataset(name, out, Path(config["downloads"])), out)
    print_line(command_line("train", f"data.root={out}"))


def check_images(config: dict[str, Any], run_dir: Path) -> None:
    """Inspect every file, print the findings, and write check.json, check.html and manifest.csv into the run folder.

    Raises:
        FindingsError: if there are findings.
    """
    if config["fix"] not in (None, "quarantine"):
        raise ConfigError(f"fix must be null or quarantine; got {config['fix']!r}")
    root = _root(config)
    decoding = _data_config(config).decoding
    result = audit_dataset(root, config["manifest"], folders=config["data"]["splits"], decoding=decoding)
    for table in report.summary_tables(result):
        Terminal().print_table(table)
    for note in result.notes:
        print_line(note)
    write_manifest(result.rows, run_dir / "manifest.csv")
    report.write_json(result, run_dir / "check.json")
    report.write_page(result, run_dir / "check.html")
    print_line(f"{short_path(run_dir)}/check.html, check.json, manifest.csv")
    if config["fix"] and result.unreadable:
        folder = Path(config["quarantine"] or _sibling(root, ".quarantine"))
        count = quarantine.quarantine(root, result.unreadable, folder)
        back = command_line("prepare", "action=restore", f"data.root={root}", f"quarantine={folder}")
        print_line(f"moved {counted(count, 'file')} to {folder}; to move them back: {back}")
    if result.findings:
        raise FindingsError(report.headline(result))
    print_line(report.headline(result))


def restore(config: dict[str, Any], run_dir: Path) -> None:
    """Move the files of a quarantine back into the dataset."""
    if config["quarantine"] is None:
        raise ConfigError("quarantine must be given: quarantine=DIR")
    moved = quarantine.restore(_root(config), Path(config["quarantine"]))
    print_line(f"moved {counted(moved, 'file')} back")


def split(config: dict[str, Any], run_dir: Path) -> None:
    """Split a dataset into train, val and test."""
    root, data = _root(config), config["data"]
    dataset = find_unsplit(
        root, labels=config["labels"], pattern=config["pattern"], group=config["group"], folders=data["splits"]
    )
    for note in dataset.notes:
        print_line(note)
    fractions = {"val": data["val_fraction"], "test": data["test_fraction"]}
    splits = assign_splits(dataset, fractions, data["split_seed"])
    out = Path(config["out"] or _sibling(root, "_split"))
    _print_counts({name: len(indices) for name, indices in splits.items()}, out)
    if config["dry_run"]:
        print_line("dry run: nothing was written")
        return
    write_split(dataset, splits, out, config["link"])
    print_line(command_line("train", f"data.root={out / 'split.csv' if config['link'] == 'manifest' else out}"))


def pack(config: dict[str, Any], run_dir: Path) -> None:
    """Decode every image once into packs for runs with `data.cache=packed`; packs of changed files are replaced."""
    from alexlab.data.cache.build_pack import open_pack  # imports torch, which takes seconds
    from alexlab.data.cache.pack import PackConfig

    data = _data_config(config)
    bind(PackConfig, "data.pack", **data.pack)
    settings = dict(data.pack)
    if settings["size"] is None:
        shorter = settings["resize"] == "shorter"
        settings["size"] = round(data.image_size / config["data"]["ratio"]) if shorter else data.image_size
    done, splits = set(), data.find_splits()
    for name, part in splits.items():
        assert part.listing is not None
        if part.listing.folder in done:
            continue
        done.add(part.listing.folder)
        images = open_pack(
            part.listing,
            PackConfig(**settings),
            decoding=data.decoding,
            cache_dir=Path(data.cache_dir),
            hashes=splits.hashes_of(part.listing),
            skip=data.on_error == "skip",
            replace=True,
        )
        size = (images.path / "images.npy").stat().st_size
        print_line(f"{part.listing.folder or name}: {len(images):,} images, {size / 1e9:.2f} GB: {images.path}")
    shapes = [f"data.image_size={data.image_size}", f"model.in_channels={data.channels}"]
    keys = [f"data.pack.{name}={value}" for name, value in settings.items()]
    names = ("cache_dir", "on_error", "max_megapixels", "jpeg_scaling", "intensity_range")
    changed = [name for name in names if getattr(data, name) != getattr(DataConfig, name)]
    keys += [f"data.{name}={to_text(getattr(data, name))}" for name in changed]
    keys += [f"data.splits.{name}={folder}" for name, folder in data.splits.items() if folder is not None]
    print_line(command_line("train", f"data.root={data.root}", "data.cache=packed", *shapes, *keys))


def shard(config: dict[str, Any], run_dir: Path) -> None:
    """Write the images as shards to a folder or an object store, for runs with `data=streaming`."""
    data = _data_config(config)
    if config["out"] is None:
        raise ConfigError("out must be given: out=s3://bucket/prefix (gs://, az://), or out=DIR")
    if not config["shard_mb"] or config["shard_mb"] <= 0:
        raise ConfigError(f"shard_mb must be positive; got {config['shard_mb']}")
    out = str(config["out"])
    index = write_shards(
        data.find_splits(),
        out,
        shard_bytes=round(config["shard_mb"] * 1e6),
        cache_dir=Path(data.cache_dir),
        decoding=data.decoding,
        skip=data.on_error == "skip",
        manifest=data.root if os.path.isfile(data.root or "") else None,
    )
    for name, entry in index["splits"].items():
        count, size = sum(images for *_, images in entry["shards"]), sum(size for _, size, _, _ in entry["shards"])
        print_line(
            f"{name}: {count:,} images of {data.root} in {counted(len(entry['shards']), 'shard')}, {size / 1e9:.3g} GB"
        )
    print_line(command_line("train", "data=streaming", f"data.url={out}"))


def relabel(config: dict[str, Any], run_dir: Path) -> None:
    """Write a corrected manifest."""
    labels.apply_decisions(config, _data_config(config), run_dir)


_DECODING = "data.max_megapixels data.jpeg_scaling data.intensity_range"
_SPLITTING = "data.splits data.val_fraction data.test_fraction data.split_seed"
# Function and keys of each action; `data` stands for the whole node.
ACTIONS: dict[str, tuple[Callable[[dict[str, Any], Path], None], str]] = {
    "download": (download, "dataset downloads out"),
    "check": (check_images, f"manifest fix quarantine data.root data.splits {_DECODING}"),
    "restore": (restore, "quarantine data.root"),
    "labels": (labels.find_errors, "ckpt data.root"),
    "relabel": (relabel, "decisions accept train_only out data"),
    "split": (split, f"labels pattern group link dry_run out data.root {_SPLITTING}"),
    "pack": (pack, "data"),
    "shard": (shard, "shard_mb out data"),
}


def _root(config: dict[str, Any]) -> str:
    if config["data"]["root"] is None:
        raise ConfigError("data.root must be given: data.root=DIR")
    return str(config["data"]["root"])


def _sibling(root: str, suffix: str) -> str:
    """Return the path of a folder next to the dataset, named like the dataset plus a suffix."""
    normalized = os.path.normpath(root)
    return (os.path.abspath(root) if os.path.basename(normalized) in (".", "..") else normalized) + suffix


def _data_config(config: dict[str, Any]) -> DataConfig:
    """Return the settings of the `data` node; statistics and batch size, which only training needs, are placeholders."""
    _root(config)
    keys = {key: value for key, value in config["data"].items() if key != "ratio"}
    bind(DataConfig, "data", mean=None, std=None, batch_size=1, **keys)
    return DataConfig(mean=None, std=None, batch_size=1, **keys)


def _print_counts(counts: dict[str, int], out: Path) -> None:
    table = Table("split", "images", title=os.fspath(out))
    for name, count in counts.items():
        table.add_row(name, f"{count:,}")
    Terminal().print_table(table)
