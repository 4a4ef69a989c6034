"""Our launcher. Hydra takes plugins from modules of `hydra_plugins` only, and imports them at each start: nothing heavy here."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from alexlab import compat
from alexlab.cli.command import ending_in_words
from alexlab.distributed.failures import translate_errors
from alexlab.errors import AlexlabError, ConfigError, PrunedError
from alexlab.runs.layout import LAUNCHER_OVERRIDES, RUN_JSON
from alexlab.sweeps import jobs as sweeps
from alexlab.sweeps.jobs import FAILED, FINISHED, PRUNED, Job
from alexlab.sweeps.local import JobRunner


class SweepLauncher(Launcher):
    """Runs the jobs of a sweep on a runner; a job that fails costs that job, and its cause is kept.

    In the folder of a sweep that was begun before, a finished job is not run again: its stored score is returned. An
    interrupted one goes on from its last checkpoint.

    Args:
        runner: class of the runner, or a partial of it.
        settings: the `launcher` node: keyword arguments of the runner, and `retry_failed` (false by default), which reruns
            failed jobs and keeps the output of their failed attempts in `.earlier/`.
    """

    def __init__(self, runner: Callable[..., JobRunner], settings: Mapping[str, Any] | None = None) -> None:
        arguments = dict(settings or {})
        self.retry_failed: bool = arguments.pop("retry_failed", False)
        self.runner = runner(**arguments)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keeps what Hydra hands over."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs a job for each list of overrides; the return value of one without a score is NaN."""
        self._begin()
        jobs = [self.job(list(words), number) for number, words in enumerate(job_overrides, start=initial_job_idx)]
        sweeps.jobs.extend(jobs)
        self._check(jobs)
        self._run(iter(jobs), lambda job: None)
        return [_returned(job) for job in jobs]

    def search(self, proposals: Iterable[tuple[int, list[str]]], ended: Callable[[Job], None]) -> None:
        """Runs jobs that are proposed one by one.

        Args:
            proposals: the number and the overrides of each, asked for when there is room.
            ended: told of each job.
        """
        self._begin()

        def proposed() -> Iterator[Job]:
            for number, words in proposals:
                sweeps.jobs.append(self.job(words, number))
                yield sweeps.jobs[-1]

        self._run(proposed(), ended)

    def keep(self, overrides: list[str], number: int, state: str) -> None:
        """Lists a job of a search that has ended in an earlier attempt."""
        job = self.job(overrides, number)
        previous = sweeps.previous_attempt(job.folder)
        job.end(state, score=previous.score, cause=previous.cause)
        sweeps.jobs.append(job)

    def _begin(self) -> None:
        setup_globals()
        self._configure_log()
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        with ending_in_words():
            self.runner.prepare(folder)

    def _configure_log(self) -> None:
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)

    def job(self, overrides: list[str], number: int) -> Job:
        """A job with its composed config."""
        config: Any = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
            config.hydra.mode = self.config.hydra.mode
        OmegaConf.set_struct(config, False)
        with ending_in_words():
            folder = Path(config.hydra.sweep.dir) / config.hydra.sweep.subdir
        shown = [word for word in filter_overrides(overrides) if not word.startswith(LAUNCHER_OVERRIDES)]
        return Job(number, shown, folder, config)

    def _check(self, jobs: Sequence[Job]) -> None:
        """Tells the mistakes of all jobs and ends the process before the first one starts."""
        mistakes = []
        with self.runner.like_job():
            for job in jobs:
                if (job.folder / RUN_JSON).is_file():
                    continue  # of a sweep that is resumed
                config = job.config.copy()
                del config.hydra
                for check in sweeps.checks:
                    try:
                        check(config, self.runner.remote)
                    except AlexlabError as error:
                        mistakes.append(f"job {job.number} ({' '.join(job.overrides)}): {error}")
        with ending_in_words():
            if mistakes:
                raise ConfigError(
                    f"every job of a sweep must be able to run, and nothing was started; {len(mistakes)} of "
                    f"{len(jobs)} cannot:",
                    *mistakes,
                )

    def _run(self, jobs: Iterator[Job], ended: Callable[[Job], None]) -> None:
        self.runner.run(self._to_run(jobs, ended), self.work, ended)

    def _to_run(self, jobs: Iterator[Job], ended: Callable[[Job], None]) -> Iterator[Job]:
        """The jobs that an earlier attempt has not ended; the others are told."""
        for job in jobs:
            previous = sweeps.previous_attempt(job.folder, retry_failed=self.retry_failed)
            if previous.state is not None and not (previous.held and self.runner.is_queued(job)):
                job.end(previous.state, score=previous.score, cause=previous.cause)
                sweeps.report_end(job, before=True)
                ended(job)
                continue
            if previous.resumed:
                with open_dict(job.config):
                    job.config.hydra.output_subdir = None  # the first .hydra stays as it is
            yield job

    def work(self, job: Job) -> None:
        """Runs a job in this process and says in it what became of it."""
        try:
            with translate_errors(job.folder):
                result = run_job(
                    hydra_context=self.hydra_context,
                    task_function=self.task_function,
                    config=job.config,
                    job_dir_key="hydra.sweep.dir",
                    job_subdir_key="hydra.sweep.subdir",
                )
        except AlexlabError as error:  # the disk is full: Hydra cannot write the config of the job
            job.end(FAILED, cause=str(error))
            return
        finally:
            self._configure_log()
        if result.status == JobStatus.COMPLETED:
            job.end(FINISHED, score=result.return_value)
            return
        raised = compat.job_error(result)
        if isinstance(raised, PrunedError):
            job.end(PRUNED, cause=str(raised))
        else:
            job.end(FAILED, cause=f"{type(raised).__name__}: {raised}")


def _returned(job: Job) -> JobReturn:
    result = JobReturn(overrides=job.overrides, cfg=job.config, status=JobStatus.COMPLETED)
    result.return_value = float("nan") if job.score is None else job.score
    return result
