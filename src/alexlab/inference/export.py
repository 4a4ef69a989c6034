"""Export of a trained network to a file that does not need this package: safetensors, ONNX, torch.export or a state dict."""

import copy
import io
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import alexnet

from alexlab.errors import ConfigError, NumericError, install_hint
from alexlab.inference.checkpoint import TrainedModel, load_checkpoint
from alexlab.inference.ensemble import EnsembleInference
from alexlab.inference.file_content import (
    LogitNet,
    batches,
    file_input,
    file_net,
    has_mean_image,
    metadata,
    normalized_mean_image,
    output_text,
)
from alexlab.inference.sequential import build_sequential, sequential_layers
from alexlab.models.weights.files import MEMBERS
from alexlab.records.atomic import write_atomic
from alexlab.records.layout import CHECKPOINT_KEY, MEAN_IMAGE

log = logging.getLogger(__name__)

TOLERANCE = 1e-4  # maximum absolute difference of a logit
OPSET = 20
BATCH_SIZE = 32  # images per forward pass of the comparison

Exported: TypeAlias = Callable[[Any], Tensor]  # from inputs of `TrainedModel.inference` to logits


def write_safetensors(model: TrainedModel, path: Path, images: Any) -> Exported:
    """Write weights by name, with everything that `load_checkpoint` needs and the layers of a sequential network.

    Of an ensemble, the tensors and the metadata of each network are those of its own file, below `members`.
    """
    from safetensors.torch import load_file, save

    if model.members:
        tensors, header = _ensemble_content(model, images)
        write_atomic(path, save(tensors, header))
        return load_checkpoint(str(path), device="cpu").inference
    tensors, about, record = _content(model, images)
    header = {name: json.dumps(value) for name, value in {**about, CHECKPOINT_KEY: record}.items()}
    write_atomic(path, save(tensors, header))
    if about["layers"] is None:
        log.info(
            "the file has no list of layers, since %s is not a sequence of torch.nn layers: programs without alexlab need "
            "format=onnx or torch_export",
            type(model.single.net).__name__,
        )
        return load_checkpoint(str(path), device="cpu").inference
    loaded = load_file(path)
    return _from_uint8(
        model, _after_mean_image(model, build_sequential(about["layers"], [loaded[name] for name in about["tensors"]]))
    )


