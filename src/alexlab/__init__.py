"""Training, comparison and explanation of AlexNets and the classic networks around them.

`load`, `train`, `sweep` and `runs` do from Python what the commands do from a shell. They are imported when they are first used,
so `import alexlab` takes milliseconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alexlab.api.model import Model, load
    from alexlab.api.results import Explanation, Prediction
    from alexlab.api.training import Runs, TrainedRun, runs, sweep, train

__all__ = ["Explanation", "Model", "Prediction", "Runs", "TrainedRun", "load", "runs", "sweep", "train"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'alexlab' has no attribute {name!r}")
    module = "model" if name in ("Explanation", "Model", "Prediction", "load") else "training"
    return getattr(import_module(f"alexlab.api.{module}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
