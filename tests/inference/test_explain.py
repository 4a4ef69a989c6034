"""Figures and computations of explain.py."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from alexlab.data.config import DataConfig
from alexlab.errors import ConfigError
from alexlab.inference.checkpoint import load_checkpoint
from alexlab.inference.explain import neighbours
from alexlab.inference.explain.activations import head_layer, last_feature_layer
from alexlab.inference.explain.drawings import draw_feature_maps, draw_filters, first_filters
from alexlab.inference.explain.gradcam import grad_cam, overlaid
from alexlab.inference.explain.neighbours import feature_matrix, features, matrix_path, nearest
from alexlab.inference.predictions import select_split, split_loader
from alexlab.models.alexnet import AlexNet
from alexlab.models.googlenet import GoogLeNet
from alexlab.models.nin import NiN
from alexlab.records.run import Run
from alexlab.tasks.explain import main
from alexlab.training.preprocessing import Inference
from support.images import replace_unseen
from support.runs import names, plain

pytestmark = pytest.mark.slow


class Pooled(nn.Module):
    """Convolution, in-place ReLU, global average pooling and a linear layer, for which Grad-CAM is the class activation map."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True))
        self.head = nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images).mean((2, 3)))
        return logits


def inference_of(net: nn.Module) -> Inference:
    return Inference(net, mean=[0.5] * 3, std=[0.25] * 3).eval()


def test_grad_cam_is_the_class_activation_map() -> None:
    """Selvaraju et al., section 3.1: with global average pooling before the head, they are equal up to a factor."""
    torch.manual_seed(1)
    net = Pooled()
    inference = inference_of(net)
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    classes = torch.tensor([0, 1, 2, 3])
    cams = grad_cam(inference, images, classes)
    with torch.no_grad():
        maps = net.body(inference.normalize(images))
        expected = F.relu(torch.einsum("nkhw,nk->nhw", maps, net.head.weight[classes]))
    expected = expected / expected.amax((1, 2), keepdim=True).clamp(min=1e-30)
    assert cams.shape == (4, 8, 8)
    assert torch.allclose(cams, expected, atol=1e-5)
    assert cams.max() == 1 and cams.min() == 0
    assert all(weight.grad is None for weight in net.parameters()), "the network keeps no gradients"


def test_grad_cam_of_one_logit_explains_both_classes() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 1))
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    first, second = (grad_cam(inference_of(net), images, torch.full((2,), label)) for label in (0, 1))
    assert first.amax((1, 2)).tolist() == second.amax((1, 2)).tolist() == [1, 1]
    assert not torch.allclose(first, second)


def test_grad_cam_of_nin_is_the_feature_map_of_the_class() -> None:
    """The last feature maps of NiN are its classes, so the evidence for a class is its own map."""
    torch.manual_seed(1)
    net = NiN(5, width=0.1)
    inference = inference_of(net)
    images = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    cams = grad_cam(inference, images, torch.tensor([3, 4]))
    with torch.no_grad():
        maps = net.features(inference.normalize(images))[[0, 1], [3, 4]]
    assert maps.amax() > 0
    small = maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-30)
    expected = F.interpolate(small[:, None], (96, 96), mode="bilinear", align_corners=False)[:, 0]
    assert torch.allclose(cams, expected, atol=1e-4)


def test_last_feature_layer_and_head_layer() -> None:
    images = torch.zeros(1, 3, 96, 96)
    assert last_feature_layer(AlexNet(5, width=0.05).eval(), images) == "features.act5"
    assert head_layer(AlexNet(5, width=0.05).eval(), images) == "classifier.fc8"
    assert head_layer(NiN(5, width=0.1).eval(), images) == "features.conv4_3"
    googlenet = GoogLeNet(5).eval()
    assert isinstance(googlenet.get_submodule(head_layer(googlenet, images)), nn.Linear)
    assert last_feature_layer(googlenet, images) == "features"  # ends with a block that joins four branches
    assert last_feature_layer(torchvision.models.densenet121(num_classes=3).eval(), images) == "features"
    assert last_feature_layer(torchvision.models.resnet18(num_classes=3).eval(), images) == "layer4"
    with pytest.raises(ValueError, match="Grad-CAM needs a network with convolutions"):
        last_feature_layer(nn.Linear(3, 2), torch.zeros(1, 3))


