"""Hydra sweeper on Optuna. Hydra imports it at every start, so Optuna is imported only when used."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from alexlab.errors import ConfigError, install_hint
from alexlab.records.optimized import OptimizedMetric
from alexlab.sweeps.jobs import FAILED, FINISHED, MULTIRUN, PRUNED, STORAGE, Job, previous_attempt

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

log = logging.getLogger(__name__)


class OptunaSweeper(Sweeper):
    """Sweeper that optimizes the return value of the task with the tree-structured Parzen estimator.

    A training returns the best value of its optimized metric, which is maximized or, as a loss, minimized.

    A list of choices is a categorical value, `range(a,b)` an integer, `interval(a,b)` a float, and `tag(log,interval(a,b))` a
    float on a logarithmic scale. The study is stored in the sweep folder, so that a resumed search proposes what an
    uninterrupted one would have proposed.

    Args:
        num_trials: number of jobs, those of earlier attempts included.
        seed: seed of the proposals.
    """

    def __init__(self, num_trials: int, seed: int) -> None:
        self.num_trials = num_trials
        self.seed = seed

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store Hydra's context and config, and create the launcher."""
        self.sweep_config, self.context = config, hydra_context
        self.launcher: Any = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials; a failed one is reported to Optuna as failed, and the search continues."""
        if importlib.util.find_spec("optuna") is None:
            raise ConfigCompositionException(f"sweep=optuna needs the package optuna: {install_hint('optuna')}")
        import optuna
        from optuna.trial import TrialState

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        fixed, spaces = self._parse(arguments)
        metric = self._metric()
        study = self._open_study(spaces, metric.mode)

        def overrides(values: dict[str, Any]) -> list[str]:
            return [*fixed, *(f"{key}={_text(value)}" for key, value in values.items())]

        states = {TrialState.COMPLETE: FINISHED, TrialState.PRUNED: PRUNED, TrialState.FAIL: FAILED}
        for trial in study.get_trials(states=tuple(states)):
            self.launcher.add_ended(overrides(trial.params), trial.number, states[trial.state])

        self.launcher.search(
            ((number, overrides(values)) for number, values in self.propose(study, spaces)), partial(tell, study)
        )
        if any(trial.state == TrialState.COMPLETE for trial in study.get_trials(deepcopy=False)):
            best = " ".join(f"{key}={_text(value)}" for key, value in study.best_params.items())
            log.info("best %s %.4f, job %d: %s", metric.name, study.best_value, study.best_trial.number, best)

    def _parse(self, arguments: list[str]) -> tuple[list[str], dict[str, BaseDistribution]]:
        """Return the fixed overrides, and the search space of each key that is searched."""
        parser = OverridesParser.create(config_loader=self.context.config_loader)
        parsed = parser.parse_overrides(arguments)
        spaces = {
            override.get_key_element(): distribution(override) for override in parsed if override.is_sweep_override()
        }
        if not spaces:
            raise ConfigCompositionException(
                "sweep=optuna needs a key to search: model=a,b or optimizer.lr=interval(1e-4,1e-2)"
            )
        return [override.input_line or "" for override in parsed if not override.is_sweep_override()], spaces

    def _metric(self) -> OptimizedMetric:
        """Return the optimized metric of all trials; the result of another command than train is maximized."""
        if "optimized_metric" not in self.sweep_config:
            return OptimizedMetric("result")
        from alexlab.cli.task import to_plain
        from alexlab.config.monitors import optimized_metric

        config = OmegaConf.masked_copy(self.sweep_config, ["optimized_metric", "metrics"])
        try:
            return optimized_metric(to_plain(config))
        except ConfigError as error:
            raise ConfigCompositionException(str(error)) from error

    def _open_study(self, spaces: dict[str, BaseDistribution], mode: str) -> optuna.Study:
        sweep_dir = Path(self.sweep_config.hydra.sweep.dir)
        sweep_dir.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.sweep_config, sweep_dir / MULTIRUN)
        if self.launcher.retry_failed:
            raise ConfigCompositionException(
                "launcher.retry_failed is for a grid; a resumed search tries other values instead"
            )
        return _checked_study(sweep_dir, spaces, mode)

    def propose(self, study: optuna.Study, spaces: dict[str, BaseDistribution]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield number and values of each trial to run: unfinished ones of an earlier attempt, then new ones."""
        import optuna

        before = study.get_trials()
        for trial in before:
            if not trial.state.is_finished():
                yield trial.number, trial.params
        for number in range(len(before), self.num_trials):
            # A sampler for each trial, so that a proposal depends only on the seed, the number and the trials that ended: a
            # resumed search proposes what an uninterrupted one would have.
            digest = hashlib.blake2b(f"{self.seed}:{number}".encode(), digest_size=4).digest()
            study.sampler = optuna.samplers.TPESampler(seed=int.from_bytes(digest, "big"))
            proposal = study.ask(spaces)
            yield proposal.number, proposal.params


