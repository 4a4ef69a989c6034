import importlib.util
import itertools
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from alexlab.config import resolve
from alexlab.distributed import ranks
from alexlab.errors import ConfigError
from alexlab.records.layout import LAST
from alexlab.records.record import RunRecord
from alexlab.records.safe_load import load_file
from support.images import write_images
from support.runs import names, rows, scalars

Train = Callable[..., float | None]


def test_run_folder(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    best = train("trainer.max_epochs=2", "trainer.log_every_n_steps=1", "callbacks.epochs.curves=true")
    folder = tmp_path / "run"
    files = {name for name in names(folder) if not name.startswith("events")}
    assert files == {"checkpoints", "curves.png", "layers.csv", "metrics.csv", "predictions"}
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}

    table = rows(folder / "metrics.csv")
    assert [row["epoch"] for row in table] == ["1", "2"]
    expected = {
        "train/loss",
        "train/top1",
        "train/images_per_s",
        "val/loss",
        "val/top1",
        "val/top5",
        "best/top1",
        "best/top5",
        "best/loss",
    }
    assert expected <= set(table[0])
    assert max(float(row["val/top1"]) for row in table) == pytest.approx(best)

    curves = scalars(folder)
    assert expected | {"train/loss_step", "lr-AdamW", "test/top1", "test/top5", "test/loss"} <= set(curves)
    assert len(curves["train/loss_step"]) == 6
    assert curves["best/top1"][-1] == pytest.approx(best)
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("epoch ")]
    pattern = r"epoch 1/2  train loss \d\.\d+ top1 \d\.\d+  val loss \d\.\d+ top1 \d\.\d+ top5 \d\.\d+  \d+ images/s  \d+\.\d s"
    assert re.fullmatch(pattern, lines[0])
    assert len(lines) == 2
    assert re.search(r"conv1 +│ Conv2d +│ 11 x 11 +│ +4 │ .*4 x 15 x 15", caplog.text), "the table of the layers"
    assert len(rows(folder / "layers.csv")) > 10
    assert "top-5 equals top-3: there are only 3 classes" in caplog.text
    assert "images: train 24, val 11, test 7" in caplog.text

    printed = capsys.readouterr().out
    assert re.search(r"val +│ +11 │ ", printed)
    assert re.search(r"test +│ +7 │ ", printed)
    assert "tensorboard --logdir" in printed


def test_hparams_contain_the_compared_keys_and_best_scores(train: Train, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.custom_scalar import layout_pb2
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    train("model.width=0.5", "seed=3", "tags=[paper,a]", "note=hello")
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    contents = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = HParamsPluginData.FromString(contents).session_start_info.hparams
    values = {name: value.string_value or value.number_value for name, value in start.items()}
    assert values == {
        "model": "alexnet",
        "optimizer": "adamw",
        "scheduler": "constant",
        "augmentation": "flip_crop",
        "width": 0.5,
        "lr": 0.001,
        "batch_size": 8,
        "devices": "1",
        "seed": 3,
        "tags": "paper, a",
        "note": "hello",
    }
    experiment = HParamsPluginData.FromString(
        events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    ).experiment
    assert [metric.name.tag for metric in experiment.metric_infos] == [
        *("best/top1", "best/top5", "best/loss", "test/top1", "test/top5", "test/loss")
    ]
    end = HParamsPluginData.FromString(events.SummaryMetadata("_hparams_/session_end_info").plugin_data.content)
    assert end.session_end_info.status == 1  # success
    curves = scalars(tmp_path / "run")
    assert "hp_metric" not in curves and set(curves["epoch"]) == {1.0}
    layout = layout_pb2.Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for chart in layout.category[0].chart}
    assert charts["loss"] == ["train/loss$", "val/loss$"] and set(charts) == {"top1", "top5", "loss"}


def test_the_same_seed_gives_the_same_run(train: Train, tmp_path: Path) -> None:
    def losses(name: str, *overrides: str) -> list[str]:
        train("augmentation=trivial", *overrides, run_dir=tmp_path / name)
        return [row["val/loss"] for row in rows(tmp_path / name / "metrics.csv")]

    first = losses("first")
    assert losses("second") == first
    assert losses("workers", "data.num_workers=2") == first
    assert losses("other", "seed=2") != first


