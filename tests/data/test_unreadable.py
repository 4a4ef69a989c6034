"""Unreadable images in a run: raised, or skipped and logged."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from alexlab.data.discovery import find_splits
from alexlab.data.image_file import unreadable
from alexlab.data.unreadable import UnreadableLog
from alexlab.errors import DataError, ImageError
from alexlab.records.record import RunRecord
from alexlab.records.saved_predictions import read_predictions
from support.runs import rows, scalars

Train = Callable[..., float | None]


@pytest.fixture
def corrupt(images: Path, tmp_path: Path) -> Path:
    """The test images, of which two training images and one validation image are unreadable."""
    root = tmp_path / "corrupt"
    shutil.copytree(images, root)
    (root / "train/ant/003.png").write_bytes(b"not an image")
    (root / "train/cat/005.png").write_bytes(b"")
    (root / "val/bee/001.png").write_bytes((root / "val/bee/001.png").read_bytes()[:2000])
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_the_error_names_the_file_and_the_remedies_in_one_line(
    train: Train, corrupt: Path, tmp_path: Path, workers: int
) -> None:
    with pytest.raises(DataError) as caught:
        train(f"data.root={corrupt}", f"data.num_workers={workers}")
    text = str(caught.value)
    assert text.startswith(f"cannot read the image {corrupt}/train/")
    remedies = f"data.on_error=skip leaves unreadable images out, and alexlab prepare action=check data.root={corrupt} lists them"
    assert text.endswith(f"; {remedies}")
    assert "\n" not in text
    find_splits(str(corrupt), val_fraction=0.2, test_fraction=0).write_manifest(corrupt / "split.csv")
    with pytest.raises(DataError, match=r"; data.on_error=skip leaves unreadable images out$"):
        train(f"data.root={corrupt / 'split.csv'}", f"data.num_workers={workers}", run_dir=tmp_path / "manifest")
    assert RunRecord(tmp_path / "run").read()["reason"] == f"ImageError: {text}"


def test_the_error_of_a_rank_is_raised_unchanged(train: Train, corrupt: Path) -> None:
    with pytest.raises(ImageError, match=rf"^cannot read the image {corrupt}/train/\w+/\d+.png: it"):
        train(f"data.root={corrupt}", "trainer.devices=2")


def test_skipped_images_are_logged_and_the_rest_is_evaluated(
    train: Train, corrupt: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    options = (f"data.root={corrupt}", "data.on_error=skip", "model.dropout=0", "optimizer=sgd", "trainer.max_epochs=2")
    train(*options, run_dir=tmp_path / "one")
    train(*options, "data.num_workers=2", run_dir=tmp_path / "workers")
    train(*options, "trainer.devices=2", run_dir=tmp_path / "two")
    expected = {
        f"{corrupt}/train/ant/003.png": "unknown_format",
        f"{corrupt}/train/cat/005.png": "empty",
        f"{corrupt}/val/bee/001.png": "truncated",
    }
    for name in ("one", "workers", "two"):
        assert {row["path"]: row["code"] for row in rows(tmp_path / name / "skipped.csv")} == expected
        kept = read_predictions(tmp_path / name, "val")
        assert kept is not None and len(kept) == 10 and "val/bee/001.png" not in kept.paths
    one, two = scalars(tmp_path / "one"), scalars(tmp_path / "two")
    for score in ("train/loss", "val/loss", "val/top1"):
        assert one[score] == pytest.approx(two[score], rel=1e-4), score
    assert one["val/top1"][0] * 10 == pytest.approx(round(one["val/top1"][0] * 10)), (
        "a multiple of a tenth, as of ten images"
    )
    printed = capfd.readouterr().out
    assert printed.count("3 unreadable images were skipped") == 3
    assert "│     10 │" in printed


def test_skipping_gives_the_scores_of_a_folder_without_the_images(
    train: Train, images: Path, corrupt: Path, tmp_path: Path
) -> None:
    train(f"data.root={corrupt}", "data.on_error=skip", "optimizer.lr=0.0", run_dir=tmp_path / "skipped")
    clean = tmp_path / "clean"
    shutil.copytree(images, clean)
    (clean / "val/bee/001.png").unlink()
    train(f"data.root={clean}", "optimizer.lr=0.0", run_dir=tmp_path / "removed")
    assert scalars(tmp_path / "skipped")["val/loss"] == pytest.approx(
        scalars(tmp_path / "removed")["val/loss"], rel=1e-6
    )


def test_a_batch_without_readable_images_is_skipped(train: Train, corrupt: Path, tmp_path: Path) -> None:
    for path in sorted((corrupt / "train").rglob("*.png"))[3:]:
        path.write_bytes(b"x")
    train(f"data.root={corrupt}", "data.on_error=skip", "data.batch_size=2", "model.norm=batch")
    assert len(rows(tmp_path / "run/skipped.csv")) == 22
    state = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.isfinite(value).all() for value in state.values())


@pytest.mark.parametrize("overrides", [("augmentation=mixup",), ("model.norm=batch", "model.norm_layers=[6]")])
def test_batches_with_one_or_no_readable_image_train(
    train: Train, corrupt: Path, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    """Mixing needs as many labels as images, and a batch norm of a linear layer two images."""
    for path in sorted((corrupt / "train").rglob("*.png"))[5:]:
        path.write_bytes(b"x")
    train(*overrides, f"data.root={corrupt}", "data.on_error=skip", "data.batch_size=2", "trainer.max_epochs=2")
    state = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.isfinite(value).all() for value in state.values())


def test_the_log_of_a_run_without_validation_has_its_header(train: Train, corrupt: Path, tmp_path: Path) -> None:
    train(f"data.root={corrupt}", "data.on_error=skip", "trainer.limit_val_batches=0", "data.num_workers=2")
    assert {*rows(tmp_path / "run/skipped.csv")[0]} == {"path", "code", "reason"}


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_readable_images_is_an_error(train: Train, corrupt: Path, split: str) -> None:
    for path in (corrupt / split).rglob("*.png"):
        path.write_bytes(b"x")
    with pytest.raises(DataError, match=f"at least one image of the {split} split must be readable"):
        train(f"data.root={corrupt}", "data.on_error=skip")


def test_mixup_preview_and_statistics_skip_unreadable_images(train: Train, corrupt: Path, tmp_path: Path) -> None:
    train(
        f"data.root={corrupt}", "data.on_error=skip", "augmentation=mixup_cutmix", "data.preview=24", "data.mean=null"
    )
    assert (tmp_path / "run/preview.png").is_file()
    assert '"num_images": 22' in (tmp_path / "run/statistics.json").read_text()
    with pytest.raises(DataError, match="cannot read the image"):
        train(f"data.root={corrupt}", "data.mean=null", run_dir=tmp_path / "raised")


def test_a_file_that_disappears_during_training_is_skipped(train: Train, corrupt: Path, tmp_path: Path) -> None:
    from alexlab.data.dataset import ImageDataset

    for name in ("train/ant/003.png", "train/cat/005.png", "val/bee/001.png"):
        shutil.copy(corrupt / "train/bee/000.png", corrupt / name)
    gone = corrupt / "train/bee/004.png"
    read = ImageDataset.__getitem__

    def vanishing(self: ImageDataset, index: int) -> object:
        gone.unlink(missing_ok=True)
        return read(self, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageDataset, "__getitem__", vanishing)
        train(f"data.root={corrupt}", "data.on_error=skip")
        assert [row["code"] for row in rows(tmp_path / "run/skipped.csv")] == ["missing"]


def test_the_log_has_each_image_once(tmp_path: Path) -> None:
    for _ in range(2):
        log = UnreadableLog(tmp_path / "skipped.csv")
        for name in ("b,1.png", "a\udcff.png", "b,1.png"):
            log.add(unreadable(name, "empty"))
    assert UnreadableLog(tmp_path / "skipped.csv").finish() == 2
    assert UnreadableLog(tmp_path / "skipped.csv").finish() == 2
    assert [row["path"] for row in rows(tmp_path / "skipped.csv")] == ["a\\xff.png", "b,1.png"]
    assert UnreadableLog(tmp_path / "none.csv").finish() == 0
