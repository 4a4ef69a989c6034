"""Trained models for Python programs: `alexlab.load`."""

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from alexlab.api.images import Images, is_single, load_images
from alexlab.api.results import Explanation, Prediction
from alexlab.config.grammar import expand_home
from alexlab.config.own_code import add_folder
from alexlab.data.dataset import Load, Reader
from alexlab.errors import ConfigError, DataError
from alexlab.inference.checkpoint import TrainedModel, load_checkpoint
from alexlab.inference.explain.activations import head_layer
from alexlab.inference.explain.gradcam import grad_cam
from alexlab.inference.explain.neighbours import features
from alexlab.inference.export import FORMATS
from alexlab.inference.report import Evaluation
from alexlab.records.layout import SKIPPED
from alexlab.tasks import evaluate, export

NO_IMAGES = "images must have at least one image; found none"


class Model:
    """A trained network with its classes and preprocessing.

    Args:
        trained: model from `load_checkpoint`.
        config_dir: folder of the code that it needs.
    """

    def __init__(self, trained: TrainedModel, *, config_dir: str | Path | None = None) -> None:
        self._trained = trained
        self._config_dir = None if config_dir is None else Path(config_dir).expanduser().absolute()

    def __repr__(self) -> str:
        return f"<alexlab.Model {self._trained.description}, {self._trained.inference.device}, {self._trained.label}>"

    @property
    def path(self) -> Path | None:
        """The file that the model was loaded from; None for an ensemble of several files."""
        return self._trained.path

    @property
    def config(self) -> dict[str, Any]:
        """The config of the run, plain data."""
        return self._trained.config

    @property
    def classes(self) -> list[str]:
        """The display names of the K classes, in the order of the logits."""
        return self._trained.names

    @property
    def best(self) -> dict[str, float]:
        """The scores of the best validation, such as `top1`; empty if there was none."""
        return dict(self._trained.best)

    @property
    def net(self) -> nn.Module:
        """The network, which maps images from `preprocess` to logits (N, K); (N, 1) if it was trained with one output."""
        return self._trained.single.net

    def preprocess(self, images: Images) -> Tensor:
        """Return images as the input of `net`, float32 (N, C, H, W), normalized, on its device.

        Args:
            images: see `alexlab.api.images.load_images`.
        """
        return self._trained.single.normalize(self._inputs(load_images(images)))

    def predict(
        self, images: Images, *, top_k: int = 5, views: str = "center", batch_size: int = 64
    ) -> Prediction | list[Prediction]:
        """Predict the classes of images.

        Args:
            images: one image or several, see `alexlab.api.images.load_images`.
            top_k: number of classes per image.
            views: center; five or ten_crop for the mean of the softmax over 5 or 10 views.
            batch_size: images per forward pass.

        Returns:
            One prediction for one image; a list for a folder, a batch or a list, in order.

        Raises:
            ImageError: if a file cannot be read; `python src/predict.py` lists such files instead.
            DataError: if the images have another type, shape or range.
        """
        if top_k < 1:
            raise ConfigError(f"top_k must be at least 1; got {top_k}")
        found = list(self._predict(images, top_k, views, batch_size))
        return found[0] if is_single(images) else found

    @torch.inference_mode()
    def _predict(self, images: Images, top_k: int, views: str, batch_size: int) -> Iterator[Prediction]:
        for paths, inputs in self._batches(images, batch_size, views):
            top = self._trained.inference.probs(inputs).cpu().topk(min(top_k, len(self.classes)))
            for path, numbers, probs in zip(paths, top.indices.tolist(), top.values.tolist(), strict=True):
                yield Prediction(tuple(self.classes[number] for number in numbers), tuple(probs), path)

    def evaluate(
        self,
        root: str | Path | None = None,
        *,
        split: str | None = None,
        views: str = "center",
        batch_size: int | None = None,
        num_workers: int | None = None,
    ) -> Evaluation:
        """Evaluate the model on labelled images, each exactly once, as `python src/evaluate.py` does.

        Args:
            root: folder with one folder per class; None for the data of the run.
            split: val, test, train or all; None for test if it exists, else val; all for another folder without splits.
            views: see `predict`.
            batch_size, num_workers: None for those of the run.

        Raises:
            DataError: if the folder or the split does not exist, or an image cannot be read.
        """
        _trust(self._config_dir)
        data = {
            "root": None if root is None else expand_home(root),
            "batch_size": batch_size,
            "num_workers": num_workers,
        }
        data["on_error"] = "raise"
        with tempfile.TemporaryDirectory() as folder:
            selected = {"split": split, "views": views, "data": data}
            return evaluate.evaluate(self._trained, selected, skipped=Path(folder) / SKIPPED)

    @torch.inference_mode()
    def features(self, images: Images, *, batch_size: int = 64) -> Tensor:
        """Return the last hidden layer, float32 (N, D): the input of the last layer, averaged over positions.

        Args:
            images: see `alexlab.api.images.load_images`.
            batch_size: images per forward pass.
        """
        inference, rows, layer = self._trained.single, [], ""
        for _, views in self._batches(images, batch_size):
            layer = layer or head_layer(inference.net, inference.normalize(views[:1]))
            rows.append(features(inference, views, layer))
        if not rows:
            raise DataError(NO_IMAGES)
        return torch.cat(rows)

    def explain(self, image: Images, label: str | None = None) -> Explanation:
        """Return Grad-CAM of one image.

        Args:
            image: see `alexlab.api.images.load_images`.
            label: display name of the class to explain; None for the most probable one.
        """
        inference, views = self._trained.single, self._inputs(load_images(image))
        if len(views) != 1:
            raise DataError(f"explain takes one image; got {len(views)}")
        if label is not None and label not in self.classes:
            raise ConfigError(f"label must be one of {', '.join(self.classes)}; got {label!r}")
        with torch.inference_mode():
            probs = inference.probs(views)[0].cpu()
        number = int(probs.argmax()) if label is None else self.classes.index(label)
        cam = grad_cam(inference, views, torch.tensor([number]))[0]
        pixels = views[0].permute(1, 2, 0).contiguous().numpy()
        return Explanation(self.classes[number], float(probs[number]), pixels, cam.numpy())

    def export(self, path: str | Path, *, images: Images | None = None, num_images: int = 100) -> float:
        """Write the network for other programs and compare the file with the model on images.

        Args:
            path: file to write; its suffix chooses the format: .safetensors, .onnx, .pt2 or .pth.
            images: images of the comparison; None for images of the run's data.
            num_images: maximum number of these images.

        Returns:
            The largest absolute difference of a logit, at most 1e-4.

        Raises:
            ConfigError: if the suffix is unknown.
            DataError: if there are no images.
            NumericError: if the logits differ; then no file is left.
        """
        formats = {suffix: name for name, (suffix, _) in FORMATS.items()}
        file = Path(expand_home(path))
        if file.suffix not in formats:
            raise ConfigError(f"path must end in {', '.join(formats)}; got {path}")
        _trust(self._config_dir)
        model = self._trained.on_cpu()
        if images is None:
            views = export.comparison_images({"num_images": num_images, "input": None}, model)
        else:
            views = self._inputs(islice(load_images(images), num_images))
        return export.export(model, formats[file.suffix], file, views)

    def _reader(self, views: str = "center") -> Reader:
        _trust(self._config_dir)
        return self._trained.reader(views)

    def _batches(self, images: Images, batch_size: int, views: str = "center") -> Iterator[tuple[list[str], Any]]:
        """Yield the paths and the views of `batch_size` images at a time."""
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1; got {batch_size}")
        read, loaded = self._reader(views), load_images(images)
        while batch := list(islice(loaded, batch_size)):
            yield [path for path, _ in batch], default_collate([read(load) for _, load in batch])

    def _inputs(self, loaded: Iterable[tuple[str, Load]]) -> Any:
        """Return the centre view of each image, uint8 (N, C, H, W); a list of them for an ensemble."""
        read = self._reader()
        inputs = [read(load) for _, load in loaded]
        if not inputs:
            raise DataError(NO_IMAGES)
        return default_collate(inputs)


