"""Network and metadata of an exported file: its input, its output, and what a program needs to prepare images for it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from alexlab.config.instantiate import Config, entries, make
from alexlab.data.transforms import CenterView, NearestResize, crop_rule
from alexlab.errors import ConfigError
from alexlab.inference.checkpoint import TrainedModel
from alexlab.inference.ensemble import EnsembleInference
from alexlab.training.preprocessing import Inference, average_logits, expand_binary_logits, normalize


class LogitNet(nn.Module):
    """Network from images (N, C, H, W), normalized as `metadata` describes, to logits (N, K).

    Args:
        net: the network.
        mean_image: normalized mean image (1, C, H, W) to subtract, or None.
    """

    mean_image: Tensor | None

    def __init__(self, net: nn.Module, mean_image: Tensor | None = None) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean_image", mean_image)

    def forward(self, images: Tensor) -> Tensor:
        centered = images if self.mean_image is None else images - self.mean_image
        return expand_binary_logits(self.net(centered))


class AverageNet(nn.Module):
    """Average of networks that read the same view: images in 0..1 (N, C, H, W) to the logarithm of the mean softmax (N, K)."""

    log_weights: Tensor

    def __init__(self, inference: EnsembleInference) -> None:
        super().__init__()
        self.members = nn.ModuleList(_Member(*pair) for pair in zip(inference.singles, inference.orders, strict=True))
        self.register_buffer("log_weights", inference.log_weights)

    def forward(self, images: Tensor) -> Tensor:
        return average_logits([member(images) for member in self.members], self.log_weights)


class _Member(nn.Module):
    """One network of an average, with its normalization and the order of its classes."""

    mean: Tensor
    std: Tensor
    order: Tensor

    def __init__(self, inference: Inference, order: Tensor) -> None:
        super().__init__()
        self.net = inference.net
        self.register_buffer("mean", inference.mean / 255)
        self.register_buffer("std", inference.std / 255)
        self.register_buffer("order", order.clone())  # torch.export warns of a slice of a tensor

    def forward(self, images: Tensor) -> Tensor:
        return expand_binary_logits(self.net((images - self.mean) / self.std))[:, self.order]


def file_net(model: TrainedModel) -> nn.Module:
    """Return the network of a file with one input, on the CPU with contiguous weights: exporters fail on channels-last ones.

    Raises:
        ConfigError: for an ensemble whose members read different views of an image.
    """
    if isinstance(model.inference, EnsembleInference):
        if len({*model.inference.views}) > 1:
            sizes = ", ".join(dict.fromkeys(str(member.config["data"]["image_size"]) for member in model.members))
            raise ConfigError(
                f"a file with one input needs members with the same image size (here {sizes}), channels and eval transforms; "
                "use format=safetensors, which stores those of each member"
            )
        net: nn.Module = AverageNet(model.inference)
    else:
        net = LogitNet(model.inference.net, normalized_mean_image(model.inference))
    return net.cpu().eval().to(memory_format=torch.contiguous_format)


def file_input(inference: Inference | EnsembleInference, images: Any) -> Tensor:
    """Return inputs of `inference` as `metadata` describes them: without the mean image, which is in the file."""
    if isinstance(inference, EnsembleInference):
        return torch.as_tensor(images[0] / 255).contiguous()
    mean = torch.zeros_like(inference.std) if has_mean_image(inference) else inference.mean
    return normalize(images, mean, inference.std).contiguous()


def batches(images: Any, size: int) -> list[Any]:
    """Return inputs of a model, a tensor (N, C, H, W) or a list of them, in batches of at most `size` images."""
    if isinstance(images, Tensor):
        return [*images.split(size)]
    return [list(views) for views in zip(*(view.split(size) for view in images), strict=True)]


def has_mean_image(inference: Inference) -> bool:
    """Return whether a network subtracts a mean image rather than one number per channel."""
    return inference.mean.shape[2:] != (1, 1)


def normalized_mean_image(inference: Inference) -> Tensor | None:
    return inference.mean / inference.std if has_mean_image(inference) else None


def metadata(model: TrainedModel) -> dict[str, Any]:
    """Return the classes and the preprocessing, which a program needs besides the weights, as plain data."""
    data = model.config["data"]
    mean, std = _mean_and_std(model.inference, data["channels"])
    return {
        "classes": model.names,
        "folders": model.classes,
        "image_size": data["image_size"],
        "channels": data["channels"],
        **_view(model.config),
        "mean": mean,
        "std": std,
        "input": "float32 (N, channels, image_size, image_size): upright images (EXIF orientation applied), values in [0, 1], "
        "minus mean, divided by std",
        "output": output_text(model),
    }


def output_text(model: TrainedModel) -> str:
    """Return the description of the output of a file."""
    if not model.members:
        return "logits (N, classes)"
    shares = ", ".join(f"{member.weight:.4g}" for member in model.members)
    return f"logits (N, classes): the logarithm of the mean of {len(model.members)} networks' softmax, weights {shares}"


def _mean_and_std(inference: Inference | EnsembleInference, channels: int) -> tuple[Sequence[float], Sequence[float]]:
    """Return the normalization that is left to the user of a file."""
    if isinstance(inference, EnsembleInference):
        return [0.0] * channels, [1.0] * channels
    mean = [0.0] * channels if has_mean_image(inference) else (inference.mean.flatten() / 255).tolist()
    return mean, (inference.std.flatten() / 255).tolist()


def _view(config: Config) -> dict[str, Any]:
    """Return the evaluation transform as plain data.

    `resize` has the interpolation, and the length of the shorter side and the crop, both None for squashed images. It is None for
    any other transform; `transforms` then has the config nodes, which take a uint8 image (C, H, W).
    """
    nodes = entries(config["augmentation"]["eval"])
    views = [make(node, f"augmentation.eval.{name}") for name, node in nodes.items()]
    view: Any = views[0] if len(views) == 1 else None
    resize: dict[str, Any] = {"shorter_side": None, "crop": None, "interpolation": "bilinear"}
    if type(view) is CenterView:
        return {"resize": resize | {"shorter_side": view.resized, "crop": "center"}}
    if type(view) is NearestResize:
        return {"resize": resize | {"interpolation": "nearest"}}
    if type(view) is v2.Resize and len(view.size) == 2 and crop_rule(view) is not None:  # bilinear, antialiased
        return {"resize": resize}
    return {"resize": None, "transforms": [*nodes.values()]}
