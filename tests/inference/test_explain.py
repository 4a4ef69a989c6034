"""What explain.py shows, against what it must be by its definition."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexlab.config import build
from alexlab.data.config import DataConfig
from alexlab.errors import ConfigError
from alexlab.inference.checkpoint import load_checkpoint
from alexlab.inference.explain import neighbours
from alexlab.inference.explain.activations import head_layer, last_feature_layer
from alexlab.inference.explain.gradcam import grad_cam, overlaid
from alexlab.inference.explain.neighbours import feature_matrix, features, matrix_path, nearest
from alexlab.inference.explain.plots import feature_maps_plot, filters_plot, first_filters
from alexlab.inference.predictions import select_split, split_loader
from alexlab.models.alexnet import AlexNet
from alexlab.models.googlenet import GoogLeNet
from alexlab.models.nin import NiN
from alexlab.tasks.explain import run
from alexlab.training.preprocessing import Inference
from support.images import replace_unseen
from support.runs import names, plain


class Pooled(nn.Module):
    """A convolution, ReLU in place, the mean of each map, a linear layer: here Grad-CAM is the class activation map."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True))
        self.head = nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.head(self.body(images).mean((2, 3)))
        return found


def inference_of(net: nn.Module) -> Inference:
    return Inference(net, mean=[0.5] * 3, std=[0.25] * 3).eval()


def test_grad_cam_is_the_class_activation_map() -> None:
    """Selvaraju et al., section 3.1: for a net that ends with global average pooling they are the same, up to a factor."""
    torch.manual_seed(1)
    net = Pooled()
    inference = inference_of(net)
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    classes = torch.tensor([0, 1, 2, 3])
    found = grad_cam(inference, images, classes)
    with torch.no_grad():
        maps = net.body(inference.normalize(images))
        expected = F.relu(torch.einsum("nkhw,nk->nhw", maps, net.head.weight[classes]))
    expected = expected / expected.amax((1, 2), keepdim=True).clamp(min=1e-30)
    assert found.shape == (4, 8, 8)
    assert torch.allclose(found, expected, atol=1e-5)
    assert found.max() == 1 and found.min() == 0
    assert net.body[0].weight.grad is None, "no gradients are left in the net"


def test_grad_cam_of_maps_that_are_the_logits() -> None:
    """NiN's last maps are its classes: what speaks for a class is its own map."""
    torch.manual_seed(1)
    net = NiN(5, width=0.1)
    inference = inference_of(net)
    images = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    found = grad_cam(inference, images, torch.tensor([3, 4]))
    with torch.no_grad():
        maps = net.features(inference.normalize(images))[[0, 1], [3, 4]]
    assert maps.amax() > 0
    small = maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-30)
    expected = F.interpolate(small[:, None], (96, 96), mode="bilinear", align_corners=False)[:, 0]
    assert torch.allclose(found, expected, atol=1e-4)


def test_the_layers_that_are_looked_at() -> None:
    images = torch.zeros(1, 3, 96, 96)
    assert last_feature_layer(AlexNet(5, width=0.05).eval(), images) == "features.act5"
    assert head_layer(AlexNet(5, width=0.05).eval(), images) == "classifier.fc8"
    assert head_layer(NiN(5, width=0.1).eval(), images) == "features.conv4_3"
    googlenet = GoogLeNet(5).eval()
    assert isinstance(googlenet.get_submodule(head_layer(googlenet, images)), nn.Linear)
    with pytest.raises(ValueError, match="the network has no convolution"):
        last_feature_layer(nn.Linear(3, 2), torch.zeros(1, 3))


