"""Rewriting of the typed arguments before Hydra parses them.

Paths need no quotes, flags may come first, and `--seed 2` and `seed = 2` are written `seed=2`.
"""

import glob
import os
import re
import shlex
from collections.abc import Sequence
from itertools import compress, pairwise
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from alexlab.cli.synonyms import replacement
from alexlab.config import CONFIG_DIR
from alexlab.config.grammar import expand_home, quote, quote_path
from alexlab.errors import ConfigError
from alexlab.records.find import last_run
from alexlab.records.layout import BEST, LAST, OUTPUTS

# Keys whose values are paths and are taken as typed, see `quote_path`.
PATH_KEYS = (
    *("data.root", "cifar10.root", "data.url", "data.manifest", "data.cache_dir", "class_names", "model.weights"),
    *("resume", "rerun", "ckpt", "input", "image", "show", "neighbours.root", "out"),
    *("data.splits.train", "data.splits.val", "data.splits.test"),
    *("downloads", "manifest", "quarantine", "labels", "decisions"),
    *("peer", "benchmark.shards"),  # a command line, and a folder or a URL
    "logger.mlflow.tracking_uri",
    *("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir"),
)
PATH_LISTS = ("ckpt", "show")  # of these, keys that also take a list of paths
COUNT_KEY = "show"  # of these, the key that also takes a number
TAKES_RUNS = ("report", "compare")  # commands whose arguments without a key are the list `runs`
TEXT_KEY, LIST_KEY = "note", "tags"  # a text and a list of texts, taken as typed
EMPTY_GROUPS = ("callbacks", "logger", "metrics", "ablation")  # groups of which no option need be selected
REDUNDANT = ("experiment=null", "debug=null", "sweep=null")  # the defaults, which Hydra refuses on the command line
SCALAR = r"null|true|false|yes|no|[-+]?[\d.]+(e[-+]?\d+)?"  # what Hydra does not read as the name of an option

MULTIRUN = ("-m", "--multirun")
# Flags of Hydra's parser; those of the second tuple take a value. The commands do not have --experimental-rerun, which runs a
# pickle file and of which --experiment would be an abbreviation.
FLAGS = (
    *("-h", "--help", "--hydra-help", "--version", "--resolve", "-r", "--run", *MULTIRUN),
    *("-sc", "--shell-completion"),
)
VALUE_FLAGS = (
    *("-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir"),
    *("-i", "--info"),
)


def join_arguments(arguments: Sequence[str]) -> list[str]:
    """Write `--seed 2`, `--seed=2` and `seed = 2` as `seed=2`, and abbreviated flags of Hydra, such as `--multi`, in full."""
    rest, joined = list(arguments), []
    while rest:
        argument = rest.pop(0)
        value_follows = bool(rest) and _is_word(rest[0])
        if argument.startswith("-") and not re.match(r"-[\d.]|-$", argument):
            flag, equals, value = argument.partition("=")
            if _is_of_hydra(flag):
                names = [own for own in (*FLAGS, *VALUE_FLAGS) if own.startswith(flag)] if flag.startswith("--") else []
                joined.append(f"{names[0]}{equals}{value}" if len(names) == 1 else argument)
                if _is_of_hydra(flag, VALUE_FLAGS) and not equals and value_follows:
                    joined.append(rest.pop(0))
                continue
            value = value if equals else rest.pop(0) if value_follows else "true"
            joined.append(f"{flag.lstrip('-').replace('-', '_')}={value}")
            continue
        if "=" not in argument and rest and rest[0].startswith("="):
            argument += rest.pop(0)
        if argument.endswith("=") and rest and _is_word(rest[0]):
            argument += rest.pop(0)
        joined.append(argument)
    return joined


def _is_word(argument: str) -> bool:
    """Return whether an argument can be a value: it is neither KEY=VALUE nor a flag."""
    return bool(re.match(r"-[\d.]", argument)) or ("=" not in argument and not argument.startswith(("-", "~")))


def _is_of_hydra(flag: str, flags: Sequence[str] = (*FLAGS, *VALUE_FLAGS)) -> bool:
    """Return whether Hydra's parser knows a flag, also if it is abbreviated or followed by its value: `--multi`, `-cjob`."""
    if flag.startswith("--"):
        return any(own.startswith(flag) for own in flags)
    return flag in flags or flag in [f"-c{choice}" for choice in ("job", "hydra", "all")]


def _takes_value(flag: str) -> bool:
    """Return whether the argument after a flag of Hydra is its value; `-cjob` contains it."""
    return _is_of_hydra(flag, VALUE_FLAGS) and (flag.startswith("--") or flag in VALUE_FLAGS)


