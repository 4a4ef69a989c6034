"""Export of a trained network to a file that does not need this package: safetensors, ONNX, torch.export or a state dict."""

import copy
import io
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import alexnet

from alexlab.errors import ConfigError, NumericError
from alexlab.inference.checkpoint import TrainedModel
from alexlab.inference.sequential import build_sequential, sequential_layers
from alexlab.records.atomic import write_atomic
from alexlab.records.layout import CHECKPOINT_KEY, MEAN_IMAGE
from alexlab.training.preprocessing import Inference, expand_binary_logits, normalize

log = logging.getLogger(__name__)

TOLERANCE = 1e-4  # maximum absolute difference of a logit
OPSET = 20


class LogitNet(nn.Module):
    """Network from images (N, C, H, W), normalized by `metadata`, to logits (N, K).

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


def has_mean_image(inference: Inference) -> bool:
    """Return whether a network subtracts a mean image rather than one number per channel."""
    return inference.mean.shape[2:] != (1, 1)


def normalize_for_file(inference: Inference, images: Tensor) -> Tensor:
    """Normalize uint8 images (N, C, H, W) as `metadata` describes: without the mean image, which is in the file."""
    mean = torch.zeros_like(inference.std) if has_mean_image(inference) else inference.mean
    return normalize(images, mean, inference.std)


def metadata(model: TrainedModel) -> dict[str, Any]:
    """Return the classes and the preprocessing, which a program needs besides the weights, as plain data."""
    data, views = model.config["data"], model.config["augmentation"]["eval"]
    inference = model.inference
    return {
        "classes": model.names,
        "folders": model.classes,
        "image_size": data["image_size"],
        "channels": data["channels"],
        "resize": _resize(views, data["image_size"]),
        "mean": [0.0] * data["channels"] if has_mean_image(inference) else (inference.mean.flatten() / 255).tolist(),
        "std": (inference.std.flatten() / 255).tolist(),
        "input": "float32 (N, channels, image_size, image_size): values in [0, 1], minus mean, divided by std",
        "output": "logits (N, classes)",
    }


def _resize(views: dict[str, Any], size: int) -> dict[str, Any]:
    """Return the length that the shorter side is resized to before the center crop; None if images are squashed instead."""
    interpolation = "bilinear"
    for node in views.values():
        if node is not None and node["_target_"].endswith(".CenterView"):
            return {"shorter_side": round(size / node["ratio"]), "crop": "center", "interpolation": interpolation}
        if node is not None and node["_target_"].endswith(".NearestResize"):
            interpolation = "nearest"
    return {"shorter_side": None, "crop": None, "interpolation": interpolation}


def write_safetensors(model: TrainedModel, path: Path, images: Tensor) -> Callable[[Tensor], Tensor]:
    """Write weights by name, with everything that `load_checkpoint` needs and the layers of a sequential network.

    Returns:
        Function from normalized images to the logits of the written file.
    """
    from safetensors.torch import load_file, save

    net = model.inference.net
    state = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    record = {
        "config": model.config,
        "choices": dict(model.choices),
        "classes": model.classes,
        "best": dict(model.best),
    }
    if model.names != model.classes:
        record["config"] = {**model.config, "class_names": dict(zip(model.classes, model.names, strict=True))}
    layers = sequential_layers(net, images)
    header = {
        **{name: json.dumps(value) for name, value in metadata(model).items()},
        "tensors": json.dumps(list(state)),  # the file does not keep the order of the layers
        "layers": json.dumps(layers),
        CHECKPOINT_KEY: json.dumps(record),
    }
    extra = {}
    if has_mean_image(model.inference):
        extra[MEAN_IMAGE] = (model.inference.mean[0] / 255).contiguous()
        text = "values in [0, 1], minus the tensor mean_image, divided by std"
        header["input"] = header["input"].replace("values in [0, 1], minus mean, divided by std", text)
    write_atomic(path, save({**state, **extra}, header))
    if layers is None:
        from alexlab.inference.checkpoint import load_checkpoint

        reloaded = load_checkpoint(str(path), device="cpu").inference.net
    else:
        tensors = load_file(path)
        reloaded = build_sequential(layers, [tensors[name] for name in state])
    return _after_mean_image(model, reloaded)


def _after_mean_image(model: TrainedModel, net: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the function from normalized images to logits of a network whose file does not subtract the mean image."""
    return LogitNet(net, _normalized_mean_image(model.inference))


def _normalized_mean_image(inference: Inference) -> Tensor | None:
    return inference.mean / inference.std if has_mean_image(inference) else None


def _contiguous_net(model: TrainedModel) -> nn.Module:
    """Return the network on the CPU with contiguous weights: the exporters fail on channels-last weights."""
    net: nn.Module = LogitNet(model.inference.net, _normalized_mean_image(model.inference)).cpu().eval()
    return net.to(memory_format=torch.contiguous_format)


