"""Detection of the launcher of this rank (torchrun, srun, mpirun) from its environment. Imports no torch at its top."""

import hashlib
import os
from dataclasses import dataclass, replace

from alexlab.errors import ConfigError

LOOPBACK = "127.0.0.1"
TORCHRUN, SRUN, MPIRUN, VARIABLES = "torchrun", "srun", "mpirun", "RANK and WORLD_SIZE"
RUN_ID = "TORCHELASTIC_RUN_ID"


@dataclass(frozen=True)
class RankEnvironment:
    """One rank as its environment describes it.

    Args:
        by: what started it.
        rank, world_size: its number, and the number of ranks.
        local_rank, local_size: the same on its node; None if no variable says so.
        address, port: where rank 0 is reached; empty and 0 if no variable says so.
    """

    by: str
    rank: int
    world_size: int
    local_rank: int | None = None
    local_size: int | None = None
    address: str = ""
    port: int = 0


def detect_rank() -> RankEnvironment | None:
    """Return what the environment says of this rank; None for a process that was started alone.

    Raises:
        ConfigError: if a variable is not a number, or the numbers contradict each other.
    """
    if RUN_ID in os.environ:
        found = _start(TORCHRUN, "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    # SLURM_NTASKS is set in a batch script too, the number of tasks of a step only in what srun has started.
    elif _several("SLURM_STEP_NUM_TASKS"):
        found = _start(SRUN, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", None)
        found = replace(found, address=found.address or _first_slurm_node(), port=found.port or _slurm_port())
    elif _several("OMPI_COMM_WORLD_SIZE"):
        names = (f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))
        found = _on_one_node(_start(MPIRUN, *names))
    elif _several("PMI_SIZE"):
        found = _on_one_node(_start(MPIRUN, "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"))
    elif _several("WORLD_SIZE") and "RANK" in os.environ:
        found = _start(VARIABLES, "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    else:
        return None
    if found.rank >= found.world_size:
        raise ConfigError(
            f"a rank must be less than the world size; got rank {found.rank} of {found.world_size} from {found.by}"
        )
    return found


def _start(by: str, rank: str, world_size: str, local_rank: str, local_size: str | None) -> RankEnvironment:
    rank_value, size = _number(rank), _number(world_size)
    if rank_value is None or size is None:
        raise ConfigError(f"a rank started by {by} must have the variables {rank} and {world_size}")
    return RankEnvironment(
        by,
        rank_value,
        size,
        local_rank=_number(local_rank),
        local_size=None if local_size is None else _number(local_size),
        address=os.environ.get("MASTER_ADDR", ""),
        port=_number("MASTER_PORT") or 0,
    )


def _several(name: str) -> bool:
    return (_number(name) or 1) > 1


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if text is not None and not (text.isascii() and text.isdigit()):
        raise ConfigError(f"the environment variable {name} must be a whole number; got {text!r}: correct or unset it")
    return None if text is None else int(text)


def _on_one_node(start: RankEnvironment) -> RankEnvironment:
    """Return a start by mpirun with the meeting point that it does not set; on one node all ranks have the same parent."""
    if start.local_size != start.world_size:
        return start
    return replace(start, address=start.address or LOOPBACK, port=start.port or 20_000 + os.getppid() % 10_000)


def _first_slurm_node() -> str:
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST", LOOPBACK)
    return str(SLURMEnvironment.resolve_root_node_address(nodes))


def _slurm_port() -> int:
    """Return a port that all tasks of a step compute alike, and two steps rarely share."""
    step = f"{os.environ.get('SLURM_JOB_ID')}.{os.environ.get('SLURM_STEP_ID')}"
    return 20_000 + int(hashlib.sha256(step.encode()).hexdigest(), 16) % 10_000
