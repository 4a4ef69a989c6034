import importlib.util
import re

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from hydra_plugins.alexlab_optuna import OptunaSweeper, distribution


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("x=a,b", CategoricalDistribution(["a", "b"])),
        ("x=interval(0.5,2)", FloatDistribution(0.5, 2.0)),
        ("x=tag(log,interval(1e-4,1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("x=range(1,8,3)", IntDistribution(1, 7, step=3)),
        ("x=range(0,3)", IntDistribution(0, 2)),
    ],
)
def test_search_spaces(override: str, expected: object) -> None:
    (parsed,) = OverridesParser.create().parse_overrides([override])
    assert distribution(parsed) == expected


def test_words_without_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigCompositionException, match=re.escape("sweep=optuna needs the package optuna: pip install -e '.[optuna]'")
    ):
        OptunaSweeper(num_trials=1, seed=1).sweep(["x=a,b"])