def is_multirun(arguments: Sequence[str]) -> bool:
    """Return whether the arguments, from `join_arguments`, start a sweep."""
    return not {*MULTIRUN}.isdisjoint(arguments)


def last_value(key: str, arguments: Sequence[str]) -> str | None:
    """Return the value of a key, which is the last one if it is given several times; None if it is not given."""
    values = [argument.partition("=")[2] for argument in arguments if argument.startswith(f"{key}=")]
    return values[-1] if values else None


def quote_paths(arguments: Sequence[str]) -> list[str]:
    """Quote the values of path keys, the note and the tags, so that Hydra takes them as typed: `data.root=/data/cats & dogs`.

    In a sweep a comma separates values, unless the whole value is an existing path.
    """
    is_sweep = is_multirun(arguments)
    return [_quote_value(argument, is_sweep) for argument in arguments]


def _quote_value(argument: str, is_sweep: bool) -> str:
    key, equals, value = argument.partition("=")
    name = key.lstrip("+")
    if is_sweep and name == TEXT_KEY and value.startswith("choice("):
        return argument
    if name == TEXT_KEY:
        return f"{key}={quote_path(value)}"
    if name == LIST_KEY and re.fullmatch(r"\[[^\[\]{}$'\"]+\]", value):
        return f"{key}=[{','.join(quote(item.strip()) for item in value[1:-1].split(','))}]"
    if not equals or name not in PATH_KEYS or (name == COUNT_KEY and re.fullmatch(r"[-+]?\d+", value)):
        return argument
    is_swept = is_sweep and not name.startswith("hydra.")
    if is_swept and re.match(r"(choice|glob)\(", value):
        return argument
    values = _OUTSIDE_BRACKETS.split(value) if is_swept and not Path(value).exists() else [value]
    return f"{key}={','.join(_quote_paths(each, is_list=name in PATH_LISTS) for each in values)}"


def _quote_paths(value: str, *, is_list: bool) -> str:
    """Quote a path, or, where a list is allowed, each path of a list: `[runs/a b,runs/c]`."""
    if not is_list or not re.fullmatch(r"\[.+\]", value) or Path(value).exists():
        return quote_path(expand_home(value))
    paths = _ITEM.findall(f"{value[1:-1]},")
    return f"[{','.join(quote_path(expand_home(path)) for path in paths)}]"


_OUTSIDE_BRACKETS = re.compile(r",(?![^\[]*\])")
_ITEM = re.compile(r"""\s*('[^']*'|"[^"]*"|[^,]*?)\s*,""")


def expand_run_dirs(arguments: Sequence[str]) -> list[str]:
    """Expand `~` in the folders of `resume=` and `rerun=`, which are read before Hydra starts."""
    pairs = [argument.partition("=") for argument in arguments]
    return [
        f"{key}{equals}{expand_home(value) if key in ('resume', 'rerun') else value}" for key, equals, value in pairs
    ]


def name_last_run(arguments: Sequence[str]) -> list[str]:
    """Replace `last` in `ckpt=last` and `ckpt=[last,RUN]` by the folder of the run that was started last and has a checkpoint.

    Raises:
        ConfigError: if there is no such run.
    """

    def named(ckpt: str) -> str:
        return _LAST.sub(lambda found: f"{found[1]}{last_run('ckpt=last', [BEST, LAST])}", ckpt)

    return [named(each) if each.startswith("ckpt=") else each for each in arguments]


_LAST = re.compile(r"(^ckpt=|[\[,]\s*)last(?=$|\s*[\],])")


def pop_outputs(arguments: Sequence[str]) -> list[str]:
    """Make the folder of `outputs=DIR`, or of the variable ALEXLAB_OUTPUTS, that of all runs; return the other arguments.

    Raises:
        ConfigError: if no folder is named.
    """
    given = last_value("outputs", arguments)
    folder = os.environ.pop(OUTPUTS, "") if given is None else given.strip("'\"")
    if given is not None and not folder:
        raise ConfigError("outputs must be a folder: outputs=DIR")
    if folder:
        os.environ[OUTPUTS] = expand_home(folder)
    return [argument for argument in arguments if not argument.startswith("outputs=")]


