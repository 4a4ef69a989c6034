import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.version import getbase
from torchvision import models

from alexlab.errors import ConfigError
from alexlab.inference.checkpoint import load_checkpoint
from alexlab.records.record import RunRecord
from support.images import write_images


def test_a_run_folder_and_its_best_checkpoint_are_the_same_model(trained_run: Path) -> None:
    by_folder, by_file = load_checkpoint(str(trained_run)), load_checkpoint(str(trained_run / "checkpoints/best.ckpt"))
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(by_folder.inference(images), by_file.inference(images))
    assert by_folder.classes == by_folder.names == ["ant", "bee", "cat"]
    assert by_folder.run_dir == trained_run
    assert by_folder.best["top1"] == RunRecord(trained_run).read()["best"]["top1"]
    assert by_folder.description == "alexnet, 3 classes"
    assert not by_folder.inference.training


def test_a_checkpoint_outside_a_run_folder_is_sufficient(trained_run: Path, tmp_path: Path) -> None:
    shutil.copy(trained_run / "checkpoints/last.ckpt", tmp_path / "mine.ckpt")
    model = load_checkpoint(str(tmp_path / "mine.ckpt"))
    assert model.run_dir is None and model.classes == ["ant", "bee", "cat"]
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    shutil.copy(trained_run / "checkpoints/last.ckpt", tmp_path / "run/checkpoints/last.ckpt")
    assert load_checkpoint(str(tmp_path / "run")).path.name == "last.ckpt", "for a run without a validation"


def test_a_network_with_one_logit_gives_two_probabilities(train: Callable[..., float | None], tmp_path: Path) -> None:
    root = write_images(tmp_path / "two", {"a": 10, "b": 10})
    train("loss=binary_cross_entropy", f"data.root={root}")
    inference = load_checkpoint(str(tmp_path / "run")).inference
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        logit = inference.net(inference.normalize(images))
        assert logit.shape == (2, 1)
        assert torch.allclose(inference.probs(images)[:, 1:], logit.sigmoid())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_torchvision_state_dict_is_loaded_without_a_config(suffix: str, tmp_path: Path) -> None:
    net = models.alexnet().eval()
    file = tmp_path / f"alexnet{suffix}"
    if suffix == ".pth":
        torch.save(net.state_dict(), file)
    else:
        from safetensors.torch import save_file

        save_file(net.state_dict(), file)
    model = load_checkpoint(str(file))
    assert len(model.classes) == 1000 and model.classes[0] == "tench"
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.allclose(model.inference(images), net(model.inference.normalize(images)), atol=1e-5)
    mean = model.inference.mean.flatten() / 255
    assert mean.tolist() == pytest.approx([0.485, 0.456, 0.406])
    names = {f"n{number:08d}": f"thing {number}" for number in range(1000)}
    (tmp_path / "names.json").write_text(json.dumps(names))
    (tmp_path / "app.yaml").write_text("key: value\nhydra: {job: {name: app}}")
    with initialize_config_dir(str(tmp_path), version_base="1.2"):  # another program that uses Hydra
        named = load_checkpoint(str(file), class_names=str(tmp_path / "names.json"))
        assert compose("app") == {"key": "value"} and str(getbase()) == "1.2"
    assert (named.classes[7], named.names[7]) == ("n00000007", "thing 7"), (
        "classes are the sorted folder names of ImageNet"
    )


@pytest.mark.parametrize(
    ("keys", "classes"),
    [
        ("c a b", "a b c"),
        ("2 10 0 1 3 4 5 6 7 8 9", "0 1 2 3 4 5 6 7 8 9 10"),
        ("1 2 3 4 5 6 7 8 9 10 11", "1 10 11 2 3 4 5 6 7 8 9"),
    ],
    ids=["names", "numbers of classes", "folders"],
)
def test_a_state_dict_with_other_classes_needs_class_names(keys: str, classes: str, tmp_path: Path) -> None:
    count = len(keys.split())
    torch.save(models.alexnet(num_classes=count).state_dict(), tmp_path / "net.pth")
    with pytest.raises(
        ConfigError, match=rf"does not name its {count} classes; class_names=FILE.json must have one key per"
    ):
        load_checkpoint(str(tmp_path / "net.pth"))
    (tmp_path / "names.json").write_text(json.dumps({key: f"the {key}" for key in keys.split()}))
    model = load_checkpoint(str(tmp_path / "net.pth"), class_names=str(tmp_path / "names.json"))
    assert (model.classes, model.names) == (classes.split(), [f"the {name}" for name in classes.split()])


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("executed",))


def test_error_messages_for_files_that_are_not_trained_models(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "corrupt.ckpt").write_bytes((trained_run / "checkpoints/best.ckpt").read_bytes()[:-500])
    (tmp_path / "evil.ckpt").write_bytes(pickle.dumps({"state_dict": Evil()}))
    torch.save({"number": 1}, tmp_path / "plain.pth")
    torch.save(models.resnet18(num_classes=1000).state_dict(), tmp_path / "resnet.pth")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "vector.pth")
    wide = models.alexnet()
    wide.features[8], wide.features[10] = torch.nn.Conv2d(384, 384, 3), torch.nn.Conv2d(384, 256, 3)
    torch.save(wide.state_dict(), tmp_path / "wide.pth")
    other = torch.load(trained_run / "checkpoints/best.ckpt", weights_only=True)
    other["alexlab"]["config"]["model"]["fc_widths"] = [17]
    torch.save(other, tmp_path / "other.ckpt")
    for name, message in {
        "nothing.ckpt": "ckpt must be a run folder, the folder of a sweep, a checkpoint, an exported .safetensors file, or",
        "empty": r"the folder .*/empty has no checkpoints/best.ckpt",
        "corrupt.ckpt": r"cannot read the weights in .*/corrupt.ckpt: ",
        "evil.ckpt": r"cannot read the weights in .*/evil.ckpt: ",
        "plain.pth": r"/plain.pth must contain a state dict: it contains no tensors by name",
        "resnet.pth": r"resnet.pth does not fit the net in any layer",
        "vector.pth": r"ckpt must be a run folder.*; got .*/vector.pth",
        "wide.pth": r"in .*/wide.pth these tensors do not fit: features.conv4 \(384 x 384 x 3 x 3 -> 256 x 384 x 3 x 3\), "
        r"features.conv5",
        "other.ckpt": r"the weights of .*/other.ckpt do not fit the net of its config: .*size mismatch",
    }.items():
        with pytest.raises(ConfigError, match=message) as caught:
            load_checkpoint(str(tmp_path / name))
        assert "\n" not in str(caught.value)
    assert "executed" not in capsys.readouterr().out
    with pytest.raises(ConfigError, match="device must be auto, cpu or cuda; got 'tpu'"):
        load_checkpoint(str(trained_run), device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="device=cuda needs a GPU, but none is available"):
            load_checkpoint(str(trained_run), device="cuda")


def test_display_names_are_stored_in_the_checkpoint(train: Callable[..., float | None], tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text('{"ant": "Ameise", "cat": "Katze", "dog": "Hund"}')
    train(f"class_names={tmp_path / 'names.json'}")
    (tmp_path / "names.json").unlink()
    assert load_checkpoint(str(tmp_path / "run")).names == ["Ameise", "bee", "Katze"]
    (tmp_path / "names.json").write_text('{"dog": "Hund"}')
    with pytest.raises(ConfigError, match="class_names must name at least one of the classes ant, bee, cat"):
        train(f"class_names={tmp_path / 'names.json'}", run_dir=tmp_path / "other")
