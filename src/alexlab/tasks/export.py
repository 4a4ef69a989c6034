"""Task of `python src/export.py`: a trained network for other programs."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from alexlab.distributed.imports import import_lightning
from alexlab.errors import ConfigError, DataError
from alexlab.output.command_line import short_path
from alexlab.output.escape import print_line
from alexlab.output.numbers import counted
from alexlab.records.run import Run
from alexlab.tasks import evaluate
from alexlab.tasks.counts import check_counts

if TYPE_CHECKING:
    from alexlab.data.dataset import Load
    from alexlab.inference.checkpoint import TrainedModel


def main(run: Run) -> None:
    """Write the file and compare its logits with those of the checkpoint on real images.

    Raises:
        AlexlabError: if an option is invalid, or the logits differ; then no file is written.
    """
    import_lightning()

    from alexlab.inference.export import FORMATS
    from alexlab.inference.file_content import batches, metadata

    config = run.config
    if config["format"] not in FORMATS:
        raise ConfigError(f"format must be one of {', '.join(FORMATS)}; got {config['format']!r}")
    suffix, _ = FORMATS[config["format"]]
    model = evaluate.load_model({**config, "device": "cpu"})
    images = comparison_images(config, model)
    stem = "ensemble" if model.members else model.choices.get("model", "net")
    path = Path(config["out"] or run.dir)
    is_dir = path.is_dir() or str(config["out"]).endswith("/")
    path = path / f"{stem}{suffix}" if is_dir else path
    if path.suffix != suffix and path.suffix in {other for other, _ in FORMATS.values()}:
        raise ConfigError(f"out must end in {suffix} with format={config['format']}; got {path}")
    difference = export(model, config["format"], path, images)
    size = path.stat().st_size / 1e6
    content = f"{len(model.members)} networks" if model.members else str(metadata(model)["input"])
    print_line(f"{short_path(path)}: {size:.1f} MB, {len(model.classes)} classes, {content}")
    count = counted(len(batches(images, 1)), "image")
    print_line(f"compared with the checkpoint on {count}: logits differ by at most {difference:.3g}")


def export(model: "TrainedModel", file_format: str, path: Path, images: Any) -> float:
    """Write a file and return the largest absolute difference of a logit between it and the model.

    Args:
        model: trained model, on the CPU.
        file_format: key of `alexlab.inference.export.FORMATS`.
        path: file to write.
        images: images of the comparison, inputs of `model.inference`.

    Raises:
        NumericError: if the difference is too large; then no file is written, and an earlier one is kept.
    """
    from alexlab.inference.export import FORMATS, largest_difference

    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".", dir=path.parent) as folder:
        written = Path(folder, path.name)
        exported = FORMATS[file_format][1](model, written, images)
        difference = largest_difference(model, exported, images)
        os.replace(written, path)
    return difference


check = evaluate.check


def comparison_images(config: dict[str, Any], model: "TrainedModel") -> Any:
    """Return images of `input`, or of the run's data, as inputs of `model.inference`."""
    from torch.utils.data import default_collate

    from alexlab.data.decode import decode
    from alexlab.errors import ImageError
    from alexlab.inference.input_files import find_files
    from alexlab.inference.predictions import select_split

    check_counts(config, {"num_images": 1})
    loaders: Iterator[Load]
    if config["input"] is not None:
        loaders = (partial(decode, path) for path in find_files(config["input"]))
    else:
        try:
            _, split = select_split(model, model.data_settings(), None, from_run=True)
        except (DataError, ConfigError) as error:
            raise ConfigError(
                f"the exported network is compared on real images; set input=DIR to a folder of them ({error})"
            ) from error
        step = max(1, len(split) // config["num_images"])
        loaders = (partial(split.load, row) for row in range(0, len(split), step))
    images: list[Any] = []
    read = model.reader()
    for load in loaders:
        try:
            images.append(read(load))
        except ImageError:
            continue
        if len(images) == config["num_images"]:
            break
    if not images:
        source = "the data of the run" if config["input"] is None else f"input={config['input']}"
        raise DataError(f"{source} must have images to compare on; found none that can be read")
    return default_collate(images)
