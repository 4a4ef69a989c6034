"""Choice of the checkpoint to resume from, and loading of the best one."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning

from alexlab.errors import ConfigError, DiskError
from alexlab.models.weights.state_dicts import check_state
from alexlab.records.layout import BEST, CHECKPOINT_KEY, EARLIER_LASTS
from alexlab.records.safe_load import load_file
from alexlab.training.callbacks.checkpoint import CheckpointCallback
from alexlab.training.checkpoint_check import check_checkpoint
from alexlab.training.checkpoint_io import position
from alexlab.training.module import Classifier

log = logging.getLogger(__name__)


def choose_checkpoint(last: Path, module: Classifier, trainer: lightning.Trainer) -> dict[str, Any]:
    """Return the name of the checkpoint to resume from, and whether `best.ckpt` is lost.

    Falls back to the checkpoint with the most steps among `step_*.ckpt` and `best.ckpt` if `last.ckpt` is missing or corrupt.

    Args:
        last: path of `last.ckpt`.
        module: LightningModule of the run, on the meta device.
        trainer: trainer of the run.

    Raises:
        ConfigError: if there are checkpoints, but all of them are corrupt.
    """
    best = last.with_name(BEST.name)
    others = [*sorted(last.parent.glob(EARLIER_LASTS), reverse=True), *([best] if best.is_file() else [])]
    if not last.is_file() and not others:
        return {"name": last.name, "best_is_lost": False}
    refused: dict[str, str] = {} if last.is_file() else {last.name: "it is missing"}
    chosen: tuple[Path, Mapping[str, Any]] | None = None
    if last.is_file():
        chosen = _load_valid(last, module, trainer, refused)
    for path in others if chosen is None else []:
        found = _load_valid(path, module, trainer, refused)
        if found is not None and (chosen is None or found[1]["global_step"] > chosen[1]["global_step"]):
            chosen = found
    if chosen is None:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise ConfigError(f"cannot resume from any checkpoint in {last.parent} ({reasons}): start a new run")
    if refused:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        log.warning("resuming from %s, step %d, because %s", chosen[0].name, chosen[1]["global_step"], reasons)
    return {"name": chosen[0].name, "best_is_lost": _best_is_lost(best, chosen, module, trainer)}


def _load_valid(
    path: Path, module: Classifier, trainer: lightning.Trainer, refused: dict[str, str]
) -> tuple[Path, dict[str, Any]] | None:
    """Return a valid checkpoint with its content; otherwise add the reason to `refused` and return None."""
    try:
        content = load_file(path)
        check_checkpoint(content, module, trainer)
    except (ConfigError, ValueError) as error:
        refused[path.name] = str(error).removeprefix(f"cannot read the weights in {path}: ")
        return None
    return path, content


def _best_is_lost(
    best: Path, chosen: tuple[Path, Mapping[str, Any]], module: Classifier, trainer: lightning.Trainer
) -> bool:
    """Return whether the run had a best checkpoint that is now missing or corrupt.

    Raises:
        ConfigError: if no epoch is left in which a new one could be saved.
    """
    path, content = chosen
    if path == best or not content[CHECKPOINT_KEY]["best"] or CheckpointCallback.__name__ not in content["callbacks"]:
        return False
    refused: dict[str, str] = {best.name: "it is missing"}
    if best.is_file() and _load_valid(best, module, trainer, refused) is not None:
        return False
    epochs, longest = position(dict(content))[0], trainer.max_epochs
    if longest not in (None, -1) and epochs >= longest:
        raise ConfigError(
            f"{best} cannot be used ({refused[best.name]}), and no epoch is left to save a new one: resume with "
            f"trainer.max_epochs above {longest}, or use {path}"
        )
    log.warning("%s is lost (%s); the best of the remaining epochs will replace it", best, refused[best.name])
    return True


def load_best(module: Classifier, best: Path) -> dict[str, int]:
    """Load the weights of the best checkpoint into a module, and return its epoch, from 1, and its optimizer step.

    Raises:
        DiskError: if the checkpoint cannot be read back.
    """
    try:
        content = load_file(best)
        state = content.get("state_dict") if isinstance(content, dict) else None
        if not isinstance(state, dict):
            raise ValueError("it has no state_dict")
        check_state(state)
        module.load_state_dict(state)
        return {"epoch": int(content["epoch"]) + 1, "step": int(content["global_step"])}
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DiskError(
            f"the best checkpoint {best} was written but cannot be read back: {reason}; check the disk, then resume the run"
        ) from error
