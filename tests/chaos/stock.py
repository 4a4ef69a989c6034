"""The same faults with stock Lightning, used as in its documentation: the baseline of the table."""

import random
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from alexlab.distributed.launch import Limits, launch
from chaos.harness import Result, Workspace

STEPS = 8  # of an epoch


class Module(lightning.LightningModule):
    """A small net with dropout that logs its validation accuracy as `val/top1`."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor]) -> None:
        self.log("val/top1", (self.net(batch[0]).argmax(1) == batch[1]).float().mean(), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def _data(size: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(size, 8, generator=generator), torch.randint(0, 3, (size,), generator=generator))


def _weights(folder: Path, checkpoint: Path | None = None) -> list[Tensor]:
    lightning.seed_everything(1, verbose=False)
    module = Module()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=2,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)],
    )
    loaders = DataLoader(_data(STEPS * 4), batch_size=4, shuffle=True), DataLoader(_data(8), batch_size=4)
    trainer.fit(module, *loaders, ckpt_path=checkpoint)
    return [parameter.detach() for parameter in module.parameters()]


def resume(workspace: Workspace, tries: int, rng: random.Random) -> Result:
    """Resume from a checkpoint within the first epoch, at its end and within the second, without any kill."""
    expected, passed = _weights(workspace.path("stock_uninterrupted")), 0
    for step in (3, 8, 11)[:tries]:
        checkpoint = workspace.path("stock_uninterrupted") / f"step={step}.ckpt"
        weights = _weights(workspace.path(f"stock_{step}"), checkpoint)
        passed += all(torch.equal(one, other) for one, other in zip(expected, weights, strict=True))
    return Result("sigkill", "resume from step 3, 8 and 11: the final weights are bit-identical", passed, tries)


def uneven_shards(workspace: Workspace, tries: int, rng: random.Random) -> Result:
    """Validate 2 to 17 images on two ranks, with Lightning's sampler."""

    def scores() -> list[tuple[float, float]]:
        found = []
        for size in range(2, 2 + tries):
            lightning.seed_everything(1, verbose=False)
            module, data = Module(), _data(size)
            trainer = lightning.Trainer(
                accelerator="cpu",
                devices=2,
                strategy="ddp",
                default_root_dir=workspace.folder,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
            )
            trainer.validate(module, DataLoader(data, batch_size=2), verbose=False)
            images, labels = data.tensors
            truth = (module.net(images).argmax(1) == labels).float().mean().item()
            found.append((trainer.callback_metrics["val/top1"].item(), truth))
        return found

    found = launch(scores, num_ranks=2, isolated=True, limits=Limits(timeout_s=60.0, shutdown_s=2))
    passed = sum(abs(given - truth) < 1e-6 for given, truth in found)
    return Result("exact_scores", "2 to 17 images on 2 ranks: the accuracy of one process", passed, tries)
