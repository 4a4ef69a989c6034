"""What every command does around its task: the command line, the run folder, words for mistakes, the exit code.

Imports no torch: `--help`, `--cfg job` and a mistake in the command are answered before it is needed.
"""

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, UnsupportedInterpolationType

from alexlab import members, overrides, runs, sweeps, trust
from alexlab.errors import AlexlabError, ConfigError, PrunedError
from alexlab.overrides import CONFIG_DIR
from alexlab.signals import INTERRUPTED, Stopped, signals

if TYPE_CHECKING:
    from alexlab.rerunning import Rerun
    from alexlab.resuming import Resumption

UNRESOLVED = (InterpolationResolutionError, UnsupportedInterpolationType)

log = logging.getLogger(__name__)


def run_command(name: str) -> None:
    """Composes `conf/<name>.yaml` with the command line, runs `alexlab.tasks.<name>.run` and exits with its code."""
    typed = sys.argv[1:]
    earlier = None
    with ending_in_words():
        overrides.check_words(typed)
        sys.argv[1:] = trust.without_trust(typed)
        if name == "train" and any(argument.startswith(("resume=", "rerun=")) for argument in typed):
            from alexlab.rerunning import find_rerun
            from alexlab.resuming import find_resumption, resumed_sweep

            sys.argv[1:] = resumed_sweep(sys.argv[1:])
            earlier = find_resumption(sys.argv[1:]) or find_rerun(sys.argv[1:])
    words = overrides.with_runs(sys.argv[1:]) if name == "report" else sys.argv[1:]
    sys.argv[1:] = overrides.with_quoted_paths(words)
    if name in ("train", "benchmark"):
        sys.argv[1:] = overrides.selects_own_folder(sys.argv[1:])
    sys.argv[1:] = overrides.in_order(sys.argv[1:])
    if earlier is not None:
        sys.argv[1:] = earlier.arguments()
    register()
    codes = [0]
    sweeps.checks.append(lambda config: check_job(name, config))

    def job(config: DictConfig) -> float | None:
        try:
            return (submit if is_for_a_cluster() else run_job)(name, config, earlier, typed)
        except BrokenPipeError:
            nobody_reads()
        except Exception as error:
            if isinstance(error, AlexlabError):
                log.log(logging.INFO if isinstance(error, PrunedError) else logging.ERROR, "%s", error)
            else:
                report_bug(error, Path(HydraConfig.get().runtime.output_dir))
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise  # the launcher counts it, and goes on with the next job
            codes.append(error.exit_code if isinstance(error, AlexlabError) else AlexlabError.exit_code)
        return None

    try:
        with signals.heard() if name == "train" else nullcontext():
            hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=name)(job)()
    except (KeyboardInterrupt, Stopped) as error:
        codes.append(error.exit_code if isinstance(error, Stopped) else INTERRUPTED)
        if sweeps.jobs and sweeps.jobs[0].alone:
            print(
                f"the job stays where it is, {sweeps.jobs[0].place}; it prints to {sweeps.jobs[0].folder / runs.OUTPUT}"
            )
        elif sweeps.jobs:
            print(
                f"python src/{name}.py -m resume={os.path.relpath(sweeps.jobs[0].folder.parent)} goes on with this sweep"
            )
    if any(job.state == sweeps.FAILED for job in sweeps.jobs):
        codes.append(1)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        nobody_reads()
    sys.exit(max(codes))


def report_bug(error: Exception, run_dir: Path) -> None:
    """Log an error that is none of the user's, with its traceback and what to do."""
    record = run_dir / runs.CARD
    attached = f" and {record}" if record.is_file() else ""
    log.exception("%s", error, exc_info=error)
    log.error("This is a bug in alexlab. Please report it with the traceback above%s.", attached)


