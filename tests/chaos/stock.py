"""The same of Lightning by itself, as its documentation has it: what a peer does without alexlab."""

import random
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from alexlab.distributed.launch import Limits, launch
from chaos.harness import Figure, Place

STEPS = 8  # of an epoch


class Module(lightning.LightningModule):
    """A small net with dropout; the accuracy of its validation is logged as `val/top1`."""

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


def _weights(folder: Path, begin: Path | None = None) -> list[Tensor]:
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
    trainer.fit(module, *loaders, ckpt_path=begin)
    return [parameter.detach() for parameter in module.parameters()]


def resumed(place: Place, tries: int, draw: random.Random) -> Figure:
    """R1 without a kill: from a checkpoint inside the first epoch, at its end, inside the second."""
    whole, right = _weights(place.new("stock_whole")), 0
    for step in (3, 8, 11)[:tries]:
        again = _weights(place.new(f"stock_{step}"), place.new("stock_whole") / f"step={step}.ckpt")
        right += all(torch.equal(one, other) for one, other in zip(whole, again, strict=True))
    return Figure("R1", "resumed from step 3, 8 and 11: final weights bit-identical", right, tries)


def uneven(place: Place, tries: int, draw: random.Random) -> Figure:
    """E1: 2 to 17 images on two ranks, with Lightning's own sampler."""

    def scores() -> list[tuple[float, float]]:
        found = []
        for size in range(2, 2 + tries):
            lightning.seed_everything(1, verbose=False)
            module, data = Module(), _data(size)
            trainer = lightning.Trainer(
                accelerator="cpu",
                devices=2,
                strategy="ddp",
                default_root_dir=place.folder,
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
    right = sum(abs(given - truth) < 1e-6 for given, truth in found)
    return Figure("E1", "2 to 17 images on 2 ranks: the accuracy is that of one process", right, tries)
