"""Slots for parallel jobs on one machine, each with its own cores and GPUs."""

import os
from dataclasses import dataclass, field

from alexlab.distributed import hardware


@dataclass
class Slot:
    """Cores and GPUs of one of several jobs on this machine.

    Args:
        number: index of the slot.
        cores: logical cores; empty on systems without CPU affinity.
        gpus: entries for CUDA_VISIBLE_DEVICES; None leaves the choice to the job.
        gpu_indices: indices of the GPUs in use.
    """

    number: int
    cores: list[int]
    gpus: list[str] | None = None
    gpu_indices: list[int] = field(default_factory=list)

    def bind(self) -> None:
        """Bind this process to the slot."""
        hardware.bind_to(self.cores)
        if self.gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)

    def __str__(self) -> str:
        if self.gpu_indices:
            return f"GPU {', '.join(map(str, self.gpu_indices))}"
        return f"core {', '.join(map(str, self.cores))}" if self.cores else f"slot {self.number}"


class SlotPool:
    """Cores and GPUs of this machine, divided among jobs.

    Args:
        num_jobs: number of jobs at a time, among which the cores are divided.
        jobs_per_gpu: maximum number of jobs on one GPU.
        num_gpus: number of GPUs of this machine.
    """

    def __init__(self, num_jobs: int, *, jobs_per_gpu: int, num_gpus: int) -> None:
        self.free = list(range(num_jobs))
        self.core_sets = hardware.core_sets(num_jobs)
        self.jobs_per_gpu = jobs_per_gpu
        self.load = [0] * num_gpus  # jobs on each GPU
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        self.names = visible.split(",") if visible else [str(index) for index in range(num_gpus)]

    def acquire(self, gpus: int | list[int]) -> Slot | None:
        """Return a free slot; None while all slots are in use, or too few GPUs are free.

        Args:
            gpus: number of GPUs, or their indices. The job selects GPUs given by index itself.
        """
        if not self.free:
            return None
        free_gpus = [index for index, load in enumerate(self.load) if load < self.jobs_per_gpu]
        if isinstance(gpus, list):
            chosen = [index for index in gpus if index < len(self.load)]
            if not set(chosen) <= set(free_gpus):
                return None
        else:
            count = min(gpus, len(self.load))
            chosen = sorted(free_gpus, key=lambda index: self.load[index])[:count]
            if len(chosen) < count:
                return None
        number = self.free.pop(0)
        for index in chosen:
            self.load[index] += 1
        names = [self.names[index] for index in sorted(chosen)] if isinstance(gpus, int) and chosen else None
        return Slot(number, self.core_sets[number], names, sorted(chosen))

    def release(self, slot: Slot) -> None:
        """Return a slot to the pool."""
        for index in slot.gpu_indices:
            self.load[index] -= 1
        self.free = sorted([*self.free, slot.number])
