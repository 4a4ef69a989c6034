"""Weight files of other programs, and files that are not weight files."""

import argparse
import collections
import enum
import gzip
import io
import os
import pathlib
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn

from alexlab.errors import ConfigError
from alexlab.inference.checkpoint import load_checkpoint
from alexlab.models.alexnet import AlexNet
from alexlab.models.weights.files import read_weights
from alexlab.models.weights.pretrained import read_source

State = dict[str, torch.Tensor]


class Settings(dict):
    """A subclass of dict, as many programs have for their settings."""


class Kind(enum.Enum):
    FIRST = 1


class Harmful:
    """Object that calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def net() -> AlexNet:
    return AlexNet(2, widths=[2] * 5, fc_widths=[2])


STATE: State = net().state_dict()
OTHER: State = net().state_dict()


def prefixed(prefix: str) -> State:
    return {f"{prefix}{name}": value for name, value in STATE.items()}


READABLE: dict[str, Any] = {
    "a bare state dict": STATE,
    "model_state_dict": {"model_state_dict": STATE, "epoch": 3, "loss": torch.tensor(1.0)},
    "net": {"net": STATE, "acc": 93.1},
    "model": {"model": STATE, "optimizer": torch.optim.SGD(net().parameters(), 0.1).state_dict()},
    "state_dict": {"state_dict": STATE},
    "nested": {"checkpoint": {"model": {"state_dict": STATE}}},
    "an unknown name": {"my_alexnet": STATE, "epoch": 1},
    "a list": [STATE, {"epoch": 1}],
    "module.": prefixed("module."),
    "_orig_mod.": prefixed("_orig_mod."),
    "net.": prefixed("net."),
    "two wrappers": {"net": prefixed("_orig_mod.module.")},
    "a LightningModule": {"state_dict": prefixed("model.") | {"criterion.weight": torch.ones(2)}, "callbacks": {"a": OTHER}},
    "an averaged model": torch.optim.swa_utils.AveragedModel(net()).state_dict() | prefixed("module."),
    "ema": {"ema": {"module": STATE, "decay": 0.99}},
    "model_ema and model": {"model_ema": OTHER, "model": STATE},
    "argparse.Namespace": {"args": argparse.Namespace(lr=0.1), "model": STATE},
    "NumPy": {"best": np.float64(0.9), "history": np.ones((3, 3)), "rng": np.random.get_state(), "model": STATE},
    "OmegaConf": {"cfg": OmegaConf.create({"a": [1, {"b": 2}]}), "model": STATE},
    "a dict's subclass": {"cfg": Settings(lr=0.1), "log": collections.defaultdict(list, a=[1]), "model": STATE},
    "paths and enums": {"root": pathlib.Path("x"), "kind": Kind.FIRST, "model": STATE},
}  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", READABLE)
def test_weights_are_found_in_common_layouts(name: str, legacy: bool, tmp_path: Path) -> None:
    torch.save(READABLE[name], tmp_path / "theirs.pth", _use_new_zipfile_serialization=not legacy)
    state = read_source(str(tmp_path / "theirs.pth"), net()).state
    assert set(state) - {"criterion.weight"} == set(STATE)
    assert all(torch.equal(state[key], value) for key, value in STATE.items())


def test_a_pickled_module_is_read_without_its_class(tmp_path: Path) -> None:
    whole = nn.DataParallel(net())
    for content in (whole, {"model": whole, "epoch": 1}):
        torch.save(content, tmp_path / "whole.pth")
        found = read_weights(tmp_path / "whole.pth")
        assert list(found.state) == list(STATE)
        assert torch.equal(found.state["classifier.fc6.weight"], whole.module.classifier.fc6.weight)
        assert any("alexlab.models.alexnet.AlexNet" in note for note in found.notes)


def test_the_format_is_detected_from_the_content(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "net.pth")
    torch.save(STATE, tmp_path / "net.safetensors")
    for name in ("net.pth", "net.safetensors"):
        assert set(read_weights(tmp_path / name).state) == set(STATE)


def test_names_of_the_net_that_look_like_a_prefix_are_kept(tmp_path: Path) -> None:
    own = nn.ModuleDict({"model": nn.Linear(2, 2)})
    torch.save(own.state_dict(), tmp_path / "a.pth")
    assert set(read_source(str(tmp_path / "a.pth"), own).state) == {"model.weight", "model.bias"}


def zipped(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return content.getvalue()


def tarred(name: str) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return content.getvalue()


def saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


UNREADABLE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it is empty"),
    "zeros": (bytes(5000), "it begins with zeros only"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "a Git LFS pointer.*git lfs pull"),
    "HTML": (b"\n<!DOCTYPE HTML>\n<html><body>404</body></html>", "it is an HTML page"),
    "JSON": (b'{"weight_map": {"a": "b"}}', "it is a JSON text"),
    "gzip": (gzip.compress(saved(STATE)), "it is compressed with gzip: unpack it"),
    "a zip archive": (zipped("read.me", "net.pth"), r"a zip archive that was not written by torch.save \(read\.me, net\.pth\)"),
    "a NumPy archive": (zipped("a.npy"), r"that was not written by torch.save \(a\.npy\)"),
    "a tar archive": (tarred("net.pth"), "it is a tar archive: unpack it"),
    "a tar file of old": (tarred("pickle"), "format of PyTorch before 0.1.10.*weights_only=False"),
    "half a zip archive": (saved(STATE)[:-300], "its end is missing"),
    "TorchScript": (zipped("net/constants.pkl", "net/data.pkl", "net/code/__torch__.py"), r"TorchScript archive.*torch\.jit\.load"),
    "torch.export": (zipped("net/archive_format", "net/models/model.json"), r"torch\.export.*torch\.export\.load"),
    "another pickle": (pickle.dumps({"a": 1}), r"a pickle that was not written by torch.save.*pickle\.load"),
    "HDF5": (b"\x89HDF\r\n\x1a\n", "an HDF5 file, such as Keras writes"),
    "text": (b"no weights at all", "was not written by torch.save or safetensors|cannot read the weights"),
    "no tensors": (saved({"epoch": 3}), "it contains no tensors by name"),
    "NumPy weights": (saved({"model": {"w": np.ones((3, 3))}}), "no tensors by name; objects of numpy.*weights_only=False"),
    "two nets": (saved({"netG": STATE, "netD": OTHER}), r"it contains several: netG, netD; save one of them"),
    "system": (saved({"model": STATE, "x": Harmful(os.system, "touch called")}), r"objects of posix\.system are not loaded"),
    "sparse": (saved({"a.weight": torch.eye(3).to_sparse()}), "must be dense and real; a.weight is sparse_coo"),
    "complex": (saved({"a.weight": torch.eye(3, dtype=torch.complex64)}), "must be dense and real"),
    "no values": (saved({"a.weight": torch.empty(3, 3, device="meta")}), "on the meta device"),
    "expanded": (saved({"a.weight": torch.ones(1, 1).expand(2**20, 2**20)}), "not be larger than their data in the file"),
    "NaN": (saved({**STATE, "features.conv2.bias": torch.tensor([0.0, float("nan")])}), "finite; features.conv2.bias contains NaN"),
    "infinity": (saved({**STATE, "features.conv2.bias": torch.tensor([0.0, float("inf")])}), "weights must be finite"),
    "too many": (saved({f"layer{number}.weight": torch.ones(1, 1) for number in range(5001)}), "at most 5,000 tensors; it has 5,001"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_files_are_identified(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`model.weights=` and `ckpt=` report the same error."""
    monkeypatch.chdir(tmp_path)
    content, message = UNREADABLE[name]
    path = tmp_path / "theirs.pth"
    path.write_bytes(content)
    for read in (lambda: read_source(str(path), net()), lambda: load_checkpoint(str(path))):
        with pytest.raises(ConfigError, match=message) as caught:
            read()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "called").exists()


