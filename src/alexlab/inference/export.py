"""A trained net as a file that needs nothing of this package: safetensors, ONNX or a program of torch.export."""

import inspect
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

from alexlab.errors import ConfigError, NumericError
from alexlab.inference.checkpoint import TrainedModel
from alexlab.inference.explain.activations import watched
from alexlab.runs.atomic import write_atomic
from alexlab.runs.layout import CHECKPOINT_KEY
from alexlab.training.preprocessing import expand_binary_logits

TOLERANCE = 1e-4  # largest difference of a logit
OPSET = 20


class Exported(nn.Module):
    """Normalised images (N, C, H, W) to logits (N, K)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return expand_binary_logits(self.net(images))


def about(trained: TrainedModel) -> dict[str, Any]:
    """What a program must know beside the numbers, plain data: classes, and how an image is made ready."""
    data, views = trained.config["data"], trained.config["augmentation"]["eval"]
    inference = trained.inference
    return {
        "classes": trained.names,
        "folders": trained.classes,
        "image_size": data["image_size"],
        "channels": data["channels"],
        "resize": _resize(views, data["image_size"]),
        "mean": (inference.mean.flatten() / 255).tolist(),
        "std": (inference.std.flatten() / 255).tolist(),
        "input": "float32 (N, channels, image_size, image_size): values in [0, 1], minus mean, divided by std",
        "output": "logits (N, classes)",
    }


def _resize(views: dict[str, Any], size: int) -> dict[str, Any]:
    """The shorter side that an image is resized to before its centre is cut; None where it is squashed to the square."""
    for node in views.values():
        if node is not None and node["_target_"].endswith(".CenterView"):
            return {"shorter_side": round(size / node["ratio"]), "crop": "center"}
    return {"shorter_side": None, "crop": None}


def layers(trained: TrainedModel, images: Tensor) -> list[list[Any]] | None:
    """The net as a list of layers of torch.nn with their arguments, where it is one layer after the other; else None.

    Args:
        trained: the net.
        images: normalised (N, C, H, W), with which the list is compared with the net.
    """
    found: list[list[Any]] = []
    shapes: list[int] = []  # dimensions of the outputs

    def see(name: str, entering: Tensor, output: Tensor) -> None:
        layer = trained.inference.net.get_submodule(name)
        if shapes and shapes[-1] == 4 and entering.ndim == 2:
            found.append(["Flatten", {}])
        shapes.append(output.ndim)
        found.append([type(layer).__name__, _arguments(layer)])

    with torch.inference_mode():
        with watched(trained.inference.net, see):
            expected = trained.inference.net(images)
        if shapes and shapes[-1] == 4:
            found.append(["Flatten", {}])
        try:
            net = nn.Sequential(*(getattr(nn, kind)(**arguments) for kind, arguments in found)).eval()
            state = trained.inference.net.state_dict()
            net.load_state_dict(dict(zip(net.state_dict(), state.values(), strict=True)))
            same = torch.equal(net.to(images.device)(images), expected)
        except (AttributeError, RuntimeError, TypeError, ValueError):  # a net of another shape
            return None
    return found if same else None


def _arguments(layer: nn.Module) -> dict[str, Any]:
    """The arguments that make a layer of torch.nn again, but for those that have their default."""
    found = {}
    for name, parameter in inspect.signature(type(layer)).parameters.items():
        if name in ("device", "dtype") or not hasattr(layer, name):
            continue
        value = getattr(layer, name)
        if name == "bias":
            value = value is not None
        elif isinstance(value, tuple):
            value = value[0] if len(set(value)) == 1 else list(value)
        if value != parameter.default:
            found[name] = value
    return found


def write_safetensors(trained: TrainedModel, path: Path, images: Tensor) -> Callable[[Tensor], Tensor]:
    """Weights by name; `alexlab.load_checkpoint` reads the file, and a net of one layer after the other can be made without it.

    Returns:
        Normalised images to the logits of what was written.
    """
    from safetensors.torch import load_file, save

    net = trained.inference.net
    state = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    record = {
        "config": trained.config,
        "choices": dict(trained.choices),
        "classes": trained.classes,
        "best": dict(trained.best),
    }
    if trained.names != trained.classes:
        record["config"] = {**trained.config, "class_names": dict(zip(trained.classes, trained.names, strict=True))}
    sequence = layers(trained, images)
    metadata = {
        **{name: json.dumps(value) for name, value in about(trained).items()},
        "tensors": json.dumps(list(state)),  # in the order of the layers, which the file does not keep
        "layers": json.dumps(sequence),
        CHECKPOINT_KEY: json.dumps(record),
    }
    write_atomic(path, save(state, metadata))
    found = load_file(path)
    if sequence is None:
        from alexlab.inference.checkpoint import load_checkpoint

        again = load_checkpoint(str(path), device="cpu").inference.net
    else:
        again = nn.Sequential(*(getattr(nn, kind)(**arguments) for kind, arguments in sequence)).eval()
        again.load_state_dict(dict(zip(again.state_dict(), [found[name] for name in state], strict=True)))
    return lambda normalised: expand_binary_logits(again(normalised))


def _exported(trained: TrainedModel) -> nn.Module:
    """The net as the exporters take it: they lose their way in weights that lie channels last."""
    net: nn.Module = Exported(trained.inference.net).cpu().eval()
    return net.to(memory_format=torch.contiguous_format)


def write_onnx(trained: TrainedModel, path: Path, images: Tensor) -> Callable[[Tensor], Tensor]:
    """An ONNX model with any number of images; checked with onnxruntime.

    Raises:
        ConfigError: when the packages are missing.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError as error:
        raise ConfigError("format=onnx needs onnx, onnxscript and onnxruntime: pip install -e '.[onnx]'") from error
    net = _exported(trained)
    batch = torch.export.Dim("images", min=1)
    for name in ("onnxscript", "onnx_ir", "torch.onnx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about its own future
        program = torch.onnx.export(
            net,
            (images[:2].contiguous(),),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"images": {0: batch}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for name, value in about(trained).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = name, json.dumps(value)
    onnx.checker.check_model(model)
    write_atomic(path, model.SerializeToString())
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(normalised: Tensor) -> Tensor:
        (logits,) = session.run(None, {"images": np.ascontiguousarray(normalised.numpy())})
        return torch.from_numpy(logits)

    return run


def write_torch_export(trained: TrainedModel, path: Path, images: Tensor) -> Callable[[Tensor], Tensor]:
    """A program of torch.export with any number of images, and what is known of it in the extra file `about.json`."""
    net = _exported(trained)
    batch = torch.export.Dim("images", min=1)
    program = torch.export.export(net, (images[:2].contiguous(),), dynamic_shapes={"images": {0: batch}})
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={"about.json": json.dumps(about(trained))})
    write_atomic(path, content.getbuffer())
    again = torch.export.load(io.BytesIO(path.read_bytes())).module()
    return lambda normalised: again(normalised)


FORMATS: dict[str, tuple[str, Callable[[TrainedModel, Path, Tensor], Callable[[Tensor], Tensor]]]] = {
    "safetensors": (".safetensors", write_safetensors),
    "onnx": (".onnx", write_onnx),
    "torch_export": (".pt2", write_torch_export),
}


@torch.inference_mode()
def largest_difference(
    trained: TrainedModel, exported: Callable[[Tensor], Tensor], images: Tensor, batch_size: int = 32
) -> float:
    """The largest difference of a logit between the checkpoint and what was exported.

    Args:
        trained: the checkpoint, on the CPU.
        exported: normalised images to logits.
        images: uint8 (N, C, H, W).
        batch_size: the last batch is smaller, and there is one of a single image.

    Raises:
        NumericError: when it is above 1e-4.
    """
    differences = []
    for part in [images[:1], *images.split(batch_size)]:
        expected = trained.inference(part)
        found = exported(trained.inference.normalize(part).contiguous())
        differences.append((found - expected).abs().max())
    largest = torch.stack(differences).max().item()  # not a number, if one of them is none
    if not largest <= TOLERANCE:
        raise NumericError(
            f"the exported net must give the logits of the checkpoint within {TOLERANCE:g}; they differ by {largest:.3g}"
        )
    return largest
