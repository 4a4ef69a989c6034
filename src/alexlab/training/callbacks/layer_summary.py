"""The table of layers that a run logs at its start."""

import copy
import io
import logging
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.callbacks import Callback

from alexlab.models.summary import layer_rows, layer_table, write_rows
from alexlab.output.terminal import Terminal
from alexlab.runs.layout import LAYERS

log = logging.getLogger(__name__)


class LayerSummary(Callback):
    """The table of the net's layers at the start of a run, in its log and as `layers.csv`; the jobs of a sweep have the file.

    Args:
        max_layers: the layers of a deeper net are in the file only.
    """

    def __init__(self, max_layers: int = 40) -> None:
        self.max_layers = max_layers

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        settings: Any = trainer.datamodule.config  # type: ignore[attr-defined]
        net: Any = getattr(pl_module.net, "whole", pl_module.net)  # of two towers, the net that they are
        # A copy whose tensors have shapes and no memory.
        memo: dict[int, Any] = {id(buffer): buffer.to("meta") for buffer in net.buffers()}
        memo |= {id(parameter): torch.nn.Parameter(parameter.to("meta")) for parameter in net.parameters()}
        rows = layer_rows(copy.deepcopy(net, memo).float(), channels=settings.channels, size=settings.image_size)
        write_rows(rows, Path(trainer.default_root_dir) / LAYERS)
        if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
            return  # a table for each job of a sweep is too much
        if len(rows) > self.max_layers:
            log.info("net: %d layers, listed in %s", len(rows), LAYERS)
            return
        text = io.StringIO()
        title = f"{settings.channels} channels, {settings.image_size} x {settings.image_size}"
        Terminal(file=text, width=165).print(layer_table(rows, title))
        for line in text.getvalue().rstrip().split("\n"):
            log.info("%s", line)
