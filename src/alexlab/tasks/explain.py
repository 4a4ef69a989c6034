"""`python src/explain.py`: what is inside a trained net. Imports no torch at its top."""

import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

from alexlab.errors import ConfigError, DataError
from alexlab.output.escape import print_line
from alexlab.tasks import evaluate

log = logging.getLogger(__name__)

TITLES = {
    "confident_mistakes": "Mistakes that it is surest of",
    "worst_mistakes": "Images whose class it thinks least likely",
    "filters": "First kernels",
    "neighbours": "Nearest training images",
    "grad_cam": "One image",
}


def run(config: dict[str, Any], *, run_dir: Path, choices: dict[str, str], isolated: bool = False) -> None:
    """Evaluates, then shows mistakes, kernels, neighbours, maps and Grad-CAM: PNG files and `evaluation.html`.

    Args:
        config: the composed config, plain data.
        run_dir: the folder that they are written to.
        choices: the option chosen in each config group; there is none here.
        isolated: of no use here, where nothing is trained.

    Raises:
        AlexlabError: in one sentence.
    """
    from alexlab.config import build
    from alexlab.data.dataset import to_tensor
    from alexlab.data.decode import decode
    from alexlab.inference.class_names import choose_fonts
    from alexlab.inference.explain import sections
    from alexlab.inference.explain.neighbours import METRICS
    from alexlab.inference.report import write_evaluation
    from alexlab.pages import html

    if config["neighbours"]["metric"] not in METRICS:
        raise ConfigError(
            f"neighbours.metric must be one of {', '.join(METRICS)}; got {config['neighbours']['metric']!r}"
        )
    if config["image"] is not None and not Path(config["image"]).is_file():
        raise ConfigError(f"image must be a file; there is no {config['image']}")
    trained, found, about, _ = evaluate.ask(config, run_dir)
    _, parts = write_evaluation(found, trained.names, run_dir, about)
    choose_fonts([*trained.names, *map(os.path.basename, found.paths)])
    view = build.eval_view(trained.config)
    if config["image"] is None:
        surest = int((found.own * found.right).argmax())
        title, image = found.paths[surest], sections.seen(found.split, found.numbers[surest], trained, view)
    else:
        title = config["image"]
        image = view(to_tensor(decode(title, trained.decoding)))
    figures = {
        **sections.mistakes(trained, found, view, config["num_mistakes"]),
        **sections.filters(trained),
        **_neighbours(config, trained, found, view),
        **sections.one_image(trained, image, title),
    }
    for name, figure in figures.items():
        content = html.png(figure)
        (run_dir / f"{name}.png").write_bytes(content)
        parts += [f"<h2>{TITLES[name]}</h2>"] if name in TITLES else []
        parts.append(html.plot(content, name))
    html.write_page(run_dir / "evaluation.html", f"{trained.description}: {about['split']}", parts)
    if config["tensorboard"]:
        _to_tensorboard(trained, run_dir)
    shown = os.path.relpath(run_dir)
    print_line(f"{int((~found.right).sum())} of {len(found.paths):,} images are mistaken")
    print_line(f"{shown}/evaluation.html, {', '.join(f'{name}.png' for name in figures)}")


def check(config: dict[str, Any]) -> None:
    """Looks at what can be known before the net is read."""
    evaluate.check(config)


def _neighbours(config: dict[str, Any], trained: Any, found: Any, view: Any) -> dict[str, Any]:
    """The section of the neighbours; the training data that it needs may be gone."""
    from alexlab.data.config import DataConfig
    from alexlab.data.layout import find_layout
    from alexlab.inference.explain import sections
    from alexlab.inference.predictions import select_split
    from alexlab.output.progress import track

    wanted = config["neighbours"]
    if not wanted["num_images"]:
        return {}
    changes = {key: config["data"][key] for key in ("batch_size", "num_workers") if config["data"][key] is not None}
    name = "train"
    if wanted["root"] is not None:
        changes |= {"root": wanted["root"], "url": None, "splits": {}}
        name = "train" if os.path.isdir(wanted["root"]) and find_layout(wanted["root"]).folders else "all"
    settings = DataConfig(**{**trained.config["data"], "cache": None, "manifest": None, "on_error": "raise", **changes})
    try:
        _, train = select_split(trained, settings, name, from_run=wanted["root"] is None)
    except (DataError, ConfigError) as error:
        log.warning("no neighbours: %s; neighbours.root=DIR names the training images", error)
        return {}
    return sections.neighbours(
        trained,
        found,
        view,
        train,
        settings,
        num_images=wanted["num_images"],
        k=wanted["k"],
        metric=wanted["metric"],
        watch=partial(track, title=f"train: {len(train):,} images"),
    )


def _to_tensorboard(trained: Any, run_dir: Path) -> None:
    """Shows the pictures in the Images tab of the run that the checkpoint is of."""
    import numpy as np
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

    if trained.run_dir is None:
        raise ConfigError(f"tensorboard=true needs the run folder of the checkpoint; {trained.path} lies in none")
    with SummaryWriter(str(trained.run_dir)) as writer:
        for path in sorted(run_dir.glob("*.png")):
            pixels = np.asarray(Image.open(path).convert("RGB"))
            writer.add_image(f"evaluation/{path.stem}", pixels, 0, dataformats="HWC")
