"""Our sweeper on current Optuna; it is imported at each start, Optuna only when it is used."""

from __future__ import annotations

import importlib.util
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

log = logging.getLogger(__name__)


class OptunaSweeper(Sweeper):
    """Proposes values by the tree-structured Parzen estimator and maximises what the task returns, the best val/top1.

    A list of choices is a categorical value, `range(a,b)` a whole number, `interval(a,b)` a number, and
    `tag(log,interval(a,b))` a number on a logarithmic scale.

    Args:
        num_trials: number of jobs.
        seed: of the proposals.
    """

    def __init__(self, num_trials: int, seed: int) -> None:
        self.num_trials = num_trials
        self.seed = seed

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keeps what Hydra hands over."""
        self.sweep_config, self.context = config, hydra_context
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Runs the trials one after the other; a failed one is told to Optuna as failed, and the search goes on."""
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
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=self.seed))
        for number in range(self.num_trials):
            trial = study.ask(spaces)
            proposed = [f"{key}={_text(value)}" for key, value in trial.params.items()]
            value = self.launcher.launch([[*fixed, *proposed]], initial_job_idx=number)[0].return_value
            if value is None or math.isnan(value):
                study.tell(trial, state=TrialState.FAIL)
            else:
                study.tell(trial, float(value))
        if any(trial.state == TrialState.COMPLETE for trial in study.trials):
            best = {key: _text(value) for key, value in study.best_params.items()}
            log.info("best val/top1 %.4f: %s", study.best_value, " ".join(f"{key}={best[key]}" for key in best))
        return None


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