def test_an_automatic_split_writes_its_manifest(train: Train, tmp_path: Path) -> None:
    root = write_images(tmp_path / "flat", {"a": 10, "b": 10})
    train(f"data.root={root}")
    table = rows(tmp_path / "run/split.csv")
    assert [sum(row["split"] == name for row in table) for name in ("train", "val")] == [16, 4]


def test_balanced_sampler_and_weights(train: Train, tmp_path: Path) -> None:
    root = write_images(tmp_path / "skewed", {"a": 30, "b": 5})
    assert train(
        f"data.root={root}", "data.sampler=balanced", "loss.class_weights=balanced", "loss.label_smoothing=0.1"
    )


STOPS = ("callbacks=early_stopping", "callbacks.early_stopping.min_delta=1.0")


def test_a_resumed_run_remains_stopped_unless_it_gets_longer_or_more_patient(train: Train, tmp_path: Path) -> None:
    for resumed, changes, epochs in (
        (False, ("patience=1", "trainer.max_epochs=9"), 2),
        (True, ("patience=1", "trainer.max_epochs=9"), 2),
        (True, ("patience=3", "trainer.max_epochs=9"), 4),
        (True, ("patience=3", "trainer.max_epochs=10"), 5),
    ):
        train(*STOPS, f"callbacks.early_stopping.{changes[0]}", changes[1], resumed=resumed)
        assert len(rows(tmp_path / "run/metrics.csv")) == epochs, changes


def test_early_stopping_counts_each_value_once(train: Train, tmp_path: Path) -> None:
    def waits(name: str, *overrides: str) -> int:
        train(*STOPS, "callbacks.early_stopping.patience=5", *overrides, run_dir=tmp_path / name)
        states = load_file(tmp_path / name / LAST)["callbacks"]
        return next(state["wait_count"] for key, state in states.items() if key.startswith("EarlyStopping"))

    assert waits("unmeasured", "trainer.max_steps=2") == 0
    assert waits("cut", "trainer.max_epochs=9", "trainer.max_steps=4") == 0
    within = ("trainer.val_check_interval=0.5", "trainer.max_epochs=2", "trainer.max_steps=5")
    assert waits("val", *within) == 4, "validations after steps 1 to 5"
    assert waits("train", *within, "callbacks.early_stopping.monitor=train/loss") == 0


