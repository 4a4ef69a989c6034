"""What every command does around its task: the command line, the run folder, words for mistakes, the exit code.

Imports no torch: `--help`, `--cfg job` and a mistake in the command are answered before it is needed.
"""

import importlib
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from hydra.errors import HydraException, OverrideParseException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, UnsupportedInterpolationType

from alexlab.cli.arguments import (
    check_arguments,
    collect_runs,
    expand_run_dirs,
    order_arguments,
    quote_paths,
    select_data,
)
from alexlab.cli.hydra_state import ProcessState, register
from alexlab.cli.streams import check_output, open_streams, restart_in_utf8
from alexlab.config import CONFIG_DIR, allowlist
from alexlab.config.confinement import check_confined, check_folder
from alexlab.config.grammar import quote_path, raw_overrides
from alexlab.distributed import ranks, rendezvous
from alexlab.distributed.failures import translate_errors
from alexlab.distributed.signals import INTERRUPTED, Interrupted, signals
from alexlab.distributed.socket_paths import ensure_short_socket_paths
from alexlab.errors import AlexlabError, ConfigError, PrunedError
from alexlab.output.escape import print_line
from alexlab.runs import layout
from alexlab.runs.disk_errors import check_free_space
from alexlab.runs.run import Run
from alexlab.sweeps.jobs import MULTIRUN, Job, SweepTask, previous_attempt
from alexlab.sweeps.record import RECORD, make_record, read_record
from alexlab.sweeps.table import FAILED, FINISHED, JobTable

if TYPE_CHECKING:
    from alexlab.cli.rerun import Rerun
    from alexlab.cli.resume import ResumedSweep, Resumption
    from alexlab.runs.lock import RunLock

UNRESOLVED = (InterpolationResolutionError, UnsupportedInterpolationType)

log = logging.getLogger(__name__)


def run_command(name: str) -> None:
    """Composes `conf/<name>.yaml` with the command line, runs `alexlab.tasks.<name>.run` and exits with its code."""
    restart_in_utf8()
    open_streams()
    typed = sys.argv[1:]
    earlier, sweep = None, None
    with ending_in_words():
        ensure_short_socket_paths()
        check_arguments(typed)
        sys.argv[1:] = expand_run_dirs(allowlist.without_trust(typed))
        if name == "train" and any(argument.startswith(("resume", "rerun=")) for argument in typed):
            from alexlab.cli.rerun import find_rerun
            from alexlab.cli.resume import find_resumed_sweep, find_resumption

            sweep = find_resumed_sweep(sys.argv[1:])
            resumption = None if sweep is not None else find_resumption(sys.argv[1:])
            if resumption is not None:  # Hydra opens the log in its folder
                check_free_space(resumption.run_dir)
            if sweep is not None:
                sys.argv[1:] = sweep.arguments
            else:
                earlier = resumption or find_rerun(sys.argv[1:])
    words = collect_runs(sys.argv[1:]) if name == "report" else sys.argv[1:]
    sys.argv[1:] = quote_paths(words)
    if name in ("train", "benchmark"):
        sys.argv[1:] = select_data(sys.argv[1:])
    sys.argv[1:] = order_arguments(sys.argv[1:])
    if earlier is not None:
        sys.argv[1:] = earlier.arguments()
    register()
    codes = [0]
    created.clear()
    table = JobTable()

    def job(config: DictConfig) -> float | None:
        # Relative paths are those of the folder where the command was typed, with hydra.job.chdir=true too.
        os.chdir(HydraConfig.get().runtime.cwd)
        try:
            with translate_errors(Path(HydraConfig.get().runtime.output_dir)):
                if is_for_a_cluster():
                    return submit(name, config, earlier, typed, table=table)
                return run_job(name, config, earlier, typed, sweep)
        except Exception as error:
            if "TORCHELASTIC_ERROR_FILE" in os.environ:  # torchrun prints it at its end
                from alexlab.distributed.error_files import write_error_file

                write_error_file(error)
            if isinstance(error, AlexlabError) and error.refused:
                print_line(error, file=sys.stderr)
            elif isinstance(error, AlexlabError):
                log.log(logging.INFO if isinstance(error, PrunedError) else logging.ERROR, "%s", error)
            else:
                report_bug(error, Path(HydraConfig.get().runtime.output_dir))
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise  # the launcher counts it, and goes on with the next job
            codes.append(error.exit_code if isinstance(error, AlexlabError) else AlexlabError.exit_code)
        return None

    task = SweepTask(job, check=partial(check_job, name, sweep=sweep), table=table)
    try:
        with signals.install() if name == "train" else nullcontext():
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them and a traceback
            hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=name)(task)()
            if table.sweep_dir is not None:
                with ending_in_words(), translate_errors(table.sweep_dir):
                    table.print_results()
    except OverrideParseException as error:
        print_line(
            f"{error.override} must be KEY=VALUE in Hydra's grammar; a value with spaces, brackets or other special "
            "characters needs quotes inside the shell's, such as 'KEY=\"VALUE\"'",
            file=sys.stderr,
        )
        codes.append(ConfigError.exit_code)
    except HydraException as error:
        for line in str(error).splitlines():
            print_line(line, file=sys.stderr)
        codes.append(ConfigError.exit_code)
    except SystemExit as error:
        if error.code:
            remove_unused()
        raise
    except (KeyboardInterrupt, Interrupted) as error:
        codes.append(error.exit_code if isinstance(error, Interrupted) else INTERRUPTED)
        first = next(iter(table.jobs), None)
        if first is not None and first.standalone:
            print_line(f"the job keeps running as {first.place}; its output goes to {first.folder / layout.OUTPUT}")
        elif first is not None:
            print_line(f"resume this sweep with python src/{name}.py -m resume={os.path.relpath(first.folder.parent)}")
    if table.any_failed():
        codes.append(1)
    if max(codes):
        remove_unused()
    with ending_in_words():
        check_output()
    sys.exit(max(codes))


