"""Our sweeper on current Optuna; it is imported at each start, Optuna only when it is used."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from alexlab.sweeps.jobs import FAILED, FINISHED, PRUNED, Job

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

log = logging.getLogger(__name__)


class OptunaSweeper(Sweeper):
    """Proposes values by the tree-structured Parzen estimator and maximises what the task returns, the best val/top1.

    A list of choices is a categorical value, `range(a,b)` a whole number, `interval(a,b)` a number, and
    `tag(log,interval(a,b))` a number on a logarithmic scale. The study is kept in the folder of the sweep, so that a search
    that was ended goes on, with the proposals that it would have made.

    Args:
        num_trials: number of jobs, those of earlier attempts included.
        seed: of the proposals.
    """

    def __init__(self, num_trials: int, seed: int) -> None:
        self.num_trials = num_trials
        self.seed = seed

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keeps what Hydra hands over."""
        self.sweep_config, self.context = config, hydra_context
        self.launcher: Any = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Runs the trials; a failed one is told to Optuna as failed, and the search goes on."""
        if importlib.util.find_spec("optuna") is None:
            raise ConfigCompositionException("sweep=optuna needs the package optuna: pip install -e '.[optuna]'")
        import optuna
        from optuna.trial import TrialState

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        parser = OverridesParser.create(config_loader=self.context.config_loader)
        parsed = parser.parse_overrides(arguments)
        spaces = {
            override.get_key_element(): distribution(override) for override in parsed if override.is_sweep_override()
        }
        if not spaces:
            raise ConfigCompositionException(
                "sweep=optuna needs something to search: model=a,b or optimizer.lr=interval(1e-4,1e-2)"
            )
        fixed = [override.input_line or "" for override in parsed if not override.is_sweep_override()]
        folder = Path(self.sweep_config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.sweep_config, folder / "multirun.yaml")
        if self.launcher.retry_failed:
            raise ConfigCompositionException(
                "launcher.retry_failed is for a grid; a search that goes on tries other values instead"
            )
        study = _checked_study(folder, spaces)

        def words(values: dict[str, Any]) -> list[str]:
            return [*fixed, *(f"{key}={_text(value)}" for key, value in values.items())]

        states = {TrialState.COMPLETE: FINISHED, TrialState.PRUNED: PRUNED, TrialState.FAIL: FAILED}
        for trial in study.get_trials(states=tuple(states)):
            self.launcher.keep(words(trial.params), trial.number, states[trial.state])

        def ended(job: Job) -> None:
            if job.score is not None:
                study.tell(job.number, job.score)
            else:
                study.tell(job.number, state=TrialState.PRUNED if job.state == PRUNED else TrialState.FAIL)

        def proposals() -> Iterator[tuple[int, list[str]]]:
            for number, values in self.proposed(study, spaces):
                yield number, words(values)

        self.launcher.search(proposals(), ended)
        if any(trial.state == TrialState.COMPLETE for trial in study.get_trials(deepcopy=False)):
            best = " ".join(f"{key}={_text(value)}" for key, value in study.best_params.items())
            log.info("best val/top1 %.4f, job %d: %s", study.best_value, study.best_trial.number, best)

    def proposed(
        self, study: optuna.Study, spaces: dict[str, BaseDistribution]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """The number and the values of each trial that is to be run: what an earlier attempt has begun, then new ones."""
        import optuna

        before = study.get_trials()
        for trial in before:
            if not trial.state.is_finished():
                yield trial.number, trial.params
        for number in range(len(before), self.num_trials):
            # A sampler for each trial: what it proposes depends on the seed, the number and the trials that have ended,
            # so that a search that goes on draws what it would have drawn.
            digest = hashlib.blake2b(f"{self.seed}:{number}".encode(), digest_size=4).digest()
            study.sampler = optuna.samplers.TPESampler(seed=int.from_bytes(digest, "big"))
            asked = study.ask(spaces)
            yield asked.number, asked.params


def _checked_study(folder: Path, spaces: dict[str, BaseDistribution]) -> optuna.Study:
    """Open the study of a sweep folder, whose journal may be corrupt or a stranger's: its values become overrides.

    Raises:
        ConfigCompositionException: unless each trial has a value of each search space.
    """
    from alexlab.sweeps.pruning import STORAGE, open_study

    path = folder / STORAGE
    try:
        study = open_study(folder)
        trials = study.get_trials()
    except Exception as error:  # a corrupt journal fails in as many ways as there are records
        if not path.is_file():
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigCompositionException(f"{path} is not the journal of this search: {reason}") from error
    for trial in trials:
        for name, value in trial.params.items():
            if name not in spaces or not _is_in(value, spaces[name]):
                raise ConfigCompositionException(
                    f"{path} is not the journal of this search: trial {trial.number} has {name}={value!r}, which is not searched"
                )
    return study


def _is_in(value: Any, space: BaseDistribution) -> bool:
    choices = getattr(space, "choices", None)
    if choices is not None:
        return value in choices
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and space.low <= value <= space.high  # type: ignore[attr-defined]


def distribution(override: Override) -> BaseDistribution:
    """The search space that the value of an override describes."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        assert value.start is not None and value.end is not None
        return FloatDistribution(value.start, value.end, log="log" in value.tags)
    if isinstance(value, RangeSweep) and isinstance(value.start, int) and isinstance(value.step, int):
        assert value.stop is not None and not value.shuffle
        last = value.start + (int(value.stop) - 1 - value.start) // value.step * value.step
        return IntDistribution(value.start, last, step=value.step)
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
