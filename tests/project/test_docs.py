"""The README and the pages in docs: every command works, every link leads somewhere, every name and config key exists."""

import importlib
import importlib.util
import json
import pkgutil
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from torchvision import models as torchvision_models

from alexlab.benchmark.table import Row
from alexlab.cli import arguments as cli_arguments
from alexlab.cli.data_option import select_data
from alexlab.cli.runs import parse_options
from chaos.harness import Result
from support.pages import NAMES, PAGES, anchors, blocks, commands, inline_code, links, modules, text
from support.runs import ROOT, plain

pytestmark = pytest.mark.slow

# Number of commands and links of each page: an extraction that matches nothing cannot pass.
COMMANDS = {
    "README.md": 25,
    "CONTRIBUTING.md": 10,
    "docs/architecture.md": 1,
    "docs/benchmarks.md": 37,
    "docs/configuration.md": 8,
    "docs/data.md": 24,
    "docs/distributed.md": 15,
    "docs/evaluation.md": 24,
    "docs/extending.md": 4,
    "docs/index.md": 5,
    "docs/models.md": 14,
    "docs/python-api.md": 0,
    "docs/results.md": 17,
    "docs/reproduce.md": 9,
    "docs/resume.md": 7,
    "docs/runs.md": 5,
    "docs/sweeps.md": 14,
    "docs/training-problems.md": 4,
}
SCRIPT = re.compile(r"\bsrc/(\w+)\.py\b(.*)")
ALL = sorted({command for name in NAMES for command in commands(name)})
COMPOSED = sorted({match[0].split(" | ")[0].strip() for command in ALL if (match := SCRIPT.search(command))})
OTHER = [command for command in ALL if not SCRIPT.search(command)]
# Commands whose config cannot be found out here: they read it from a run folder.
FROM_A_RUN = ("resume=", "rerun=")


def test_every_page_has_the_expected_number_of_commands() -> None:
    assert {name: len(commands(name)) for name in NAMES} == COMMANDS


@pytest.mark.parametrize("command", COMPOSED)
def test_commands_compose(command: str) -> None:
    script, *arguments = shlex.split(command)
    name = script.removeprefix("src/").removesuffix(".py")
    assert (ROOT / script).exists()
    if name == "runs":
        assert parse_options(arguments)
        return
    if any(argument.startswith(FROM_A_RUN) for argument in arguments):
        return
    sweep = "-m" in arguments
    assert "-m" not in arguments[1:], "-m stands first"
    given = cli_arguments.quote_paths(
        cli_arguments.collect_runs(arguments) if name in cli_arguments.TAKES_RUNS else arguments
    )
    given = select_data(given) if name in ("train", "benchmark") else given
    given = [override for override in given if not override.startswith("-") and override != "job"]
    for job in jobs(given) if sweep else [given]:
        assert plain(*job, name=name)


def jobs(given: list[str]) -> list[list[str]]:
    """Return jobs of a sweep that together contain every value of its lists."""
    parsed = OverridesParser.create().parse_overrides([override for override in given if "interval(" not in override])
    (combinations,) = BasicSweeper.split_arguments(parsed, None)
    assert len(combinations) > 1
    seen: set[str] = set()
    return [job for job in combinations if not seen.issuperset(job) and not seen.update(job)]


@pytest.mark.parametrize("command", OTHER)
def test_other_commands_exist(command: str) -> None:
    program, *arguments = shlex.split(command)
    if program == "make":
        assert re.search(rf"^{arguments[0]}:", text("Makefile"), re.MULTILINE)
        return
    assert (program, arguments[0]) == ("pip", "install"), f"a test must know how to check {command!r}"
    extras = tomllib.loads(text("pyproject.toml"))["project"]["optional-dependencies"]
    wanted = re.findall(r"\w+", arguments[-1]) if arguments[1] == "-e" else []
    assert set(wanted) <= set(extras)


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files_and_headings(name: str) -> None:
    for target in links(name):
        path, _, anchor = target.partition("#")
        linked = (ROOT / name).parent / path if path else ROOT / name
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked.resolve()), target


