"""Going on with a run: from its own config, in its own folder. Imports no torch.

Hydra by itself would compose the config anew from today's `conf/` and write over the run's `.hydra`. So `resume=` is read
before Hydra starts: the config that the run keeps on its card is the base, and the command line may change what extends or
moves a run, not what it is.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from alexlab import members, overrides
from alexlab.cards import FINISHED, RUNNING, Card, holder
from alexlab.errors import ConfigError
from alexlab.runs import CARD, LAUNCHER_WORDS, agreed_folder, rank
from alexlab.sweeps import MULTIRUN, stored_words

RUNS = "outputs/train/*/*"
NUM_TRIALS = "hydra.sweeper.num_trials"
LENGTHS = ("max_epochs", "max_steps")
# What a resumed run may be given: how long, where and how watched.
CHANGEABLE = (
    *("trainer.max_epochs", "trainer.max_steps", "trainer.max_time"),
    *("trainer.devices", "trainer.accelerator", "trainer.num_nodes"),
    *("data.root", "data.url", "data.num_workers", "data.cache", "data.cache_dir", "data.on_error"),
    *("data.stream.ahead", "data.stream.cache_gb"),
    *("callbacks.", "logger.", "elastic.", "final."),
)


@dataclass(frozen=True)
class Resumption:
    """Another attempt at a run.

    Args:
        run_dir: its folder.
        config: its own config with what the command line changes.
        choices: the options that were chosen for it.
        changes: the overrides of the command line.
        where: those that say where it runs.
    """

    run_dir: Path
    config: dict[str, Any]
    choices: dict[str, str]
    changes: Sequence[str]
    where: Sequence[str] = ()

    def arguments(self) -> list[str]:
        """The command line for Hydra, which logs into the folder and leaves its `.hydra` alone."""
        folder = overrides.quoted_path(str(self.run_dir))
        return [f"hydra.run.dir={folder}", "hydra.output_subdir=null", "~hydra.callbacks.folders", *self.where]

    def run(self, task: Callable[..., float | None], run_dir: Path) -> float | None:
        """Goes on with the run."""
        run_dir = Path(agreed_folder(lambda: str(run_dir)))
        if rank() == 0:
            self.store()
        return task(self.config, run_dir=run_dir, choices=self.choices, resumed=True)

    def store(self) -> None:
        """Keeps what was changed beside the first config, in `.hydra/resume_<n>/`."""
        number = 1 + len(list((self.run_dir / ".hydra").glob("resume_*")))
        folder = self.run_dir / ".hydra" / f"resume_{number}"
        folder.mkdir(parents=True)
        OmegaConf.save(OmegaConf.create(self.config), folder / "config.yaml")
        OmegaConf.save(OmegaConf.create(list(self.changes)), folder / "overrides.yaml")


def find_resumption(arguments: Sequence[str]) -> Resumption | None:
    """What `resume=RUN_DIR` or `resume=last` among the arguments asks for; None without it.

    Raises:
        ConfigError: when there is no such run, it is running or finished, or an argument would make another run of it.
    """
    wanted = [argument.partition("=")[2] for argument in arguments if argument.startswith("resume=")]
    if not wanted:
        return None
    if (Path(wanted[-1]) / MULTIRUN).is_file():
        raise ConfigError(f"{wanted[-1]} is the folder of a sweep: python src/train.py -m resume={wanted[-1]}")
    run_dir = _last_run() if wanted[-1] == "last" else Path(wanted[-1])
    card = Card(run_dir).read()
    where = [argument for argument in arguments if argument.startswith(LAUNCHER_WORDS)]
    changes = [argument for argument in arguments if not argument.startswith(("resume=", *LAUNCHER_WORDS))]
    config = changed(card["config"], overrides.with_quoted_paths(changes), run_dir)
    members.join_nodes(config)
    if rank() > 0 or not members.is_first():  # the first looks at the card, and writes on it at once
        return Resumption(run_dir, config, card["choices"], changes, where)
    if card["status"] == RUNNING:
        raise ConfigError(f"a run that is resumed must have ended; process {holder(run_dir)} is writing {run_dir}")
    if card["status"] == FINISHED and not is_longer(config["trainer"], than=card["config"]["trainer"]):
        limits = [(name, card["config"]["trainer"][name]) for name in LENGTHS]
        given = " and ".join(f"trainer.{name}={limit}" for name, limit in limits if limit not in (None, -1))
        raise ConfigError(f"{run_dir} is finished, with {given}; a larger number extends it")
    return Resumption(run_dir, config, card["choices"], changes, where)


def is_longer(trainer: dict[str, Any], *, than: dict[str, Any]) -> bool:
    """Return whether no limit of a `trainer` node is lower than that of another one, and one is higher."""
    pairs = [[math.inf if node[name] in (None, -1) else node[name] for node in (than, trainer)] for name in LENGTHS]
    return all(after >= before for before, after in pairs) and any(after > before for before, after in pairs)


def changed(config: dict[str, Any], arguments: Sequence[str], run_dir: Path) -> dict[str, Any]:
    """The config with the changes of a command line, each of which must be one that leaves the run what it is."""
    result = OmegaConf.create(config)
    try:
        parsed = OverridesParser.create().parse_overrides(list(arguments))
        for override in parsed:
            _check(override, run_dir)
            overrides.check_override(override, result)
            OmegaConf.update(result, override.key_or_group, override.value(), merge=False)
    except HydraException as error:
        raise ConfigError(str(error)) from error
    plain: Any = OmegaConf.to_container(result)
    return dict(plain)


def _check(override: Override, run_dir: Path) -> None:
    key = override.key_or_group
    if (overrides.CONFIG_DIR / key).is_dir():
        raise ConfigError(
            f"a resumed run keeps its {key}, so {override.input_line} is refused; start a new run for another {key}"
        )
    if override.is_add() or override.is_force_add() or override.is_delete() or not key.startswith(CHANGEABLE):
        raise ConfigError(
            f"a resumed run keeps its config, so {override.input_line} is refused; of {run_dir} you can change "
            f"{', '.join(f'{name}*' if name.endswith('.') else name for name in CHANGEABLE)}"
        )


def _last_run() -> Path:
    """The run that was begun last."""
    begun: dict[Path, float] = {}
    for folder in Path().glob(RUNS):
        try:
            begun[folder] = json.loads((folder / CARD).read_text())["attempts"][-1]["start_s"]
        except (OSError, ValueError, KeyError):
            continue
    if not begun:
        raise ConfigError(f"resume=last needs a run in {RUNS}; there is none")
    return max(begun, key=lambda folder: begun[folder])


def resumed_sweep(arguments: Sequence[str]) -> list[str]:
    """The command line of a sweep whose folder is named by `-m resume=SWEEP_DIR`; other command lines as they are.

    Raises:
        ConfigError: when it is no folder of a sweep, or another argument would make another sweep of it.
    """
    wanted = [argument.partition("=")[2] for argument in arguments if argument.startswith("resume=")]
    if not wanted or not any(argument in ("-m", "--multirun") for argument in arguments):
        return list(arguments)
    folder = Path(wanted[-1])
    if not (folder / MULTIRUN).is_file():
        raise ConfigError(f"-m resume= needs the folder of a sweep; {folder} has no {MULTIRUN}")
    first, kept = stored_words(folder)
    others = [argument for argument in arguments if argument not in ("-m", "--multirun", f"resume={wanted[-1]}")]
    refused = [argument for argument in others if not argument.startswith((*LAUNCHER_WORDS, NUM_TRIALS))]
    if refused:
        raise ConfigError(
            f"a resumed sweep keeps its jobs, so {refused[0]} is refused; you can change launcher, launcher.* and, "
            f"of a search, {NUM_TRIALS}"
        )
    kept = [word for word in kept if not word.startswith(("hydra.sweep.dir=", "hydra.mode="))]
    place = f"hydra.sweep.dir={overrides.quoted_path(str(folder))}"
    if any(word.startswith("launcher=") for word in others):
        first, kept = ([word for word in words if not word.startswith(LAUNCHER_WORDS)] for words in (first, kept))
    if any(word.startswith(NUM_TRIALS) for word in others):
        kept = [word for word in kept if not word.startswith(NUM_TRIALS)]
    return ["-m", *first, *kept, *others, place]
