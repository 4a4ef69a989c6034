"""A paper as data: the runs that its claims need, and how each claim is measured. Read from `conf/paper`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alexlab.config.grammar import quote_path
from alexlab.config.instantiate import bind
from alexlab.errors import ConfigError
from alexlab.output.numbers import counted
from alexlab.sweeps.job_list import ListedJob

SCALES = ("small", "full")
# Number of settings that a claim of each kind compares; the measures are in `alexlab.papers.measures`.
NUM_SETTINGS = {
    "difference": 2,
    "ten_crops": 1,
    "average": 1,
    "epochs_to_error": 2,
    "kernel_colours": 1,
    "neighbours": 1,
    "score": 1,
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Common part of several settings.

    Args:
        root: key of `reproduce.yaml` that names the folder of images: `data` or `cifar10`.
        small: overrides of `train.py` with `scale=small`.
        full: overrides with `scale=full`, as published.
        memory_gb: memory of a run on a CPU by scale, which limits how many run at a time.
    """

    root: str
    small: Sequence[str]
    full: Sequence[str]
    memory_gb: Mapping[str, float] = field(default_factory=lambda: {"small": 2.0, "full": 4.0})


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One row of a comparison; it is trained once per seed, for all claims that use it.

    Args:
        recipe: name of its recipe.
        overrides: further overrides of `train.py`.
        rates: learning rates, of which the first seed chooses the best one; empty: that of the recipe.
    """

    recipe: str
    overrides: Sequence[str] = ()
    rates: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim of the paper.

    Args:
        title: what it is about.
        place: section, table or figure.
        statement: what the source says, in one sentence.
        kind: key of NUM_SETTINGS.
        settings: settings that it compares.
        published: the number of the paper, a fraction or a ratio; None if it states none. For the kind `score`, a list with one
            per epoch.
        min_seeds: minimum number of runs per setting, even if `seeds` is smaller.
    """

    title: str
    place: str
    statement: str
    kind: str
    settings: Sequence[str]
    published: float | Sequence[float] | None = None
    min_seeds: int = 1


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A paper.

    Args:
        title: its title.
        source: authors and place of publication.
        reduction: what `scale=small` changes, a sentence.
        recipes, settings, claims: by name.
    """

    title: str
    source: str
    reduction: str
    recipes: Mapping[str, Recipe]
    settings: Mapping[str, Setting]
    claims: Mapping[str, Claim]


@dataclass(frozen=True)
class PaperRun:
    """One training of a setting.

    Args:
        setting: name of the setting.
        seed: its seed.
        rate: its learning rate, if the setting has several.
        overrides: overrides of `train.py`.
    """

    setting: str
    seed: int
    rate: float | None = None
    overrides: Sequence[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the run folder."""
        rate = "" if self.rate is None else f"_lr-{self.rate:g}"
        return f"{self.setting}{rate}_seed-{self.seed}"

    def job(self) -> ListedJob:
        return ListedJob(self.name, self.overrides)


def make_paper(node: Mapping[str, Any]) -> Paper:
    """Return the paper of a `paper` node.

    Raises:
        ConfigError: if a key is unknown or missing, a name refers to nothing, or a claim cannot be measured in its way.
    """
    bind(Paper, "paper", **node)
    parts = {}
    for group, kind in (("recipes", Recipe), ("settings", Setting), ("claims", Claim)):
        for name, values in node[group].items():
            bind(kind, f"paper.{group}.{name}", **values)
        parts[group] = {name: kind(**values) for name, values in node[group].items()}
    paper = Paper(**{**node, **parts})
    for name, recipe in paper.recipes.items():
        given = recipe.memory_gb
        if not isinstance(given, Mapping) or not all(
            _is_number(given.get(scale)) and given[scale] > 0 for scale in SCALES
        ):
            raise ConfigError(
                f"paper.recipes.{name}.memory_gb must have a positive number for small and for full; got {given!r}"
            )
    for name, setting in paper.settings.items():
        _check_names(f"paper.settings.{name}.recipe", [setting.recipe], paper.recipes)
    for name, claim in paper.claims.items():
        _check_claim(f"paper.claims.{name}", claim, paper)
    return paper


def _check_claim(where: str, claim: Claim, paper: Paper) -> None:
    _check_names(f"{where}.settings", claim.settings, paper.settings)
    if claim.kind not in NUM_SETTINGS:
        raise ConfigError(f"{where}.kind must be one of {', '.join(NUM_SETTINGS)}; got {claim.kind}")
    count = NUM_SETTINGS[claim.kind]
    if len(claim.settings) != count:
        raise ConfigError(
            f"{where}.settings must name {counted(count, 'setting')} for the kind {claim.kind}; got "
            f"{list(claim.settings)}"
        )
    given = claim.published
    if claim.kind == "score":
        if not isinstance(given, Sequence) or isinstance(given, str) or not given or not all(map(_is_number, given)):
            raise ConfigError(f"{where}.published must be a list of scores, one per epoch; got {given!r}")
    elif given is not None and not _is_number(given):
        raise ConfigError(f"{where}.published must be null or a number for the kind {claim.kind}; got {given!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_names(key: str, names: Sequence[str], known: Mapping[str, Any]) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"{key} must be one of {', '.join(known)}; got {name}")


def select_claims(paper: Paper, names: Sequence[str] | None) -> dict[str, Claim]:
    """Return the claims of some names, in the order of the paper; None: all of them."""
    if names is None:
        return dict(paper.claims)
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"claims must be null, for all, or one or several of {', '.join(paper.claims)}; got {names}")
    _check_names("claims", names, paper.claims)
    if not names:
        raise ConfigError(f"claims must name at least one of {', '.join(paper.claims)}; got []")
    return {name: claim for name, claim in paper.claims.items() if name in names}


def used_settings(claims: Mapping[str, Claim]) -> list[str]:
    """Return the settings that claims need, each once."""
    return list(dict.fromkeys(name for claim in claims.values() for name in claim.settings))


def missing_root(paper: Paper, claim: Claim, roots: Mapping[str, str | None]) -> str | None:
    """Return the key of the folder of images that a claim lacks, such as `cifar10.root`; None if it has all."""
    for name in claim.settings:
        key = paper.recipes[paper.settings[name].recipe].root
        if roots.get(key) is None:
            return f"{key}.root"
    return None


def planned_run(
    paper: Paper, name: str, scale: str, roots: Mapping[str, str | None], *, seed: int, rate: float | None
) -> PaperRun:
    """Return the training of a setting with one seed."""
    setting = paper.settings[name]
    recipe = paper.recipes[setting.recipe]
    overrides = [
        *getattr(recipe, scale),
        *setting.overrides,
        *([] if rate is None else [f"optimizer.lr={rate:g}"]),
        f"data.root={quote_path(str(roots[recipe.root]))}",
        f"seed={seed}",
    ]
    return PaperRun(name, seed, rate, overrides)