def tell(study: optuna.Study, job: Job) -> None:
    """Report the end of a job to Optuna, unless it was interrupted: a resumed search continues trials that have not ended."""
    from optuna.trial import TrialState

    if previous_attempt(job.folder).resumed:
        return
    if job.score is not None:
        study.tell(job.number, job.score)
    else:
        study.tell(job.number, state=TrialState.PRUNED if job.state == PRUNED else TrialState.FAIL)


def _checked_study(folder: Path, spaces: dict[str, BaseDistribution], mode: str) -> optuna.Study:
    """Open the study of a sweep folder. Its journal may be corrupt or come from someone else, and its values become overrides.

    Raises:
        ConfigCompositionException: unless the direction is that of the search and the values of each trial are in its spaces.
    """
    from alexlab.sweeps.pruning import open_study

    path = folder / STORAGE
    _drop_partial_line(path)
    try:
        study = open_study(folder, minimize=mode == "min")
        trials = study.get_trials()
    except Exception as error:  # a corrupt journal raises many kinds of errors
        if not path.is_file():
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigCompositionException(f"{path} is not the journal of this search: {reason}") from error
    if study.direction.name.lower() != f"{mode}imize":
        raise ConfigCompositionException(f"{path} is not the journal of this search, which {mode}imizes its metric")
    for trial in trials:
        for name, value in trial.params.items():
            if name not in spaces or not _is_in(value, spaces[name]):
                raise ConfigCompositionException(
                    f"{path} is not the journal of this search: trial {trial.number} has {name}={value!r}, outside the "
                    "search space"
                )
    return study


def _drop_partial_line(path: Path) -> None:
    """Remove the rest of an append that a full disk or a power failure cut off; Optuna would append to it."""
    if path.is_file() and not (content := path.read_bytes()).endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)


def _is_in(value: Any, space: BaseDistribution) -> bool:
    choices = getattr(space, "choices", None)
    if choices is not None:
        return value in choices
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and space.low <= value <= space.high  # type: ignore[attr-defined]


def distribution(override: Override) -> BaseDistribution:
    """Return the search space of an override.

    Raises:
        ConfigCompositionException: if it is empty, such as `interval(2,1)`, or not valid for Optuna.
    """
    try:
        return _distribution(override)
    except ValueError as error:
        raise ConfigCompositionException(f"{override.input_line} must be a search space: {error}") from error


def _distribution(override: Override) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        assert value.start is not None and value.end is not None
        if isinstance(value.start, int):
            raise ValueError("integers are searched as range(1,129) or range(8,129,8), not as int(interval(1,128))")
        return FloatDistribution(value.start, value.end, log="log" in value.tags)
    if "log" in getattr(value, "tags", ()):
        raise ValueError("only an interval has a logarithmic scale; list integers instead, as in 16,32,64")
    is_integer = isinstance(value, RangeSweep) and isinstance(value.start, int) and isinstance(value.step, int)
    if is_integer and not value.shuffle:
        assert value.stop is not None
        last = value.start + (int(value.stop) - 1 - value.start) // value.step * value.step
        return IntDistribution(value.start, last, step=value.step)
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