created: list[Path] = []  # folders that this command has made, each before those inside of it
UNUSED = {".hydra", layout.LOCK, ranks.NODE_MARKER, RECORD, MULTIRUN}  # in a folder in which no work was begun


def remove_unused() -> None:
    """Remove the folder made for a run or sweep that was refused before it began, so that a mistake leaves nothing."""
    for folder in reversed(created):
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else {"gone"}
        if not names - UNUSED - {path.name for path in folder.glob("*.log")}:
            shutil.rmtree(folder, ignore_errors=True)


def report_bug(error: Exception, run_dir: Path) -> None:
    """Log an error that is none of the user's, with its traceback and what to do."""
    record = run_dir / layout.RUN_JSON
    attached = f" and {record}" if record.is_file() else ""
    log.exception("%s", error, exc_info=error)
    log.error("This is a bug in alexlab. Please report it with the traceback above%s.", attached)


def check_job(name: str, config: DictConfig, sweep: "ResumedSweep | None" = None, *, remote: bool = False) -> None:
    """Raise AlexlabError if the task of a command cannot run this config, or a resumed sweep must not.

    Args:
        name: of the command.
        config: of the job, as Hydra has composed it.
        sweep: the resumed sweep that this is a job of.
        remote: the job runs on another machine, whose devices are not known here.
    """
    task = importlib.import_module(f"alexlab.tasks.{name}")
    if sweep is not None:
        check_confined(plain(config), sweep.folder, confirmed=sweep.confirmed)
    if name == "train":
        task.check(plain(config), remote=remote)
    elif hasattr(task, "check"):
        task.check(plain(config))


def run_job(
    name: str,
    config: DictConfig,
    earlier: "Resumption | Rerun | None" = None,
    typed: Sequence[str] = (),
    sweep: "ResumedSweep | None" = None,
) -> float | None:
    """Run the task of a command on a composed config; its return value is what a sweeper maximises.

    Args:
        name: of the command.
        config: as Hydra has composed it.
        earlier: the run to resume or to repeat, whose config is taken instead.
        typed: the arguments as they were typed.
        sweep: the resumed sweep that this is a job of.
    """
    hydra_config = HydraConfig.get()
    task = importlib.import_module(f"alexlab.tasks.{name}")
    sys.argv[1:] = typed  # for the card
    run_dir, isolated = Path(hydra_config.runtime.output_dir), hydra_config.mode == RunMode.MULTIRUN
    if earlier is not None:
        best: float | None = earlier.run(task.main, run_dir)
        return best
    own = plain(config)
    if name == "train":  # the processes that a cluster starts for a job of several nodes
        rendezvous.join(own["trainer"], timeout_s=own["elastic"]["timeout_s"])
    if sweep is not None:
        check_confined(own, sweep.folder, confirmed=sweep.confirmed)
    if name == "train" and ranks.broadcast("is resumed", lambda: previous_attempt(run_dir).resumed):
        from alexlab.cli.resume import check_foreign
        from alexlab.runs.record import RunRecord, images_to_match

        content = RunRecord(run_dir).read()
        check_foreign(content["config"], run_dir, own=own)
        run = Run(
            config=content["config"],
            dir=run_dir,
            choices=content["choices"],
            isolated=isolated,
            resumed=True,
            recorded_images=images_to_match(content["data"], classes_only=sweep is not None and sweep.on_changed_data),
        )
        return task.main(run)
    run = Run(
        config=own,
        dir=run_dir,
        choices={group: str(option) for group, option in hydra_config.runtime.choices.items() if "hydra/" not in group},
        overrides=raw_overrides(hydra_config.overrides.task),
        isolated=isolated,
    )
    value: float | None = task.main(run)
    return value


def is_for_a_cluster() -> bool:
    """Whether this command is no sweep, and its only run goes to a cluster."""
    found = HydraConfig.get()
    return found.mode == RunMode.RUN and found.runtime.choices.get("launcher") == "submitit"