def test_a_resumed_run_adds_its_training_time_and_warns_about_another_precision(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    precision, last = "trainer.precision=32-true", tmp_path / "run" / LAST
    monkeypatch.setattr(resolve, "cpu_has_bfloat16", lambda: False)
    train(without=[precision])
    content = load_file(last)
    assert 0 < content["callbacks"]["RunRecordUpdates"]["train_s"] < 1000
    content["callbacks"]["RunRecordUpdates"]["train_s"] = 1000.0
    torch.save(content, last)
    monkeypatch.setattr(resolve, "cpu_has_bfloat16", lambda: True)
    train("trainer.max_epochs=2", without=[precision], resumed=True)
    record = RunRecord(tmp_path / "run").read()
    assert record["precision"] == "bf16-mixed" and record["scores"]["train_s"] > 1000
    assert "trained with precision 32-true and continues with bf16-mixed" in caplog.text


def test_all_ranks_must_train_in_the_same_precision(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "cpu_has_bfloat16", lambda: ranks.rank() == 0)
    with pytest.raises(ConfigError, match="resolves to bf16-mixed on rank 0 and to 32-true on rank 1: set"):
        train("trainer.devices=2", without=["trainer.precision=32-true"])


def test_an_epoch_without_validation_has_no_scores(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    train("trainer.check_val_every_n_epoch=2", "trainer.max_epochs=3")
    lines = [message for message in caplog.messages if message.startswith("epoch ")]
    assert ["val loss" in line for line in lines] == [False, True, False]
    assert all("train loss" in line for line in lines)
    assert not any(name.startswith(("val/", "best/")) for name in RunRecord(tmp_path / "run").read()["last"])


def test_plateau_schedule_with_warmup(train: Train, tmp_path: Path) -> None:
    train(
        "scheduler=plateau",
        "scheduler.warmup_epochs=1",
        "scheduler.patience=0",
        "scheduler.threshold=1.0",
        "trainer.max_epochs=4",
        "trainer.log_every_n_steps=1",
    )
    rates = scalars(tmp_path / "run")["lr-AdamW"]
    assert rates[0] == pytest.approx(1e-5)
    assert rates[3] == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-5)


def test_debug_fast_writes_nothing(train: Train, tmp_path: Path) -> None:
    train("debug=fast", without=["callbacks.epochs.curves=false"])
    assert names(tmp_path / "run") == set()


def test_debug_overfit_learns_one_batch(train: Train, tmp_path: Path) -> None:
    train("debug=overfit", "trainer.max_epochs=60", "optimizer.lr=3e-3", "model.norm=batch")
    table = rows(tmp_path / "run/metrics.csv")
    assert float(table[-1]["train/loss"]) < 0.02
    assert float(table[-1]["train/top1"]) == 1.0
    assert int(table[-1]["step"]) == 59


def test_debug_profile_writes_a_profile(train: Train, tmp_path: Path) -> None:
    train("debug=profile")
    assert "run_training_batch" in (tmp_path / "run/fit-profile.txt").read_text()


def test_debug_limit(train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    train("debug=limit", "trainer.max_epochs=3", "trainer.limit_train_batches=2")
    assert [row["step"] for row in rows(tmp_path / "run/metrics.csv")] == ["1", "3", "5"]
    overrides = "scores use a fixed sample of 8 of the 11 val images, stratified by class (trainer.limit_val_batches)"
    assert caplog.text.count(overrides) == 1


def test_debug_lr_find_suggests_a_rate(train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    train(
        *("debug=lr_find", "trainer.max_epochs=1000", "callbacks.lr_find.num_steps=30", "callbacks.lr_find.max_lr=0.1"),
        without=["callbacks.epochs.curves=false"],
    )
    table = rows(tmp_path / "run/lr_find.csv")
    assert 10 < len(table) <= 30
    rates = [float(row["lr"]) for row in table]
    assert rates[0] == pytest.approx(1e-5)
    assert all(
        after / before == pytest.approx(1e4 ** (1 / 29), rel=1e-4) for before, after in itertools.pairwise(rates)
    )
    assert (tmp_path / "run/lr_find.png").stat().st_size > 5_000
    assert re.search(r"the loss falls most steeply at optimizer\.lr=\d", caplog.text)
    assert not (tmp_path / "run/checkpoints").exists()


def test_debug_lr_find_measures_the_same_loss_on_any_number_of_devices(train: Train, tmp_path: Path) -> None:
    """Two ranks, each with half of a batch and accumulation, see the loss of one and stop at the same step."""
    options = ("debug=lr_find", "trainer.max_epochs=1000", "callbacks.lr_find.num_steps=20", "model.dropout=0")
    found = []
    for name, more in {
        "one": (),
        "two": ("trainer.devices=2",),
        "accumulated": ("trainer.accumulate_grad_batches=2",),
    }.items():
        train(*options, *more, run_dir=tmp_path / name, without=["callbacks.epochs.curves=false"])
        found.append([float(row["loss"]) for row in rows(tmp_path / name / "lr_find.csv")])
    assert found[1][:5] == pytest.approx(found[0][:5], rel=1e-3)
    assert found[2][0] == pytest.approx(found[0][0], rel=0.2)


def test_validation_on_the_test_split(train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    root = write_images(tmp_path / "d2l", {"train/a": 8, "train/b": 8, "test/a": 3, "test/b": 2})
    train(f"data.root={root}", "data.val_split=test")
    assert "validating on the test split" in caplog.text
    assert "test/top1" not in scalars(tmp_path / "run")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.image_size=40"], "data.image_size=40 is too small for this net: pool5 maps 1 x 1"),
        (
            ["data.batch_size=7", "trainer.devices=2"],
            "data.batch_size is the global batch and must be divisible by trainer.devices x",
        ),
        (["data.batch_size=32"], "data.batch_size must not exceed the 24 training images of"),
        (
            ["+optimizer.momentum=0.9"],
            "optimizer.momentum is not an argument of torch.optim.adamw.AdamW; it takes lr, betas",
        ),
        (
            ["+scheduler.gama=0.9", "scheduler=step"],
            "scheduler.gama is not an argument of alexlab.training.schedules.step; it takes",
        ),
        (["+scheduler.gama=0.9", "scheduler=step"], "did you mean gamma?"),
        (
            ["scheduler=plateau", "scheduler.monitor=val/acc"],
            "scheduler.monitor must be a logged metric: train/loss,",
        ),
        (["callbacks.checkpoint.monitor=acc"], "callbacks.checkpoint.monitor must be a logged metric"),
        (
            ["optimizer=any", "optimizer._target_=torch.optim.Nothing"],
            "optimizer._target_ must name a class or function",
        ),
        (["+data.rot=x"], "data.rot is not an argument of alexlab.data.config.DataConfig; it takes root, image_size"),
        (["+data.pack.quality=9"], "data.pack.quality is not an argument of alexlab.data.cache.pack.PackConfig"),
        (["+data.stream.mx=9"], "data.stream.mx is not an argument of alexlab.data.streaming.index.StreamConfig"),
        (["optimizer.lr=null"], "optimizer.lr must be a number; got null"),
        (["data.batch_size=null"], "data.batch_size must be an integer; got null"),
        (["~optimizer.lr"], "optimizer.lr must be given: optimizer.lr=VALUE"),
        (["optimizer.lr=-1"], "optimizer: Invalid learning rate: -1"),
        (["model.num_classes=7"], "model.num_classes must be null or the 3 classes of the data; got 7"),
        (
            ["trainer.max_epochs=-1"],
            "trainer.max_epochs or trainer.max_steps must be at least 1, since the schedule needs the length",
        ),
        (["scheduler.warmup_epochs=-1"], "scheduler.warmup_epochs must be at least 0; got -1"),
        (["augmentation.train.flip.p=2"], "augmentation.train.flip: "),
        (["+callbacks.mine={patience:1}"], "callbacks.mine must have a _target_"),
    ],
)
def test_error_messages_before_any_work(train: Train, tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        train(*overrides)
    assert names(tmp_path / "run") == set()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_error_message_for_a_missing_logger_package(train: Train, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None if wanted == name else find_spec(wanted))
    with pytest.raises(
        ConfigError,
        match=rf"logger={name} needs the package {name}: run pip install -e '.\[{name}\]' in the repository",
    ):
        train(f"logger=[csv,{name}]")


def test_any_optimizer_of_torch(train: Train, tmp_path: Path) -> None:
    train("optimizer=any", "optimizer._target_=torch.optim.RMSprop", "+optimizer.alpha=0.9")
    state = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]
    assert state["param_groups"][0]["alpha"] == 0.9


def test_the_table_of_a_deep_net_is_written_to_the_file_only(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    train("callbacks.layers.max_layers=2")
    assert "net: 18 layers, listed in layers.csv" in caplog.text
    assert "conv2" not in caplog.text
    assert len(rows(tmp_path / "run/layers.csv")) == 18


def test_null_entries_are_skipped(train: Train, tmp_path: Path) -> None:
    train("augmentation.train.flip=null", "callbacks.layers=null", "logger.csv=null")
    assert not {"layers.csv", "metrics.csv"} & {path.name for path in (tmp_path / "run").iterdir()}


def test_test_views_are_scored_as_well_as_the_centre_crop(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    train("test.views=ten_crop")
    curves = scalars(tmp_path / "run")
    assert {"ten_crop/top1", "ten_crop/top5", "ten_crop/loss", "test/top1"} <= set(curves)
    printed = capsys.readouterr().out
    assert re.search(r"test +│ +7 │ .* same", printed)
    assert re.search(r"test +│ +7 │ .* same, ten_crop", printed)


def test_without_a_test_split_the_views_are_taken_of_val(
    train: Train, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    root = write_images(tmp_path / "flat", {"a": 10, "b": 10})
    train(f"data.root={root}", "test.views=five", "trainer.devices=2")
    assert re.search(r"val +│ +4 │ .* same, five", capfd.readouterr().out)
    with pytest.raises(ConfigError, match=r"test.views must be one of center, five, ten_crop; got 'six'"):
        train("test.views=six")


def test_ten_crops_are_the_mean_of_ten_single_crops(train: Train, images: Path, tmp_path: Path) -> None:
    """Compute the crops by hand: four corners and the centre of the central square, and their mirror images."""
    from torchvision.transforms.v2 import functional as tv

    from alexlab.config import build
    from alexlab.data.dataset import to_tensor
    from alexlab.data.decode import decode
    from alexlab.data.discovery import find_splits

    train("test.views=ten_crop", "trainer.max_epochs=2")
    checkpoint = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    splits = find_splits(str(images), val_fraction=0.2, test_fraction=0.0)
    module = build.classifier(checkpoint["alexlab"]["config"], splits)
    module.load_state_dict(checkpoint["state_dict"])
    module.eval()
    losses = []
    for path, label in zip(splits.test.paths, splits.test.labels, strict=True):
        square = tv.center_crop(tv.resize(to_tensor(decode(images / path)), [73], antialias=True), [73, 73])
        probs = torch.zeros(3)
        for top, left in ((0, 0), (0, 9), (9, 0), (9, 9), (4, 4)):
            crop = tv.crop(square, top, left, 64, 64)
            for view in (crop, crop.flip(-1)):
                probs += module(view[None])[0].softmax(0).detach() / 10
        losses.append(-probs[label].log())
    assert scalars(tmp_path / "run")["ten_crop/loss"] == [pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)]


@pytest.mark.parametrize("recipe", ["alexnet_2012", "alexnet_2012_authors"])
def test_the_recipes_of_2012(recipe: str, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Statistics of the training split are stored in the checkpoint and in a file."""
    options = ("model.widths=[4,8,8,8,8]", "model.fc_widths=[16,16]", "data.image_size=64", "data.batch_size=8")
    train(
        f"experiment={recipe}",
        *options,
        "trainer.max_epochs=1",
        without=("model=alexnet", "data=folder", "scheduler=constant"),
    )
    measured = json.loads((tmp_path / "run/statistics.json").read_text())
    config = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)["alexlab"]["config"]
    noise = config["augmentation"]["train"]["pca"]
    assert noise["eigenvalues"] == measured["eigenvalues"]
    assert noise["eigenvectors"] == measured["eigenvectors"]
    assert noise["mean"] == measured["mean"]
    assert config["data"]["mean"] == [0, 0, 0]
    assert config["data"]["std"] == [1 / 255] * 3
    assert measured["num_images"] == 24
    mean_image = np.load(tmp_path / "run/mean_image.npy")
    assert mean_image.mean((1, 2)) == pytest.approx(measured["mean"], abs=0.05)
    assert "ten_crop" in capsys.readouterr().out


def test_colour_noise_needs_colour_images(train: Train) -> None:
    with pytest.raises(ConfigError, match=r"augmentation.train.pca needs colour images; got model.in_channels=1"):
        train("augmentation=paper2012", "model.in_channels=1")
    with pytest.raises(
        ConfigError, match=r"data.channels must equal model.in_channels=3; got 1: set model.in_channels, "
    ):
        train("data.channels=1")


def test_preview(train: Train, tmp_path: Path) -> None:
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train("data.preview=3", "augmentation=mixup")
    with Image.open(tmp_path / "run/preview.png") as sheet:
        width, height = sheet.size
    assert 2.5 < width / height < 4, "two rows of two images, each with four augmented versions"
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert events.Tags()["images"] == ["augmentation"]
