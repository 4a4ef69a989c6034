"""Trained models from checkpoints: network, classes, preprocessing and data settings come from the file alone."""

import copy
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torchvision.models import AlexNet_Weights

from alexlab.config import build, build_data
from alexlab.config.allowlist import check_targets
from alexlab.config.confinement import confined_data
from alexlab.config.data import data_config
from alexlab.config.default import default_config
from alexlab.data.class_names import display_names, read_class_names, sorted_classes
from alexlab.data.config import DataConfig
from alexlab.data.dataset import Reader, SeveralReaders, ViewReader
from alexlab.data.image_file import Decoding
from alexlab.errors import ConfigError
from alexlab.inference.ensemble import EnsembleInference, member_names, normalized_weights
from alexlab.inference.record_checks import check_head, check_sizes, check_types
from alexlab.models.weights.files import WeightFile, read_weights
from alexlab.models.weights.matching import match_weights
from alexlab.models.weights.pretrained import WeightSource, hint_at_weights
from alexlab.models.weights.state_dicts import ParameterLimit, State, load_state
from alexlab.records.layout import BEST, LAST, MEAN_IMAGE
from alexlab.training.preprocessing import Inference

NO_SOURCE = dict.fromkeys(("root", "url", "generate", "dataset"))  # keys of `data` that name the images

log = logging.getLogger(__name__)

KINDS = (
    "a run folder, the folder of a sweep, a checkpoint, an exported .safetensors file, or a state dict of torchvision's "
    "alexnet"
)

SPARE_PARAMETERS = (
    100  # parameters that a network may create and discard, as torchvision's networks do for images that are not RGB
)
RECORDED = ("config", "choices", "best", "versions", "code", "data")  # of the run that trained a network
NO_DATA = "(none)"  # data.root of a file that does not name its data


@dataclass(frozen=True)
class TrainedModel:
    """A trained network, or the average of several, with its preprocessing, classes and config.

    Args:
        path: file that it was loaded from; None for an ensemble of several files.
        config: config of the run, plain data; of the first member's run for an ensemble.
        choices: the option chosen in each config group.
        classes: folder names of the K classes, in the order of the logits.
        names: display names of the classes.
        best: metrics of the best validation; empty if there was none.
        inference: network with its preprocessing, in eval mode, on its device.
        members: the models of an ensemble; empty for a single network.
        weight: share of a member in its ensemble.
        recorded: what the file of a single network records of its run, not validated; None for a state dict.
    """

    path: Path | None
    config: dict[str, Any]
    choices: Mapping[str, str]
    classes: list[str]
    names: list[str]
    best: Mapping[str, float]
    inference: Inference | EnsembleInference
    members: tuple["TrainedModel", ...] = ()
    weight: float = 1.0
    recorded: Mapping[str, Any] | None = None

    @property
    def label(self) -> str:
        """The files that the model was loaded from."""
        return str(self.path) if self.path is not None else ", ".join(member.label for member in self.members)

    @property
    def run_dir(self) -> Path | None:
        """The run folder that contains the checkpoint, or None."""
        if self.path is None or self.path.absolute().parent.name != BEST.parent.name:
            return None
        folder = self.path.absolute().parent.parent
        return folder if (folder / "run.json").is_file() else None

    def data_settings(self, **changes: Any) -> DataConfig:
        """Return the data settings of the run with other values of some keys, without its cache and manifest."""
        return data_config({"data": {**self.config["data"], "cache": None, "manifest": None, **changes}})

    @property
    def decoding(self) -> Decoding:
        """The decoding settings of the run."""
        return data_config(self.config).decoding

    def with_decoding(self, data: Mapping[str, Any]) -> "TrainedModel":
        """Return the same model with those decoding settings of a `data` node that are not null."""
        changes = {
            key: data[key] for key in ("max_megapixels", "intensity_range", "jpeg_scaling") if data.get(key) is not None
        }
        config = {**self.config, "data": {**self.config["data"], **changes}}
        return replace(self, config=config, members=tuple(member.with_decoding(data) for member in self.members))

    def reader(self, views: str = "center") -> Reader:
        """Return the reading of an image as an input of `inference`: the centre view, or several views as in `eval_view`."""
        if not isinstance(self.inference, EnsembleInference):
            return ViewReader(build_data.eval_view(self.config, views), self.decoding)
        by_view = dict(zip(self.inference.views, self.members, strict=True))
        return SeveralReaders([by_view[number].reader(views) for number in sorted(by_view)])

    def on_cpu(self) -> "TrainedModel":
        """Return the same model on the CPU."""
        if self.members:
            members = [member.on_cpu() for member in self.members]
            return replace(average(members, [member.weight for member in members]), path=self.path)
        return replace(self, inference=copy.deepcopy(self.inference).cpu())

    @property
    def single(self) -> Inference:
        """The network with its preprocessing, for what explains one network.

        Raises:
            ConfigError: for an ensemble.
        """
        if isinstance(self.inference, EnsembleInference):
            raise ConfigError(
                f"explanations, features and layers need a single network; this is an ensemble of {len(self.members)}: use one "
                f"of its checkpoints, such as {self.members[0].label}"
            )
        return self.inference

    @property
    def description(self) -> str:
        """Model name and number of classes; of an ensemble the number of networks, too."""
        name = self.choices.get("model", self.config["model"]["_target_"].rsplit(".", 1)[-1])
        if self.members:
            nets = Counter(member.description.partition(",")[0] for member in self.members)
            name = " + ".join(f"{count} x {net}" for net, count in nets.items())
        return f"{name}, {len(self.classes)} classes"


