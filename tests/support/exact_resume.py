"""Recording of all checkpoints of a run, and comparison of the checkpoints of two runs."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alexlab.training import checkpoint_io
from alexlab.training.callbacks import checkpoint

Train = Callable[..., float | None]

EPOCHS, STEPS = 2, 6  # an epoch has 24 images in batches of 4
BASE = (
    "data.batch_size=4",
    f"trainer.max_epochs={EPOCHS}",
    "callbacks.checkpoint.every_n_steps=1",
)
# The first validation is the best; the second one ends the run.
STOPS = (
    "callbacks=[default,early_stopping]",
    "callbacks.early_stopping.patience=1",
    "callbacks.early_stopping.min_delta=1.0",
)
RECIPES = {
    "mixup": ("scheduler=cosine", "augmentation=mixup", "optimizer=sgd"),
    "accumulated": ("trainer.accumulate_grad_batches=2", "scheduler=cosine", "optimizer=sgd"),
    "ema and norms": ("callbacks=[default,ema]", "model.norm=batch", "callbacks.ema.decay=0.9"),
    "finetune and norms": (
        *("callbacks=[default,finetune]", "callbacks.finetune.unfreeze_epoch=1", "model.norm=batch", "optimizer=sgd"),
    ),
    "warm-up and plateau": (
        "scheduler=plateau",
        "scheduler.patience=0",
        "scheduler.warmup_epochs=1",
        "scheduler.factor=0.5",
    ),
    "scheduler of PyTorch, by step": (
        *("scheduler=any", "scheduler._target_=torch.optim.lr_scheduler.CyclicLR", "scheduler.interval=step"),
        *("+scheduler.base_lr=0.001", "+scheduler.max_lr=0.1", "+scheduler.step_size_up=4", "optimizer=sgd"),
    ),
    "scheduler of PyTorch, by epoch": (
        *(
            "scheduler=any",
            "scheduler._target_=torch.optim.lr_scheduler.CosineAnnealingWarmRestarts",
            "+scheduler.T_0=2",
        ),
    ),
    "scheduler of PyTorch, by metric": (
        *("scheduler=any", "scheduler._target_=torch.optim.lr_scheduler.ReduceLROnPlateau", "+scheduler.patience=0"),
        "scheduler.monitor=val/loss",
    ),
    "last validation before the end of an epoch": (
        *("trainer.val_check_interval=0.7", "scheduler=plateau", "scheduler.patience=0"),
    ),
    "validation within an epoch": ("trainer.val_check_interval=0.5", "scheduler=plateau", "scheduler.patience=0"),
    "validation every second epoch": ("trainer.check_val_every_n_epoch=2", "scheduler=plateau", "scheduler.patience=0"),
    # Every third of twelve batches: in the first and the third case between the batches of a step.
    "validation within an epoch, accumulated": ("trainer.val_check_interval=0.25", "trainer.accumulate_grad_batches=2"),
    "packed, two workers": ("data.cache=packed", "data.num_workers=2", "scheduler=one_cycle"),
    "overfit three batches": ("trainer.overfit_batches=3", "optimizer=sgd"),
    "shards, two workers": (
        *(
            "data.root=null",
            "+data.url={shards}",
            "+data.stream={{shuffle_shards: 2, prefetch_shards: 1}}",
            "data.num_workers=2",
        ),
        "scheduler=cosine",
    ),
    "a number of steps": (
        *(f"trainer.max_steps={EPOCHS * STEPS}", "trainer.max_epochs=10", "scheduler=cosine"),
        "callbacks=[default,early_stopping]",
    ),
    "early stopping": (*STOPS, "trainer.max_epochs=4"),
    "early stopping before min_epochs": (
        *(*STOPS, "trainer.max_epochs=4", "trainer.min_epochs=2", "trainer.val_check_interval=0.5"),
    ),
    "balanced": ("data.sampler=balanced", "callbacks=[default,early_stopping]"),
}


class RecordedRun:
    """Run that keeps every version of its `last.ckpt` as `<step>.ckpt`."""

    def __init__(self, train: Train, folder: Path) -> None:
        self.train, self.folder = train, folder

    def __call__(self, *overrides: str, name: str, begin: Path | None = None) -> Path:
        """Train, from the checkpoint `begin` if given, and return the folder of the recorded checkpoints."""
        kept = self.folder / f"{name}_kept"
        kept.mkdir()
        run_dir = self.folder / name
        (run_dir / "checkpoints").mkdir(parents=True)
        if begin is not None:
            shutil.copy(begin, run_dir / "checkpoints/last.ckpt")
            first = self.folder / begin.parent.name.removesuffix("_kept") / "checkpoints"
            best = (begin.parent if begin.name == "last.ckpt" else first) / "best.ckpt"
            if best.exists():
                shutil.copy(best, run_dir / "checkpoints/best.ckpt")
        write, link = checkpoint_io.write_atomic, checkpoint._hard_link

        def keep(path: Path) -> None:
            if path.name == "last.ckpt":
                step = torch.load(path, weights_only=True)["global_step"]
                shutil.copy(path, kept / f"{step:03d}.ckpt")

        def recorded_write(path: Path, content: Any, **size: int) -> None:
            write(path, content, **size)
            keep(path)

        def recorded_link(source: Path, target: Path) -> None:
            link(source, target)
            keep(target)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint_io, "write_atomic", recorded_write)
            patch.setattr(checkpoint, "_hard_link", recorded_link)
            self.train(*BASE, *overrides, run_dir=run_dir, resumed=begin is not None)
        return kept


def difference(one: Any, other: Any, where: str = "") -> str | None:
    """Return the path of the first difference between two checkpoints, or None."""
    if isinstance(one, torch.Tensor):
        return None if torch.equal(one, other) else where
    if isinstance(one, dict):
        if list(one) != list(other):
            return f"{where}: {list(one)} != {list(other)}"
        return next(filter(None, (difference(one[key], other[key], f"{where}.{key}") for key in one)), None)
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return f"{where}: {len(one)} != {len(other)} entries"
        pairs = enumerate(zip(one, other, strict=True))
        return next(filter(None, (difference(a, b, f"{where}[{index}]") for index, (a, b) in pairs)), None)
    return None if one == other or one != one else f"{where}: {one!r} != {other!r}"


def content(path: Path) -> Any:
    """Return a checkpoint without durations."""
    found = torch.load(path, weights_only=True)
    del found["callbacks"]["RunRecordUpdates"]["train_s"]
    for name, state in found["callbacks"].items():
        if name.startswith("EpochLog"):
            for row in state["rows"]:
                row.pop("images_per_s", None), row.pop("elapsed_s"), row.pop("train/images_per_s", None)
    return found


def compare(whole: Path, resumed: Path, begun: str) -> int:
    """Assert that all checkpoints after `begun` are equal; return their number."""
    later = [path.name for path in sorted(whole.iterdir()) if path.name > begun]
    assert sorted(path.name for path in resumed.iterdir()) == later, f"from {begun}"
    for name in later:
        found = difference(content(whole / name), content(resumed / name))
        assert found is None, f"{name}, resumed from {begun}: {found}"
    return len(later)
