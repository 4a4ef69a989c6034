"""Every command in the README and the pages under `docs/` is one that works: it composes, make targets and paths exist."""

import re
import shlex

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from alexlab.cli import overrides
from support.runs import ROOT, plain

README = (ROOT / "README.md").read_text()
BLOCKS = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))
DOCS = "\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
DOC_BLOCKS = "\n".join(re.findall(r"```sh\n(.*?)```", DOCS, re.DOTALL)).replace("\\\n", " ")
COMMANDS = sorted(
    set(re.findall(r"^python src/\w+\.py[^\n#]*", BLOCKS, re.MULTILINE))
    | set(re.findall(r"`(python src/\w+\.py[^`]*)`", README))
    # Whatever starts it there: torchrun, srun, mpirun.
    | {f"python {command}" for command in re.findall(r"src/\w+\.py[^\n#]*", DOC_BLOCKS)}
)


def test_the_readme_has_commands() -> None:
    assert len(COMMANDS) >= 12


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_compose(command: str) -> None:
    script, *arguments = shlex.split(command, comments=True)[1:]
    name = script.removeprefix("src/").removesuffix(".py")
    assert (ROOT / script).exists()
    if any(argument.startswith(("resume=", "rerun=")) for argument in arguments):
        return  # composes nothing: the run's own config is taken, see test_resuming and test_rerunning
    sweep = "-m" in arguments
    assert "-m" not in arguments[1:], "-m stands first"
    words = overrides.quote_paths(overrides.collect_runs(arguments) if name == "report" else arguments)
    words = overrides.select_data(words) if name in ("train", "benchmark") else words
    words = [word for word in words if not word.startswith("-") and word != "job"]
    if sweep:
        parsed = OverridesParser.create().parse_overrides([word for word in words if "interval(" not in word])
        (jobs,) = BasicSweeper.split_arguments(parsed, None)
        assert len(jobs) > 1
    else:
        jobs = [words]
    for job in jobs:
        assert plain(*job, name=name)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make (\w+)", BLOCKS, re.MULTILINE)
    assert {"train", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_linked_files_exist() -> None:
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / path).exists(), path


def test_every_option_is_named() -> None:
    for path in sorted((ROOT / "conf").rglob("*.yaml")):
        group = str(path.parent.relative_to(ROOT / "conf"))
        if group == "." or group.startswith("hydra") or path.stem == "lr_find":
            continue
        assert re.search(rf"\b{path.stem}\b", README), path