def load_checkpoint(
    name: str | Sequence[str],
    *,
    weights: Sequence[float] | None = None,
    class_names: str | None = None,
    device: str = "auto",
) -> TrainedModel:
    """Load a trained model, or the average of several; only tensors and plain data are unpickled.

    Args:
        name: a run folder (its best checkpoint), the folder of a sweep (all its finished runs), a checkpoint, an exported
            .safetensors file, a state dict of torchvision's alexnet (.pth, .pt, .safetensors), whose classes are those of
            ImageNet or the keys of `class_names`; or a list of these, whose softmax is averaged.
        weights: weight of each checkpoint in the average; None for equal weights.
        class_names: JSON file that maps folder names to display names; None uses those of the checkpoint.
        device: `cpu`, `cuda`, or `auto`: a GPU if there is one.

    Raises:
        ConfigError: if a file is not a trained model, models cannot be averaged, or the device is not available.
    """
    given = None if class_names is None else read_class_names(class_names)
    return average([_load_file(_find_file(Path(each)), given, device) for each in member_names(name)], weights)


def average(models: Sequence[TrainedModel], weights: Sequence[float] | None) -> TrainedModel:
    """Return the ensemble of some models, with the classes in the order of the first one; a single model as it is.

    Raises:
        ConfigError: if the weights do not match the models, or a model has other classes or is an ensemble itself.
    """
    shares = normalized_weights(weights, len(models))
    if len(models) == 1:
        return models[0]
    first = models[0]
    keys: list[Any] = []
    views: list[int] = []
    for model in models:
        if model.members:
            raise ConfigError(f"an ensemble must be made of single networks; {model.path} is an ensemble itself")
        if {*model.classes} != {*first.classes}:
            raise ConfigError(
                f"the members of an ensemble must have the same classes; only one of {first.path} and {model.path} has "
                f"{', '.join(sorted({*first.classes} ^ {*model.classes})[:10])}"
            )
        key = (model.config["augmentation"]["eval"], model.config["data"]["image_size"], asdict(model.decoding))
        views.append(keys.index(key) if key in keys else len(keys))
        keys += [key] if views[-1] == len(keys) else []
    orders = [[model.classes.index(name) for name in first.classes] for model in models]
    inference = EnsembleInference([model.single for model in models], weights=shares, views=views, orders=orders)
    members = tuple(replace(model, weight=share) for model, share in zip(models, shares, strict=True))
    return replace(
        first,
        path=None,
        best={},
        inference=inference.eval().to(first.inference.device),
        members=members,
        recorded=None,
    )


def _load_file(path: Path, given: dict[str, str] | None, device: str) -> TrainedModel:
    weights = read_weights(path)
    for note in weights.notes:
        log.info("%s: %s", path, note)
    if weights.members:
        models = [_load_record(path, record, state, given, device) for record, state in weights.members]
        return replace(average(models, weights.shares), path=path)
    if weights.record is None:
        return _load_torchvision(path, weights, given, device)
    return _load_record(path, weights.record, weights.state, given, device)


