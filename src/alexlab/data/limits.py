"""Batch sizes, and the effect of the Trainer's limits on the number of batches and images."""

from collections.abc import Mapping
from typing import Any

from alexlab.data.config import DataConfig
from alexlab.data.splits import Split, Splits
from alexlab.errors import ConfigError


def num_limited_batches(num_batches: int, limit: float) -> int:
    """Return the number of batches under a limit of Lightning's Trainer: a number of batches (int) or a fraction (float)."""
    return min(num_batches, limit) if isinstance(limit, int) else int(num_batches * limit)


def num_eval_images(split: Split, config: DataConfig, limit: float) -> int:
    """Return the number of images of a split that are evaluated under a limit of the Trainer."""
    num_batches = -(-len(split) // config.batch_size)
    return min(len(split), config.batch_size * num_limited_batches(num_batches, limit))


def check_batch_size(config: DataConfig, splits: Splits, *, num_ranks: int, accumulation_steps: int) -> None:
    """Check that the global batch can be divided among ranks and accumulation steps.

    Raises:
        ConfigError: if the batch cannot be divided, or is larger than the training split.
    """
    if config.batch_size % (num_ranks * accumulation_steps):
        raise ConfigError(
            "data.batch_size is the global batch and must be divisible by trainer.devices x "
            f"trainer.accumulate_grad_batches; got {config.batch_size} and {num_ranks} x {accumulation_steps}"
        )
    if config.batch_size > len(splits.train):
        raise ConfigError(
            f"data.batch_size must not exceed the {len(splits.train)} training images of {config.location}; "
            f"got {config.batch_size}"
        )


def check_limits(trainer: Mapping[str, Any], config: DataConfig, splits: Splits) -> None:
    """Check that no limit of the Trainer leaves less than one batch, or ends an epoch within an optimizer step.

    Args:
        trainer: the config node `trainer`.
        config: the config node `data`.
        splits: the splits of the run.

    Raises:
        ConfigError: if one does.
    """
    for name, split in splits.items():
        key = "overfit_batches" if trainer["overfit_batches"] and name != "test" else f"limit_{name}_batches"
        num_batches = len(split) // config.batch_size if name == "train" else -(-len(split) // config.batch_size)
        steps = trainer["accumulate_grad_batches"] if name == "train" else 1
        num_batches *= steps
        if isinstance(trainer[key], float) and trainer[key] > 0 and not num_limited_batches(num_batches, trainer[key]):
            raise ConfigError(
                f"trainer.{key} must leave at least one batch: {trainer[key]:g} of {num_batches} {name} batches is less than "
                f"one. Use trainer.{key}=1 for one batch"
            )
        num_limited = num_limited_batches(num_batches, trainer[key] or 1.0)
        if num_limited % steps:
            raise ConfigError(
                f"trainer.{key} must leave a multiple of trainer.accumulate_grad_batches={steps} batches, as the last step of an "
                f"epoch would have fewer images; {trainer[key]:g} leaves {num_limited} of {num_batches}: use trainer.{key}="
                f"{max(steps, num_limited // steps * steps)}"
            )