def test_the_pages_have_links() -> None:
    assert sum(len(links(name)) for name in NAMES) > 40
    assert len([target for target in links("README.md") if target.endswith(".md")]) >= 13


def test_every_image_is_shown() -> None:
    shown = {((ROOT / name).parent / target).resolve() for name in NAMES for target in links(name)}
    images = {path.resolve() for path in (ROOT / "docs/images").iterdir()}
    assert images and images <= shown


def test_names_of_the_package_exist() -> None:
    names = {found for name in NAMES for found in modules(name)}
    assert len(names) > 15
    for found in sorted(names):
        assert resolves(found), found


def resolves(dotted: str) -> bool:
    """Return whether a dotted name is a module or an attribute of one."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        try:
            for part in parts[end:]:
                value = getattr(value, part)
        except AttributeError:
            return False
        return True
    return False


def test_every_room_is_described() -> None:
    import alexlab

    rooms = [module.name for module in pkgutil.iter_modules(alexlab.__path__) if module.ispkg]
    assert len(rooms) >= 10
    for room in rooms:
        assert f"`alexlab.{room}`" in text("docs/architecture.md"), room


def test_paths_of_the_repository_exist() -> None:
    paths = {code for name in NAMES for code in inline_code(name) if re.match(r"(src|conf|tests|docs)/[\w./-]+$", code)}
    assert len(paths) > 8
    for path in paths:
        assert (ROOT / path).exists(), path


def test_config_keys_exist() -> None:
    """A key in inline code, such as `data.cache_dir`, exists in the config of some command."""
    configs = [
        plain("callbacks=[default,early_stopping,ema,finetune,histograms]", "sweep=optuna"),
        *(plain(f"launcher={launcher}") for launcher in ("parallel", "submitit", "ray")),
        plain("data=streaming", "data.url=shards", "data.root=null"),
        plain("augmentation=color", "+param_groups.layer_lrs.conv1=[[68,1e-5]]"),
        plain("experiment=alexnet_2012_authors", "data.root=x"),
        plain("model=torchvision", "scheduler=plateau"),
        plain("model=timm"),
        plain(
            "+augmentation.train.erase._target_=torchvision.transforms.v2.RandomErasing",
            "+augmentation.train.erase.p=0.25",
        ),
        plain("scheduler=any", "scheduler._target_=torch.optim.lr_scheduler.ExponentialLR"),
        *(plain(name=name) for name in ("prepare", "benchmark")),
        plain("ckpt=run", name="explain"),
    ]
    groups = {key for config in configs for key in config if isinstance(config[key], dict)}
    keys = set()
    for name in NAMES:
        for code in inline_code(name):
            for key in re.findall(r"(?<![\w./])([a-z_]+(?:\.[a-z_0-9]+)+)(?==|$|\s)", code):
                if key.split(".")[0] in groups and not key.endswith((".md", ".py", ".csv", ".json", ".png", ".yaml")):
                    keys.add(key)
    assert len(keys) > 60
    for key in sorted(keys):
        assert any(contains(config, key.split(".")) for config in configs), key


def contains(node: Any, parts: list[str]) -> bool:
    if not parts:
        return True
    return isinstance(node, dict) and parts[0] in node and contains(node[parts[0]], parts[1:])


def test_every_option_is_named() -> None:
    pages = text("docs/configuration.md") + text("docs/models.md")
    for path in sorted((ROOT / "conf").rglob("*.yaml")):
        group = str(path.parent.relative_to(ROOT / "conf"))
        if group == "." or group.startswith("hydra") or path.stem == "lr_find":
            continue
        assert re.search(rf"`[^`]*\b{path.stem}\b[^`]*`", pages), path


def test_yaml_blocks_parse() -> None:
    found = [block for name in NAMES for block in blocks(name, "yaml")]
    assert len(found) == 16
    assert all(yaml.safe_load(block) for block in found)


def test_the_readme_is_one_page() -> None:
    lines = text("README.md").splitlines()
    assert len(lines) <= 150
    assert max(len(line) for line in lines) <= 120


def test_python_examples_run(trained_run: Path, images: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """Runs are not trained again: `train` and `sweep` compose their config and return the trained run."""

    def trained(arguments: Sequence[str]) -> Path:
        overrides = [argument.replace("alexnet_quarter,alexnet_half", "alexnet_half") for argument in arguments]
        plain(*(override.replace("1,2,3", "1") for override in overrides if override != "-m"))
        return trained_run

    monkeypatch.setattr("alexlab.api.training._run_command", trained)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained_run, tmp_path / "outputs/train/run")
    examples = blocks("docs/python-api.md", "python")
    own = [code for code in examples if "config_dir=" in code]  # tests/cli/test_own_parts.py runs it
    examples = [code for code in examples if code not in own]
    assert (len(examples), len(own)) == (5, 1)
    for code in examples:
        runs = dict.fromkeys(("RUN", "RUN1", "RUN2"), trained_run)
        for name, path in (runs | {"DIR": images, "photo.jpg": images / "val/cat/001.png"}).items():
            code = code.replace(f'"{name}"', repr(str(path)))
        exec(compile(code, "docs/python-api.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 10
    assert {"net.safetensors", "outputs", "report"} <= {path.name for path in tmp_path.iterdir()}


def test_the_accuracies_of_the_readme_are_measured() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| (0\.\d+) \|$", text("README.md"), re.MULTILINE)
    assert len(rows) >= 11
    measured = json.loads(text("docs/data/results/10_digits_nets.json"))["rows"]
    assert set(rows) <= {(row[0].strip("`"), row[-1]) for row in measured}


def generator(name: str = "generate") -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_up_to_date() -> None:
    generate = generator()
    assert set(generate.PAGES) == {"results", "benchmarks"}
    for page in generate.PAGES:
        assert generate.render(page) == text(f"docs/{page}.md"), "run make results"


def test_the_table_of_nets_is_up_to_date() -> None:
    lineage = generator("lineage")
    assert lineage.page(text("docs/models.md")) == text("docs/models.md"), "run make results"
    entries = {entry["model"]: entry for entry in json.loads(text("docs/data/nets.json"))}
    assert set(entries) == {path.stem for path in (ROOT / "conf/model").glob("*.yaml")} - {"torchvision", "timm"}
    assert {entry["parent"] for entry in entries.values() if "parent" in entry} <= set(entries)
    assert [(net.entry["model"], net.depth) for net in lineage.nets() if net.depth > 12] == [
        ("googlenet", 22),  # as the papers count
        ("squeezenet1_0", 18),
        ("squeezenet1_1", 18),
    ]


@pytest.mark.parametrize("name", ["alexnet", "vgg11", "squeezenet1_0", "squeezenet1_1"])
def test_published_errors_of_torchvision_are_those_of_its_weights(name: str) -> None:
    (entry,) = [entry for entry in json.loads(text("docs/data/nets.json")) if entry["model"] == name]
    metrics = torchvision_models.get_model_weights(name)["IMAGENET1K_V1"].meta["_metrics"]["ImageNet-1K"]
    errors = [f"{100 - metrics[f'acc@{k}']:.5g}" for k in (1, 5)]
    assert entry["error"] == f"{' / '.join(errors)} %, centre crop"


def test_the_generator_reads_what_the_commands_write() -> None:
    about = {"title": "T", "date": "2026-11-26", "hardware": {"cores": 2, "cpu": "CPU"}, "versions": {"torch": "2.15"}}
    row = Row("memory", "peak", (100, 200), "MB", "stock Lightning", (300, 300)).as_dict()
    assert "| peak | 150 MB | stock Lightning | 300 MB | 2.25 (1.50 to 3.00) |" in generator().section(
        {**about, "seed": 1, "rows": [row]}
    )
    result = Result("sigkill", "killed, then resumed", 9, 10, remarks="one hung", stock="0/3")
    page = generator().section({**about, "seed": 1, "command": "make chaos", "scenarios": [vars(result)]})
    assert "| killed, then resumed | 9 of 10 | 0/3 | one hung |" in page
    assert "*2026-11-26, 2 cores (CPU), no GPU, torch 2.15, seed 1.*" in page
    claim = {"title": "Dropout", "paper": "-", "ours": "+3.0 points (+1.0 to +5.0)", "verdict": "agrees", "value": 0.03}
    page = generator().section({**about, "seeds": [1, 2], "claims": [claim]})
    assert "| Dropout | - | +3.0 points (+1.0 to +5.0) | agrees |" in page and "seeds 1, 2.*" in page


def test_records_of_runs_become_a_table_without_paths_of_the_machine(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect, generate = generator("collect"), generator()
    monkeypatch.setattr(collect, "RESULTS", tmp_path)
    (tmp_path / "tiny.json").write_text('{"title": "Tiny", "notes": ["Kept."]}')
    folder = Path(shutil.copytree(trained_run, tmp_path / "run"))
    record = json.loads((folder / "run.json").read_text())
    first = ["train.py", "model=alexnet", "data.root=/my/images", "outputs=/my/runs", "seed=1"]
    record["command"] = ["train.py", "resume=/my/runs/1"]
    record["attempts"] = [{"start_s": 1.0, "command": first, "elapsed_s": 60}, {"start_s": 100.0, "elapsed_s": 140}]
    (folder / "run.json").write_text(json.dumps(record))
    content = json.loads(collect.collect("tiny", [str(folder)]).read_text())
    assert (content["title"], content["notes"]) == ("Tiny", ["Kept."])
    (run,) = content["runs"]
    assert run["command"] == "python src/train.py model=alexnet data.root=DIR"
    other = {**run, "seed": 2, "scores": {**run["scores"], "best/top1": 0.75}}
    three_of_four = {**run, "command": "other", "images": {**run["images"], "val": 4}, "scores": other["scores"]}
    run["scores"]["best/top1"] = 0.25
    assert run["elapsed_s"] == 200
    columns, (both, single) = generate.run_cells([run, other, three_of_four])
    assert columns[0] == "command" and columns[3] == "val/top1"
    assert both[3] == "0.500 ± 0.354"
    assert single[3] == "0.750 (0.301 to 0.954)"  # Wilson, 3 of 4
    assert "seeds 1, 2" in generate.provenance({"runs": [run, other]})
    assert generate.duration(3599.7) == "1 h 00 min" and generate.duration(200) == "3 min 20 s"


def test_the_gpu_section_shows_checks_measurements_and_what_is_missing() -> None:
    about = {"date": "2026-11-27", "seed": 1, "versions": {"torch": "2.11"}}
    hardware = {"cores": 16, "cpu": "CPU", "gpu": "H100"}
    row = Row("step", "alexnet, batch 512: NCHW", (100, 200), "images/s", "ours", (300, 300)).as_dict()
    check = {"what": "crops", "measured": "0", "required": "at most 0", "outcome": "passed"}
    parts = [
        {"name": "crops", "outcome": "finished", "checks": [check], "rows": [row]},
        {"name": "commands", "outcome": "killed after 100 s", "checks": [], "rows": []},
    ]
    page = generator().gpu_section({**about, "hardware": hardware, "parts": parts})
    assert "| commands | killed after 100 s |" in page
    assert "| crops | 0 | at most 0 | passed |" in page
    assert "| alexnet, batch 512: NCHW | 150 images/s | ours | 300 images/s | 0.50 (0.33 to 0.67) |" in page
    assert "*2026-11-27, 16 cores (CPU), H100, torch 2.11, seed 1.*" in page
    assert "Nothing has been measured" not in page
    assert "Nothing has been measured on a GPU yet" in generator().gpu_section(None)


def test_all_pages_are_in_the_index() -> None:
    listed = re.findall(r"^[\w-]+$", "\n".join(blocks("docs/index.md", "{toctree}")), re.MULTILINE)
    pages = [path.stem for path in PAGES if path.parent == ROOT / "docs"]
    assert sorted([*listed, "index"]) == sorted(pages)
