"""Task of a command, called by Hydra on each composed config."""

import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.conf import OverridesConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from alexlab.cli.arguments import last_value
from alexlab.cli.exits import UNRESOLVED, report_errors, unresolved
from alexlab.cli.hydra_state import ProcessState
from alexlab.cli.invocation import Invocation
from alexlab.config.confinement import check_confined
from alexlab.config.grammar import raw_overrides
from alexlab.distributed import ranks, rendezvous
from alexlab.errors import AlexlabError, ConfigError
from alexlab.records.layout import LAUNCHER_OVERRIDES, RUN_JSON
from alexlab.records.optimized import OptimizedMetric
from alexlab.records.run import Run
from alexlab.sweeps.jobs import FAILED, FINISHED, Job, previous_attempt
from alexlab.sweeps.table import JobTable

SWEEP_OVERRIDES = ("sweep=", "hydra/sweeper=", "hydra.sweep")  # the last one also begins hydra.sweeper.

log = logging.getLogger(__name__)


@dataclass
class CommandTask:
    """Task function of a command; an `alexlab.sweeps.table.SweepTask`.

    Args:
        invocation: command line of the command.
        table: jobs of the sweep, or the run that was submitted to a cluster.
        exit_codes: exit codes of failed runs.
        run_dir: folder of the last run.
        rehearsed: configs of the jobs that were checked on this machine.
    """

    invocation: Invocation
    table: JobTable = field(default_factory=JobTable)
    exit_codes: list[int] = field(default_factory=list)
    run_dir: Path | None = None
    rehearsed: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, config: DictConfig) -> float | None:
        """Run the task and return the value that a sweeper optimizes; None if it failed."""
        hydra_config = HydraConfig.get()
        # Relative paths refer to the working directory of the command, also with hydra.job.chdir=true.
        os.chdir(hydra_config.runtime.cwd)
        self.run_dir = Path(hydra_config.runtime.output_dir)
        with report_errors(self.run_dir, self.exit_codes):
            is_single = hydra_config.mode == RunMode.RUN and self.invocation.command == "train"
            if is_single:
                is_submitted = hydra_config.runtime.choices.get("hydra/launcher") == "submitit"
                _check_single(hydra_config.overrides, is_submitted=is_submitted)
                if is_submitted:
                    return self._submit(config)
            run = self._prepare(config)
            score: float | None = self._main(run)
            self._compare(run)
            return score
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the table, which holds the configs of all jobs."""
        return CommandTask, (self.invocation,)

    def check(self, config: DictConfig, *, remote: bool) -> None:
        """Raise AlexlabError if the task cannot run a config, or a resumed sweep must not.

        Args:
            config: composed config of a job.
            remote: the job runs on another machine, whose devices are unknown here.
        """
        task, sweep, plain = self._module(), self.invocation.sweep, to_plain(config)
        if sweep is not None:
            check_confined(plain, sweep.folder, confirmed=sweep.confirmed)
        if self.invocation.command == "train":
            task.check(plain, remote=remote)
            if not remote:
                self.rehearsed.append(plain)
        elif hasattr(task, "check"):
            task.check(plain)

    def _module(self) -> Any:
        return importlib.import_module(f"alexlab.tasks.{self.invocation.command}")

    @property
    def _main(self) -> Callable[[Run], float | None]:
        main: Callable[[Run], float | None] = self._module().main
        return main

    def _prepare(self, config: DictConfig) -> Run:
        """Return the run for a composed config, or for the run that is resumed or repeated."""
        invocation, hydra_config = self.invocation, HydraConfig.get()
        sys.argv[1:] = invocation.typed  # for the run record
        run_dir, isolated = Path(hydra_config.runtime.output_dir), hydra_config.mode == RunMode.MULTIRUN
        if invocation.earlier is not None:
            before = invocation.earlier.config  # the ranks may have been started on a cluster just now
            rendezvous.join(before["trainer"], timeout_s=before["elastic"]["timeout_s"])
            return invocation.earlier.to_run(run_dir)
        own = to_plain(config)
        if invocation.command == "train":  # the ranks that a cluster started for a job on several nodes
            rendezvous.join(own["trainer"], timeout_s=own["elastic"]["timeout_s"])
        if invocation.sweep is not None:
            check_confined(own, invocation.sweep.folder, confirmed=invocation.sweep.confirmed)
        # After a restart by torchrun `alexlab.tasks.train` resumes: only the node of rank 0 may have the record.
        if (
            invocation.command == "train"
            and not ranks.started_by_torchrun()
            and ranks.broadcast("is resumed", lambda: previous_attempt(run_dir).resumed)
        ):
            from alexlab.cli.resume_sweep import resumed_job

            return resumed_job(run_dir, own, sweep=invocation.sweep, isolated=isolated)
        choices, overrides = hydra_config.runtime.choices.items(), raw_overrides(hydra_config.overrides.task)
        ablations = {"ablation": selected_ablations(overrides)} if invocation.command == "train" else {}
        return Run(
            config=own,
            dir=run_dir,
            choices={group: str(option) for group, option in choices if "hydra/" not in group} | ablations,
            overrides=overrides,
            isolated=isolated,
            rehearsed=own in self.rehearsed,
        )

    def _compare(self, run: Run) -> None:
        """Log how a repeated run compares with the first one."""
        from alexlab.cli.rerun import Rerun

        if isinstance(self.invocation.earlier, Rerun):
            for line in self.invocation.earlier.compare(run.dir):
                log.info("%s", line)

    def _submit(self, config: DictConfig) -> float | None:
        """Run the task on a cluster, wait for it and return its score.

        Raises:
            AlexlabError: with the cause and the exit code if the run failed there.
        """
        from alexlab.records.record import RunRecord

        hydra_config = HydraConfig.get()
        run_dir = Path(hydra_config.runtime.output_dir)
        runner = hydra.utils.instantiate(hydra_config.launcher).runner
        runner.prepare(run_dir)
        if self.invocation.earlier is None:
            with runner.like_job():
                self.check(config, remote=runner.remote)
        else:
            config = OmegaConf.create(self.invocation.earlier.config)
        job = Job(0, raw_overrides(hydra_config.overrides.task), run_dir, config, standalone=True)
        self.table.jobs.append(job)
        runner.run(
            iter([job]),
            partial(_run_submitted, self.invocation),
            table=self.table,
            on_end=lambda job: None,
            restore=ProcessState.capture().restore,
        )
        if job.state == FINISHED:
            if not (run_dir / RUN_JSON).is_file():  # debug=doctor records no run
                return job.score
            from alexlab.training.console import print_end

            record = RunRecord(run_dir).read()
            print_end(record["scores"], run_dir, OptimizedMetric(**record["optimized"]))
            return job.score
        failure = AlexlabError(str(job.cause))
        try:
            code = RunRecord(run_dir).read().get("exit_code")
        except ConfigError:  # it failed before it wrote its record
            code = None
        failure.exit_code = code or AlexlabError.exit_code
        raise failure


def _check_single(overrides: OverridesConf, *, is_submitted: bool) -> None:
    """Raise ConfigError for a typed setting of sweeps, which a single run would ignore."""
    own = SWEEP_OVERRIDES if is_submitted else (*SWEEP_OVERRIDES, *LAUNCHER_OVERRIDES, "hydra/launcher=")
    given = [*raw_overrides(overrides.task), *raw_overrides(overrides.hydra)]
    typed = [override for override in given if override.startswith(own) and override != "launcher=sequential"]
    if typed:
        error = ConfigError(f"{typed[0]} is for sweeps: add -m")
        error.refused = True
        raise error


def selected_ablations(overrides: Sequence[str]) -> str:
    """Return the options of `ablation=`, joined by commas; Hydra records no choice for a group that takes a list."""
    selected = (last_value("ablation", overrides) or "").strip("[]")
    return "none" if selected in ("", "null") else selected


def _run_submitted(invocation: Invocation, job: Job) -> None:
    """Run a submitted task in its process on the cluster, and record its outcome in `job`."""
    hydra_config = HydraConfig.get()
    configure_log(cast(DictConfig, hydra_config.job_logging), hydra_config.verbose)
    task = CommandTask(invocation)
    try:
        run = task._prepare(job.config)
        job.end(FINISHED, score=task._main(run))
        task._compare(run)
    except Exception as error:
        if not isinstance(error, AlexlabError):
            log.exception("%s", error)
        job.end(FAILED, cause=str(error))


def to_plain(config: DictConfig) -> dict[str, Any]:
    """Return a composed config as plain data with every interpolation resolved, without the `launcher` node.

    Raises:
        ConfigError: if a mandatory value is missing or an interpolation cannot be resolved.
    """
    try:
        resolved: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = error.full_key or str(error).rsplit(" ", 1)[-1]
        raise ConfigError(f"{key} is required: {key}=VALUE") from error
    except UNRESOLVED as error:
        raise unresolved(error) from error
    return {key: value for key, value in resolved.items() if key != "launcher"}