def test_an_image_is_coloured() -> None:
    image = torch.full((1, 6, 6), 100, dtype=torch.uint8)
    cam = torch.zeros(6, 6)
    cam[:, 3:] = 1
    colors = overlaid(image, cam)
    assert colors.shape == (6, 6, 3) and colors.dtype == torch.uint8
    assert colors[0, 0, 2] > colors[0, 0, 0] and colors[0, 5, 0] > colors[0, 5, 2], "blue for nothing, red for all"


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_neighbours_are_exact(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "CHUNK", 7)
    generator = np.random.default_rng(1)
    matrix = generator.normal(size=(50, 6)).astype(np.float32)
    matrix[31] = matrix[12]  # equally near: the first one first
    queries = np.concatenate([generator.normal(size=(4, 6)), matrix[12:13]]).astype(np.float32)
    rows, distances = nearest(queries, matrix, 5, metric)
    for query, found, far in zip(queries.astype(float), rows, distances, strict=True):
        if metric == "euclidean":
            all_distances = [np.sqrt(((query - row) ** 2).sum()) for row in matrix.astype(float)]
        else:
            all_distances = [
                1 - query @ row / np.linalg.norm(query) / np.linalg.norm(row) for row in matrix.astype(float)
            ]
        expected = np.argsort(np.round(all_distances, 9), kind="stable")[:5]
        assert found.tolist() == expected.tolist()
        assert far == pytest.approx(np.array(all_distances)[expected], abs=1e-6)
    assert rows[4, :2].tolist() == [12, 31]
    assert nearest(queries, matrix, 99, metric)[0].shape == (5, 50)
    with pytest.raises(ConfigError, match="metric must be one of euclidean, cosine; got 'manhattan'"):
        nearest(queries, matrix, 3, "manhattan")


def test_the_last_hidden_layer_is_stored_once(trained_run: Path, tmp_path: Path) -> None:
    trained = load_checkpoint(str(trained_run))
    settings = DataConfig(**{**trained.config["data"], "batch_size": 5})
    _, train = select_split(trained, settings, "train", from_run=True)
    view = build.eval_view(trained.config)
    path = matrix_path(tmp_path, trained.path, train)
    matrix = feature_matrix(trained.inference, split_loader(train, view, settings), train, path)
    assert matrix.shape == (24, 16)
    images = torch.stack([image for image, _, _ in split_loader(train, view, settings).dataset])
    net: Any = trained.inference.net
    with torch.inference_mode():
        inputs = trained.inference.normalize(images)
        hidden = net.classifier[:-1](torch.flatten(net.avgpool(net.features(inputs)), 1))
    assert np.allclose(matrix, hidden, atol=1e-5)
    again = feature_matrix(trained.inference, None, train, path)  # nothing is computed
    assert np.array_equal(again, matrix)
    with torch.inference_mode():
        assert torch.allclose(features(trained.inference, images[:2], head_layer(net, inputs)), hidden[:2], atol=1e-5)
    _, val = select_split(trained, settings, "val", from_run=True)
    assert matrix_path(tmp_path, trained.path, val) != path
    copied = replace(train, root=str(shutil.copytree(train.root, tmp_path / "copied")))
    path = matrix_path(tmp_path, trained.path, copied)
    assert matrix_path(tmp_path, trained.path, copied) == path
    replace_unseen(Path(copied.file_path(0)))
    assert matrix_path(tmp_path, trained.path, copied) != path


def test_the_filters_of_two_towers_are_two_blocks() -> None:
    """Figure 3 of the 2012 paper: 48 kernels of each GPU."""
    two = AlexNet(5, widths=[96, 256, 384, 384, 256], groups=[1, 2, 1, 2, 2], fc_widths=[8])
    blocks = first_filters(two)
    assert [block.shape for block in blocks] == [(48, 3, 11, 11)] * 2
    assert torch.equal(torch.cat(blocks), two.features.conv1.weight)  # type: ignore[union-attr]
    titles = [axes.get_title() for axes in filters_plot(blocks).axes]
    assert titles == ["tower 1: 48 kernels of 3 x 11 x 11", "tower 2: 48 kernels of 3 x 11 x 11"]
    assert len(first_filters(AlexNet(5, fc_widths=[8]))) == 1
    grey = filters_plot(first_filters(AlexNet(5, in_channels=1, fc_widths=[8])))
    assert grey.axes[0].get_title() == "64 kernels of 1 x 11 x 11"


def test_the_strongest_maps_come_first() -> None:
    maps = torch.rand(100, 4, 4)
    maps[70] = 5
    figure = feature_maps_plot(maps, "conv")
    assert figure.axes[0].get_title() == "conv: the strongest 48 of 100 maps, 4 x 4"
    assert figure.axes[0].images[0].get_array()[1:5, 1:5].min() == 5


