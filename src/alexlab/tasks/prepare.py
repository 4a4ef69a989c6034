"""`python src/prepare.py`: data sets, made ready for training. Imports no torch at its top."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alexlab.config.instantiate import bind
from alexlab.errors import ConfigError, FindingsError
from alexlab.output.escape import print_line


def run(config: dict[str, Any], *, run_dir: Path, choices: dict[str, str], isolated: bool = False) -> None:
    """Does what `action` says: download, check, restore, split, pack or shard.

    Args:
        config: the composed config, plain data.
        run_dir: the folder that reports are written to.
        choices: the option chosen in each config group; there is none here.
        isolated: of no use here, where nothing is trained.

    Raises:
        AlexlabError: in one sentence.
    """
    action = config["action"] or ("download" if config["dataset"] else None)
    if action not in ACTIONS:
        raise ConfigError(f"action must be one of {', '.join(ACTIONS)}; got {action!r}")
    ACTIONS[action](config, run_dir)


def download(config: dict[str, Any], run_dir: Path) -> None:
    """Writes a data set of the catalogue as a tree of image files."""
    from alexlab.data.sources.downloads import download_dataset

    name = str(config["dataset"])
    out = Path(config["out"] or f"data/{name}")
    _print_counts(download_dataset(name, out, Path(config["downloads"])), out)
    print_line(f"python src/train.py data.root={out}")


def check(config: dict[str, Any], run_dir: Path) -> None:
    """Looks at every file, prints what was found, writes check.json, check.html and manifest.csv into the run folder."""
    from alexlab.data.audit import report
    from alexlab.data.audit.audit import audit_dataset
    from alexlab.data.audit.quarantine import quarantine
    from alexlab.data.manifest import write_manifest
    from alexlab.output.terminal import Terminal

    if config["fix"] not in (None, "quarantine"):
        raise ConfigError(f"fix must be null or quarantine; got {config['fix']!r}")
    root = _root(config)
    result = audit_dataset(root, config["manifest"], folders=config["data"]["splits"], decoding=_data(config).decoding)
    for table in report.summary(result):
        Terminal().print(table)
    for note in result.notes:
        print_line(note)
    write_manifest(result.rows, run_dir / "manifest.csv")
    report.write_json(result, run_dir / "check.json")
    report.write_page(result, run_dir / "check.html")
    print_line(f"{os.path.relpath(run_dir)}/check.html, check.json, manifest.csv")
    if config["fix"] and result.unreadable:
        folder = Path(config["quarantine"] or _beside(root, ".quarantine"))
        count = quarantine(root, result.unreadable, folder)
        print_line(
            f"{count} files were moved to {folder}; python src/prepare.py action=restore data.root={root} "
            f"quarantine={folder} moves them back"
        )
    if result.findings:
        raise FindingsError(report.counted(result))
    print_line(report.counted(result))


def restore(config: dict[str, Any], run_dir: Path) -> None:
    """Undoes a quarantine of the data set that is named."""
    from alexlab.data.audit.quarantine import restore as move_back

    if config["quarantine"] is None:
        raise ConfigError("quarantine must be given: quarantine=DIR")
    print_line(f"{move_back(_root(config), Path(config['quarantine']))} files were moved back")


def split(config: dict[str, Any], run_dir: Path) -> None:
    """Divides a data set into train, val and test."""
    from alexlab.data.audit.split import assign_splits, find_unsplit, write_split

    root, data = _root(config), config["data"]
    source = find_unsplit(
        root, labels=config["labels"], pattern=config["pattern"], group=config["group"], folders=data["splits"]
    )
    parts = assign_splits(source, {"val": data["val_fraction"], "test": data["test_fraction"]}, data["split_seed"])
    out = Path(config["out"] or _beside(root, "_split"))
    _print_counts({name: len(rows) for name, rows in parts.items()}, out)
    if config["dry_run"]:
        print_line("dry run: nothing was written")
        return
    write_split(source, parts, out, config["link"])
    print_line(f"python src/train.py data.root={out / 'split.csv' if config['link'] == 'manifest' else out}")


def pack(config: dict[str, Any], run_dir: Path) -> None:
    """Decodes every image once into a pack that runs with `data.cache=packed` read; a pack of changed files is replaced."""
    from alexlab.data.cache.build_pack import open_pack
    from alexlab.data.cache.pack import PackConfig

    data = _data(config)
    bind(PackConfig, "data.pack", **data.pack)
    settings = dict(data.pack)
    if settings["size"] is None:
        squash = settings["resize"] == "squash"
        settings["size"] = data.image_size if squash else round(data.image_size / config["data"]["ratio"])
    done = set()
    for name, part in data.find_splits().items():
        assert part.listing is not None
        if part.listing.folder in done:
            continue
        done.add(part.listing.folder)
        found = open_pack(
            part.listing,
            PackConfig(**settings),
            decoding=data.decoding,
            cache_dir=Path(data.cache_dir),
            skip=data.on_error == "skip",
            anew=True,
        )
        size = (found.path / "images.npy").stat().st_size
        print_line(f"{part.listing.folder or name}: {len(found):,} images, {size / 1e9:.2f} GB: {found.path}")
    print_line(f"python src/train.py data.root={data.root} data.cache=packed data.image_size={data.image_size}")


def shard(config: dict[str, Any], run_dir: Path) -> None:
    """Writes the images as shards into a folder or an object store, for runs with `data=streaming`."""
    from alexlab.data.streaming.writer import write_shards

    data = _data(config)
    if config["out"] is None:
        raise ConfigError("out must be given: out=s3://bucket/prefix (gs://, az://), or out=DIR")
    if config["shard_mb"] <= 0:
        raise ConfigError(f"shard_mb must be positive; got {config['shard_mb']}")
    out = str(config["out"])
    index = write_shards(
        data.find_splits(),
        out,
        shard_bytes=int(config["shard_mb"] * 1e6),
        cache_dir=Path(data.cache_dir),
        decoding=data.decoding,
        skip=data.on_error == "skip",
    )
    for name, about in index["splits"].items():
        count, size = sum(images for *_, images in about["shards"]), sum(size for _, size, _, _ in about["shards"])
        print_line(f"{name}: {count:,} images of {data.root} in {len(about['shards'])} shards, {size / 1e9:.3g} GB")
    print_line(f"python src/train.py data=streaming data.url={out}")


ACTIONS: dict[str, Callable[[dict[str, Any], Path], None]] = {
    "download": download,
    "check": check,
    "restore": restore,
    "split": split,
    "pack": pack,
    "shard": shard,
}


def _root(config: dict[str, Any]) -> str:
    if config["data"]["root"] is None:
        raise ConfigError("data.root must be given: data.root=DIR")
    return str(config["data"]["root"])


def _beside(root: str, ending: str) -> str:
    """The path of a folder beside the data set, whose name is that of the data set with an ending."""
    plain = os.path.normpath(root)
    return (os.path.abspath(root) if os.path.basename(plain) in (".", "..") else plain) + ending


def _data(config: dict[str, Any]) -> Any:
    """Return the settings of the `data` node, which has no keys of a net."""
    from alexlab.data.config import DataConfig

    _root(config)
    keys = {key: value for key, value in config["data"].items() if key != "ratio"}
    bind(DataConfig, "data", mean=None, std=None, batch_size=1, **keys)
    return DataConfig(mean=None, std=None, batch_size=1, **keys)


def _print_counts(counts: dict[str, int], out: Path) -> None:
    from rich.table import Table

    from alexlab.output.terminal import Terminal

    table = Table("split", "images", title=os.fspath(out))
    for name, count in counts.items():
        table.add_row(name, f"{count:,}")
    Terminal().print(table)