def write_onnx(model: TrainedModel, path: Path, images: Tensor) -> Callable[[Tensor], Tensor]:
    """Write an ONNX model with a dynamic batch size.

    Returns:
        Function from normalized images to logits, computed with onnxruntime.

    Raises:
        ConfigError: if a package is missing.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError as error:
        raise ConfigError("format=onnx needs onnx, onnxscript and onnxruntime: pip install 'alexlab[onnx]'") from error
    proto = _onnx_proto(_contiguous_net(model), images[:2].contiguous())
    for name, value in metadata(model).items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = name, json.dumps(value)
    onnx.checker.check_model(proto)
    write_atomic(path, proto.SerializeToString())
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run(None, {"images": np.ascontiguousarray(images.numpy())})
        return torch.from_numpy(logits)

    return run


def _onnx_proto(net: nn.Module, images: Tensor) -> Any:
    """Return the network as an ONNX ModelProto."""
    for name in ("onnxscript", "onnx_ir", "torch.onnx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        program = torch.onnx.export(
            net,
            (images,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"images": {0: torch.export.Dim("images", min=1)}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def write_torch_export(model: TrainedModel, path: Path, images: Tensor) -> Callable[[Tensor], Tensor]:
    """Write a torch.export program with a dynamic batch size; its extra file `about.json` has the metadata.

    Returns:
        Function from normalized images to the logits of the written file.
    """
    net = _contiguous_net(model)
    batch = torch.export.Dim("images", min=1)
    program = torch.export.export(net, (images[:2].contiguous(),), dynamic_shapes={"images": {0: batch}})
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={"about.json": json.dumps(metadata(model))})
    write_atomic(path, content.getbuffer())
    reloaded = torch.export.load(io.BytesIO(path.read_bytes())).module()
    return lambda images: reloaded(images)


def write_pth(model: TrainedModel, path: Path, images: Tensor) -> Callable[[Tensor], Tensor]:
    """Write the state dict alone, for `torch.load(weights_only=True)` and `load_state_dict`.

    The tensors have the names of torchvision's alexnet if that computes the same, and those of this package's net otherwise.

    Returns:
        Function from normalized images to the logits of the written file.
    """
    net = model.inference.net
    state = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    reloaded = _torchvision_equal(net, list(state.values()), images)
    if reloaded is None:
        reloaded = copy.deepcopy(net)
        log.info("the tensors are named as in %s of alexlab", type(net).__name__)
    else:
        state = dict(zip(reloaded.state_dict(), state.values(), strict=True))
        log.info(
            "the tensors are named as in torchvision.models.alexnet(num_classes=%d)", len(list(state.values())[-1])
        )
    content = io.BytesIO()
    torch.save(state, content)
    write_atomic(path, content.getbuffer())
    reloaded.load_state_dict(torch.load(path, weights_only=True))
    return _after_mean_image(model, reloaded)


@torch.inference_mode()
def _torchvision_equal(net: nn.Module, tensors: list[Tensor], images: Tensor) -> nn.Module | None:
    """Return torchvision's alexnet with the tensors of a net, or None if it does not compute the same."""
    with torch.device("meta"):
        same = alexnet(num_classes=len(tensors[-1]) if tensors and tensors[-1].ndim else 1)
    expected = same.state_dict()
    if [value.shape for value in expected.values()] != [value.shape for value in tensors]:
        return None
    same.load_state_dict(dict(zip(expected, tensors, strict=True)), assign=True)
    logits = same.eval()(images)
    return same if torch.allclose(logits, net(images), rtol=0, atol=TOLERANCE) else None


FORMATS: dict[str, tuple[str, Callable[[TrainedModel, Path, Tensor], Callable[[Tensor], Tensor]]]] = {
    "safetensors": (".safetensors", write_safetensors),
    "onnx": (".onnx", write_onnx),
    "torch_export": (".pt2", write_torch_export),
    "pth": (".pth", write_pth),
}


@torch.inference_mode()
def largest_difference(
    model: TrainedModel, exported: Callable[[Tensor], Tensor], images: Tensor, batch_size: int = 32
) -> float:
    """Return the largest absolute difference of a logit between the checkpoint and the exported network.

    Args:
        model: trained model, on the CPU.
        exported: function from normalized images to logits.
        images: uint8 (N, C, H, W).
        batch_size: images per forward pass; a batch of a single image is compared too.

    Raises:
        NumericError: if the difference is above 1e-4.
    """
    differences = []
    for part in [images[:1], *images.split(batch_size)]:
        expected = model.inference(part)
        logits = exported(normalize_for_file(model.inference, part).contiguous())
        differences.append((logits - expected).abs().max())
    largest = torch.stack(differences).max().item()  # NaN if any of them is
    if not largest <= TOLERANCE:
        raise NumericError(
            f"the exported logits must equal those of the checkpoint within {TOLERANCE:g}; they differ by {largest:.3g}"
        )
    return largest
