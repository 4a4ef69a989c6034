"""Sources of pretrained weights, and runs that start from them."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from alexlab.errors import ConfigError
from alexlab.models.alexnet import AlexNet
from alexlab.models.nin import NiN
from alexlab.models.weights.pretrained import read_source
from support.runs import names


def small(**options: Any) -> AlexNet:
    return AlexNet(5, **{"widths": [8, 16, 24, 16, 16], "fc_widths": [32, 32], **options})


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_common_state_dict_layouts_are_read(wrap: Any, suffix: str, tmp_path: Path) -> None:
    net = small()
    path = tmp_path / f"net{suffix}"
    torch.save(wrap(net.state_dict()), path)
    for name in (str(path), path.as_uri()):
        assert set(read_source(name, net).state) == set(net.state_dict())


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(small().state_dict(), tmp_path / "net.safetensors")
    assert len(read_source(str(tmp_path / "net.safetensors"), small()).state) == 16


class Harmful:
    def __reduce__(self) -> Any:
        return print, ("called",)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.pth", {"weights": Harmful()}, "it contains no tensors by name; objects of builtins.print are not loaded"),
        ("a.pth", b"no pickle", "cannot read the weights in "),
        ("a.pth", b"", "cannot read the weights in "),
        ("a.safetensors", b"no tensors", "cannot read the weights in "),
        ("a.pth", {"epoch": 3}, "must contain a state dict: it contains no tensors by name"),
        ("a.pth", [1, 2], "must contain a state dict"),
    ],
)  # fmt: skip
def test_files_without_weights_are_rejected(
    name: str, content: Any, expected: str, tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ConfigError, match=expected):
        read_source(str(path), small())
    assert "called" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "net", "expected"),
    [
        ("missing.pth", "alexnet", "missing.pth does not exist"),
        ("IMAGENET", "alexnet", "torchvision weights for alexnet: IMAGENET1K_V1, DEFAULT; got 'IMAGENET'"),
        ("IMAGENET1K_V1", "nin", "torchvision has no weights for NiN"),
    ],
)  # fmt: skip
def test_unknown_names_are_rejected(name: str, net: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        read_source(name, small() if net == "alexnet" else NiN(5, width=0.1))


def test_a_folder_without_a_checkpoint_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is a folder without checkpoints/best.ckpt"):
        read_source(str(tmp_path), small())


def test_a_run_starts_from_the_weights_of_another(
    train: Callable[..., float | None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(run_dir=tmp_path / "first")
    best = torch.load(tmp_path / "first/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    caplog.set_level(logging.INFO)
    for number, name in enumerate(("first", "first/checkpoints/best.ckpt")):
        train(f"model.weights={tmp_path / name}", "optimizer.lr=0.0", run_dir=tmp_path / str(number))
        state = torch.load(tmp_path / f"{number}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        assert all(torch.equal(state[key], value) for key, value in best.items() if key.startswith("net."))
    assert f"weights: 14 tensors from {tmp_path / 'first'}" in caplog.text


def test_missing_weights_are_reported_before_any_work(train: Callable[..., float | None], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing/best.ckpt does not exist"):
        train("model.weights=missing/best.ckpt")
    assert not names(tmp_path / "run")


def test_the_head_has_its_own_learning_rate(
    train: Callable[..., float | None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    train("param_groups.head_lr=0.05", "optimizer.lr=0.0", "optimizer.weight_decay=0.0", "trainer.log_every_n_steps=1")
    state = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]
    assert [group["lr"] for group in state["param_groups"]] == [0.0, 0.05]
    assert [len(group["params"]) for group in state["param_groups"]] == [12, 2]
    assert "optimizer: head: 51 parameters, lr 0.05, weight decay 0" in caplog.text