def test_heat_map_overlay() -> None:
    image = torch.full((1, 6, 6), 100, dtype=torch.uint8)
    cam = torch.zeros(6, 6)
    cam[:, 3:] = 1
    colors = overlaid(image, cam)
    assert colors.shape == (6, 6, 3) and colors.dtype == torch.uint8
    assert colors[0, 0].tolist() == [75, 75, 75], "grey without evidence"
    assert colors[0, 5, 0] > 2 * colors[0, 5, 2] and colors[0, 5, 1] > 2 * colors[0, 5, 2], "yellow for 1"


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_nearest_rows_are_exact(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "CHUNK", 7)
    generator = np.random.default_rng(1)
    matrix = generator.normal(size=(50, 6)).astype(np.float32)
    matrix[31] = matrix[12]  # a tie, which the first row wins
    queries = np.concatenate([generator.normal(size=(4, 6)), matrix[12:13]]).astype(np.float32)
    rows, distances = nearest(queries, matrix, 5, metric)
    for query, indices, far in zip(queries.astype(float), rows, distances, strict=True):
        if metric == "euclidean":
            all_distances = [np.sqrt(((query - row) ** 2).sum()) for row in matrix.astype(float)]
        else:
            all_distances = [
                1 - query @ row / np.linalg.norm(query) / np.linalg.norm(row) for row in matrix.astype(float)
            ]
        expected = np.argsort(np.round(all_distances, 9), kind="stable")[:5]
        assert indices.tolist() == expected.tolist()
        assert far == pytest.approx(np.array(all_distances)[expected], abs=1e-6)
    assert rows[4, :2].tolist() == [12, 31]
    assert nearest(queries, matrix, 99, metric)[0].shape == (5, 50)
    with pytest.raises(ConfigError, match="metric must be one of euclidean, cosine; got 'manhattan'"):
        nearest(queries, matrix, 3, "manhattan")


def test_the_last_hidden_layer_is_computed_once_and_cached(trained_run: Path, tmp_path: Path) -> None:
    model = load_checkpoint(str(trained_run))
    settings = DataConfig(**{**model.config["data"], "batch_size": 5})
    _, train = select_split(model, settings, "train", from_run=True)
    assert model.path is not None
    path = matrix_path(tmp_path, model.path, train, model.decoding)
    matrix = feature_matrix(model.inference, split_loader(train, model.reader(), settings), train, path)
    assert matrix.shape == (24, 16)
    images = torch.stack([image for image, _, _ in split_loader(train, model.reader(), settings).dataset])
    net: Any = model.inference.net
    with torch.inference_mode():
        inputs = model.inference.normalize(images)
        hidden = net.classifier[:-1](torch.flatten(net.avgpool(net.features(inputs)), 1))
    assert np.allclose(matrix, hidden, atol=1e-5)
    cached = feature_matrix(model.inference, None, train, path)  # nothing is computed
    assert np.array_equal(cached, matrix)
    with torch.inference_mode():
        assert torch.allclose(features(model.inference, images[:2], head_layer(net, inputs)), hidden[:2], atol=1e-5)
    _, val = select_split(model, settings, "val", from_run=True)
    assert matrix_path(tmp_path, model.path, val, model.decoding) != path
    copied = replace(train, root=str(shutil.copytree(train.root, tmp_path / "copied")))
    path = matrix_path(tmp_path, model.path, copied, model.decoding)
    assert matrix_path(tmp_path, model.path, copied, model.decoding) == path
    replace_unseen(Path(copied.file_path(0)))
    assert matrix_path(tmp_path, model.path, copied, model.decoding) != path


def test_the_kernels_of_two_towers_are_two_blocks() -> None:
    """Figure 3 of the 2012 paper: 48 kernels per GPU."""
    two = AlexNet(5, widths=[96, 256, 384, 384, 256], groups=[1, 2, 1, 2, 2], fc_widths=[8])
    blocks = first_filters(two)
    assert [block.shape for block in blocks] == [(48, 3, 11, 11)] * 2
    assert torch.equal(torch.cat(blocks), two.features.conv1.weight)  # type: ignore[union-attr]
    lines = [line for image in draw_filters(blocks) for line in image.lines]
    assert lines == ["tower 1: 48 kernels of 3 x 11 x 11", "tower 2: 48 kernels of 3 x 11 x 11"]
    assert len(first_filters(AlexNet(5, fc_widths=[8]))) == 1
    assert len(first_filters(torchvision.models.mobilenet_v2())) == 1, "a depthwise convolution has no towers"
    (grey,) = draw_filters(first_filters(AlexNet(5, in_channels=1, fc_widths=[8])))
    assert grey.lines == ["64 kernels of 1 x 11 x 11"]
    assert grey.pixels.shape == (4 * 12 + 1, 16 * 12 + 1, 4) and grey.pixels[0, 0, 3] == 0, (
        "transparent between kernels"
    )


def test_the_strongest_feature_maps_come_first() -> None:
    maps = torch.rand(100, 4, 4)
    maps[70] = 5
    image = draw_feature_maps(maps, "conv")
    assert image.lines == ["conv: the strongest 48 of 100 maps, 4 x 4"]
    yellow = image.pixels[1:5, 1:5, :3].reshape(-1, 3)
    assert (yellow == yellow[0]).all() and yellow[0, 0] > 240 > 50 > yellow[0, 2]