def _trust(config_dir: str | Path | None) -> None:
    """Make a folder's code importable in this context, since each thread has its own."""
    if config_dir is not None:
        add_folder(os.fspath(config_dir))


def load(
    path: "str | Path | Sequence[str | Path]",
    *,
    weights: Sequence[float] | None = None,
    class_names: str | Path | None = None,
    device: str = "auto",
    config_dir: str | Path | None = None,
) -> Model:
    """Load a trained model, or the average of several; only tensors and plain data are unpickled.

    Args:
        path: a run folder (its best checkpoint), the folder of a sweep (its finished runs), a checkpoint, an exported
            .safetensors file, or a state dict of torchvision's alexnet; or a list of these, whose softmax is averaged.
        weights: weight of each of several checkpoints in the average; None for equal weights.
        class_names: JSON file that maps folder names to display names; None uses those of the checkpoint.
        device: cpu, cuda, or auto: a GPU if there is one.
        config_dir: folder of your own code that the model needs, as with `--config-dir`. Naming it trusts its code.

    Raises:
        ConfigError: if the file is not a trained model, it needs code of yours, or the device is not available.
    """
    _trust(config_dir)
    names = None if class_names is None else expand_home(class_names)
    given = [path] if isinstance(path, str | os.PathLike) else path
    # Absolute: the program may change its folder.
    paths = [os.path.abspath(expand_home(each)) for each in given]
    trained = load_checkpoint(paths, weights=weights, class_names=names, device=device)
    return Model(trained, config_dir=config_dir)
