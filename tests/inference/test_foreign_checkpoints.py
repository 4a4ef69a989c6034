"""Untrusted checkpoints with an invalid record, or one that asks for huge networks: each is rejected in one sentence."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from alexlab.errors import ConfigError
from alexlab.inference.checkpoint import load_checkpoint

pytestmark = [pytest.mark.scenario(name="foreign_checkpoints"), pytest.mark.slow]

Content = dict[str, Any]


def put(content: Content, where: str, value: Any) -> None:
    """Set the entry at a path such as `alexlab/config/data`."""
    *parents, last = where.split("/")
    for name in parents:
        content = content[name]
    content[last] = value


# Path in the checkpoint, value set there, part of the error message.
INVALID_RECORDS: list[tuple[str, Any, str]] = [
    ("alexlab", None, "its record of the run must be a dict; got NoneType"),
    ("alexlab", [1], "its record of the run must be a dict; got list"),
    ("alexlab/config", None, "must have config, a dict; got NoneType"),
    ("alexlab/config", "model: alexnet", "must have config, a dict; got str"),
    ("alexlab/choices", ["alexnet"], "must have choices, a dict; got list"),
    ("alexlab/choices", {"model": "../../elsewhere"}, "the name of the model in its record must be letters"),
    ("alexlab/choices", {"model": 3}, "the name of the model in its record must be letters"),
    ("alexlab/classes", None, "must have classes, a list; got NoneType"),
    ("alexlab/classes", "ant", "must have classes, a list; got str"),
    ("alexlab/classes", {"ant": 0}, "must have classes, a list; got dict"),
    ("alexlab/classes", [], "it must have class names; its list is empty"),
    ("alexlab/classes", ["ant", "bee", "bee"], "class names must be unique; 'bee' occurs 2 times"),
    ("alexlab/classes", ["ant", "bee", 3], "a string of 1 to 255 characters; got int"),
    ("alexlab/classes", ["ant", "bee", ["cat"]], "a string of 1 to 255 characters; got list"),
    ("alexlab/classes", ["ant", "bee", ""], "1 to 255 characters; got 0 characters"),
    ("alexlab/classes", ["ant", "bee", "x" * 1_000_000], "got 1000000 characters"),
    ("alexlab/classes", ["ant", "bee"], "it names 2 classes, but its last layer has 3 outputs"),
    ("alexlab/classes", ["a", "b", "c", "d"], "it names 4 classes, but its last layer has 3 outputs"),
    ("alexlab/best", [0.5], "the best scores in its record must be numbers by name"),
    ("alexlab/best", {"top1": "high"}, "the best scores in its record must be numbers by name"),
    ("alexlab/config/class_names", ["A"], "class_names in its config must map names to names"),
    ("alexlab/config/class_names", {"ant": 1}, "class_names in its config must map names to names"),
    ("alexlab/config/model", None, "the config in .* must describe a net"),
    ("alexlab/config/model", "alexnet", "the config in .* must describe a net|do not fit"),
    ("alexlab/config/model/num_classes", 7, "model.num_classes must be null or the 3 classes"),
    ("alexlab/config/model/widths", 7, "the config in .* must describe a net"),
    ("alexlab/config/model/widths", [4, 8], "must have one entry per convolution; got 2, 5, "),
    ("alexlab/config/model/widths", [4, 8, 8, 8, "8"], "the config in .* must describe a net|do not fit"),
    ("alexlab/config/model/widths", [10**9] * 5, "the config in .* must describe a net|do not fit"),
    ("alexlab/config/model/widths", [4, 8, 8, 8, 16], "the weights of .* do not fit the net of its config"),
    ("alexlab/config/model/width", float("nan"), "model"),
    ("alexlab/config/model/width", 1e300, "the config in .* must describe a net"),
    ("alexlab/config/model/width", None, "model"),
    ("alexlab/config/model/fc_widths", [1] * 5000, "the net must not have more parameters than the file has tensors"),
    ("alexlab/config/model/grid", 10**9, "the config in .* must describe a net|do not fit"),
    ("alexlab/config/model/pool_strides", [0, 2, 2], "model.pool_strides must be at least 1; got 0"),
    ("alexlab/config/model/pool_strides", 2, "the config in .* must describe a net"),
    ("alexlab/config/model/surprise", 1, "model.surprise is not an argument of"),
    ("alexlab/config/data", None, "the config in .* must describe a net"),
    ("alexlab/config/data", [], "the config in .* must describe a net"),
    ("alexlab/config/data/image_size", 10**6, "images must be at most 4096 pixels wide; got 1000000"),
    ("alexlab/config/data/image_size", 5, "the config in .* must describe a net"),
    ("alexlab/config/data/image_size", "64", "the config in .* must describe a net"),
    ("alexlab/config/data/channels", 2, r"model.in_channels must be 1 \(grey\) or 3 \(colour\)"),
    ("alexlab/config/data/channels", 1, "the config in .* must describe a net"),
    ("alexlab/config/data/mean", "grey", "the config in .* must describe a net|do not fit"),
    ("alexlab/config/data/mean", [float("nan")] * 3, "data.mean must be one or three numbers"),
    ("alexlab/config/data/std", [0.0, 1.0, 1.0], "data.std must be one or three numbers above 0 and at most 1"),
    ("alexlab/config/data/batch_size", "many", "the config in .* must describe a net"),
    ("alexlab/config/data/val_fraction", "some", "data.val_fraction must be a float; got str"),
    ("alexlab/config/data/root", 5, r"data.root must be a str \| None; got int"),
    ("alexlab/config/data/stream", "fast", "data.stream must be a Mapping; got str"),
    ("alexlab/config/data/surprise", 1, "data.surprise is not an argument of"),
    ("alexlab/config/loss", None, "loss must have a _target_"),
    ("alexlab/config/augmentation", None, "the config in .* must describe a net"),
    ("alexlab/config/augmentation/eval", [1], "the config in .* must describe a net"),
    ("alexlab/config/augmentation/eval/center/size", 10**8, "images must be at most 4096 pixels wide"),
    ("alexlab/config/augmentation/eval/center/size", None, "the config in .* must describe a net|do not fit"),
    ("state_dict", None, "it has no state_dict"),
    ("state_dict", [torch.ones(3)], "it has no state_dict"),
    ("state_dict", {}, "it contains no tensors by name"),
    ("state_dict", {7: torch.ones(3)}, "it contains no tensors by name"),
    ("state_dict/net.features.conv1.weight", "text", "must contain tensors by name; 'features.conv1.weight' is a str"),
    ("state_dict/net.features.conv1.weight", torch.ones(4, 3, 7, 7), "do not fit the net of its config: .*size mismatch"),
    ("state_dict/net.features.conv1.bias", torch.tensor([1.0, 2.0, float("nan"), 3.0]), "finite; features.conv1.bias contains NaN"),
    ("state_dict/net.classifier.fc6.bias", torch.full((16,), float("-inf")), "finite; classifier.fc6.bias contains NaN or inf"),
    ("state_dict/net.surprise", torch.ones(3), "do not fit the net of its config: .*[Uu]nexpected key"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("where", "value", "message"),
    INVALID_RECORDS,
    ids=[f"{where}-{number}" for number, (where, *_) in enumerate(INVALID_RECORDS)],
)
def test_invalid_records_are_rejected(where: str, value: Any, message: str, trained_run: Path, tmp_path: Path) -> None:
    content = torch.load(trained_run / "checkpoints/best.ckpt", weights_only=True)
    put(content, where, value)
    torch.save(content, tmp_path / "theirs.ckpt")
    with pytest.raises(ConfigError, match=message) as caught:
        load_checkpoint(str(tmp_path / "theirs.ckpt"), device="cpu")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def nested(depth: int) -> Any:
    node: Any = 1
    for _ in range(depth):
        node = [node]
    return node


@pytest.mark.parametrize(
    "change",
    [
        lambda content: put(content, "alexlab/config/model/fc_widths", [1] * 5000),
        lambda content: put(content, "alexlab/config/model", vgg([10**9] * 5)),
        lambda content: put(content, "alexlab/config/model", vgg([2000, 1, 1, 1, 1])),
        lambda content: put(content, "alexlab/config/model/fc_widths", nested(3000)),
        lambda content: put(content, "alexlab/config/model/fc_widths", list(range(1, 100_000))),
        lambda content: content["state_dict"].update({f"net.fc{number}.weight": torch.ones(1) for number in range(10_000)}),
        lambda content: put(content, "alexlab/classes", [str(number) for number in range(200_000)]),
    ],
)  # fmt: skip
def test_huge_networks_are_rejected_quickly(
    change: Callable[[Content], None], trained_run: Path, tmp_path: Path
) -> None:
    content = torch.load(trained_run / "checkpoints/best.ckpt", weights_only=True)
    change(content)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(50_000)
    torch.save(content, tmp_path / "theirs.ckpt")
    sys.setrecursionlimit(limit)
    start_s = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        load_checkpoint(str(tmp_path / "theirs.ckpt"), device="cpu")
    assert time.monotonic() - start_s < 10
    assert "\n" not in str(caught.value)


def vgg(depths: list[int]) -> dict[str, Any]:
    return {"_target_": "alexlab.models.vgg.VGG", "depths": depths, "widths": [1] * 5, "fc_widths": [1]}


def test_the_record_of_an_exported_file_is_checked_too(trained_run: Path, tmp_path: Path) -> None:
    from alexlab.inference.export import write_safetensors

    model = load_checkpoint(str(trained_run), device="cpu")
    path = tmp_path / "net.safetensors"
    write_safetensors(model, path, model.inference.normalize(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)))
    assert load_checkpoint(str(path), device="cpu").classes == model.classes
    state = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    for text, message in (
        ("{", "must contain a state dict"),
        ("[]", "its record of the run must be a dict"),
        (metadata["alexlab"].replace('"bee"', '"ant"'), "class names must be unique; 'ant' occurs 2 times"),
    ):
        save_file(state, path, metadata | {"alexlab": text})
        with pytest.raises(ConfigError, match=message):
            load_checkpoint(str(path), device="cpu")