def explain(trained_run: Path, out: Path, *overrides: str) -> Path:
    out.mkdir()
    main(Run(config=plain(f"ckpt='{trained_run}'", "data.num_workers=0", *overrides, name="explain"), dir=out))
    return out


PLOTS = {"filters.png", "neighbours.png", "grad_cam.png", "feature_maps.png"}
EVALUATION = {
    "scores.json",
    "classes.csv",
    "confusion.csv",
    "predictions.csv",
    "confusion.png",
    "calibration.png",
    "explain.html",
}


def test_the_page_has_all_sections(
    trained_run: Path, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shutil.copytree(trained_run, tmp_path / "run")
    # Wrong labels, so that there are mistakes.
    wrong = tmp_path / "wrong"
    for name, other in (("ant", "bee"), ("bee", "cat"), ("cat", "ant")):
        shutil.copytree(images / "val" / name, wrong / other)
    out = explain(
        tmp_path / "run",
        tmp_path / "out",
        f"data.root='{wrong}'",
        "num_mistakes=3",
        "neighbours.num_images=2",
        "tensorboard=true",
    )
    assert names(out) - {"worst_mistakes.png"} == PLOTS | EVALUATION | {"confident_mistakes.png"}
    page = (out / "explain.html").read_text()
    for title in (
        "Confusion",
        "Calibration",
        "Most confident mistakes",
        "First-layer kernels",
        "Nearest training images",
        "Evidence in one image",
        "Feature maps of this image",
    ):
        assert f"<h2>{title}</h2>" in page
    assert page.count('src="data:image/') >= 2 * 3 + 1 + 2 * 7 + 4 + 5
    assert re.search(r"true (ant|bee|cat) \(p \d\.\d\d\)", page) and "distance " in page
    events = max((tmp_path / "run").glob("events*"), key=lambda path: path.stat().st_mtime_ns)
    board = EventAccumulator(str(events))
    board.Reload()
    assert {f"evaluation/{path.stem}" for path in out.glob("*.png")} == set(board.Tags()["images"])


def test_missing_or_unreadable_training_data(
    train: Callable[..., float | None],
    images: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # data.cache_dir of a checkpoint, which is untrusted, is not used
    shutil.copytree(images, tmp_path / "moved")
    train(f"data.root={tmp_path / 'moved'}")
    shutil.rmtree(tmp_path / "moved")
    out = explain(tmp_path / "run", tmp_path / "out", f"data.root='{images}'")
    assert not (out / "neighbours.png").exists() and (out / "filters.png").exists()
    assert "no neighbours: data.root must be a folder of images" in caplog.text
    found = explain(tmp_path / "run", tmp_path / "b", f"data.root='{images}'", f"neighbours.root='{images}'")
    assert (found / "neighbours.png").exists()
    shutil.copytree(images / "train", tmp_path / "unsplit")
    whole = explain(
        tmp_path / "run", tmp_path / "c", f"data.root='{images}'", f"neighbours.root='{tmp_path / 'unsplit'}'",
        f"image='{images / 'val/cat/001.png'}'",
    )  # fmt: skip
    assert (whole / "neighbours.png").exists() and (whole / "grad_cam.png").exists()
    sizes = sorted(len(np.load(path)) for path in (tmp_path / "data/cache/features").iterdir())
    assert sizes == [24, 24], "all images of a folder without splits"
    (tmp_path / "unsplit/ant/000.png").write_bytes(b"no image")
    caplog.clear()
    rest = explain(
        tmp_path / "run", tmp_path / "d", f"data.root='{images}'", f"neighbours.root='{tmp_path / 'unsplit'}'"
    )
    assert not (rest / "neighbours.png").exists() and (rest / "filters.png").exists()
    assert re.search(r"no neighbours: .*/unsplit/ant/000\.png.*; neighbours\.root=DIR reads the training", caplog.text)


def test_error_messages(trained_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"neighbours.metric must be one of euclidean, cosine; got 'l1'"):
        explain(trained_run, tmp_path / "a", "neighbours.metric=l1")
    with pytest.raises(ConfigError, match=r"neighbours.k must be an integer of at least 1; got null"):
        explain(trained_run, tmp_path / "e", "neighbours.k=null")
    with pytest.raises(ConfigError, match=r"neighbours.num_images must be an integer of at least 0; got -1"):
        explain(trained_run, tmp_path / "f", "neighbours.num_images=-1")
    with pytest.raises(ConfigError, match=r"image must be a file; nothing.jpg does not exist"):
        explain(trained_run, tmp_path / "b", "image=nothing.jpg")
    shutil.copy(trained_run / "checkpoints/best.ckpt", tmp_path / "mine.ckpt")
    with pytest.raises(
        ConfigError, match=r"tensorboard=true needs the run folder of the checkpoint; .*mine.ckpt is not in one"
    ):
        explain(tmp_path / "mine.ckpt", tmp_path / "c", "tensorboard=true", "neighbours.num_images=0")
