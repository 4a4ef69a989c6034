"""Ranks and GPUs requested by `trainer.accelerator` and `trainer.devices`."""

import os

import torch

from alexlab.distributed import hardware, ranks
from alexlab.errors import ConfigError

ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")


def num_ranks(*, accelerator: str, devices: int | str | list[int], remote: bool = False) -> int:
    """Return the number of processes that `trainer.devices` requests on this machine.

    Args:
        accelerator: `trainer.accelerator`.
        devices: `trainer.devices`.
        remote: the run is for another machine, so the devices of this one do not matter.

    Raises:
        ConfigError: if there are too few devices, or torchrun started another number of processes.
    """
    gpus = num_gpus()
    if accelerator not in ACCELERATORS:
        raise ConfigError(f"trainer.accelerator must be one of {', '.join(ACCELERATORS)}; got {accelerator!r}")
    if accelerator in ("gpu", "cuda") and gpus == 0 and not remote:
        raise ConfigError(
            f"trainer.accelerator={accelerator} needs a GPU, and none was found; use trainer.accelerator=cpu"
        )
    if accelerator == "mps" and not torch.backends.mps.is_available() and not remote:
        raise ConfigError(
            "trainer.accelerator=mps needs a Mac with an Apple GPU, and none was found; use trainer.accelerator=cpu"
        )
    if accelerator == "mps" and count_devices(devices, available=1) > 1:
        raise ConfigError(f"trainer.devices must be 1 with trainer.accelerator=mps; got {devices}")
    on_gpu = _on_gpu(accelerator, gpus)
    # Two CPU processes are always allowed, for trying them out; more processes than cores only wait for each other.
    limit, kind = (gpus, "GPUs") if on_gpu else (max(2, hardware.num_cores()), "processes for this machine's CPU cores")
    count = count_devices(devices, available=gpus if on_gpu else 1)
    if count > limit and not remote:
        raise ConfigError(f"trainer.devices must be at most {limit}, the number of {kind}; got {devices}")
    if ranks.is_distributed() and count != int(os.environ["LOCAL_WORLD_SIZE"]):
        raise ConfigError(
            f"trainer.devices must be the {os.environ['LOCAL_WORLD_SIZE']} processes that torchrun started; got {count}"
        )
    return count


def num_gpus() -> int:
    """Return the number of GPUs visible to this process, without initializing CUDA, after which it could not fork."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    return torch.cuda.device_count()


def requested_gpus(*, accelerator: str, devices: int | str | list[int]) -> int | list[int]:
    """Return the number of GPUs that a run needs, or their indices if `devices` lists them; 0 for a run on the CPU."""
    gpus = num_gpus()
    if not _on_gpu(accelerator, gpus):
        return 0
    return devices if isinstance(devices, list) else count_devices(devices, available=gpus)


def _on_gpu(accelerator: str, gpus: int) -> bool:
    return accelerator in ("gpu", "cuda") or (accelerator == "auto" and gpus > 0)


def count_devices(devices: int | str | list[int], *, available: int) -> int:
    """Return the number of devices that `trainer.devices` requests.

    Args:
        devices: `trainer.devices`.
        available: number of devices for `auto` and -1.

    Raises:
        ConfigError: unless it is at least 1.
    """
    if isinstance(devices, list):
        count = len(devices)
    elif devices in ("auto", -1, "-1"):
        count = available
    elif isinstance(devices, int) or (isinstance(devices, str) and devices.isdigit()):
        count = int(devices)
    else:
        raise ConfigError(f"trainer.devices must be a number, a list of GPU indices or auto; got {devices!r}")
    if count < 1:
        raise ConfigError(f"trainer.devices must be at least 1; got {devices!r}")
    return count
