import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import alexlab
from alexlab.cli.arguments import expand_paths, quote_paths
from alexlab.config import build, build_data
from alexlab.data.dataset import to_tensor
from alexlab.data.decode import decode
from alexlab.errors import ConfigError
from alexlab.inference.checkpoint import TrainedModel, load_checkpoint
from alexlab.inference.demo import predict_image
from alexlab.inference.members import short_names
from alexlab.models.weights.pretrained import read_source
from alexlab.records.layout import BEST, SWEEP_JSON
from alexlab.records.run import Run
from alexlab.records.significance import paired_interval
from alexlab.tasks import evaluate, explain, export, predict
from alexlab.training.preprocessing import average_logits
from support.runs import TINY, composed, names, plain, rows, write_record

CLASSES = ["ant", "bee", "cat"]
SMALL = ("model.init=he", "data.mean=[0.1,0.2,0.3]", "data.std=[0.3,0.2,0.1]")
LARGE = ("model.init=he", "data.image_size=96", "data.mean=[0.5,0.5,0.5]", "model.in_channels=1", "data.std=[0.25]")


@pytest.fixture
def write(images: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write the run folder of an untrained tiny net, and return it."""

    def call(name: str, *overrides: str, classes: Sequence[str] = CLASSES, status: str = "finished") -> Path:
        data = (f"data.root={images}", f"data.cache_dir={tmp_path / 'cache'}")
        config = plain(*(each for each in TINY if each.split("=")[0] not in " ".join(overrides)), *data, *overrides)
        torch.manual_seed(sum(map(ord, name)))
        net = build.net(config, len(classes), num_outputs=len(classes))
        run = write_record(tmp_path / name, status=status)
        (run / BEST).parent.mkdir()
        state = {f"net.{key}": value for key, value in net.state_dict().items()}
        record = {"config": config, "choices": {"model": "alexnet"}, "classes": [*classes], "best": {}}
        torch.save({"state_dict": state, "alexlab": record}, run / BEST)
        return run

    return call


@pytest.fixture
def pair(write: Callable[..., Path]) -> list[str]:
    """Two nets with other image sizes, channels, normalizations and orders of the classes."""
    return [str(write("small", *SMALL)), str(write("large", *LARGE, classes=["cat", "ant", "bee"]))]


def alone(folder: str, path: Path) -> Tensor:
    """Return the probabilities of one file by class name, computed without the package's reading and averaging."""
    model = load_checkpoint(folder, device="cpu")
    image = build_data.eval_view(model.config)(to_tensor(decode(path, model.decoding)))[None]
    with torch.inference_mode():
        probs = model.single.net((image / 255 - model.single.mean / 255) / (model.single.std / 255)).softmax(1)[0]
    return torch.stack([probs[model.classes.index(name)] for name in CLASSES])


def run_task(task: Any, out: Path, *overrides: str) -> Path:
    out.mkdir()
    name = task.__name__.rsplit(".", 1)[1]
    workers = () if name in ("export", "demo") else ("data.num_workers=0",) if name != "predict" else ("num_workers=1",)
    task.main(Run(config=plain(*quote_paths([*overrides, *workers]), name=name), dir=out))
    return out


@pytest.mark.parametrize(("weights", "shares"), [("null", (0.5, 0.5)), ("[2,1]", (2 / 3, 1 / 3))])
def test_an_evaluation_averages_the_softmax(
    weights: str, shares: tuple[float, float], pair: list[str], images: Path, tmp_path: Path
) -> None:
    out = run_task(evaluate, tmp_path / "out", f"ckpt=[{','.join(pair)}]", f"weights={weights}", "split=val")
    paths = sorted((images / "val").rglob("*.png"))
    single = np.array([[alone(folder, path).tolist() for folder in pair] for path in paths])  # (N, 2, K)
    probs = (single * np.array(shares)[:, None]).sum(1)
    labels = np.array([CLASSES.index(path.parent.name) for path in paths])
    scores = json.loads((out / "scores.json").read_text())
    assert scores["top1"] == (probs.argmax(1) == labels).mean()
    assert scores["loss"] == pytest.approx(-np.log(probs[np.arange(len(labels)), labels]).mean(), rel=1e-5)
    assert [float(row["prob1"]) for row in rows(out / "predictions.csv")] == pytest.approx(probs.max(1), abs=2e-6)
    correct = single.argmax(2) == labels[:, None]
    assert [member["top1"] for member in scores["members"]] == correct.mean(0).tolist()
    assert [member["weight"] for member in scores["members"]] == pytest.approx(shares)
    assert [member["checkpoint"] for member in scores["members"]] == [f"{folder}/{BEST}" for folder in pair]
    assert scores["gains"]["top1_over_best"]["value"] == pytest.approx(scores["top1"] - correct.mean(0).max())
    assert scores["gains"]["top1_over_mean"]["value"] == pytest.approx(scores["top1"] - correct.mean())
    low, high = scores["gains"]["top1_over_mean"]["interval"]
    assert -1 <= low < scores["gains"]["top1_over_mean"]["value"] < high <= 1
    page = (out / "evaluation.html").read_text()
    assert "<h1>2 x alexnet, 3 classes on " in page and "Members alone" in page and "Gain of the average" in page
    assert "top-1 over best member" in page and "top-5 over" not in page


def test_several_views_are_averaged_within_each_member(pair: list[str], images: Path) -> None:
    model = load_checkpoint(pair)
    path = images / "val/cat/000.png"
    expected = []
    for folder in pair:
        single = load_checkpoint(folder)
        views = build_data.eval_view(single.config, "five")(to_tensor(decode(path, single.decoding)))
        with torch.inference_mode():
            probs = single.single(views).softmax(1).mean(0)
        expected.append(torch.stack([probs[single.classes.index(name)] for name in CLASSES]))
    read = model.reader("five")
    with torch.inference_mode():
        found = model.inference.probs([view[None] for view in read(lambda decoding, crop=None: decode(path, decoding))])
    torch.testing.assert_close(found[0], torch.stack(expected).mean(0))


def test_improbable_classes_do_not_underflow() -> None:
    logits = [torch.tensor([[0.0, -300.0]]), torch.tensor([[0.0, -200.0]])]
    found = average_logits(logits, torch.tensor([0.25, 0.75]).log())
    torch.testing.assert_close(found, torch.tensor([[0.0, -200 + np.log(0.75)]], dtype=torch.float32))


def test_members_that_read_alike_share_the_image(write: Callable[..., Path], pair: list[str]) -> None:
    model = load_checkpoint([*pair, str(write("other", *SMALL[:1]))])
    shapes = [tuple(view.shape) for view in model.reader()(lambda decoding, crop=None: np.zeros((99, 99, decoding.channels), np.uint8))]  # fmt: skip
    assert shapes == [(3, 64, 64), (1, 96, 96)]


def test_predictions_demo_and_api_average_too(pair: list[str], images: Path, tmp_path: Path) -> None:
    path = images / "val/bee/001.png"
    probs = (alone(pair[0], path) + alone(pair[1], path)) / 2
    out = run_task(predict, tmp_path / "out", f"ckpt=[{','.join(pair)}]", f"input={path}")
    (row,) = rows(out / "predictions.csv")
    assert float(row["prob"]) == pytest.approx(probs.max().item(), abs=1e-4)
    model = alexlab.load([*map(Path, pair)])
    assert model.path is None and model.predict(path).prob == pytest.approx(probs.max().item(), abs=1e-6)
    weighted = alexlab.load(pair, weights=[1, 3]).evaluate(split="val", num_workers=0)
    assert [member.weight for member in weighted.members] == [0.25, 0.75]
    with pytest.raises(
        ConfigError, match="need a single network; this is an ensemble of 2: use one of its checkpoints, such as"
    ):
        model.explain(path)
    found = predict_image(load_checkpoint(pair), path.read_bytes())
    assert found["predictions"][0]["prob"] == pytest.approx(probs.max().item(), abs=1e-6)
    assert [name for name, _ in found["images"]] == ["input of the network"]


def test_an_exported_ensemble_is_a_checkpoint(pair: list[str], images: Path, tmp_path: Path) -> None:
    """Its safetensors file has members that read different views; other programs find each member's part of it."""
    out = run_task(export, tmp_path / "out", f"ckpt=[{','.join(pair)}]", "weights=[1,4]", "num_images=3")
    path = out / "ensemble.safetensors"
    original, reloaded = load_checkpoint(pair, weights=[1, 4]), load_checkpoint(str(path))
    views = [
        torch.randint(0, 256, (3, channels, side, side), dtype=torch.uint8) for channels, side in ((3, 64), (1, 96))
    ]
    with torch.inference_mode():
        assert torch.equal(original.inference(views), reloaded.inference(views))
    scores = json.loads((run_task(evaluate, tmp_path / "e", f"ckpt={path}", "split=val") / "scores.json").read_text())
    assert scores["checkpoint"] == str(path) and len(scores["members"]) == 2
    with safe_open(path, "pt") as file:
        about = {name: json.loads(value) for name, value in file.metadata().items()}
        member = about["members"][1]
        assert {*file.keys()} == {name for each in about["members"] for name in each["tensors"]}
    assert (member["image_size"], member["weight"], member["classes"]) == (96, 0.8, ["cat", "ant", "bee"])
    assert member["layers"][0][0] == "Conv2d" and about["classes"] == CLASSES
    with pytest.raises(
        ConfigError, match=r"must be made of single networks; .*ensemble.safetensors is an ensemble itself"
    ):
        load_checkpoint([str(path), pair[0]])
    with pytest.raises(ConfigError, match=r"model.weights must be the weights of one network; .* is an ensemble of 2"):
        read_source(str(path), original.members[0].single.net)


@pytest.mark.parametrize("form", ["onnx", "torch_export"])
def test_an_ensemble_with_one_view_is_one_program(
    form: str, write: Callable[..., Path], images: Path, tmp_path: Path
) -> None:
    """Only the documented preprocessing is applied here: values in 0..1, since each member normalizes for itself."""
    pytest.importorskip("onnxruntime")
    folders = [str(write("a", *SMALL)), str(write("b", SMALL[0], classes=["cat", "ant", "bee"]))]
    out = run_task(export, tmp_path / "out", f"ckpt=[{','.join(folders)}]", f"format={form}", "num_images=5")
    (name,) = names(out)
    path = images / "val/cat/001.png"
    image = build_data.eval_view(load_checkpoint(folders[0]).config)(to_tensor(decode(path)))[None] / 255
    if form == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(out / name)
        about = session.get_modelmeta().custom_metadata_map
        logits = torch.from_numpy(session.run(None, {"images": image.numpy()})[0])
    else:
        extra = {"about.json": ""}
        logits = torch.export.load(out / name, extra_files=extra).module()(image)
        about = {key: json.dumps(value) for key, value in json.loads(extra["about.json"]).items()}
    assert (json.loads(about["mean"]), json.loads(about["std"])) == ([0, 0, 0], [1, 1, 1])
    assert "the logarithm of the mean of 2 networks' softmax, weights 0.5, 0.5" in about["output"]
    expected = (alone(folders[0], path) + alone(folders[1], path)) / 2
    torch.testing.assert_close(logits.exp()[0], expected, rtol=1e-4, atol=1e-6)


def test_formats_that_cannot_hold_an_ensemble_are_refused(pair: list[str], tmp_path: Path) -> None:
    for form, message in {
        "pth": "format=pth has the weights of one network; use format=safetensors for an ensemble",
        "onnx": r"needs members with the same image size \(here 64, 96\), channels and eval transforms; "
        "use format=safetensors",
    }.items():
        with pytest.raises(ConfigError, match=message):
            run_task(export, tmp_path / form, f"ckpt=[{','.join(pair)}]", f"format={form}", "num_images=1")
        assert not names(tmp_path / form)


def test_a_sweep_stands_for_its_finished_runs(
    write: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folders = [write(f"sweep/{name}", *SMALL) for name in ("0_a", "1_b", "10_c")]
    write("sweep/2_d", *SMALL, status="failed")
    (tmp_path / "sweep" / SWEEP_JSON).write_text("{}")
    model = load_checkpoint(str(tmp_path / "sweep"))
    assert [member.run_dir for member in model.members] == folders
    assert caplog.messages == [f"ckpt={tmp_path / 'sweep'}: 0_a, 1_b, 10_c", "left out: 2_d (failed)"]
    (tmp_path / "sweep" / SWEEP_JSON).unlink()
    assert len(load_checkpoint(str(tmp_path / "sweep")).members) == 3, "any folder of runs"
    with pytest.raises(ConfigError, match=r"weights must be one positive number per checkpoint; got \[1, 2\] for 3"):
        load_checkpoint(str(tmp_path / "sweep"), weights=[1, 2])
    for folder in folders:
        write_record(folder, status="interrupted")
    with pytest.raises(ConfigError, match=r"ckpt must have finished runs; no finished run in .*sweep has a checkpoint"):
        load_checkpoint(str(tmp_path / "sweep"))


def test_an_image_of_the_evaluation_must_not_have_trained_a_member(
    write: Callable[..., Path], images: Path, tmp_path: Path
) -> None:
    folds = [write(f"fold{number}", *SMALL, "data.folds=3", f"data.fold={number}") for number in range(2)]
    ckpt = f"ckpt=[{folds[0]},{folds[1]}]"
    message = (
        r"split=val must not contain training images of any member, but .* differently \(data.fold: 0, 1\); "
        "set split=test or data.root"
    )
    for overrides in (("split=val",), ("split=val", f"data.root={images}")):
        with pytest.raises(ConfigError, match=message):
            run_task(evaluate, tmp_path / f"out{len(overrides)}", ckpt, *overrides)
    run_task(evaluate, tmp_path / "test", ckpt)
    run_task(evaluate, tmp_path / "other", ckpt, f"data.root={images / 'train'}")
    seeds = [write(f"split{seed}", *SMALL, f"data.split_seed={seed}") for seed in range(2)]
    with pytest.raises(ConfigError, match=r"split=test .*\(data.split_seed: 0, 1\); set data.root=DIR$"):
        run_task(evaluate, tmp_path / "seeds", f"ckpt=[{seeds[0]},{seeds[1]}]")


def test_error_messages(write: Callable[..., Path], pair: list[str], tmp_path: Path) -> None:
    other = str(write("other", *SMALL, classes=["ant", "bee", "dog"]))
    message = (
        "the members of an ensemble must have the same classes; only one of .*/small/.* and .*/other/.* has cat, dog"
    )
    with pytest.raises(ConfigError, match=message):
        load_checkpoint([pair[0], other])
    for weights in ([1], [1, 0], [1, -1], [1, float("inf")], ["a", 1], 3, [True, 1]):
        with pytest.raises(ConfigError, match=r"weights must be one positive number per checkpoint; got .* for 2"):
            load_checkpoint(pair, weights=weights)  # type: ignore[arg-type]
    assert not load_checkpoint([pair[0]]).members, "a single network"
    with pytest.raises(ConfigError, match="ckpt must be a run folder, a file or a list of them"):
        load_checkpoint([])
    with pytest.raises(ConfigError, match=r"a,b does not exist; several need brackets: ckpt=\[a,b\]"):
        evaluate.check({"ckpt": "a,b"})
    with pytest.raises(ConfigError, match="ckpt must be a run folder or a file; nowhere does not exist"):
        evaluate.check({"ckpt": [pair[0], "nowhere"]})
    with pytest.raises(ConfigError, match="explanations, features and layers need a single network"):
        run_task(explain, tmp_path / "out", f"ckpt=[{','.join(pair)}]")


def test_a_foreign_ensemble_file_is_checked(pair: list[str], tmp_path: Path) -> None:
    run_task(export, tmp_path / "out", f"ckpt=[{','.join(pair)}]", "num_images=1")
    from safetensors.torch import load_file, save_file

    path = tmp_path / "out/ensemble.safetensors"
    with safe_open(path, "pt") as file:
        header = file.metadata()
    record = json.loads(header["alexlab"])
    for change, message in (
        ({"weights": [1]}, "an ensemble of 2 members must have a list of as many weights"),
        ({"weights": [1, "x"]}, "weights must be one positive number per checkpoint"),
        ({"members": [record["members"][0]]}, "an ensemble must have a list of at least 2 members"),
        ({"members": [{}, {}]}, "its record of the run must have config, a dict; got NoneType"),
    ):
        changed = {**header, "alexlab": json.dumps({**record, **change})}
        save_file(load_file(path), tmp_path / "changed.safetensors", changed)
        with pytest.raises(ConfigError, match=message):
            load_checkpoint(str(tmp_path / "changed.safetensors"))


def test_paths_in_a_list_are_taken_as_typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    odd = ["/data/my cats", "/data/été", "/a=b", "/f(x)&g~h", "/data/[1]{2}", "/it's", "2012", "~/mine"]
    for typed in (f"ckpt=[{','.join(odd)}]", f"ckpt=[ {' , '.join(odd)} ]"):
        found = composed(*quote_paths([typed]), name="evaluate").ckpt
        assert found == [*odd[:-1], f"{tmp_path}/mine"]
    assert composed(*quote_paths(["ckpt=['/a,b',\"/c,d\",e]"]), name="evaluate").ckpt == ["/a,b", "/c,d", "e"]
    assert quote_paths(["-m", "ckpt=[a b,c],[d],e[1],f"])[1] == "ckpt=['a b','c'],['d'],'e[1]','f'"
    (tmp_path / "[a,b]").mkdir()
    assert composed(*quote_paths([f"ckpt={tmp_path}/[a,b]"]), name="evaluate").ckpt == f"{tmp_path}/[a,b]"
    config = composed("ckpt=['~/x','y']", name="evaluate")
    expand_paths(config)
    assert config.ckpt == [f"{tmp_path}/x", "y"]


def test_the_paired_interval_of_agresti_and_min() -> None:
    """By hand, with 10, 4 and 26 differences of 1, -1 and 0: half an image is added to each cell of the table."""
    value, low, high = paired_interval(np.repeat([1.0, -1.0, 0.0], [10, 4, 26]))
    b, c, n = 10.5, 4.5, 42
    half = 1.959964 * np.sqrt(((b + c) - (b - c) ** 2 / n) / n**2)
    assert (value, low, high) == pytest.approx((6 / 40, (b - c) / n - half, (b - c) / n + half), rel=1e-6)
    assert paired_interval(np.zeros(100))[1:] == pytest.approx((-0.01922, 0.01922), abs=1e-4)


def test_names_of_members_are_what_distinguishes_their_paths() -> None:
    assert short_names([f"/runs/sweep/{name}/checkpoints/best.ckpt" for name in ("0_a", "1_b")]) == ["0_a", "1_b"]
    assert short_names(["a/best.ckpt", "net.safetensors"]) == ["a/best.ckpt", "net.safetensors"]
    assert short_names(["a/net.safetensors"] * 2) == ["1 of net.safetensors", "2 of net.safetensors"]


def test_the_description_counts_the_networks(pair: list[str]) -> None:
    model: TrainedModel = load_checkpoint([*pair, pair[0]])
    assert model.description == "3 x alexnet, 3 classes"
    assert model.run_dir is None and model.label == ", ".join(str(member.path) for member in model.members)
