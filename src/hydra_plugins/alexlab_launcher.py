"""Our launcher. Hydra takes plugins from modules of `hydra_plugins` only, and imports them at each start: nothing heavy here."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from alexlab import sweeps
from alexlab.errors import AlexlabError, ConfigError
from alexlab.runs import CARD

log = logging.getLogger(__name__)


class SequentialLauncher(Launcher):
    """Runs the jobs one after the other; a job that fails costs that job, and its cause is kept.

    In the folder of a sweep that was begun before, a finished job is not run again: its stored score is returned. An
    interrupted one goes on from its last checkpoint.

    Args:
        repeat_failed: run what failed before once more; what it left is kept in `.earlier/`.
    """

    def __init__(self, repeat_failed: bool = False) -> None:
        self.repeat_failed = repeat_failed

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keeps what Hydra hands over."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs a job for each list of overrides; the return value of a failed one is NaN."""
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        self._check(job_overrides, initial_job_idx)
        return [self._run(list(job), initial_job_idx + offset) for offset, job in enumerate(job_overrides)]

    def _check(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> None:
        """Tells the mistakes of all jobs and ends the process before the first one starts.

        Not for a search, which proposes its jobs one by one.
        """
        if len(job_overrides) < 2:
            return
        mistakes = []
        for number, job in enumerate(job_overrides, start=initial_job_idx):
            config = self._config(list(job), number)
            if (self._folder(config) / CARD).is_file():
                continue  # of a sweep that is resumed
            del config.hydra
            for check in sweeps.checks:
                try:
                    check(config)
                except AlexlabError as error:
                    mistakes.append(f"job {number} ({' '.join(filter_overrides(list(job)))}): {error}")
        if mistakes:
            # Hydra would print a traceback of an exception.
            print(
                f"every job of a sweep must be able to run, and nothing was started; {len(mistakes)} of "
                f"{len(job_overrides)} cannot:\n" + "\n".join(mistakes),
                file=sys.stderr,
            )
            raise SystemExit(ConfigError.exit_code)

    def _config(self, overrides: list[str], number: int) -> Any:
        config: Any = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
            config.hydra.mode = self.config.hydra.mode
        OmegaConf.set_struct(config, False)
        return config

    def _run(self, overrides: list[str], number: int) -> JobReturn:
        shown = filter_overrides(overrides)
        log.info("job %d: %s", number, " ".join(shown))
        config = self._config(overrides, number)
        with open_dict(config):
            earlier = sweeps.earlier(self._folder(config), repeat_failed=self.repeat_failed)
            if earlier.resumed:
                config.hydra.output_subdir = None  # the first .hydra stays as it is
        if earlier.score is not None or earlier.cause is not None:
            log.info("job %d: %s", number, "finished before" if earlier.cause is None else earlier.cause)
            sweeps.outcomes.append(sweeps.Outcome(number, shown, score=earlier.score, cause=earlier.cause))
            value = float("nan") if earlier.score is None else earlier.score
            return JobReturn(overrides=shown, cfg=config, status=JobStatus.COMPLETED, _return_value=value)
        result = run_job(
            hydra_context=self.hydra_context,
            task_function=self.task_function,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        if result.status == JobStatus.COMPLETED:
            sweeps.outcomes.append(sweeps.Outcome(number, shown, score=result.return_value))
            return result
        cause = result._return_value
        sweeps.outcomes.append(sweeps.Outcome(number, shown, cause=f"{type(cause).__name__}: {cause}"))
        result.status, result.return_value = JobStatus.COMPLETED, float("nan")
        return result

    @staticmethod
    def _folder(config: Any) -> Path:
        return Path(config.hydra.sweep.dir) / config.hydra.sweep.subdir