def _ensemble_content(model: TrainedModel, images: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the header of the file of an ensemble."""
    assert isinstance(model.inference, EnsembleInference)
    tensors: dict[str, Tensor] = {}
    abouts, records = [], []
    for number, (member, view) in enumerate(zip(model.members, model.inference.views, strict=True)):
        own, about, record = _content(member, images[view])
        prefix = f"{MEMBERS}.{number}."
        tensors |= {prefix + name: value for name, value in own.items()}
        abouts.append({**about, "tensors": [prefix + name for name in about["tensors"]], "weight": member.weight})
        records.append(record)
    header = {
        "classes": model.names,
        "folders": model.classes,
        "output": output_text(model),
        MEMBERS: abouts,
        CHECKPOINT_KEY: {MEMBERS: records, "weights": [member.weight for member in model.members]},
    }
    return tensors, {name: json.dumps(value) for name, value in header.items()}


def _content(model: TrainedModel, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Return the tensors of a single network, its metadata, and its record for `load_checkpoint`."""
    inference = model.single
    tensors = {name: value.detach().cpu().contiguous() for name, value in inference.net.state_dict().items()}
    record = {
        **{name: value for name, value in (model.recorded or {}).items() if name in ("versions", "code", "data")},
        "config": model.config,
        "choices": dict(model.choices),
        "classes": model.classes,
        "best": dict(model.best),
    }
    if model.names != model.classes:
        record["config"] = {**model.config, "class_names": dict(zip(model.classes, model.names, strict=True))}
    about = {
        **metadata(model),
        "tensors": list(tensors),  # the file does not keep the order of the layers
        "layers": sequential_layers(inference.net, inference.normalize(images[:2])),
    }
    if has_mean_image(inference):
        tensors[MEAN_IMAGE] = (inference.mean[0] / 255).contiguous()
        text = "values in [0, 1], minus the tensor mean_image, divided by std"
        about["input"] = about["input"].replace("values in [0, 1], minus mean, divided by std", text)
    return tensors, about, record


def _after_mean_image(model: TrainedModel, net: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the function from normalized images to logits of a network whose file does not subtract the mean image."""
    return LogitNet(net, normalized_mean_image(model.single))


def _from_uint8(model: TrainedModel, function: Callable[[Tensor], Tensor]) -> Exported:
    """Return a function that takes inputs of `model.inference` and calls one that takes inputs of a file."""
    return lambda images: function(file_input(model.inference, images))


def write_onnx(model: TrainedModel, path: Path, images: Any) -> Exported:
    """Write an ONNX model with a dynamic batch size, and compute with onnxruntime.

    Raises:
        ConfigError: if a package is missing.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError as error:
        raise ConfigError(f"format=onnx needs onnx, onnxscript and onnxruntime: {install_hint('onnx')}") from error
    proto = _onnx_proto(file_net(model), file_input(model.inference, batches(images, 2)[0]))
    for name, value in metadata(model).items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = name, json.dumps(value)
    onnx.checker.check_model(proto)
    write_atomic(path, proto.SerializeToString())
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run(None, {"images": np.ascontiguousarray(images.numpy())})
        return torch.from_numpy(logits)

    return _from_uint8(model, run)


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


def write_torch_export(model: TrainedModel, path: Path, images: Any) -> Exported:
    """Write a torch.export program with a dynamic batch size; its extra file `about.json` has the metadata."""
    sample = file_input(model.inference, batches(images, 2)[0])
    batch = torch.export.Dim("images", min=1)
    program = torch.export.export(file_net(model), (sample,), dynamic_shapes={"images": {0: batch}})
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={"about.json": json.dumps(metadata(model))})
    write_atomic(path, content.getbuffer())
    reloaded = torch.export.load(io.BytesIO(path.read_bytes())).module()
    return _from_uint8(model, lambda images: reloaded(images))


def write_pth(model: TrainedModel, path: Path, images: Any) -> Exported:
    """Write the state dict alone, for `torch.load(weights_only=True)` and `load_state_dict`.

    The tensors have the names of torchvision's alexnet if that computes the same, and those of this package's net otherwise.

    Raises:
        ConfigError: for an ensemble.
    """
    if model.members:
        raise ConfigError("format=pth has the weights of one network; use format=safetensors for an ensemble")
    net = model.single.net
    state = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    reloaded = _torchvision_equal(net, list(state.values()), model.single.normalize(images[:2]))
    if reloaded is None:
        reloaded = copy.deepcopy(net)
        log.info("the tensors are named as in %s of alexlab", type(net).__name__)
    else:
        state = dict(zip(reloaded.state_dict(), state.values(), strict=True))
        log.info(
            "the tensors are named as in torchvision.models.alexnet(num_classes=%d)", len(list(state.values())[-1])
        )
    if model.single.net(model.single.normalize(images[:1])).shape[1] == 1:
        log.info("the net has one logit, of class %s: its sigmoid is the probability of that class", model.names[1])
    content = io.BytesIO()
    torch.save(state, content)
    write_atomic(path, content.getbuffer())
    reloaded.load_state_dict(torch.load(path, weights_only=True))
    return _from_uint8(model, _after_mean_image(model, reloaded))


@torch.inference_mode()
def _torchvision_equal(net: nn.Module, tensors: list[Tensor], images: Tensor) -> nn.Module | None:
    """Return torchvision's alexnet with the tensors of a net, or None if it does not compute the same."""
    with torch.device("meta"):
        same = alexnet(num_classes=len(tensors[-1]) if tensors and tensors[-1].ndim else 1)
    expected = same.state_dict()
    if [value.shape for value in expected.values()] != [value.shape for value in tensors]:
        return None
    same.load_state_dict(dict(zip(expected, tensors, strict=True)), assign=True)
    try:
        logits = same.eval()(images)
    except RuntimeError:  # its strides and pooling layers leave nothing of images this small
        return None
    return same if torch.allclose(logits, net(images), rtol=0, atol=TOLERANCE) else None


# Suffix and writer of each format. A writer gets images, as inputs of `model.inference`, and returns a function that computes
# the logits of such images with the written file.
FORMATS: dict[str, tuple[str, Callable[[TrainedModel, Path, Any], Exported]]] = {
    "safetensors": (".safetensors", write_safetensors),
    "onnx": (".onnx", write_onnx),
    "torch_export": (".pt2", write_torch_export),
    "pth": (".pth", write_pth),
}


@torch.inference_mode()
def largest_difference(model: TrainedModel, exported: Exported, images: Any) -> float:
    """Return the largest absolute difference of a logit between the checkpoint and the exported network.

    Args:
        model: trained model, on the CPU.
        exported: function from inputs of `model.inference` to logits.
        images: these inputs: uint8 (N, C, H, W), for an ensemble a list of views. A batch of a single
            image is compared too.

    Raises:
        NumericError: if the difference is above 1e-4.
    """
    differences = []
    for part in [batches(images, 1)[0], *batches(images, BATCH_SIZE)]:
        differences.append((exported(part) - model.inference(part)).abs().max())
    largest = torch.stack(differences).max().item()  # NaN if any of them is
    if not largest <= TOLERANCE:
        raise NumericError(
            f"the exported logits must equal those of the checkpoint within {TOLERANCE:g}; they differ by {largest:.3g}"
        )
    return largest
