import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from alexlab.data.orientation import ORIENTATION
from alexlab.errors import ConfigError, DataError, NumericError
from alexlab.inference import export as exporting
from alexlab.inference.checkpoint import TrainedModel, load_checkpoint
from alexlab.inference.export import FORMATS, largest_difference
from alexlab.inference.file_content import metadata
from alexlab.inference.sequential import build_sequential, sequential_layers
from alexlab.models.alexnet import AlexNet
from alexlab.models.googlenet import GoogLeNet
from alexlab.records.run import Run
from alexlab.tasks.export import main
from alexlab.training.preprocessing import Inference
from support.images import write_images
from support.runs import ROOT, plain

PAGE = (ROOT / "docs/evaluation.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def export(trained_run: Path, tmp_path: Path) -> Callable[..., Path]:
    """Export the tiny network with overrides and return the file."""

    def call(form: str, *overrides: str, ckpt: Path = trained_run) -> Path:
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        main(Run(config=plain(f"ckpt='{ckpt}'", f"format={form}", *overrides, name="export"), dir=out))
        (path,) = out.glob(f"*{FORMATS[form][0]}")
        return path

    return call


def rotated_photo(path: Path) -> Path:
    """Write a JPEG of an upright gradient that is stored sideways, as phones do."""
    pixels = np.zeros((90, 120, 3), np.uint8)
    pixels[..., 0], pixels[..., 2] = np.linspace(0, 255, 120), np.linspace(255, 0, 90)[:, None]
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(pixels).rotate(90, expand=True).save(path, quality=95, exif=exif)
    return path


@pytest.mark.parametrize("options", [(), ("data.mean=null", "data.mean_image=true")], ids=["mean", "mean_image"])
@pytest.mark.parametrize("form", [form for form in FORMATS if form != "pth"])
def test_the_example_of_the_readme_gives_the_predictions_of_the_checkpoint(
    form: str,
    options: tuple[str, ...],
    export: Callable[..., Path],
    train: Callable[..., float | None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The example uses the file alone and does not import this package."""
    train("data.std=[0.005]", "trainer.max_epochs=3", *options)
    path = export(form, "num_images=5", ckpt=tmp_path / "run")
    assert re.search(r"on 5 images: logits differ by at most \d", capsys.readouterr().out)
    (code,) = [example for example in EXAMPLES if f'"net{path.suffix}"' in example]
    assert "alexlab" not in code
    assert len(code.strip().splitlines()) <= 15
    photo = rotated_photo(tmp_path / "photo.jpg")
    code = code.replace(f'"net{path.suffix}"', repr(str(path))).replace('"photo.jpg"', repr(str(photo)))
    exec(compile(code, form, "exec"), {})
    printed = capsys.readouterr().out.split()
    model = load_checkpoint(str(tmp_path / "run"))
    from alexlab.config import build_data
    from alexlab.data.dataset import to_tensor
    from alexlab.data.decode import decode

    with torch.inference_mode():
        probs = model.inference.probs(build_data.eval_view(model.config)(to_tensor(decode(photo)))[None])[0]
    assert printed[0] == model.names[int(probs.argmax())]
    sideways = to_tensor(np.array(Image.open(photo)))
    with torch.inference_mode():
        others = model.inference.probs(build_data.eval_view(model.config)(sideways)[None])[0]
    assert abs(others.max() - probs.max()) > 0.01
    # Pillow's resizing is not bit-for-bit that of PyTorch.
    assert float(printed[1]) == pytest.approx(probs.max().item(), abs=0.005)


def test_an_exported_file_is_a_checkpoint(export: Callable[..., Path], trained_run: Path, tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text('{"ant": "Ameise"}')
    path = export("safetensors", f"class_names='{tmp_path / 'names.json'}'")
    original, reloaded = load_checkpoint(str(trained_run)), load_checkpoint(str(path))
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(original.inference(images), reloaded.inference(images))
    assert reloaded.names == ["Ameise", "bee", "cat"] and reloaded.classes == original.classes
    assert reloaded.config["data"]["image_size"] == 64 and reloaded.best == original.best


def test_metadata(export: Callable[..., Path]) -> None:
    from safetensors import safe_open

    with safe_open(export("safetensors"), "pt") as file:
        about = {name: json.loads(value) for name, value in file.metadata().items()}
        assert sorted(about["tensors"]) == sorted(file.keys())
    assert about["classes"] == ["ant", "bee", "cat"]
    assert (about["image_size"], about["resize"]) == (
        64,
        {"shorter_side": 73, "crop": "center", "interpolation": "bilinear"},
    )
    assert about["mean"] == pytest.approx([0.485, 0.456, 0.406], abs=1e-6)
    assert about["layers"][0] == ["Conv2d", {"in_channels": 3, "out_channels": 4, "kernel_size": 11, "stride": 4, "padding": 2}]  # fmt: skip
    assert ["Flatten", {}] in about["layers"]


CENTER = {"_target_": "alexlab.data.transforms.CenterView", "size": 64}
BICUBIC = {"_target_": "torchvision.transforms.v2.Resize", "size": [64, 64], "interpolation": "bicubic"}
FLIP = {"_target_": "torchvision.transforms.v2.RandomHorizontalFlip", "p": 1.0}


@pytest.mark.parametrize(
    ("overrides", "nodes", "expected"),
    [
        (["augmentation=keras"], None, {"shorter_side": None, "crop": None, "interpolation": "nearest"}),
        (["augmentation=squash"], None, {"shorter_side": None, "crop": None, "interpolation": "bilinear"}),
        ([], [CENTER], {"shorter_side": 73, "crop": "center", "interpolation": "bilinear"}),
        ([], [CENTER | {"ratio": 0.5}], {"shorter_side": 128, "crop": "center", "interpolation": "bilinear"}),
        ([], [BICUBIC], None),
        ([], [CENTER, FLIP], None),
    ],
)
def test_the_metadata_describe_any_eval_transform(
    overrides: list[str], nodes: list[dict] | None, expected: dict | None, trained_run: Path
) -> None:
    model = load_checkpoint(str(trained_run), device="cpu")
    views = plain("data.image_size=64", *overrides)["augmentation"]["eval"]
    if nodes is not None:
        views = {"center": None} | {f"step{number}": node for number, node in enumerate(nodes)}
    about = metadata(replace(model, config={**model.config, "augmentation": {"eval": views}}))
    assert about["resize"] == expected
    assert about.get("transforms") == (None if expected else nodes)
    assert "upright" in about["input"]


def test_a_pth_is_a_plain_state_dict(export: Callable[..., Path], trained_run: Path) -> None:
    path = export("pth")
    state = torch.load(path, weights_only=True)
    net = load_checkpoint(str(trained_run)).inference.net
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(value.is_contiguous() for value in state.values())


def test_the_pth_of_an_alexnet_loads_into_that_of_torchvision(trained_run: Path, tmp_path: Path) -> None:
    """Only the architecture decides: tanh has the same tensors, but other logits."""
    from torchvision.models import alexnet

    model = load_checkpoint(str(trained_run), device="cpu")
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    for activation, expected in (("relu", True), ("tanh", False)):
        net = AlexNet(3, init="he", activation=activation).eval()
        written = replace(model, inference=Inference(net, mean=[0.5] * 3, std=[0.5] * 3))
        exported = exporting.write_pth(written, tmp_path / "net.pth", images)
        state = torch.load(tmp_path / "net.pth", weights_only=True)
        theirs = alexnet(num_classes=3).eval()
        assert (list(state) == list(theirs.state_dict())) == expected
        with torch.inference_mode():
            expected_logits = written.inference(images)
            torch.testing.assert_close(exported(images), expected_logits, rtol=0, atol=1e-4)
            if expected:
                theirs.load_state_dict(state)
                torch.testing.assert_close(
                    theirs(written.inference.normalize(images)), expected_logits, rtol=0, atol=1e-4
                )


def test_the_pth_of_a_net_for_small_images_keeps_its_names(trained_run: Path, tmp_path: Path) -> None:
    """Of 48 x 48 images torchvision's alexnet leaves nothing, although its tensors have the same shapes."""
    model = load_checkpoint(str(trained_run), device="cpu")
    net = AlexNet(3, strides=[2, 1, 1, 1, 1]).eval()
    written = replace(model, inference=Inference(net, mean=[0.5] * 3, std=[0.5] * 3))
    exporting.write_pth(written, tmp_path / "net.pth", torch.zeros(2, 3, 48, 48, dtype=torch.uint8))
    assert list(torch.load(tmp_path / "net.pth", weights_only=True)) == list(net.state_dict())


def test_a_network_with_branches_has_no_list_of_layers() -> None:
    net = GoogLeNet(3, width=0.1).eval()
    assert sequential_layers(net, torch.zeros(2, 3, 96, 96)) is None


@pytest.mark.parametrize(
    ("groups", "ceil", "listed"), [([1] * 5, False, True), ([1, 2, 1, 2, 2], False, False), ([1] * 5, True, False)]
)
def test_local_response_normalization_of_one_tower_is_a_layer_of_torch(
    groups: list[int], ceil: bool, listed: bool
) -> None:
    """torch.nn has neither the normalization of two towers nor convolutions that round up."""
    torch.manual_seed(0)
    net = AlexNet(3, width=0.125, norm="lrn", groups=groups, conv_ceil=ceil, init="he").eval()
    images = torch.randn(2, 3, 93, 93)
    layers = sequential_layers(net, images)
    assert (layers is not None) == listed
    if layers is not None:
        assert ["LocalResponseNorm", {"size": 5, "alpha": 5e-4, "k": 2.0}] in layers
        assert torch.equal(build_sequential(layers, net.state_dict().values())(images), net(images))


def test_a_file_without_a_list_of_layers_says_so(
    train: Callable[..., float | None], export: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    train("model.norm=lrn", "model.groups=[1,2,1,2,2]")
    export("safetensors", ckpt=tmp_path / "run")
    assert "the file has no list of layers, since AlexNet is not a sequence of torch.nn layers" in caplog.text


def test_one_logit_becomes_two(
    train: Callable[..., float | None], export: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import onnxruntime

    caplog.set_level("INFO")
    root = write_images(tmp_path / "two", {"a": 10, "b": 10})
    train("loss=binary_cross_entropy", f"data.root={root}")
    with safe_open(export("safetensors", ckpt=tmp_path / "run"), "pt") as file:
        about = {name: json.loads(value) for name, value in file.metadata().items()}
        net = build_sequential(about["layers"], [file.get_tensor(name) for name in about["tensors"]])
    images = torch.randn(3, 3, 64, 64)
    model = load_checkpoint(str(tmp_path / "run"), device="cpu")
    logits = net(images)
    torch.testing.assert_close(logits[:, 0], torch.zeros(3))
    torch.testing.assert_close(logits[:, 1:], model.single.net(images))
    export("pth", ckpt=tmp_path / "run")
    assert "the net has one logit, of class b: its sigmoid is the probability of that class" in caplog.text
    session = onnxruntime.InferenceSession(export("onnx", ckpt=tmp_path / "run"))
    for count in (1, 3):
        (logits,) = session.run(None, {"images": torch.zeros(count, 3, 64, 64).numpy()})
        assert logits.shape == (count, 2)


def test_an_export_with_other_logits_does_not_replace_an_earlier_one(
    export: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_broken(model: TrainedModel, path: Path, images: Tensor) -> Callable[[Tensor], Tensor]:
        path.write_bytes(b"x")
        return lambda images: model.inference(images) + 2e-4

    def write_half(model: TrainedModel, path: Path, images: Tensor) -> Callable[[Tensor], Tensor]:
        path.write_bytes(b"x")
        raise KeyboardInterrupt

    earlier = export("safetensors").read_bytes()
    monkeypatch.setitem(exporting.FORMATS, "safetensors", (".safetensors", write_broken))
    with pytest.raises(
        NumericError,
        match=r"the exported logits must equal those of the checkpoint within 0.0001; they differ by 0.0002",
    ):
        export("safetensors")
    monkeypatch.setitem(exporting.FORMATS, "safetensors", (".safetensors", write_half))
    with pytest.raises(KeyboardInterrupt):
        export("safetensors")
    (file,) = (path for path in tmp_path.rglob("*") if path.name.endswith(".safetensors"))
    assert file.read_bytes() == earlier


def test_nan_logits_are_an_error(trained_run: Path) -> None:
    model = load_checkpoint(str(trained_run))
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    with pytest.raises(NumericError):
        largest_difference(model, lambda images: torch.full((len(images), 3), torch.nan), images)


def test_error_messages(
    export: Callable[..., Path], train: Callable[..., float | None], images: Path, tmp_path: Path
) -> None:
    import shutil

    with pytest.raises(ConfigError, match="format must be one of safetensors, onnx, torch_export, pth; got 'tflite'"):
        export("tflite")
    with pytest.raises(ConfigError, match="num_images must be an integer of at least 1; got 0"):
        export("safetensors", "num_images=0")
    with pytest.raises(ConfigError, match=r"out must end in \.safetensors with format=safetensors; got .*net\.onnx"):
        export("safetensors", f"out={tmp_path / 'net.onnx'}")
    shutil.copytree(images, tmp_path / "moved")
    train(f"data.root={tmp_path / 'moved'}")
    shutil.rmtree(tmp_path / "moved")
    with pytest.raises(
        ConfigError, match=r"compared on real images; set input=DIR to a folder of them \(data.root must be"
    ):
        export("safetensors", ckpt=tmp_path / "run")
    assert export("safetensors", f"input='{images}'", ckpt=tmp_path / "run").is_file()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="must have images to compare on; found none that can be read"):
        export("safetensors", f"input='{tmp_path / 'empty'}'")
