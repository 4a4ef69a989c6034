"""Evaluation on images that no network was trained on."""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from alexlab.data.config import DataConfig
from alexlab.data.fingerprint import describe_images, find_sampled
from alexlab.data.folds import merge
from alexlab.data.layout import HELD_OUT
from alexlab.data.manifest import locator, read_manifest
from alexlab.data.manifest_splits import read_manifest_splits
from alexlab.data.splits import Split
from alexlab.errors import AlexlabError, ConfigError, DataError
from alexlab.inference.checkpoint import NO_SOURCE, TrainedModel
from alexlab.inference.predictions import OWNER, select_split
from alexlab.output.escape import shown
from alexlab.output.numbers import counted
from alexlab.records.layout import MANIFEST

log = logging.getLogger(__name__)

# Keys of `data` that decide which images are in which split.
SPLIT_KEYS = (
    *("root", "url", "dataset", "generate", "splits", "val_split", "val_fraction", "test_fraction"),
    *("split_seed", "group", "folds", "fold"),
)


def held_out_split(
    model: TrainedModel, settings: DataConfig, requested: str | None, *, from_run: bool
) -> tuple[str, Split]:
    """Return the split to evaluate, as `select_split` does, without images that a network was trained on.

    The images in a folder may change after a run, and its files are then split differently. A run that has no folders for its
    splits keeps the split of each image in `split.csv`, and its validation and test images are those that it has there.

    Raises:
        ConfigError: if the members of an ensemble have split the images differently, or the split has training images.
        DataError: if the images have changed and the run's split is not known.
    """
    nets = model.members or (model,)
    name, split = _select(model, settings, requested, from_run=from_run)
    same = [net for net in nets if from_run or has_data_of(net, settings.root)]
    _check_members(same, settings, name, from_run=from_run)
    is_default = name == "all" and requested is None
    if not (name in HELD_OUT or is_default):  # as requested
        return name, split
    if settings.root is not None:  # neither shards nor a dataset class
        recorded = [_recorded(net, split.root if net in same else None) for net in nets]
        records = [record for record in recorded if record]
        if name in HELD_OUT:
            for net, record in zip(nets, recorded, strict=True):
                if from_run and not record:
                    _check_unchanged(net, settings, name)
            split = _as_recorded(name, split, records, settings, from_run=from_run) if records else split
        else:
            located = map(locator(split.root), split.paths)
            trained = sum(any(record.get(place) == "train" for record in records) for place in located)
            if trained or same:
                number = f"{trained:,} of {counted(len(split), 'image')}" if trained else "those"
                _refuse(settings, number, instead="split=val, or split=all to evaluate them anyway")
    found = None if from_run else next((rows for net in nets if (rows := find_sampled(_sample(net), split))), None)
    if found:
        number = f"images such as {shown(split.paths[found[0]])}"
        _refuse(settings, number, instead="data.root=DIR to other images, or split=all to evaluate all of them anyway")
    return name, split


def _select(model: TrainedModel, settings: DataConfig, requested: str | None, *, from_run: bool) -> tuple[str, Split]:
    """Return a split as `select_split` does, but of a run that recorded its splits: test, if it has one, by default.

    It has no images if only the record has such a split, as that of a run on a manifest of the folder.
    """
    root = _image_root({"root": settings.root}) if from_run and settings.root is not None else None
    known = {} if root is None else _recorded((model.members or (model,))[0], root)
    name = requested or ("test" if "test" in known.values() else None)
    if name in HELD_OUT and name in known.values():
        splits = settings.find_splits()
        if name not in dict(splits.items()):
            return name, splits.train.take(np.empty(0, np.int64)).relabel(model.classes, OWNER)
    return select_split(model, settings, name, from_run=from_run)


def _refuse(settings: DataConfig, images: str, *, instead: str) -> NoReturn:
    raise ConfigError(
        f"a network must not be evaluated on images that it was trained on; {images} in {settings.location} are training images: "
        f"set {instead}"
    )


def _sample(net: TrainedModel) -> set[str]:
    """Return the training images of a net that `find_sampled` recognizes; nothing if its file does not record them."""
    data = (net.recorded or {}).get("data")
    sample = data.get("sample") if isinstance(data, dict) else None
    return {entry for entry in sample if isinstance(entry, str)} if isinstance(sample, list) else set()