def nobody_reads() -> None:
    """After `... | head`: what is still to be said goes nowhere, and is no error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def register() -> None:
    """Makes Hydra speak our words: the `tag` resolver and the checks of overrides."""
    OmegaConf.register_new_resolver("tag", lambda words: runs.tag(overrides.as_typed(words)), replace=True)
    overrides.check_overrides()


def check_job(name: str, config: DictConfig) -> None:
    """Raises AlexlabError when the task of a command could not run this config."""
    task = importlib.import_module(f"alexlab.tasks.{name}")
    if hasattr(task, "check"):
        task.check(plain(config))


def run_job(
    name: str, config: DictConfig, earlier: "Resumption | Rerun | None" = None, typed: Sequence[str] = ()
) -> float | None:
    """Runs the task of a command on a composed config; its return value is what a sweeper maximises.

    Args:
        name: of the command.
        config: as Hydra has composed it.
        earlier: the run to go on with or to repeat, whose config is taken instead.
        typed: the arguments as they were typed.
    """
    hydra_config = HydraConfig.get()
    task = importlib.import_module(f"alexlab.tasks.{name}")
    sys.argv[1:] = typed  # for the card
    if earlier is not None:
        run_dir = Path(hydra_config.runtime.output_dir)
        best: float | None = earlier.run(task.run, run_dir)
        return best
    run_dir, isolated = Path(hydra_config.runtime.output_dir), hydra_config.mode == RunMode.MULTIRUN
    if name == "train" and sweeps.earlier(run_dir).resumed:
        from alexlab.cards import Card

        card = Card(run_dir).read()
        return task.run(card["config"], run_dir=run_dir, choices=card["choices"], isolated=isolated, resumed=True)
    value: float | None = task.run(
        plain(config),
        run_dir=run_dir,
        choices={group: str(option) for group, option in hydra_config.runtime.choices.items() if "hydra/" not in group},
        isolated=isolated,
    )
    return value


def is_for_a_cluster() -> bool:
    """Whether this command is no sweep, and its only run goes to a cluster."""
    found = HydraConfig.get()
    return found.mode == RunMode.RUN and found.runtime.choices.get("launcher") == "submitit"


def submit(
    name: str, config: DictConfig, earlier: "Resumption | Rerun | None" = None, typed: Sequence[str] = ()
) -> float | None:
    """Has a cluster run what `run_job` would run here, waits for it and returns the same.

    Raises:
        AlexlabError: with the cause and the exit code of a run that has failed there.
    """
    from alexlab.cards import Card

    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    if config.trainer.num_nodes > 1:
        raise ConfigError(
            f"launcher=submitit runs on one node; got trainer.num_nodes={config.trainer.num_nodes}. For several: srun "
            "--ntasks-per-node=1 python src/train.py elastic.rendezvous=HOST:PORT ... in a batch script"
        )
    engine = hydra.utils.instantiate(hydra_config.launcher.engine)
    engine.prepare(run_dir)
    if earlier is None:
        with engine.as_a_job():
            check_job(name, config)
    job = sweeps.Job(0, overrides.as_typed(hydra_config.overrides.task), run_dir, config, alone=True)
    sweeps.jobs.append(job)
    engine.run(iter([job]), partial(_submitted, name, earlier, typed), lambda job: None)
    if job.state == sweeps.FINISHED:
        from alexlab.training import print_scores

        print_scores(Card(run_dir).read()["scores"], run_dir)
        return job.score
    failure = AlexlabError(str(job.cause))
    failure.exit_code = Card(run_dir).read().get("exit_code") or AlexlabError.exit_code
    raise failure


def _submitted(name: str, earlier: "Resumption | Rerun | None", typed: Sequence[str], job: sweeps.Job) -> None:
    """What the process of a submitted run does, on its node."""
    hydra_config = HydraConfig.get()
    configure_log(cast(DictConfig, hydra_config.job_logging), hydra_config.verbose)
    try:
        job.end(sweeps.FINISHED, score=run_job(name, job.config, earlier, typed))
    except Exception as error:
        if not isinstance(error, AlexlabError):
            log.exception("%s", error)
        job.end(sweeps.FAILED, cause=str(error))


def plain(config: DictConfig) -> dict[str, Any]:
    """The config of one job as dicts, lists, numbers and strings, with nothing left to resolve; not where it runs.

    Raises:
        ConfigError: when a value that must be given is missing, or refers to what there is not.
    """
    try:
        resolved: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = error.full_key or str(error).rsplit(" ", 1)[-1]
        raise ConfigError(f"{key} must be given: {key}=VALUE") from error
    except UNRESOLVED as error:
        raise _unresolved(error) from error
    return {key: value for key, value in resolved.items() if key != "launcher"}


def _unresolved(error: InterpolationResolutionError | UnsupportedInterpolationType) -> ConfigError:
    return ConfigError(f"{error.full_key} must refer to what there is; {str(error).splitlines()[0]}")


class Folders(Callback):
    """Gives each run and each sweep a folder of its own, before Hydra writes into it.

    Hydra turns an exception of a callback into a warning, so a folder that cannot be had ends the process here.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Claims `hydra.run.dir`; of several nodes or ranks the first does, and the others are told."""
        with ending_in_words(), open_dict(config):
            given = any(word.startswith("hydra.run.dir=") for word in overrides.as_typed(config.hydra.overrides.hydra))
            if config.hydra.job.name == "train":
                members.join_nodes({name: plain(config[name]) for name in ("trainer", "elastic")})
            wanted = config.hydra.run.dir
            config.hydra.run.dir = runs.agreed_folder(lambda: str(_claimed(wanted, given)))
            if runs.rank() > 0:
                config.hydra.output_subdir = None
                config.hydra.job_logging.root.handlers = ["console"]

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Claims `hydra.sweep.dir`, and says so to the jobs, whose configs are composed anew."""
        with ending_in_words(), open_dict(config):
            if runs.started_outside():
                raise ConfigError("a sweep starts the processes of its jobs itself: run it without torchrun")
            given = any(
                word.startswith("hydra.sweep.dir=") for word in overrides.as_typed(config.hydra.overrides.hydra)
            )
            folder = str(_sweep_folder(config, given))
            config.hydra.sweep.dir = folder
            if not given:
                config.hydra.overrides.hydra.append(f"hydra.sweep.dir={overrides.quoted_path(folder)}")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Prints every job with its score, and every failed one with its cause."""
        sweeps.print_jobs(Path(config.hydra.sweep.dir))
        sweeps.write_report(Path(config.hydra.sweep.dir))


def _sweep_folder(config: DictConfig, given: bool) -> Path:
    """A new folder for a sweep, or the folder of the same sweep, begun before."""
    from alexlab.cards import Lock

    folder = Path(config.hydra.sweep.dir)
    if not given or not (folder / sweeps.MULTIRUN).is_file():
        claimed = _claimed(config.hydra.sweep.dir, given)
        sweeps.locks.append(Lock(claimed))
        return claimed
    before, now = (
        [word for word in words if not word.startswith(runs.LAUNCHER_WORDS)]
        for words in (sweeps.stored_words(folder)[0], overrides.as_typed(config.hydra.overrides.task))
    )
    if before != now:
        raise ConfigError(f"{folder} holds another sweep, {' '.join(before)}; a sweep must have a folder of its own")
    sweeps.locks.append(Lock(folder))
    return folder


class ending_in_words:  # noqa: N801 - reads as a statement
    """Ends the process with the sentence of an error, and its exit code; in a sentence too what OmegaConf cannot resolve."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, UNRESOLVED):
            error = _unresolved(error)
        if isinstance(error, AlexlabError):
            print(error, file=sys.stderr)
            raise SystemExit(error.exit_code)


def _claimed(path: str, given: bool) -> Path:
    try:
        if not given:
            return runs.claim(path)
        folder = Path(path)
        if any((folder / name).exists() for name in (".hydra", sweeps.MULTIRUN)):
            raise ConfigError(f"a run must have a folder of its own; {folder} already holds one")
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    except OSError as error:
        raise ConfigError(f"the output folder must be writable; cannot make {path}: {error.strerror}") from error
