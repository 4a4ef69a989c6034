"""One job of a sweep, run through Hydra in this process."""

from typing import Any

from hydra.core.utils import JobStatus, configure_log, run_job
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from alexlab import compat
from alexlab.distributed.failures import translate_errors
from alexlab.errors import AlexlabError, PrunedError
from alexlab.sweeps.jobs import FAILED, FINISHED, PRUNED, Job


def run_sweep_job(job: Job, *, hydra_context: HydraContext, task: TaskFunction, config: DictConfig) -> None:
    """Run a job and record its outcome in it.

    Args:
        job: the job.
        hydra_context: Hydra's context, for its callbacks.
        task: function that runs the task on the config of the job and returns its score.
        config: config of the sweep, whose logging is configured again afterwards.
    """
    try:
        with translate_errors(job.folder):
            result = run_job(
                hydra_context=hydra_context,
                task_function=task,
                config=job.config,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )
    except AlexlabError as error:  # the disk is full: Hydra cannot write the config of the job
        job.end(FAILED, cause=str(error))
        return
    finally:
        configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    if result.status == JobStatus.COMPLETED:
        job.end(FINISHED, score=result.return_value)
        return
    raised = compat.job_error(result)
    if isinstance(raised, PrunedError):
        job.end(PRUNED, cause=str(raised))
    else:
        job.end(FAILED, cause=f"{type(raised).__name__}: {raised}")


def keep_hydra_folder(config: Any) -> None:
    """Make a resumed job leave the `.hydra` folder of its first attempt unchanged."""
    with open_dict(config):
        config.hydra.output_subdir = None
