"""Table of the net's layers at the start of a run."""

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

from alexlab.models.summary import layer_rows, print_layers, write_rows
from alexlab.output.log_handler import log_terminal
from alexlab.output.terminal import Terminal
from alexlab.records.layout import LAYERS

log = logging.getLogger(__name__)


class LayerSummary(Callback):
    """Callback that writes the net's layers to `layers.csv` and logs those with parameters; jobs of a sweep only write.

    Args:
        max_layers: maximum number of layers with parameters to log; a deeper net is listed in the file only.
    """

    def __init__(self, max_layers: int = 40) -> None:
        self.max_layers = max_layers

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        settings: Any = trainer.datamodule.config  # type: ignore[attr-defined]
        net: Any = getattr(pl_module.net, "whole", pl_module.net)  # a Tower holds half of the net
        # A copy on the meta device, which takes no memory.
        memo: dict[int, Any] = {id(buffer): buffer.to("meta") for buffer in net.buffers()}
        memo |= {id(parameter): torch.nn.Parameter(parameter.to("meta")) for parameter in net.parameters()}
        rows = layer_rows(copy.deepcopy(net, memo).float(), channels=settings.channels, size=settings.image_size)
        write_rows(rows, Path(trainer.default_root_dir) / LAYERS)
        if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
            return  # one table per job would flood the log of a sweep
        shown = [row for row in rows if row.parameters]
        if len(shown) > self.max_layers:
            log.info("net: %d layers, listed in %s", len(rows), LAYERS)
            return
        text = io.StringIO()
        title = (
            f"layers with parameters, for {settings.channels} x {settings.image_size} x {settings.image_size} images"
        )
        print_layers(Terminal(file=text, width=min(100, log_terminal().width)), shown, title)
        for line in text.getvalue().rstrip().split("\n"):
            log.info("%s", line)