def has_data_of(net: TrainedModel, root: str | None) -> bool:
    """Return whether a folder has the images of a net's run; it may be a copy and have changed since.

    Args:
        net: a single network.
        root: the folder.
    """
    if root is None or _real(net.config["data"].get("root")) == _real(root):
        return root is not None
    data, sample = (net.recorded or {}).get("data"), _sample(net)
    if not isinstance(data, dict) or not sample or not os.path.isdir(root):
        return False
    try:
        splits = net.data_settings(**NO_SOURCE | {"root": root}).find_splits()
    except AlexlabError:
        return False
    record = _recorded(net, splits.train.root)
    if not record:
        counts = {name: len(split) for name, split in splits.items()}
        return counts == data.get("counts") and describe_images(splits)["fingerprint"] == data.get("fingerprint")
    located = locator(splits.train.root)
    found = [located(split.paths[row]) for _, split in splits.items() for row in find_sampled(sample, split)]
    return any(record.get(place) == "train" for place in found)


def _recorded(net: TrainedModel, root: str | None) -> dict[str, str]:
    """Return the split of each image of the net's run by the location of its file; nothing if the run did not record them.

    Args:
        net: a single network.
        root: folder of the run's images; None to find it by the run's config.
    """
    path = None if net.run_dir is None else net.run_dir / MANIFEST
    if path is None or not path.is_file():
        return {}
    root = root or _image_root(net.config["data"])
    return {} if root is None else {place: row.split for place, row in read_manifest(path, root).items()}


def _image_root(node: Mapping[str, Any]) -> str | None:
    """Return the folder to which the paths of a run's images are relative; None if it does not exist."""
    root = str(node.get("root"))
    if os.path.isdir(root):
        return root
    try:
        return read_manifest_splits(root).train.root
    except (AlexlabError, OSError):  # moved or deleted
        return None


def _as_recorded(
    name: str, split: Split, records: Sequence[Mapping[str, str]], settings: DataConfig, *, from_run: bool
) -> Split:
    """Return the images of a split that no run has in another split, and those of other splits that the runs have in this one.

    Images that no run has recorded are kept, unless they are in the folder of a run that has recorded the split.
    """
    located = locator(split.root)
    is_complete = from_run and any(name in record.values() for record in records)

    def is_held_out(path: str, is_selected: bool) -> bool:
        place = located(path)
        found = {record[place] for record in records if place in record}
        return found == {name} or (not found and is_selected and not is_complete)

    def take(part: Split, *, is_selected: bool) -> Split:
        rows = [row for row, path in enumerate(part.paths) if is_held_out(path, is_selected)]
        return part if len(rows) == len(part) else part.take(np.array(rows, np.int64))

    found = take(split, is_selected=True)
    if is_complete and found is split and len(split) == sum(each == name for each in records[0].values()):
        return split
    try:
        others = [part.relabel(split.classes, OWNER) for other, part in settings.find_splits().items() if other != name]
    except DataError:  # a folder without a training split
        others = []
    for part in (take(other, is_selected=False) for other in others):
        if len(part):
            found = merge(found, part) if len(found) else part
    if not len(found):
        raise DataError(
            f"split={name} must have images that no network was trained on; {settings.location} has none of the images that "
            f"the run recorded in its split {name}"
        )
    if found is not split:
        log.info("%s: %s, by the split that the run recorded", name, counted(len(found), "image"))
    return found


def _check_unchanged(net: TrainedModel, settings: DataConfig, name: str) -> None:
    """Check that the images that alexlab has split are those of the net's run, whose split is not recorded."""
    data = (net.recorded or {}).get("data")
    known = data.get("fingerprint") if isinstance(data, dict) else None
    if known is None:
        return
    splits = net.data_settings(**NO_SOURCE | {"root": str(settings.root)}).find_splits()
    if splits.auto_split and known != describe_images(splits)["fingerprint"]:
        raise DataError(
            f"the images in {settings.location} must be those of the run, so that split={name} has none that a network was "
            "trained on; they have changed since. Evaluate the checkpoint in its run folder, which has the run's split, or set "
            "data.root=DIR to other images"
        )


def _check_members(same: Sequence[TrainedModel], settings: DataConfig, split: str, *, from_run: bool) -> None:
    """Check that the members of an ensemble have split the images of the evaluation alike.

    Args:
        same: the members whose runs had these images.
        settings: data settings of the evaluation.
        split: val, test, train or all.
        from_run: whether the settings refer to the data of the first member's run.
    """
    for key in SPLIT_KEYS if from_run else SPLIT_KEYS[1:]:
        given = [member.config["data"].get(key) for member in same]
        values = list(dict.fromkeys(_real(value) if key == "root" else str(value) for value in given))
        if len(values) > 1 and not (key == "fold" and split == "test"):
            instead = "split=test or data.root=DIR" if key == "fold" else "data.root=DIR"
            raise ConfigError(
                f"split={split} must not contain training images of any member, but the members' runs split the data differently "
                f"(data.{key}: {', '.join(values)}); set {instead}"
            )


def _real(root: Any) -> str:
    return os.path.realpath(str(root))
