"""What makes a run faster changes no result beyond rounding: layouts, the fused optimizer, memory that is kept, processes
that start early."""

import multiprocessing
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alexlab.config import build
from alexlab.data.datamodule import ImageDataModule, collate
from alexlab.data.samplers import SeededDataset
from alexlab.distributed import hardware
from alexlab.distributed.launch import Limits, launch
from alexlab.runs.safe_load import load_file
from alexlab.training import module as classifier
from alexlab.training.module import Classifier
from alexlab.training.preprocessing import normalize
from support.runs import TINY, plain, rows

Train = Callable[..., float | None]
SGD = ("optimizer=sgd", "optimizer.lr=0.01", "callbacks=[default]")
LIMITS = Limits(timeout_s=60.0, shutdown_s=2)


def plainly(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return (images.float() - mean) / std


@pytest.fixture
def plain_way(monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[str, ...]]:
    """Switches to NCHW, the optimizer's loop and the plain normalisation; gives the words that go with them."""

    def switch() -> tuple[str, ...]:
        made = build.classifier

        def contiguous(*args: Any, **keywords: Any) -> Classifier:
            found = made(*args, **keywords)
            found.net.to(memory_format=torch.contiguous_format)
            return found

        monkeypatch.setattr(build, "classifier", contiguous)
        monkeypatch.setattr(classifier, "normalize", plainly)
        return ("optimizer.fused=false",)

    return switch


@pytest.mark.parametrize("norm", ["none", "batch", "lrn"])
def test_the_first_losses_are_those_of_the_plain_way(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain_way: Callable[[], tuple[str, ...]], norm: str
) -> None:
    """Six steps with dropout and augmentation, within 1e-4 of the loss; in bfloat16, of 8 bits, two steps within 1e-2, and the
    mean of the six within 5e-2: batch norm over 8 images makes differences grow fast."""
    losses: dict[str, list[float]] = {}
    step = Classifier.training_step

    def recorded(name: str) -> Callable[..., Tensor]:
        def training_step(module: Classifier, batch: Any, batch_idx: int) -> Tensor:
            loss = step(module, batch, batch_idx)
            losses.setdefault(name, []).append(loss.item())
            return loss

        return training_step

    words = (*SGD, f"model.norm={norm}", "model.widths=[8,16,16,16,16]", "trainer.max_epochs=2")
    monkeypatch.setattr(Classifier, "training_step", recorded("ours"))
    train(*words, run_dir=tmp_path / "ours")
    own = load_file(tmp_path / "ours/checkpoints/last.ckpt")["state_dict"]
    assert own["net.features.conv2.weight"].is_contiguous(memory_format=torch.channels_last)
    assert not own["net.features.conv2.weight"].is_contiguous()

    monkeypatch.setattr(Classifier, "training_step", recorded("plain"))
    train(*words, *plain_way(), run_dir=tmp_path / "plain")
    other = load_file(tmp_path / "plain/checkpoints/last.ckpt")["state_dict"]
    assert other["net.features.conv2.weight"].is_contiguous()
    assert len(losses["ours"]) == 6
    assert losses["ours"] == pytest.approx(losses["plain"], rel=1e-4)

    monkeypatch.setattr(Classifier, "training_step", recorded("bfloat16"))
    train(*words, "trainer.precision=bf16-mixed", run_dir=tmp_path / "bfloat16")
    assert losses["bfloat16"][:2] == pytest.approx(losses["plain"][:2], rel=1e-2)
    assert sum(losses["bfloat16"]) == pytest.approx(sum(losses["plain"]), rel=5e-2)
    assert losses["bfloat16"] != pytest.approx(losses["plain"], rel=1e-4)


def test_the_accuracy_on_digits_is_that_of_the_plain_way(
    tmp_path: Path, plain_way: Callable[[], tuple[str, ...]]
) -> None:
    """Two seeds, three epochs: the means differ by less than the seeds do."""
    from alexlab.tasks.train import run

    def tops(name: str, *words: str) -> list[float]:
        found = []
        for seed in (1, 2):
            run_dir = tmp_path / f"{name}{seed}"
            run_dir.mkdir()
            config = plain(
                f"data.root={tmp_path / 'digits'}",
                f"data.cache_dir={tmp_path / 'cache'}",
                "data.image_size=64",
                "model.width=0.5",
                "trainer.max_epochs=3",
                "trainer.accelerator=cpu",
                f"seed={seed}",
                *words,
            )
            run(config, run_dir=run_dir, choices={})
            found.append(float(rows(run_dir / "metrics.csv")[-1]["val/top1"]))
        return found

    ours = tops("ours", "trainer.precision=32-true")
    bfloat16 = tops("bfloat16", "trainer.precision=bf16-mixed")
    other = tops("plain", "trainer.precision=32-true", *plain_way())
    assert min(ours + bfloat16) > 0.5
    assert ours != bfloat16
    spread = max(0.02, abs(ours[0] - ours[1]))
    assert abs(sum(ours) - sum(other)) / 2 <= spread
    assert abs(sum(bfloat16) - sum(other)) / 2 <= spread


def test_the_optimizers_state_is_laid_out_as_the_weights(train: Train, tmp_path: Path) -> None:
    """A fused step reads both by their place in memory: a checkpoint of weights that lay otherwise must not mix them up."""
    train(*SGD, "trainer.max_epochs=3", run_dir=tmp_path / "whole")
    expected = load_file(tmp_path / "whole/checkpoints/last.ckpt")["state_dict"]
    train(*SGD, "trainer.max_epochs=1", "scheduler=constant", run_dir=tmp_path / "part")
    last = tmp_path / "part/checkpoints/last.ckpt"
    content = load_file(last)
    moved = 0
    for state in content["optimizer_states"][0]["state"].values():
        for name, value in state.items():
            if value is not None and value.dim() == 4:
                state[name] = value.contiguous()
                moved += value.stride() != state[name].stride()
    assert moved >= 4
    last.unlink()
    torch.save(content, last)
    train(*SGD, "trainer.max_epochs=3", run_dir=tmp_path / "part", resumed=True)
    found = load_file(last)["state_dict"]
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_gradients_are_laid_out_as_the_weights(images: Path, tmp_path: Path, num_ranks: int) -> None:
    """In the buckets that ranks exchange too."""

    def task() -> list[str]:
        wrong: list[str] = []

        class Looks(Classifier):
            def on_before_optimizer_step(self, optimizer: Any) -> None:
                for name, parameter in self.net.named_parameters():
                    assert parameter.grad is not None
                    if parameter.grad.stride() != parameter.stride():
                        wrong.append(name)

        words = (*TINY, *SGD, f"data.root={images}", f"data.cache_dir={tmp_path / 'cache'}", "trainer.max_epochs=1")
        config = plain(*words, f"trainer.devices={num_ranks}")
        config["callbacks"], config["logger"] = {}, {}
        splits = build.data(config).find_splits()
        module = build.classifier(config, splits)
        module.__class__ = Looks
        trainer = build.trainer(config, tmp_path, num_ranks=num_ranks)
        trainer.fit(module, datamodule=build.datamodule(config, splits))
        assert trainer.global_step == 3
        return wrong

    assert launch(task, num_ranks=num_ranks, isolated=True, limits=LIMITS) == []


def test_normalised_images_are_those_of_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, std = torch.tensor([120.0, 110.0, 100.0]).view(1, 3, 1, 1), torch.tensor([60.0, 61.0, 62.0]).view(1, 3, 1, 1)
    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8, generator=generator)
    for each in (images, images.contiguous(memory_format=torch.channels_last)):
        before = each.clone()
        found = normalize(each, mean, std)
        assert torch.equal(found, plainly(images, mean, std))
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(each, before)
    grey = normalize(images[:, :1], mean[:, :1], std[:, :1])
    assert torch.equal(grey, plainly(images[:, :1], mean[:, :1], std[:, :1]))


