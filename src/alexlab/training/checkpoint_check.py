"""Structural check of a checkpoint against what the run itself would save."""

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.optim import Optimizer

from alexlab.models.weights.state_dicts import check_state
from alexlab.records.layout import CHECKPOINT_KEY, MEAN_IMAGE
from alexlab.training.module import Classifier

ANYTHING = object()  # stands for a value of any type


def check_checkpoint(content: Any, module: Classifier, trainer: lightning.Trainer) -> None:
    """Raise ValueError unless a checkpoint has everything that resuming needs, with the right types and shapes."""
    state = dict(module.state_dict())
    counts = dict.fromkeys(module._stage_metrics("train").metric_state, 0.0)
    inside = {"validated_in_epoch": False, "train_counts": [counts], "train_metrics": {}, "val_metrics": {}}
    inside["accumulate_grad_batches"] = 1
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
    if module.mean_image is not None:
        expected[CHECKPOINT_KEY] |= {MEAN_IMAGE: module.mean_image}  # type: ignore[operator]
    compare(content, expected)
    states = {name: content[name] for name in ("state_dict", "current_model_state") if name in content}
    for name, found in states.items():  # with averaging, the latter has the raw weights
        compare(found, state, name)
        unexpected = [key for key in found if key not in state]
        if unexpected:
            raise ValueError(f"{name} must contain only weights of the net; got {str(unexpected[0])[:80]}")
        check_state(found)
    known = content[CHECKPOINT_KEY]
    if known["classes"] != module.record["classes"]:
        raise ValueError(f"its classes must be {module.record['classes'][:5]}; got {known['classes'][:5]}")
    for values in (known["best"], known["mid_epoch"]["train_metrics"], known["mid_epoch"]["val_metrics"]):
        compare(values, dict.fromkeys(values, 0.0), f"{CHECKPOINT_KEY}.best")
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if callback.state_key in content["callbacks"]:
            own = callback.state_dict()
            if not type(callback).__module__.startswith("alexlab."):
                own = dict.fromkeys(own, ANYTHING)  # any value may change its type, as None to a text does
            compare(content["callbacks"][callback.state_key], own, f"callbacks.{callback.state_key}")
    _check_optimizer(content, module)


def compare(found: Any, expected: Any, where: str = "") -> None:
    """Raise ValueError unless `found` has the entries of `expected`, with values of the same types and shapes."""
    name = where or "a checkpoint"
    if expected is ANYTHING:
        return
    if isinstance(expected, Mapping):
        if not isinstance(found, Mapping):
            raise ValueError(f"{name} must be a dict; got {type(found).__name__}")
        for key, value in expected.items():
            path = f"{where}.{key}" if where else str(key)
            if key not in found:
                raise ValueError(f"it has no {path}")
            compare(found[key], value, path)
    elif isinstance(expected, list):
        if not isinstance(found, list):
            raise ValueError(f"{name} must be a list; got {type(found).__name__}")
        if expected and not found:
            raise ValueError(f"{name} must not be empty")
        for index, item in enumerate(found if expected else ()):
            compare(item, expected[0], f"{name}.{index}")
    elif isinstance(expected, Tensor):
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        if shape != tuple(expected.shape):
            raise ValueError(f"{name} must be a tensor of shape {tuple(expected.shape)}; got {shape}")
    elif not any(_is_like(found, kind) for kind in _kinds(expected)):
        raise ValueError(f"{name} must be of type {' or '.join(_kinds(expected))}; got {type(found).__name__}")
    elif isinstance(found, float) and math.isnan(found):
        raise ValueError(f"{name} must be a number; got nan")
    elif type(expected) is int and found < 0 <= expected:
        raise ValueError(f"{name} must be at least 0; got {found}")


def _kinds(expected: Any) -> list[str]:
    """Return the names of the types that a value may have in place of `expected`; None may become a number."""
    if expected is None:
        return ["None", "float"]
    return ["float"] if isinstance(expected, float) else [type(expected).__name__]


def _is_like(found: Any, kind: str) -> bool:
    if kind == "float":
        return isinstance(found, int | float) and not isinstance(found, bool)
    return (type(found).__name__ if found is not None else "None") == kind


def _check_optimizer(content: Mapping[str, Any], module: Classifier) -> None:
    """Raise ValueError unless the states of the optimizer and its schedule fit this net."""
    optimizer = module.optimizer(module.parameter_groups(module.net))
    schedule = module.schedule(optimizer, num_epochs=1, steps_per_epoch=100)
    for name, wanted in (("optimizer_states", 1), ("lr_schedulers", len(schedule))):
        if len(content[name]) != wanted:
            raise ValueError(f"{name} must have {wanted} entries; it has {len(content[name])}")
    for index, entry in enumerate(schedule):
        state = content["lr_schedulers"][index]
        for key in entry["scheduler"].state_dict():
            if not isinstance(state, Mapping) or key not in state:
                raise ValueError(f"it has no lr_schedulers.{index}.{key}")
    skips_steps = "MixedPrecision" in content  # the gradient scaler of 16-mixed may have skipped every step so far
    num_steps = 0 if skips_steps else content["global_step"]
    _check_optimizer_state(content["optimizer_states"][0], optimizer, num_steps=num_steps)


def _check_optimizer_state(saved: Any, optimizer: Optimizer, *, num_steps: int) -> None:
    groups = optimizer.state_dict()["param_groups"]
    compare(saved, {"state": {}, "param_groups": [{"params": []}]}, "optimizer_states.0")
    sizes = [[len(group["params"]) for group in each] for each in (groups, saved["param_groups"])]
    if sizes[0] != sizes[1]:
        raise ValueError(f"the optimizer's groups must have {sizes[0]} parameters; got {sizes[1]}")
    for index, (group, expected_group) in enumerate(zip(saved["param_groups"], groups, strict=True)):
        compare(group, {"lr": 0.0}, f"optimizer_states.0.param_groups.{index}")
        missing = [key for key in expected_group if key not in group]
        if missing:
            raise ValueError(f"it has no optimizer_states.0.param_groups.{index}.{missing[0]}")
    expected = dict(_meta_states(optimizer))
    if expected and num_steps > 0 and not saved["state"]:
        raise ValueError("it has no optimizer state, although it was saved after a step")
    for index, state in saved["state"].items():
        if expected and index not in expected:
            raise ValueError(
                f"the optimizer must have states for {len(expected)} parameters; got one for {str(index)[:80]}"
            )
        compare(state, expected.get(index, {}), f"optimizer_states.0.state.{index}")


def _meta_states(optimizer: Optimizer) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the optimizer's state of each parameter after a trial step; nothing if it cannot step on the meta device."""
    trial = copy.copy(optimizer)
    for group in trial.param_groups:
        group |= {key: False for key in ("fused", "foreach") if key in group}  # have no kernels for the meta device
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
    try:
        trial.step()
    except (RuntimeError, TypeError):  # the optimizer needs values or a closure
        return
    yield from trial.state_dict()["state"].items()
