"""Detection of the launcher of this rank (torchrun, srun, mpirun) from environment variables."""

import hashlib
import os
from dataclasses import dataclass, replace

from alexlab.errors import ConfigError

LOOPBACK = "127.0.0.1"
TORCHRUN, SRUN, MPIRUN, VARIABLES = "torchrun", "srun", "mpirun", "RANK and WORLD_SIZE"
RUN_ID = "TORCHELASTIC_RUN_ID"


@dataclass(frozen=True)
class RankEnvironment:
    """One rank, as described by environment variables.

    Args:
        launcher: torchrun, srun, mpirun, or the names of the variables.
        rank: global rank.
        world_size: number of ranks.
        local_rank: rank on its node; None if unknown.
        local_size: number of ranks on its node; None if unknown.
        address: address of rank 0; empty if unknown.
        port: port of rank 0; 0 if unknown.
    """

    launcher: str
    rank: int
    world_size: int
    local_rank: int | None = None
    local_size: int | None = None
    address: str = ""
    port: int = 0


def detect_rank() -> RankEnvironment | None:
    """Return this rank as described by its environment; None for a process started alone.

    Raises:
        ConfigError: if a variable is not a number, or the numbers contradict each other.
    """
    if RUN_ID in os.environ:
        found = _from_variables(TORCHRUN, "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    # SLURM_NTASKS is set in batch scripts too, the number of tasks of a step only in processes started by srun.
    elif _exceeds_one("SLURM_STEP_NUM_TASKS"):
        found = _from_variables(SRUN, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", None)
        found = replace(found, address=found.address or _first_slurm_node(), port=found.port or _slurm_port())
    elif _exceeds_one("OMPI_COMM_WORLD_SIZE"):
        names = (f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))
        found = _with_loopback(_from_variables(MPIRUN, *names))
    elif _exceeds_one("PMI_SIZE"):
        found = _with_loopback(_from_variables(MPIRUN, "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"))
    elif _exceeds_one("WORLD_SIZE") and "RANK" in os.environ:
        found = _from_variables(VARIABLES, "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    else:
        return None
    if found.rank >= found.world_size:
        raise ConfigError(
            f"a rank must be less than the world size; got rank {found.rank} of {found.world_size} from {found.launcher}"
        )
    return found


def _from_variables(
    launcher: str, rank: str, world_size: str, local_rank: str, local_size: str | None
) -> RankEnvironment:
    rank_value, size = _number(rank), _number(world_size)
    if rank_value is None or size is None:
        raise ConfigError(f"a rank started by {launcher} must have the variables {rank} and {world_size}")
    return RankEnvironment(
        launcher,
        rank_value,
        size,
        local_rank=_number(local_rank),
        local_size=None if local_size is None else _number(local_size),
        address=os.environ.get("MASTER_ADDR", ""),
        port=_number("MASTER_PORT") or 0,
    )


def _exceeds_one(name: str) -> bool:
    return (_number(name) or 1) > 1


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if text is not None and not (text.isascii() and text.isdigit()):
        raise ConfigError(f"the environment variable {name} must be an integer; got {text!r}: correct or unset it")
    return None if text is None else int(text)


def _with_loopback(env: RankEnvironment) -> RankEnvironment:
    """Return a rank started by mpirun with the address that mpirun does not set, if all ranks are on this node.

    The port is derived from the parent, which all ranks on a node share.
    """
    if env.local_size != env.world_size:
        return env
    return replace(env, address=env.address or LOOPBACK, port=env.port or 20_000 + os.getppid() % 10_000)


def _first_slurm_node() -> str:
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST", LOOPBACK)
    return str(SLURMEnvironment.resolve_root_node_address(nodes))


def _slurm_port() -> int:
    """Return a port that is the same for all tasks of a step and rarely the same for two steps."""
    step = f"{os.environ.get('SLURM_JOB_ID')}.{os.environ.get('SLURM_STEP_ID')}"
    return 20_000 + int(hashlib.sha256(step.encode()).hexdigest(), 16) % 10_000
