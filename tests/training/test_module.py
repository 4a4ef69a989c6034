import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from alexlab.config import build, build_data
from alexlab.config.data import data_config
from alexlab.data.dataset import to_tensor
from alexlab.data.decode import decode
from alexlab.errors import NumericError
from alexlab.training.module import CHECKPOINT_KEY, Classifier
from support.runs import TINY, plain, rows, scalars


def test_golden_run(train: Callable[..., float | None], tmp_path: Path) -> None:
    """Refactoring must not change these losses of three epochs on the CPU; the tolerance covers kernels of other CPUs."""
    train(
        "trainer.max_epochs=3",
        "seed=7",
        "optimizer=sgd",
        "optimizer.lr=0.02",
        "model.norm=batch",
        "augmentation=inception",
    )
    found = rows(tmp_path / "run/metrics.csv")
    golden = {
        "train/loss": [1.20677, 0.78278, 0.35486],
        "val/loss": [1.10661, 0.97822, 0.55055],
    }
    for name, expected in golden.items():
        assert [float(row[name]) for row in found] == pytest.approx(expected, rel=1e-3), name


def test_metrics_match_an_evaluation_image_by_image(
    train: Callable[..., float | None], images: Path, tmp_path: Path
) -> None:
    train("trainer.max_epochs=2", "augmentation/eval=squash")
    checkpoint = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    config = checkpoint[CHECKPOINT_KEY]["config"]
    splits = data_config(config).find_splits()
    module = build.classifier(config, splits)
    module.load_state_dict(checkpoint["state_dict"])
    module.eval()
    losses, num_correct = [], 0
    for path, label in zip(splits.val.paths, splits.val.labels, strict=True):
        image = to_tensor(decode(images / path))
        logits = module(F.interpolate(image[None].float(), (64, 64), mode="bilinear", antialias=True).round())
        losses.append(F.cross_entropy(logits, torch.tensor([label])).item())
        num_correct += int(logits.argmax() == label)
    last = rows(tmp_path / "run/metrics.csv")[-1]
    assert float(last["val/top1"]) == pytest.approx(num_correct / 11)
    assert float(last["val/loss"]) == pytest.approx(sum(losses) / 11, rel=1e-3)
    assert float(last["val/top5"]) == 1.0


def test_a_checkpoint_has_a_plain_record_of_its_run(train: Callable[..., float | None], tmp_path: Path) -> None:
    best = train()
    checkpoint = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    record = checkpoint[CHECKPOINT_KEY]
    assert record["classes"] == ["ant", "bee", "cat"]
    assert record["config"]["model"]["widths"] == [4, 8, 8, 8, 8]
    assert record["best"]["top1"] == best
    assert set(record["versions"]) >= {"torch", "lightning"}


def test_images_are_normalized_to_channels_last(images: Path) -> None:
    config = plain(*TINY, f"data.root={images}", "data.mean=[0.0,0.5,1.0]", "data.std=[1.0,0.5,0.25]")
    module = build.classifier(config, data_config(config).find_splits())
    seen: list[torch.Tensor] = []
    module.net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module(torch.full((1, 3, 64, 64), 255, dtype=torch.uint8))
    torch.testing.assert_close(seen[0][0, :, 0, 0], torch.tensor([1.0, 1.0, 0.0]))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_a_non_finite_loss_ends_the_run_and_keeps_the_last_checkpoint(
    train: Callable[..., float | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Classifier.training_step

    def diverging(self: Classifier, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        if self.global_step == 4:
            with torch.no_grad():
                self.net.classifier.fc7.bias.fill_(float("nan"))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", diverging)
    with pytest.raises(NumericError, match=r"the loss must stay finite; it is nan at step 4 \(epoch 2, batch 1\)"):
        train("trainer.max_epochs=3", "callbacks.epochs.curves=true")
    checkpoint = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
    assert (tmp_path / "run/curves.png").stat().st_size > 10_000


@pytest.mark.parametrize("augmentation", ["mixup", "cutmix", "mixup_cutmix"])
def test_mixed_batches_have_probabilities_as_labels(
    train: Callable[..., float | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, augmentation: str
) -> None:
    from alexlab.training.losses import CrossEntropy

    labels: list[torch.Tensor] = []
    forward = CrossEntropy.forward

    def recording(self: CrossEntropy, logits: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        if len(given) == 12:  # not the check before the run
            labels.append(given)
        return forward(self, logits, given)

    monkeypatch.setattr(CrossEntropy, "forward", recording)
    train(f"augmentation={augmentation}", "data.batch_size=12")
    assert len(labels) == 2 and all(given.shape == (12, 3) for given in labels)
    torch.testing.assert_close(labels[0].sum(1), torch.ones(12))
    assert (labels[0].max(1).values < 1).any()


def test_ema_weights_are_validated_saved_and_tested(train: Callable[..., float | None], tmp_path: Path) -> None:
    train("callbacks=[default,ema]", "callbacks.ema.decay=0.5", "trainer.max_epochs=3", "optimizer.lr=0.01")
    checkpoint = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    averaged, current = checkpoint["state_dict"], checkpoint["current_model_state"]
    assert not torch.equal(averaged["net.classifier.fc7.weight"], current["net.classifier.fc7.weight"])

    scores = {}
    for split in ("val", "test"):
        config = copy.deepcopy(checkpoint[CHECKPOINT_KEY]["config"])
        splits = data_config(config).find_splits()
        module = build.classifier(config, splits)
        module.load_state_dict(averaged)
        module.eval()
        data = build_data.datamodule(config, splits)
        files = getattr(splits, split)
        logits = torch.cat(
            [
                module(data.eval_transform(to_tensor(decode(Path(splits.train.root) / path)))[None])
                for path in files.paths
            ]
        )
        scores[split] = F.cross_entropy(logits, torch.tensor(files.labels)).item()
    found = rows(tmp_path / "run/metrics.csv")
    best = max(found, key=lambda row: float(row["val/top1"] or 0))
    assert float(best["val/loss"]) == pytest.approx(scores["val"], rel=1e-4)
    assert scalars(tmp_path / "run")["test/loss"] == pytest.approx([scores["test"]], rel=1e-4)


def test_plateau_counts_validations(train: Callable[..., float | None], tmp_path: Path) -> None:
    """Of three validations in the epoch, the second and the third do not improve by the threshold, so the rate falls twice."""
    plateau = ("scheduler=plateau", "scheduler.patience=0", "scheduler.factor=0.5", "scheduler.threshold=2")
    train(*plateau, "trainer.val_check_interval=0.5", "optimizer=sgd", "optimizer.lr=0.01")
    checkpoint = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0.0025)


def test_grey_nets_train(train: Callable[..., float | None], tmp_path: Path) -> None:
    train("model.in_channels=1")
    checkpoint = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["state_dict"]["net.features.conv1.weight"].shape == (4, 1, 11, 11)
    assert checkpoint["optimizer_states"][0]["state"][0]["exp_avg"].any(), "conv1 has received gradients"
