"""`python src/export.py`: a trained net for other programs. Imports no torch at its top."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from alexlab.errors import ConfigError, DataError
from alexlab.output.escape import print_line
from alexlab.tasks import evaluate


def run(config: dict[str, Any], *, run_dir: Path, choices: dict[str, str], isolated: bool = False) -> None:
    """Writes the file, then compares its logits with those of the checkpoint on real images.

    Args:
        config: the composed config, plain data.
        run_dir: the folder that it is written to, unless `out` says otherwise.
        choices: the option chosen in each config group; there is none here.
        isolated: of no use here, where nothing is trained.

    Raises:
        AlexlabError: in one sentence; a file that does not agree with the checkpoint is removed.
    """
    from alexlab.config import build
    from alexlab.errors import NumericError
    from alexlab.inference.checkpoint import load_checkpoint
    from alexlab.inference.export import FORMATS, about, largest_difference

    if config["format"] not in FORMATS:
        raise ConfigError(f"format must be one of {', '.join(FORMATS)}; got {config['format']!r}")
    suffix, write = FORMATS[config["format"]]
    trained = load_checkpoint(config["ckpt"], class_names=config["class_names"], device="cpu")
    images = _images(config, trained, build.eval_view(trained.config))
    path = Path(config["out"] or run_dir / f"{trained.choices.get('model', 'net')}{suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    exported = write(trained, path, trained.inference.normalize(images[:2]))
    try:
        difference = largest_difference(trained, exported, images)
    except NumericError:
        path.unlink()
        raise
    size = path.stat().st_size / 1e6
    known = about(trained)
    print_line(f"{os.path.relpath(path)}: {size:.1f} MB, {len(known['classes'])} classes, {known['input']}")
    print_line(f"compared with the checkpoint on {len(images)} images: largest difference of a logit {difference:.3g}")


def check(config: dict[str, Any]) -> None:
    """Looks at what can be known before the net is read."""
    evaluate.check(config)


def _images(config: dict[str, Any], trained: Any, view: Any) -> Any:
    """Real images as the net sees them, uint8 (N, C, H, W): of `input`, or of the run's data."""
    import torch

    from alexlab.data.config import DataConfig
    from alexlab.data.dataset import to_tensor
    from alexlab.data.decode import decode
    from alexlab.errors import ImageError
    from alexlab.inference.predict import find_files
    from alexlab.inference.predictions import select_split

    if config["num_images"] < 1:
        raise ConfigError(f"num_images must be at least 1; got {config['num_images']}")
    images: Iterator[Callable[[], Any]]
    if config["input"] is not None:
        images = (partial(decode, path, trained.decoding) for path in find_files(config["input"]))
    else:
        try:
            _, split = select_split(
                trained, DataConfig(**{**trained.config["data"], "manifest": None}), None, from_run=True
            )
        except (DataError, ConfigError) as error:
            raise ConfigError(f"the exported net is compared on real images: input=DIR names some ({error})") from error
        step = max(1, len(split) // config["num_images"])
        images = (partial(split.load, row, trained.decoding) for row in range(0, len(split), step))
    found = []
    for image in images:
        try:
            found.append(view(to_tensor(image())))
        except ImageError:
            continue
        if len(found) == config["num_images"]:
            break
    if not found:
        raise DataError(f"input={config['input']} must name images to compare on; there is none that can be read")
    return torch.stack(found)
