"""Image data from config nodes: the data module, packed images and the views of the evaluation.

Each node holds the keyword arguments of one call, as in `alexlab.config.build`.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.transforms import v2

from alexlab.config.data import data_config
from alexlab.config.instantiate import Config, bind, entries, make
from alexlab.data.cache.build_pack import open_pack
from alexlab.data.cache.on_device import check_crops
from alexlab.data.cache.pack import PackConfig, PackedImages, pack_mismatch, required_size
from alexlab.data.datamodule import ImageDataModule
from alexlab.data.mean_image import measure_mean_image
from alexlab.data.splits import Split, Splits
from alexlab.data.transforms import CenterView, Views
from alexlab.data.unreadable import UnreadableLog
from alexlab.errors import ConfigError
from alexlab.records.layout import SKIPPED


def datamodule(config: Config, splits: Splits, run_dir: Path | None = None) -> ImageDataModule:
    """Return the LightningDataModule; unreadable images are listed in the run folder."""
    views = config["augmentation"]
    skipped = None if run_dir is None else UnreadableLog(run_dir / SKIPPED)
    if skipped is not None:  # loader workers are forked before the callback with this key runs
        skipped.continue_on_full_disk = any(
            node.get("on_error") == "warn" for node in entries(config["callbacks"]).values()
        )
    return ImageDataModule(
        data_config(config),
        splits,
        train_transform=_transforms(views["train"], "augmentation.train"),
        eval_transform=_transforms(views["eval"], "augmentation.eval"),
        seed=config["seed"],
        unreadable=skipped,
    )


def packed_splits(config: Config, splits: Splits) -> Splits:
    """Return the splits with packed images if the config asks for them, building missing packs."""
    pack, settings = pack_config(config), data_config(config)
    if pack is None:
        return splits
    opened: dict[str, PackedImages] = {}
    parts: dict[str, Split] = {}
    for name, split in splits.items():
        listing = split.listing
        assert listing is not None
        if listing.folder not in opened:
            opened[listing.folder] = open_pack(
                listing,
                pack,
                decoding=settings.decoding,
                cache_dir=Path(settings.cache_dir),
                hashes=splits.hashes_of(listing),
                skip=settings.on_error == "skip",
            )
        parts[name] = replace(split, images=opened[listing.folder])
    return replace(splits, train=parts["train"], val=parts["val"], test=parts.get("test"))


def pack_config(config: Config) -> PackConfig | None:
    """Return the settings of the image pack, or None without `data.cache`.

    Raises:
        ConfigError: if a transform of the recipe cannot read from such a pack.
    """
    settings = data_config(config)
    bind(PackConfig, "data.pack", **settings.pack)
    if settings.cache is None:
        return None
    pack = PackConfig(**settings.pack)
    views = config["augmentation"]
    first = {f"augmentation.{stage}": _first(views[stage], f"augmentation.{stage}") for stage in ("eval", "train")}
    if pack.size is None:
        pack = replace(pack, size=required_size(first["augmentation.eval"]))
    for name, view in {**first, "test.views": extra_views(config)}.items():
        reason = None if view is None else pack_mismatch(view, pack)
        if reason is not None:
            raise ConfigError(f"{name} cannot read the pack of data.cache={settings.cache}: {reason}")
    if settings.cache == "device":
        if not pack.square:
            raise ConfigError("data.cache=device needs square images: data.pack.crop=center or data.pack.resize=squash")
        recipes = {
            f"augmentation.{stage}": _transforms(views[stage], f"augmentation.{stage}") for stage in ("eval", "train")
        }
        check_crops(recipes, pack.size or 0)
    return pack


def eval_view(config: Config, views: str = "center") -> Callable[..., Any]:
    """Return the evaluation transform: uint8 image (C, H, W) to the centre view (C, H, W), or to several (V, C, H, W)."""
    if views == "center":
        return _transforms(config["augmentation"]["eval"], "augmentation.eval")
    try:
        return _several_views(config, views=views)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def mean_image(config: Config, splits: Splits) -> np.ndarray | None:
    """Return the mean image of the training split, float32 (C, H, W) in [0, 1]; None unless `data.mean_image` is true."""
    settings = data_config(config)
    if not settings.mean_image:
        return None
    return measure_mean_image(
        splits.train,
        eval_view(config),
        decoding=settings.decoding,
        cache_dir=Path(settings.cache_dir),
        view_name=repr(config["augmentation"]["eval"]),
        skip_unreadable=settings.on_error == "skip",
    )


def extra_views(config: Config) -> Views | None:
    """Return the views of the `test` node, or None for the centre view, which is always evaluated."""
    bind(Views, "test", 1, **config["test"])
    try:
        if config["test"]["views"] == "center":
            Views(data_config(config).image_size, **config["test"])  # checks the other options
            return None
        return _several_views(config, **config["test"])
    except ValueError as error:
        raise ConfigError(f"test.{error}") from error


def _several_views(config: Config, **options: Any) -> Views:
    """Return crops of the same size and scale as that of the evaluation, `Views` with its options.

    Raises:
        ValueError: if an option is invalid, or the evaluation does not take the central crop.
    """
    steps = _transforms(config["augmentation"]["eval"], "augmentation.eval").transforms
    center = steps[0] if len(steps) == 1 and isinstance(steps[0], CenterView) else None
    views = Views(data_config(config).image_size, **{"ratio": 1.0 if center is None else center.ratio} | options)
    if center is None:
        raise ValueError(
            f"views={views.views} needs the central crop of augmentation/eval=center, which it moves; got "
            f"{', '.join(type(step).__name__ for step in steps)}: use views=center"
        )
    return views


def _transforms(nodes: Config, where: str) -> v2.Compose:
    if not entries(nodes):
        raise ConfigError(f"{where} must have a transform that returns images of data.image_size; it has none")
    return v2.Compose([make(node, f"{where}.{name}") for name, node in entries(nodes).items()])


def _first(nodes: Config, where: str) -> Any:
    for name, node in entries(nodes).items():
        return make(node, f"{where}.{name}")
    return None