def submit(
    name: str,
    config: DictConfig,
    earlier: "Resumption | Rerun | None" = None,
    typed: Sequence[str] = (),
    *,
    table: JobTable,
) -> float | None:
    """Has a cluster run what `run_job` would run here, waits for it and returns the same.

    Raises:
        AlexlabError: with the cause and the exit code of a run that has failed there.
    """
    from alexlab.runs.record import RunRecord

    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    runner = hydra.utils.instantiate(hydra_config.launcher).runner
    runner.prepare(run_dir)
    if earlier is None:
        with runner.like_job():
            check_job(name, config, remote=runner.remote)
    job = Job(0, raw_overrides(hydra_config.overrides.task), run_dir, config, standalone=True)
    table.jobs.append(job)
    runner.run(
        iter([job]),
        partial(_submitted, name, earlier, typed),
        table=table,
        on_end=lambda job: None,
        restore=ProcessState.capture().restore,
    )
    if job.state == FINISHED:
        from alexlab.training.console import print_scores

        print_scores(RunRecord(run_dir).read()["scores"], run_dir)
        return job.score
    failure = AlexlabError(str(job.cause))
    failure.exit_code = RunRecord(run_dir).read().get("exit_code") or AlexlabError.exit_code
    raise failure


def _submitted(name: str, earlier: "Resumption | Rerun | None", typed: Sequence[str], job: Job) -> None:
    """What the process of a submitted run does, on its node."""
    hydra_config = HydraConfig.get()
    configure_log(cast(DictConfig, hydra_config.job_logging), hydra_config.verbose)
    try:
        job.end(FINISHED, score=run_job(name, job.config, earlier, typed))
    except Exception as error:
        if not isinstance(error, AlexlabError):
            log.exception("%s", error)
        job.end(FAILED, cause=str(error))


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
        """Meet the other ranks, if something has started any, and claim `hydra.run.dir` on the first of them."""
        with ending_in_words(), open_dict(config):
            given = any(word.startswith("hydra.run.dir=") for word in raw_overrides(config.hydra.overrides.hydra))
            if config.hydra.job.name == "train":
                rendezvous.join(plain(config.trainer), timeout_s=config.elastic.timeout_s)
            wanted = config.hydra.run.dir
            config.hydra.run.dir = ranks.broadcast_run_dir(lambda: str(_claimed(wanted, given)))
            if ranks.rank() > 0:
                config.hydra.output_subdir = None
                config.hydra.job_logging.root.handlers = ["console"]

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Claims `hydra.sweep.dir`, and says so to the jobs, whose configs are composed anew."""
        with ending_in_words(), open_dict(config):
            rendezvous.join({"accelerator": "cpu", "devices": 1, "num_nodes": 1}, timeout_s=rendezvous.PEER_TIMEOUT_S)
            if ranks.is_distributed():
                raise ConfigError("a sweep starts the processes of its jobs itself: run it without torchrun")
            given = any(word.startswith("hydra.sweep.dir=") for word in raw_overrides(config.hydra.overrides.hydra))
            folder, self.lock = _sweep_folder(config, given)
            config.hydra.sweep.dir = str(folder)
            if not given:
                config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quote_path(str(folder))}")


def _sweep_folder(config: DictConfig, given: bool) -> "tuple[Path, RunLock]":
    """Return a new folder for a sweep, or the folder of the same sweep, begun before, and the lock on it."""
    from alexlab.runs.lock import RunLock

    folder = Path(config.hydra.sweep.dir)
    record = make_record(OmegaConf.to_container(config)) if config.hydra.job.name == "train" else None
    if given and record is not None and (folder / RECORD).is_file():
        before = read_record(folder)
        check_folder(folder)
        if before.overrides != record.overrides:
            raise ConfigError(
                f"{folder} holds another sweep, {' '.join(before.job_overrides())}; a sweep must have a folder of its own"
            )
        check_free_space(folder)
        claimed = folder
    else:
        claimed = _claimed(config.hydra.sweep.dir, given)
    lock = RunLock(claimed)
    if record is not None:
        record.write(claimed)
        # The jobs are those of the record, also where the words would draw them anew: `shuffle(...)`.
        launcher = [
            word for word in raw_overrides(config.hydra.overrides.task) if word.startswith(layout.LAUNCHER_OVERRIDES)
        ]
        config.hydra.overrides.task = [*record.job_overrides(), *launcher]
    return claimed, lock


class ending_in_words:  # noqa: N801 - reads as a statement
    """Ends the process with the sentence of an error, and its exit code; in a sentence too what OmegaConf cannot resolve."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, UNRESOLVED):
            error = _unresolved(error)
        if isinstance(error, AlexlabError):
            for line in error.args:
                print_line(line, file=sys.stderr)
            raise SystemExit(error.exit_code)


def _claimed(path: str, given: bool) -> Path:
    try:
        missing = [folder for folder in Path(path).absolute().parents if not folder.exists()]
        created.extend(reversed(missing))
        folder = Path(path)
        if given:
            if not folder.exists():
                created.append(folder)
            if any((folder / name).exists() for name in (".hydra", MULTIRUN)):
                raise ConfigError(f"a run must have a folder of its own; {folder} already holds one")
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = layout.create_folder(path)
            created.append(folder)
        check_free_space(folder)
        return folder
    except OSError as error:
        raise ConfigError(f"the output folder must be writable; cannot make {path}: {error.strerror}") from error
