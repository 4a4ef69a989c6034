"""Config node `gpu`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alexlab.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class GpuConfig:
    """Amount of work of the suite `gpu`.

    Args:
        total_s: seconds for all parts; a part that has not begun by then is left out, one that still runs is killed.
        limit_scale: factor of the time limits of the parts, for machines slower than an H100 with 16 cores.
        parts: names of the parts to run; None for all. Those after `photographs` need it.
        nets: changes of the `model` node by name of a net; the first net trains whole epochs.
        batch_sizes: batch sizes of the measured steps; the middle one is also used for whole epochs.
        rounds: recorded rounds of each measurement.
        round_s: minimum duration of a round in seconds, except for whole epochs.
        steps: steps that are timed together.
        photographs: number of generated JPEG files; larger datasets list them several times.
        check_images: number of training images of the checks, in batches of a quarter of them or less.
        digits_epochs: epochs of the training that is evaluated, predicted with and exported.
        jpeg_images: number of training images of an epoch that decodes JPEG files.
        packed_images: number of training images of an epoch on packed images.
        val_images: number of validation images of an epoch.
    """

    total_s: float = 500.0
    limit_scale: float = 1.0
    parts: Sequence[str] | None = None
    nets: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"net": {}})
    batch_sizes: Sequence[int] = (128, 512, 1024)
    rounds: int = 3
    round_s: float = 0.2
    steps: int = 20
    photographs: int = 512
    check_images: int = 256
    digits_epochs: int = 5
    jpeg_images: int = 8_192
    packed_images: int = 32_768
    val_images: int = 2_048

    def __post_init__(self) -> None:
        if not self.nets or not self.batch_sizes:
            raise ConfigError("gpu.nets and gpu.batch_sizes must not be empty")
        for name in (
            "rounds",
            "steps",
            "photographs",
            "check_images",
            "digits_epochs",
            "jpeg_images",
            "packed_images",
            "val_images",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"gpu.{name} must be at least 1; got {getattr(self, name)}")
        if self.check_images % 32:
            raise ConfigError(f"gpu.check_images must be divisible by 32; got {self.check_images}")

    @property
    def epoch_batch_size(self) -> int:
        """Batch size of whole epochs."""
        return self.batch_sizes[len(self.batch_sizes) // 2]
