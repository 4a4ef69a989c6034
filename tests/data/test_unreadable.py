"""Images that cannot be read, in a run: an error at once, or a list and scores of the rest."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from alexlab.data.image_file import unreadable
from alexlab.data.unreadable import UnreadableLog
from alexlab.errors import DataError, ImageError
from support.runs import rows, scalars

Train = Callable[..., float | None]


@pytest.fixture
def damaged(images: Path, tmp_path: Path) -> Path:
    """The images, of which two for training and one for validation cannot be read."""
    root = tmp_path / "damaged"
    shutil.copytree(images, root)
    (root / "train/ant/003.png").write_bytes(b"no picture")
    (root / "train/cat/005.png").write_bytes(b"")
    (root / "val/bee/001.png").write_bytes((root / "val/bee/001.png").read_bytes()[:2000])
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_raise_names_the_file_in_one_sentence(train: Train, damaged: Path, workers: int) -> None:
    with pytest.raises(DataError) as caught:
        train(f"data.root={damaged}", f"data.num_workers={workers}")
    text = str(caught.value)
    assert text.startswith(f"cannot read the image {damaged}/train/")
    assert "\n" not in text


def test_raise_on_two_ranks_is_heard_as_it_is(train: Train, damaged: Path) -> None:
    with pytest.raises(ImageError, match=rf"^cannot read the image {damaged}/train/\w+/\d+.png: it"):
        train(f"data.root={damaged}", "trainer.devices=2")


def test_skip_lists_them_and_scores_the_rest(
    train: Train, damaged: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    options = (f"data.root={damaged}", "data.on_error=skip", "model.dropout=0", "optimizer=sgd", "trainer.max_epochs=2")
    train(*options, run_dir=tmp_path / "one")
    train(*options, "data.num_workers=2", run_dir=tmp_path / "workers")
    train(*options, "trainer.devices=2", run_dir=tmp_path / "two")
    expected = {
        f"{damaged}/train/ant/003.png": "unknown_format",
        f"{damaged}/train/cat/005.png": "empty",
        f"{damaged}/val/bee/001.png": "truncated",
    }
    for name in ("one", "workers", "two"):
        assert {row["path"]: row["code"] for row in rows(tmp_path / name / "skipped.csv")} == expected
    one, two = scalars(tmp_path / "one"), scalars(tmp_path / "two")
    for score in ("train/loss", "val/loss", "val/top1"):
        assert one[score] == pytest.approx(two[score], rel=1e-4), score
    assert one["val/top1"][0] * 10 == pytest.approx(round(one["val/top1"][0] * 10)), "of ten images"
    printed = capfd.readouterr().out
    assert printed.count("3 images could not be read and were left out") == 3
    assert "│     10 │" in printed


def test_skip_is_the_run_without_these_images(train: Train, images: Path, damaged: Path, tmp_path: Path) -> None:
    """The scores of the validation split are those of a folder in which the file is not."""
    train(f"data.root={damaged}", "data.on_error=skip", "optimizer.lr=0.0", run_dir=tmp_path / "skipped")
    clean = tmp_path / "clean"
    shutil.copytree(images, clean)
    (clean / "val/bee/001.png").unlink()
    train(f"data.root={clean}", "optimizer.lr=0.0", run_dir=tmp_path / "gone")
    assert scalars(tmp_path / "skipped")["val/loss"] == pytest.approx(scalars(tmp_path / "gone")["val/loss"], rel=1e-6)


def test_a_batch_of_which_nothing_can_be_read(train: Train, damaged: Path, tmp_path: Path) -> None:
    for path in sorted((damaged / "train").rglob("*.png"))[3:]:
        path.write_bytes(b"x")
    train(f"data.root={damaged}", "data.on_error=skip", "data.batch_size=2", "model.norm=batch")
    assert len(rows(tmp_path / "run/skipped.csv")) == 22
    state = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.isfinite(value).all() for value in state.values())


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_of_which_nothing_can_be_read(train: Train, damaged: Path, split: str) -> None:
    for path in (damaged / split).rglob("*.png"):
        path.write_bytes(b"x")
    with pytest.raises(DataError, match=f"no image of the {split} split could be read"):
        train(f"data.root={damaged}", "data.on_error=skip")


def test_mixing_and_preview_and_statistics_go_on_too(train: Train, damaged: Path, tmp_path: Path) -> None:
    train(
        f"data.root={damaged}", "data.on_error=skip", "augmentation=mixup_cutmix", "data.preview=24", "data.mean=null"
    )
    assert (tmp_path / "run/preview.png").is_file()
    assert '"num_images": 22' in (tmp_path / "run/statistics.json").read_text()
    with pytest.raises(DataError, match="cannot read the image"):
        train(f"data.root={damaged}", "data.mean=null", run_dir=tmp_path / "raised")


def test_a_file_that_disappears_during_training(train: Train, damaged: Path, tmp_path: Path) -> None:
    from alexlab.data.dataset import ImageDataset

    for name in ("train/ant/003.png", "train/cat/005.png", "val/bee/001.png"):
        shutil.copy(damaged / "train/bee/000.png", damaged / name)
    gone = damaged / "train/bee/004.png"
    read = ImageDataset.__getitem__

    def vanishing(self: ImageDataset, index: int) -> object:
        gone.unlink(missing_ok=True)
        return read(self, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageDataset, "__getitem__", vanishing)
        train(f"data.root={damaged}", "data.on_error=skip")
        assert [row["code"] for row in rows(tmp_path / "run/skipped.csv")] == ["missing"]


def test_the_list_has_each_image_once(tmp_path: Path) -> None:
    for _ in range(2):
        skipped = UnreadableLog(tmp_path / "skipped.csv")
        for name in ("b,1.png", "a\udcff.png", "b,1.png"):
            skipped.add(unreadable(name, "empty"))
    assert UnreadableLog(tmp_path / "skipped.csv").finish() == 2
    assert UnreadableLog(tmp_path / "skipped.csv").finish() == 2
    assert [row["path"] for row in rows(tmp_path / "skipped.csv")] == ["a\\xff.png", "b,1.png"]
    assert UnreadableLog(tmp_path / "none.csv").finish() == 0
