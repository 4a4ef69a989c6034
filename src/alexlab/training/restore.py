"""Which checkpoint a run is resumed from: each is compared with what the run itself would write before it is restored."""

import copy
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.optim import Optimizer

from alexlab.errors import ConfigError, DiskError
from alexlab.models.weights.state_dicts import check_state
from alexlab.runs.layout import BEST, CHECKPOINT_KEY, EARLIER_LASTS
from alexlab.runs.safe_load import load_file
from alexlab.training.callbacks.checkpoint import CheckpointCallback
from alexlab.training.checkpoint_io import position
from alexlab.training.module import Classifier

log = logging.getLogger(__name__)


def choose_checkpoint(last: Path, module: Classifier, trainer: lightning.Trainer) -> dict[str, Any]:
    """Return the name of the checkpoint to resume from, and whether the best one is lost.

    It is `last.ckpt`, and if that is missing or corrupt, that of the others with the most steps: `step_*.ckpt`, `best.ckpt`.

    Args:
        last: the path of `last.ckpt`.
        module: of the run, on the device `meta`.
        trainer: of the run.

    Raises:
        ConfigError: if there are checkpoints, and none of them is whole.
    """
    best = last.with_name(BEST.name)
    others = [*sorted(last.parent.glob(EARLIER_LASTS), reverse=True), *([best] if best.is_file() else [])]
    if not last.is_file() and not others:
        return {"name": last.name, "best_is_lost": False}
    refused: dict[str, str] = {} if last.is_file() else {last.name: "it is missing"}
    chosen: tuple[Path, Mapping[str, Any]] | None = None
    for path in [last] if last.is_file() else []:
        chosen = _whole(path, module, trainer, refused)
    for path in others if chosen is None else []:
        found = _whole(path, module, trainer, refused)
        if found is not None and (chosen is None or found[1]["global_step"] > chosen[1]["global_step"]):
            chosen = found
    if chosen is None:
        told = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise ConfigError(f"none of the checkpoints in {last.parent} can be resumed from ({told}): start a new run")
    if refused:
        told = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        log.warning("resuming from %s, step %d, because %s", chosen[0].name, chosen[1]["global_step"], told)
    return {"name": chosen[0].name, "best_is_lost": _best_is_lost(best, chosen, module, trainer)}


def _whole(
    path: Path, module: Classifier, trainer: lightning.Trainer, refused: dict[str, str]
) -> tuple[Path, dict[str, Any]] | None:
    """Return a checkpoint with its content; None if it is not whole, which is noted."""
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
    """Return whether there was a best checkpoint, and it is missing or corrupt.

    Raises:
        ConfigError: if no epoch is left that could make another one.
    """
    path, content = chosen
    if path == best or not content[CHECKPOINT_KEY]["best"] or CheckpointCallback.__name__ not in content["callbacks"]:
        return False
    refused: dict[str, str] = {best.name: "it is missing"}
    if best.is_file() and _whole(best, module, trainer, refused) is not None:
        return False
    epochs, longest = position(dict(content))[0], trainer.max_epochs
    if longest not in (None, -1) and epochs >= longest:
        raise ConfigError(
            f"{best} is corrupt ({refused[best.name]}), and no epoch is left to make another one: resume with "
            f"trainer.max_epochs of more than {longest}, or use {path}"
        )
    log.warning("%s is lost (%s); the best of the epochs to come takes its place", best, refused[best.name])
    return True


def load_best(module: Classifier, best: Path) -> None:
    """Load the weights of the best checkpoint into a module.

    Raises:
        DiskError: if what was written cannot be read back.
    """
    try:
        content = load_file(best)
        state = content.get("state_dict") if isinstance(content, dict) else None
        if not isinstance(state, dict):
            raise ValueError("it has no state_dict")
        check_state(state)
        module.load_state_dict(state)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DiskError(
            f"the best checkpoint was written, but cannot be read back: {best}: {reason}; check the disk, then resume the run"
        ) from error


def check_checkpoint(content: Any, module: Classifier, trainer: lightning.Trainer) -> None:
    """Raise ValueError unless a checkpoint has all that the run needs to be resumed, in the right shapes."""
    state = dict(module.state_dict())
    counts = dict.fromkeys(module._stage_metrics("train").metric_state, 0.0)
    inside = {"validated_in_epoch": False, "train_counts": [counts], "train_metrics": {}, "accumulate_grad_batches": 1}
    expected = {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": "",
        "state_dict": state,
        "loops": {"fit_loop": trainer.fit_loop.state_dict()},
        "callbacks": {},
        "optimizer_states": [],
        "lr_schedulers": [],
        CHECKPOINT_KEY: {"config": {}, "classes": [], "best": {}, "mid_epoch": inside},
    }
    compare(content, expected)
    states = {name: content[name] for name in ("state_dict", "current_model_state") if name in content}
    for name, found in states.items():  # the latter are the weights whose average the former are
        compare(found, state, name)
        unexpected = [key for key in found if key not in state]
        if unexpected:
            raise ValueError(f"{name} must hold the weights of the net; {str(unexpected[0])[:80]} is none of them")
        check_state(found)
    known = content[CHECKPOINT_KEY]
    if known["classes"] != module.record["classes"]:
        raise ValueError(f"it must be of the classes {module.record['classes'][:5]}; it is of {known['classes'][:5]}")
    for values in (known["best"], known["mid_epoch"]["train_metrics"]):
        compare(values, dict.fromkeys(values, 0.0), f"{CHECKPOINT_KEY}.best")
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if callback.state_key in content["callbacks"]:
            compare(content["callbacks"][callback.state_key], callback.state_dict(), f"callbacks.{callback.state_key}")
    _check_optimizer(content, module)