def test_classes_in_a_file_are_not_imported_or_called(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": STATE, "extra": Harmful(print, "called")}, tmp_path / "theirs.pth")
    found = read_weights(tmp_path / "theirs.pth")
    assert set(found.state) == set(STATE)
    assert found.notes == [
        "read from its entry model",
        "ignored objects of builtins.print",
    ]
    assert "called" not in capsys.readouterr().out
    (tmp_path / "theirs.pth").write_bytes(
        saved({"model": STATE}).replace(b"collections\nOrderedDict\n", b"antigravity\nOrderedDict\n")
    )
    with pytest.raises(ConfigError):
        read_weights(tmp_path / "theirs.pth")


def test_half_precision_weights_are_converted(tmp_path: Path) -> None:
    """A half-precision net would reject float32 images."""
    torch.save(AlexNet(1000).half().state_dict(), tmp_path / "half.pth")
    inference = load_checkpoint(str(tmp_path / "half.pth"), device="cpu").inference
    with torch.inference_mode():
        assert inference(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).dtype == torch.float32


def test_the_error_for_a_folder_names_its_weight_files(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    for read in (lambda: read_source(str(tmp_path), net()), lambda: load_checkpoint(str(tmp_path))):
        with pytest.raises(ConfigError, match=r"use a file in it, such as .*model\.safetensors"):
            read()