def expand_paths(config: DictConfig) -> None:
    """Expand `~` in the paths of a composed config, which YAML files may have set."""
    for key in PATH_KEYS:
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(config, parent, throw_on_missing=False) if parent else config
        if not isinstance(node, DictConfig) or name not in node or OmegaConf.is_interpolation(node, name):
            continue
        if isinstance(node[name], str) and expand_home(node[name]) != node[name]:
            node[name] = expand_home(node[name])
        elif isinstance(node[name], ListConfig):
            node[name] = [expand_home(path) if isinstance(path, str) else path for path in node[name]]


def check_arguments(command: str, arguments: Sequence[str]) -> None:
    """Raise ConfigError for arguments for which Hydra has no helpful message.

    These are `--cfg` in a sweep, options that are not text, such as `model=null` and `debug=true`, or are paths that Hydra
    cannot parse, `resume=true`, a path as `weights`, and words without a key.
    """
    flags = [item for item in arguments if item in ("-c", "-i") or item.partition("=")[0] in ("--cfg", "--info")]
    if flags and is_multirun(arguments):
        raise ConfigError(f"{flags[0]} prints the config of one run, and -m starts a sweep: use one of them")
    trains = command in ("train", "benchmark")
    checked, expected = ("resume", "a run folder or last") if trains else ("weights", "numbers, one per checkpoint")
    for argument in order_arguments(arguments):
        key, _, value = argument.partition("=")
        instead = replacement(command, key, value) if key == checked else None
        if instead is not None:
            raise ConfigError(f"{key} must be {expected}; got {value}; {instead}")
        if (
            key
            and (CONFIG_DIR / key).is_dir()
            and (re.fullmatch(SCALAR, value.lower()) or (_is_quoted_path(value) and key != "data"))
        ):
            options = sorted(path.stem for path in (CONFIG_DIR / key).glob("*.yaml"))
            hint = replacement(command, key, value)
            raise ConfigError(
                f"{key} must be one of {', '.join(options)}; got {value}{'; ' if hint else ''}{hint or ''}"
            )
    for word in _words(arguments) if command not in TAKES_RUNS else ():
        hint = _keyed(command, word)
        if hint is not None:
            raise ConfigError(f"{word} must be KEY=VALUE; {hint}")


def _is_quoted_path(value: str) -> bool:
    """Return whether a value is an existing path that Hydra's grammar takes only in quotes, such as `12-00_seed=1/best.ckpt`."""
    return re.search(r"[^\w./-]", value) is not None and os.path.lexists(value)


def _words(arguments: Sequence[str]) -> list[str]:
    """Return the arguments that are neither KEY=VALUE nor a flag or its value."""
    pairs = zip(["", *arguments], arguments, strict=False)
    return [word for before, word in pairs if _is_word(word) and not _takes_value(before)]


def _keyed(command: str, word: str) -> str | None:
    """Return a hint on the key of a word: a config group that has such an option, or one that takes a path."""
    groups = [path.parent.name for path in CONFIG_DIR.glob(f"*/{glob.escape(word)}.yaml")]
    if groups:
        return f"use {' or '.join(f'{group}={word}' for group in sorted(groups))}"
    if not os.path.lexists(word):
        return replacement(command, "model", word) if command == "train" else None
    if command == "summary":  # reads neither images nor checkpoints
        return None
    roots = dict.fromkeys(("train", "benchmark", "prepare", "reproduce"), "data.root")
    key = {**roots, "predict": "input"}.get(command, "ckpt")
    return f"use {shlex.quote(f'{key}={word}')}"


def order_arguments(arguments: Sequence[str]) -> list[str]:
    """Put the overrides before the flags, as Hydra's parser requires, and write `callbacks=null` as `callbacks=[]`."""
    empty = {f"{group}=null": f"{group}=[]" for group in EMPTY_GROUPS}
    kept = [empty.get(argument, argument) for argument in arguments if argument not in REDUNDANT]
    return sorted(kept, key=lambda item: item.startswith("-") or not ("=" in item or item.startswith("~")))


def collect_runs(arguments: Sequence[str]) -> list[str]:
    """Turn positional arguments, which are run folders, into the list `runs=[...]`."""
    is_run = [
        not item.startswith("-") and not _takes_value(before) and ("=" not in item or Path(item).exists())
        for before, item in pairwise(["", *arguments])
    ]
    run_dirs = list(compress(arguments, is_run))
    others = [item for item, found in zip(arguments, is_run, strict=True) if not found]
    if not run_dirs:
        return others
    quoted = [path if path.startswith(("'", '"')) else _always_quoted(expand_home(path)) for path in run_dirs]
    return [*others, f"runs=[{','.join(quoted)}]"]


def _always_quoted(path: str) -> str:
    quoted = quote_path(path)
    return quoted if quoted.startswith("'") else f"'{quoted}'"
