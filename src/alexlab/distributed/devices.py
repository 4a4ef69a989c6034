"""Devices of a run: the ranks and GPUs that `trainer.accelerator` and `trainer.devices` ask for."""

import os

import torch

from alexlab.distributed import hardware, ranks
from alexlab.errors import ConfigError


def num_ranks(*, accelerator: str, devices: int | str | list[int]) -> int:
    """The number of processes that `trainer.devices` asks for.

    Raises:
        ConfigError: when there are not so many devices, or torchrun has started another number of processes.
    """
    gpus = num_gpus()
    if accelerator not in ("auto", "cpu", "gpu", "cuda", "mps"):
        raise ConfigError(f"trainer.accelerator must be one of auto, cpu, gpu, cuda, mps; got {accelerator!r}")
    elsewhere = hardware.jobs_elsewhere  # on another machine there are other devices
    if accelerator in ("gpu", "cuda") and gpus == 0 and not elsewhere:
        raise ConfigError(f"trainer.accelerator={accelerator} needs a GPU; there is none. Take trainer.accelerator=cpu")
    if accelerator == "mps" and not torch.backends.mps.is_available() and not elsewhere:
        raise ConfigError(
            "trainer.accelerator=mps needs a Mac with an Apple GPU; there is none. Take trainer.accelerator=cpu"
        )
    if accelerator == "mps" and count_devices(devices, 1) > 1:
        raise ConfigError(f"trainer.devices must be 1 with trainer.accelerator=mps; got {devices}")
    on_gpu = _on_gpu(accelerator, gpus)
    # Two processes always can be tried; more of them than cores only wait for each other.
    available, kind = (
        (gpus, "GPUs") if on_gpu else (max(2, hardware.num_cores()), "processes on this machine's CPU cores")
    )
    count = count_devices(devices, gpus if on_gpu else 1)
    if count > available and not elsewhere:
        raise ConfigError(f"trainer.devices must be at most {available}, the {kind}; got {devices}")
    if ranks.is_distributed() and count != int(os.environ["LOCAL_WORLD_SIZE"]):
        raise ConfigError(
            f"trainer.devices must be the {os.environ['LOCAL_WORLD_SIZE']} processes that torchrun has started; got {count}"
        )
    return count


def num_gpus() -> int:
    """GPUs that this process may use, asked of the driver, not of CUDA: a process that has started CUDA cannot be forked."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    return torch.cuda.device_count()


def requested_gpus(*, accelerator: str, devices: int | str | list[int]) -> int | list[int]:
    """How many GPUs a run needs, or which ones where `devices` names them; 0 of a run on the CPU."""
    gpus = num_gpus()
    if not _on_gpu(accelerator, gpus):
        return 0
    return devices if isinstance(devices, list) else count_devices(devices, gpus)


def _on_gpu(accelerator: str, gpus: int) -> bool:
    return accelerator in ("gpu", "cuda") or (accelerator == "auto" and gpus > 0)


def count_devices(devices: int | str | list[int], everything: int) -> int:
    """Return the number of devices that `trainer.devices` asks for, where `everything` are there.

    Raises:
        ConfigError: unless it is at least 1.
    """
    if isinstance(devices, list):
        count = len(devices)
    elif devices in ("auto", -1, "-1"):
        count = everything
    elif isinstance(devices, int) or (isinstance(devices, str) and devices.isdigit()):
        count = int(devices)
    else:
        raise ConfigError(f"trainer.devices must be a number, a list of GPU numbers or auto; got {devices!r}")
    if count < 1:
        raise ConfigError(f"trainer.devices must be at least 1; got {devices!r}")
    return count