def explain(trained_run: Path, out: Path, *words: str) -> Path:
    out.mkdir()
    run(plain(f"ckpt='{trained_run}'", "data.num_workers=0", *words, name="explain"), run_dir=out, choices={})
    return out


PICTURES = {
    "filters.png",
    "neighbours.png",
    "grad_cam.png",
    *(f"maps_features_conv{number}.png" for number in range(1, 6)),
}
SCORED = {
    "scores.json",
    "classes.csv",
    "confusion.csv",
    "predictions.csv",
    "confusion.png",
    "calibration.png",
    "evaluation.html",
}


def test_the_whole_page(trained_run: Path, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shutil.copytree(trained_run, tmp_path / "run")
    # Labels that are wrong on purpose, so that there are mistakes.
    wrong = tmp_path / "wrong"
    for name, other in (("ant", "bee"), ("bee", "cat"), ("cat", "ant")):
        shutil.copytree(images / "val" / name, wrong / other)
    shown = explain(
        tmp_path / "run",
        tmp_path / "out",
        f"data.root='{wrong}'",
        "num_mistakes=3",
        "neighbours.num_images=2",
        "tensorboard=true",
    )
    assert names(shown) - {"worst_mistakes.png"} == PICTURES | SCORED | {"confident_mistakes.png"}
    page = (shown / "evaluation.html").read_text()
    for title in (
        "Confusion",
        "Calibration",
        "Most confident mistakes",
        "First-layer kernels",
        "Nearest training images",
    ):
        assert f"<h2>{title}</h2>" in page
    assert page.count("data:image/png;base64,") == len(list(shown.glob("*.png")))
    events = max((tmp_path / "run").glob("events*"), key=lambda path: path.stat().st_mtime_ns)
    board = EventAccumulator(str(events))
    board.Reload()
    assert {f"evaluation/{path.stem}" for path in shown.glob("*.png")} == set(board.Tags()["images"])


def test_without_the_training_data(
    train: Callable[..., float | None],
    images: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # a checkpoint may be a stranger's, so its data.cache_dir is not used
    shutil.copytree(images, tmp_path / "moved")
    train(f"data.root={tmp_path / 'moved'}")
    shutil.rmtree(tmp_path / "moved")
    shown = explain(tmp_path / "run", tmp_path / "out", f"data.root='{images}'")
    assert not (shown / "neighbours.png").exists() and (shown / "filters.png").exists()
    assert "no neighbours: data.root must be a folder of images" in caplog.text
    found = explain(tmp_path / "run", tmp_path / "b", f"data.root='{images}'", f"neighbours.root='{images}'")
    assert (found / "neighbours.png").exists()
    shutil.copytree(images / "train", tmp_path / "undivided")
    whole = explain(
        tmp_path / "run", tmp_path / "c", f"data.root='{images}'", f"neighbours.root='{tmp_path / 'undivided'}'",
        f"image='{images / 'val/cat/001.png'}'",
    )  # fmt: skip
    assert (whole / "neighbours.png").exists() and (whole / "grad_cam.png").exists()
    sizes = sorted(len(np.load(path)) for path in (tmp_path / "data/cache/features").iterdir())
    assert sizes == [24, 24], "of a folder that is not divided, every image"


def test_words(trained_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"neighbours.metric must be one of euclidean, cosine; got 'l1'"):
        explain(trained_run, tmp_path / "a", "neighbours.metric=l1")
    with pytest.raises(ConfigError, match=r"image must be a file; nothing.jpg does not exist"):
        explain(trained_run, tmp_path / "b", "image=nothing.jpg")
    shutil.copy(trained_run / "checkpoints/best.ckpt", tmp_path / "mine.ckpt")
    with pytest.raises(
        ConfigError, match=r"tensorboard=true needs the run folder of the checkpoint; .*mine.ckpt is not in one"
    ):
        explain(tmp_path / "mine.ckpt", tmp_path / "c", "tensorboard=true", "neighbours.num_images=0")