def _load_record(
    path: Path, record: dict[str, Any], state: State, given: dict[str, str] | None, device: str
) -> TrainedModel:
    """Return the model of a record, which is untrusted, and its weights."""
    inference = _build_inference(path, record, state)
    names = display_names(record["classes"], record["config"].get("class_names") if given is None else given)
    return TrainedModel(
        path,
        {**record["config"], "data": confined_data(record["config"]["data"])},
        record["choices"],
        record["classes"],
        names,
        record["best"],
        inference.eval().to(_select_device(device), torch.float32),
        recorded={name: value for name, value in record.items() if name in RECORDED},
    )


def _build_inference(path: Path, record: dict[str, Any], state: State) -> Inference:
    """Build the network of a checkpoint's record, which is untrusted, and load its weights."""
    config, classes = record["config"], record["classes"]
    try:
        check_targets(config)
        check_sizes(config)
        check_types(DataConfig, "data", config["data"])
        with ParameterLimit(len(state) + SPARE_PARAMETERS):
            inference = build.inference(config, len(classes), mean_image=record.get(MEAN_IMAGE))
        build_data.eval_view(config)
        size, channels = config["data"]["image_size"], config["data"]["channels"]
        inference.net.eval()(torch.empty(1, channels, size, size, device="meta"))
        if not all(torch.isfinite(values).all() for values in (inference.mean, inference.std)):
            raise ValueError("its mean and std must be finite")
    except Exception as error:  # an untrusted config can fail in any way
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        reason = " ".join(str(error).split())[:400]
        raise ConfigError(
            f"the config in {path} must describe a network and its preprocessing: {kind}{reason}"
        ) from error
    try:
        check_head(inference.net, state, classes)
        load_state(inference.net, state)
    except ValueError as error:
        raise ConfigError(f"the weights of {path} do not fit the net of its config: {error}") from error
    return inference


def _find_file(path: Path) -> Path:
    if path.is_dir():
        checkpoint = next((path / name for name in (BEST, LAST) if (path / name).is_file()), None)
        if checkpoint is None:
            raise ConfigError(f"ckpt must be {KINDS}; the folder {path} has no {BEST}{hint_at_weights(path)}")
        if checkpoint.name == LAST.name:
            log.warning("%s has no %s, so its %s is used", path, BEST, LAST)
        return checkpoint
    if not path.is_file():
        raise ConfigError(f"ckpt must be {KINDS}; {path} does not exist")
    return path


def _load_torchvision(path: Path, weights: WeightFile, names: dict[str, str] | None, device: str) -> TrainedModel:
    """Return the model of a state dict of torchvision's alexnet, which has no record."""
    matrices = [tensor for tensor in weights.state.values() if tensor.dim() == 2]
    if not matrices:
        raise ConfigError(f"ckpt must be {KINDS}; got {path}")
    count = len(matrices[-1])
    if names is not None and len(names) == count:
        classes = sorted_classes(names)
    elif count == len(AlexNet_Weights.IMAGENET1K_V1.meta["categories"]):
        classes = list(AlexNet_Weights.IMAGENET1K_V1.meta["categories"])
    else:
        raise ConfigError(
            f"{path} does not name its {count} classes; class_names=FILE.json must have one key per class; "
            f"got {'no file' if names is None else f'{len(names)} keys'}"
        )
    config = default_config("model=alexnet", "data=folder", f"data.root='{NO_DATA}'")
    inference = build.inference(config, count)
    matched = match_weights(inference.net, WeightSource(str(path), weights.state), key="ckpt", head=(), classes=classes)
    misfits = [*matched.unmatched, *matched.sliced, *matched.unused]
    if misfits:
        raise ConfigError(f"ckpt must be {KINDS}; in {path} these tensors do not fit: {', '.join(misfits)}")
    load_state(inference.net, matched.matched)
    inference = inference.eval().to(_select_device(device), torch.float32)
    return TrainedModel(path, config, {"model": "alexnet"}, classes, display_names(classes, names), {}, inference)


def _select_device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device must be auto, cpu or cuda; got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda needs a GPU, but none is available. Use device=cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
