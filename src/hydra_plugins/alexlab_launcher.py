"""Hydra launcher of alexlab. Hydra finds plugins in `hydra_plugins` only and imports them at every start: no heavy imports."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from alexlab.cli.exits import exit_on_error
from alexlab.cli.hydra_state import ProcessState
from alexlab.config.grammar import raw_overrides
from alexlab.errors import AlexlabError, ConfigError, DiskError
from alexlab.output.numbers import counted
from alexlab.records.layout import LAUNCHER_OVERRIDES, RUN_JSON, tag
from alexlab.sweeps.jobs import Job, previous_attempt
from alexlab.sweeps.runner import JobRunner
from alexlab.sweeps.table import JobTable, SweepTask
from alexlab.sweeps.work import keep_hydra_folder, run_sweep_job


class SweepLauncher(Launcher):
    """Launcher that runs the jobs of a sweep. A failed job does not stop the others, and its cause is recorded.

    In the folder of an earlier sweep, finished jobs are not run again: their stored scores are returned. Interrupted jobs are
    resumed from their last checkpoints.

    Args:
        runner: class of the runner, or a partial of it.
        settings: the `launcher` node: keyword arguments of the runner, and `retry_failed` (false by default), which reruns
            failed jobs and keeps the output of their failed attempts in `.earlier/`.
    """

    def __init__(self, runner: Callable[..., JobRunner], settings: Mapping[str, Any] | None = None) -> None:
        arguments = dict(settings or {})
        self.retry_failed: bool = arguments.pop("retry_failed", False)
        self.runner = runner(**arguments)
        self.table = JobTable()

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store Hydra's context, the task of the command and the config of the sweep."""
        self.hydra_context, self.config = hydra_context, config
        self.task = cast(SweepTask, task_function)
        self.table = self.task.table

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a job for each list of overrides; the return value of a job without a score is NaN."""
        self._prepare()
        with exit_on_error():
            if self.config.hydra.sweeper.get("max_batch_size") is not None:
                raise ConfigError(
                    "hydra.sweeper.max_batch_size must be null, because all jobs are checked before the first one starts; "
                    "launcher.jobs is the number of jobs that run at the same time"
                )
        jobs = [
            self.make_job(list(overrides), number) for number, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        self.table.jobs.extend(jobs)
        self._check(jobs)
        self._run(iter(jobs), lambda job: None)
        return [_job_return(job) for job in jobs]

    def search(self, proposals: Iterable[tuple[int, list[str]]], on_end: Callable[[Job], None]) -> None:
        """Run jobs that are proposed one by one.

        Args:
            proposals: number and overrides of each job; the next one is taken when there is room.
            on_end: called for each job that ended.
        """
        self._prepare()
        with exit_on_error():
            if getattr(self.runner, "jobs", 1) is None:
                raise ConfigError("a search needs launcher.jobs=N: it proposes trials from the scores of earlier ones")
        rest = iter(proposals)
        first = list(islice(rest, 1))
        if not self.table.jobs:  # a new search
            self._check([self.make_job(overrides, number) for number, overrides in first])

        def proposed() -> Iterator[Job]:
            for number, overrides in chain(first, rest):
                self.table.jobs.append(self.make_job(overrides, number))
                self._check_metric(self.table.jobs[-1])
                yield self.table.jobs[-1]

        self._run(proposed(), on_end)

    def _check_metric(self, job: Job) -> None:
        """Exit unless a trial has the optimized metric of the search."""
        wanted = self.config.get("optimized_metric")
        with exit_on_error():
            if job.metric != wanted:
                raise ConfigError(
                    f"all trials of a search must have the same optimized_metric, {wanted}; job {job.number} has {job.metric}: "
                    f"{' '.join(job.overrides)}"
                )

    def add_ended(self, overrides: list[str], number: int, state: str) -> None:
        """Add a job of a search that ended in an earlier attempt to the table."""
        job = self.make_job(overrides, number)
        previous = previous_attempt(job.folder)
        job.end(state, score=previous.score, cause=previous.cause)
        self.table.jobs.append(job)

    def _prepare(self) -> None:
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        self.table.sweep_dir = sweep_dir = Path(self.config.hydra.sweep.dir)
        sweep_dir.mkdir(parents=True, exist_ok=True)
        with exit_on_error():
            self.runner.prepare(sweep_dir)

    def make_job(self, overrides: list[str], number: int) -> Job:
        """Return a job with its composed config."""
        config: Any = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
            config.hydra.mode = self.config.hydra.mode
            config.hydra.job.override_dirname = tag(self._swept(overrides))
        OmegaConf.set_struct(config, False)
        with exit_on_error():
            folder = Path(config.hydra.sweep.dir) / config.hydra.sweep.subdir
        shown = [override for override in filter_overrides(overrides) if not override.startswith(LAUNCHER_OVERRIDES)]
        return Job(number, shown, folder, config)

    def _swept(self, overrides: list[str]) -> list[str]:
        """Return the overrides of a job that are not the same in all jobs; all of them if none is swept."""
        parsed = OverridesParser.create().parse_overrides(raw_overrides(self.config.hydra.overrides.task))
        keys = {override.get_key_element() for override in parsed if override.is_sweep_override()}
        return [override for override in overrides if override.partition("=")[0] in keys] or overrides

    def _check(self, jobs: Sequence[Job]) -> None:
        """Check the configs of all jobs; print all mistakes and exit before the first job starts."""
        mistakes = []
        with self.runner.like_job():
            for job in jobs:
                if (job.folder / RUN_JSON).is_file():
                    continue  # the sweep is resumed
                config = job.config.copy()
                del config.hydra
                try:
                    self.task.check(config, remote=self.runner.remote)
                except AlexlabError as error:
                    mistakes.append(f"job {job.number} ({' '.join(job.overrides)}): {error}")
        with exit_on_error():
            if mistakes:
                raise ConfigError(
                    f"nothing was started, because {len(mistakes)} of {counted(len(jobs), 'job')} cannot run:",
                    *mistakes,
                )

    def _run(self, jobs: Iterator[Job], on_end: Callable[[Job], None]) -> None:
        from alexlab.distributed.failures import translate_errors

        work = partial(run_sweep_job, hydra_context=self.hydra_context, task=self.task, config=self.config)
        restore = ProcessState.capture().restore
        try:
            with translate_errors(Path(self.config.hydra.sweep.dir)):
                self.runner.run(self._remaining(jobs, on_end), work, table=self.table, on_end=on_end, restore=restore)
        except DiskError:
            with exit_on_error():
                raise

    def _remaining(self, jobs: Iterator[Job], on_end: Callable[[Job], None]) -> Iterator[Job]:
        """Yield the jobs that did not end in an earlier attempt; report the others."""
        for job in jobs:
            previous = previous_attempt(job.folder, retry_failed=self.retry_failed)
            if previous.state is not None and not (previous.held and self.runner.is_queued(job)):
                job.end(previous.state, score=previous.score, cause=previous.cause)
                self.table.report_end(job, before=True)
                on_end(job)
                continue
            if previous.resumed:
                keep_hydra_folder(job.config)
            yield job


def _job_return(job: Job) -> JobReturn:
    score = float("nan") if job.score is None else job.score
    return JobReturn(overrides=job.overrides, cfg=job.config, status=JobStatus.COMPLETED, _return_value=score)