def test_a_batch_lies_as_its_images_do() -> None:
    row_by_row = [(torch.arange(60, dtype=torch.uint8).view(4, 5, 3).permute(2, 0, 1), label) for label in (3, 4)]
    plane_by_plane = [(image.contiguous(), label) for image, label in row_by_row]
    for items, layout in ((row_by_row, torch.channels_last), (plane_by_plane, torch.contiguous_format)):
        images, labels = collate(items)
        assert images.is_contiguous(memory_format=layout)
        assert torch.equal(images, torch.stack([image for image, _ in items]))
        assert labels.tolist() == [3, 4]
    views = [(torch.stack([image, image]), label) for image, label in row_by_row]
    assert collate(views)[0].shape == (2, 2, 3, 4, 5)


def test_a_batch_of_items_has_the_draws_of_each_item() -> None:
    class Draws:
        def __len__(self) -> int:
            return 9

        def __getitem__(self, index: int) -> tuple[Any, int]:
            return torch.rand(3), index

    items = SeededDataset(Draws(), seed=3)
    before = torch.get_rng_state()
    whole = items.__getitems__([(1, 4), (0, 4), (1, 5)])
    assert torch.equal(torch.get_rng_state(), before)
    for key, (values, index) in zip([(1, 4), (0, 4), (1, 5)], whole, strict=True):
        alone, same = items[key]
        assert torch.equal(values, alone)
        assert same == index == key[1]
    assert not torch.equal(whole[0][0], whole[1][0])


def test_memory_that_is_kept_is_not_mapped_again() -> None:
    """Large blocks that are taken and freed again and again: page faults, in a process of its own."""

    def faults(keep: bool) -> int:
        def count() -> int:
            if keep:
                hardware.keep_memory()
            for _ in range(3):
                torch.ones(10_000_000)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(5):
                torch.ones(10_000_000)
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

        found: int = launch(count, num_ranks=1, isolated=True, limits=LIMITS)
        return found

    assert faults(keep=True) < 100


def test_loader_processes_start_before_there_is_a_net(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of both splits; none is started again, and the batches are those of a run without."""
    seen: list[set[int | None]] = []
    made = build.classifier

    def children() -> set[int | None]:
        return {process.pid for process in multiprocessing.active_children()}

    def looked(*args: Any, **keywords: Any) -> Classifier:
        if keywords.get("record"):
            seen.append(children())
        return made(*args, **keywords)

    monkeypatch.setattr(build, "classifier", looked)
    monkeypatch.setattr(Classifier, "on_train_end", lambda module: seen.append(children()), raising=False)
    words = (*SGD, "data.num_workers=2", "trainer.max_epochs=2")
    train(*words, run_dir=tmp_path / "early")
    first, last = seen
    assert len(first) == 4
    assert first == last
    monkeypatch.setattr(ImageDataModule, "start_workers", lambda data: None)
    train(*words, run_dir=tmp_path / "late")
    scores = [[row["train/loss"] for row in rows(tmp_path / name / "metrics.csv")] for name in ("early", "late")]
    assert scores[0] == scores[1]


def test_loader_processes_that_nobody_asked_for_are_ended(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the validation, when the run fails before it; and all of them, when it fails before its first step."""

    def fails(*args: Any) -> None:
        raise ValueError("on purpose")

    for place in ("on_train_batch_start", "configure_optimizers"):
        with monkeypatch.context() as patch:
            patch.setattr(Classifier, place, fails)
            with pytest.raises(ValueError, match="on purpose"):
                train("data.num_workers=2", run_dir=tmp_path / place)
        assert multiprocessing.active_children() == []