def compare(found: Any, expected: Any, where: str = "") -> None:
    """Raise ValueError unless `found` has the entries of `expected`, with values of the same kinds and shapes."""
    name = where or "a checkpoint"
    if isinstance(expected, Mapping):
        if not isinstance(found, Mapping):
            raise ValueError(f"{name} must be a dict; got {type(found).__name__}")
        for key, value in expected.items():
            place = f"{where}.{key}" if where else str(key)
            if key not in found:
                raise ValueError(f"it has no {place}")
            compare(found[key], value, place)
    elif isinstance(expected, list):
        if not isinstance(found, list) or (expected and not found):
            raise ValueError(
                f"{name} must be a list; got {type(found).__name__}{' without entries' if found == [] else ''}"
            )
        for number, item in enumerate(found if expected else ()):
            compare(item, expected[0], f"{name}.{number}")
    elif isinstance(expected, Tensor):
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        if shape != tuple(expected.shape):
            raise ValueError(f"{name} must be a tensor of the shape {tuple(expected.shape)}; got {shape}")
    elif not any(_is_like(found, kind) for kind in _kinds(expected)):
        raise ValueError(f"{name} must be a {' or '.join(_kinds(expected))}; got {type(found).__name__}")
    elif isinstance(found, float) and math.isnan(found):
        raise ValueError(f"{name} must be a number; got nan")
    elif type(expected) is int and found < 0 <= expected:
        raise ValueError(f"{name} must be at least 0; got {found}")


def _kinds(expected: Any) -> list[str]:
    """Return the kinds of values that may stand where a run has written this one; None may become a number."""
    if expected is None:
        return ["None", "float"]
    return ["float"] if isinstance(expected, float) else [type(expected).__name__]


def _is_like(found: Any, kind: str) -> bool:
    if kind == "float":
        return isinstance(found, int | float) and not isinstance(found, bool)
    return (type(found).__name__ if found is not None else "None") == kind


def _check_optimizer(content: Mapping[str, Any], module: Classifier) -> None:
    """Raise ValueError unless the states of the optimizer and of its schedule are those of this net."""
    optimizer = module.optimizer(module.parameter_groups(module.net))
    schedule = module.schedule(optimizer, num_epochs=1, steps_per_epoch=100)
    for name, wanted in (("optimizer_states", 1), ("lr_schedulers", len(schedule))):
        if len(content[name]) != wanted:
            raise ValueError(f"{name} must have {wanted} entries; it has {len(content[name])}")
    for number, entry in enumerate(schedule):
        for key in entry["scheduler"].state_dict():
            if not isinstance(content["lr_schedulers"][number], Mapping) or key not in content["lr_schedulers"][number]:
                raise ValueError(f"it has no lr_schedulers.{number}.{key}")
    saved, own = content["optimizer_states"][0], optimizer.state_dict()
    compare(saved, {"state": {}, "param_groups": [{"params": []}]}, "optimizer_states.0")
    sizes = [[len(group["params"]) for group in groups] for groups in (own["param_groups"], saved["param_groups"])]
    if sizes[0] != sizes[1]:
        raise ValueError(f"the groups of the optimizer must have {sizes[0]} parameters; they have {sizes[1]}")
    for number, (group, wanted) in enumerate(zip(saved["param_groups"], own["param_groups"], strict=True)):
        compare(group, {"lr": 0.0}, f"optimizer_states.0.param_groups.{number}")
        lacking = [key for key in wanted if key not in group]
        if lacking:
            raise ValueError(f"it has no optimizer_states.0.param_groups.{number}.{lacking[0]}")
    expected = dict(_states(optimizer))
    if expected and content["global_step"] > 0 and not saved["state"]:
        raise ValueError("it has no state of the optimizer, though it was saved after a step")
    for index, state in saved["state"].items():
        if expected and index not in expected:
            raise ValueError(
                f"the optimizer must have states of {len(expected)} parameters; it has one of {str(index)[:80]}"
            )
        compare(state, expected.get(index, {}), f"optimizer_states.0.state.{index}")


def _states(optimizer: Optimizer) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield what the optimizer remembers of each parameter after a step, by its number; nothing if it takes none on `meta`."""
    trial = copy.copy(optimizer)
    for group in trial.param_groups:
        group |= {
            key: False for key in ("fused", "foreach") if key in group
        }  # those have no kernels on the device meta
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
    try:
        trial.step()
    except (RuntimeError, TypeError):  # an optimizer that needs values or a closure
        return
    yield from trial.state_dict()["state"].items()
