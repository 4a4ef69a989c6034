"""Untrusted run and sweep folders: resuming them calls nothing, and writes and sends nothing elsewhere."""

import copy
import json
import os
import shlex
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from alexlab.cli.invocation import Invocation
from alexlab.cli.rerun import find_rerun
from alexlab.cli.resume import find_resumption
from alexlab.cli.resume_sweep import find_resumed_sweep
from alexlab.cli.task import CommandTask
from alexlab.config import instantiate
from alexlab.config.allowlist import check_targets
from alexlab.config.confinement import check_confined, check_folder, confined_data
from alexlab.errors import ConfigError
from alexlab.records.layout import SWEEP_JSON
from alexlab.records.record import RunRecord
from alexlab.sweeps.entries import to_entry, to_override
from alexlab.sweeps.record import read_record
from support.images import write_images
from support.runs import ROOT, TINY, environment, plain

TOUCH = {"_target_": "distutils.spawn.spawn", "cmd": ["/usr/bin/touch", "PWNED"]}
DECODED = "${oc.decode:'{_targ${oc.env:NOPE,et}_: distutils.spawn.spawn, cmd: [/usr/bin/touch, PWNED]}'}"
PREFIXES = ("", "+", "++", "~")
HYDRA_KEYS = (
    "hydra",
    "hydra.callbacks.x",
    "hydra.callbacks.run_dirs._target_",
    "hydra/callbacks",
    "hydra/launcher",
    "hydra/job_logging",
    "hydra.launcher.runner._target_",
    "hydra.hydra_logging.handlers.evil",
    "hydra.job_logging.handlers.file.filename",
    "hydra.searchpath",
    "hydra.sweep.dir",
    "hydra.run.dir",
    "hydra.job.env_set.LD_PRELOAD",
    "hydra.sweeper.params",
    "optimizer@hydra.callbacks.x",
    "model@_global_",
)
HYDRA_VALUES = (
    "evil",
    DECODED,
    TOUCH,
    {"class": "logging.FileHandler", "filename": "precious.txt", "mode": "w"},
    ["file://."],
)
OTHER_KEYS = (
    "--config-dir",
    "-cd",
    " seed",
    "seed ",
    "seed=1,x",
    "seed\n",
    "nothing.of.it",
    "__class__",
    "",
    "data..root",
)


def sweep_folder(folder: Path, **record: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / SWEEP_JSON).write_text(json.dumps({"version": 1, "overrides": [], **record}))
    return folder


def refused(folder: Path, *overrides: str) -> None:
    with pytest.raises(ConfigError, match="is not a sweep record written by alexlab") as caught:
        find_resumed_sweep(["-m", f"resume={folder}", *overrides])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "key", [*(prefix + key for prefix, key in product(PREFIXES, HYDRA_KEYS)), *OTHER_KEYS], ids=ascii
)
@pytest.mark.scenario(name="sweep_code")
def test_keys_that_are_not_in_a_job_config_are_rejected(key: str, tmp_path: Path) -> None:
    for value in HYDRA_VALUES:
        for kind in ({"value": value}, {"choices": [value, 1]}):
            refused(sweep_folder(tmp_path / "sweep", overrides=[{"key": key, **kind}]))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", DECODED),
        ("seed", "${oc.env:HOME}"),
        ("seed", "x${oc.env:HOME}x"),
        ("seed", "\\\\${oc.env:HOME}"),
        ("seed", "${a.${oc.env:HOME}}"),
        ("seed", "${now:%Y}"),
        ("seed", ["${oc.env:HOME}"]),
        ("seed", {"a": {"b": ["${oc.env:HOME}"]}}),
        ("model", TOUCH),
        ("callbacks.x", TOUCH),
        ("+callbacks.x", TOUCH),
        ("callbacks", {"x": TOUCH}),
        ("callbacks.x._target_", "distutils.spawn.spawn"),
        ("model.widths", {"_target_": "alexlab.models.weights.pretrained.read_source", "name": "http://127.0.0.1:9/x"}),
        ("model.widths._target_", "alexlab.models.alexnet.AlexNet"),
        ("trainer.profiler", {"_target_": "os.system"}),
        ("callbacks.x", {"_targ${oc.env:N,et}_": "os.system"}),
        ("callbacks.x", {"_target_'": "os.system"}),
        ("model", "../../evil"),
        ("model", "/tmp/evil"),
        ("experiment", ["../evil"]),
        ("seed", {"": 1}),
        ("seed", {"a b": 1}),
    ],
    ids=ascii,
)  # fmt: skip
@pytest.mark.scenario(name="sweep_code")
def test_values_that_are_not_plain_are_rejected(key: str, value: Any, tmp_path: Path) -> None:
    for entry in ({"value": value}, {"choices": [1, value]}):
        refused(sweep_folder(tmp_path / "sweep", overrides=[{"key": key, **entry}]))


@pytest.mark.parametrize(
    "text",
    ["1 +hydra.x=2", "1' hydra.x='2", "a,b", "a\nhydra.x=1", "choice(a,b)", "x\\", "\\'", "'", "${model.width}", "\\${plain}", "null", "1e3", "", "~/a b&c"],
)  # fmt: skip
@pytest.mark.scenario(name="sweep_code")
def test_strings_are_not_parsed_as_overrides(text: str, tmp_path: Path) -> None:
    folder = sweep_folder(tmp_path / "sweep", overrides=[{"key": "class_names", "value": text}])
    sweep = find_resumed_sweep(["-m", f"resume={folder}"])
    assert sweep is not None
    assert sweep.arguments[:2] == ["-m", to_override({"key": "class_names", "value": text})]
    (parsed,) = OverridesParser.create().parse_overrides([sweep.arguments[1]])
    assert (parsed.key_or_group, parsed.value()) == ("class_names", text)
    assert len(sweep.arguments) == 3


@pytest.mark.parametrize(
    "record",
    [
        {"version": 2},
        {"overrides": "seed=1"},
        {"overrides": ["seed=1"]},
        {"overrides": [{}]},
        {"overrides": [{"key": 1, "value": 1}]},
        {"overrides": [{"key": "seed", "value": 1, "choices": [2]}]},
        {"overrides": [{"key": "seed", "value": 1, "more": 2}]},
        {"overrides": [{"key": "seed", "choices": []}]},
        {"overrides": [{"key": "seed", "range": [1]}]},
        {"overrides": [{"key": "seed", "range": ["1,2)x", 2, 3]}]},
        {"overrides": [{"key": "optimizer.lr", "interval": [0, 1], "log": "x"}]},
        {"overrides": [{"key": "model", "glob": ["*],exclude=[x"], "exclude": []}]},
        {"launcher": "evil"},
        {"launcher": "../evil"},
        {"launcher": "parallel", "settings": {"_target_": "os.system"}},
        {"launcher": "parallel", "settings": {"jobs": "${oc.env:HOME}"}},
        {"launcher": "submitit", "settings": {"slurm_partition": "gpu\ntouch PWNED"}},
        {"launcher": "submitit", "settings": {"slurm_partition": "$(touch PWNED)"}},
        {"launcher": "submitit", "settings": {"slurm_setup": ["touch PWNED"]}},
        {"launcher": "submitit", "settings": {"slurm_account": {"_target_": "os.system"}}},
        {"sweeper": "evil"},
        {"search": {"_target_": "os.system"}},
        {"search": {"num_trials": "1 +hydra.x=1"}},
        {"search": {"params": {"hydra.x": 1}}},
        {"subdir": "../../elsewhere"},
        {"subdir": "/elsewhere"},
        {"subdir": "${oc.env:HOME}"},
        {"more": 1},
    ],
    ids=ascii,
)
@pytest.mark.scenario(name="sweep_config")
def test_malformed_sweep_records_are_rejected(record: dict[str, Any], tmp_path: Path) -> None:
    refused(sweep_folder(tmp_path / "sweep", **record))


@pytest.mark.parametrize(
    "content",
    ["", "[", "null", "[]", '"x"', "{}", "[" * 100_000, '{"version": 1}', "\ufeff{}"],
    ids=lambda content: content[:9] or "empty",
)
@pytest.mark.scenario(name="sweep_code")
def test_corrupt_sweep_records_are_rejected(content: str, tmp_path: Path) -> None:
    folder = sweep_folder(tmp_path / "sweep")
    (folder / SWEEP_JSON).write_text(content)
    refused(folder)


@pytest.mark.parametrize("subdir", ["${hydra.job.override_dirname}", "${hydra.job.num}_${hydra.job.override_dirname}"])
def test_names_of_job_folders_that_alexlab_and_hydra_suggest_are_accepted(subdir: str, tmp_path: Path) -> None:
    folder = sweep_folder(tmp_path / "sweep", overrides=[{"key": "seed", "value": 1}], subdir=subdir)
    assert read_record(folder).subdir == subdir


def test_overrides_are_restored_from_the_record() -> None:
    overrides = [
        "model=alexnet_quarter,alexnet_half", "seed=range(1,10,2)", "optimizer.lr=tag(log,interval(1e-4,1e-1))", "model.width=interval(0.1,1)",
        "model.fc_widths=[256],[256,256]", "+optimizer.alpha=0.9", "~augmentation.train.flip", "data.root='/a b/it\\'s\\\\'",
        "class_names=null,'true',x", "model=glob(alex*,exclude=alexnet_d2l)", "seed=choice(7)", "callbacks=[default,ema]",
    ]  # fmt: skip
    for override in overrides:
        (parsed,) = OverridesParser.create().parse_overrides([override])
        data = json.loads(json.dumps(to_entry(parsed)))
        (again,) = OverridesParser.create().parse_overrides([to_override(data)])
        assert to_entry(again) == data, override


@pytest.mark.scenario(name="sweep_config")
def test_files_of_hydra_are_not_read(tmp_path: Path) -> None:
    """Run the command on a folder whose multirun.yaml names a class: nothing is called and nothing is truncated."""
    folder = sweep_folder(tmp_path / "sweep", overrides=[{"key": "seed", "choices": ["${nope:x}", 2]}])
    overrides = [
        f'+hydra.callbacks.x="{DECODED}"',
        "+hydra.hydra_logging.handlers.evil={class: logging.FileHandler, filename: precious.txt, mode: w}",
    ]
    (folder / "multirun.yaml").write_text(json.dumps({"hydra": {"overrides": {"task": overrides, "hydra": overrides}}}))
    (tmp_path / "precious.txt").write_text("precious")
    command = [sys.executable, str(ROOT / "src/train.py"), "-m", "resume=sweep"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "seed must not call a resolver; got '${nope:x}'" in done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"sweep", "precious.txt"}
    assert (tmp_path / "precious.txt").read_text() == "precious"
    (folder / SWEEP_JSON).unlink()
    with pytest.raises(ConfigError, match=r"has no sweep\.json"):
        find_resumed_sweep(["-m", f"resume={folder}"])


def journal(folder: Path, name: str, value: Any) -> None:
    """Write a study with one running trial that has an untrusted value."""
    import optuna
    from optuna.distributions import CategoricalDistribution

    from alexlab.sweeps.pruning import open_study

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    open_study(folder).ask({name: CategoricalDistribution([value])})


@pytest.mark.parametrize(
    ("name", "value"),
    [("+hydra.callbacks.x", DECODED), ("hydra.launcher._target_", "os.system"), ("seed", DECODED), ("model", "../../evil"), ("optimizer.lr", 7.0)],
)  # fmt: skip
@pytest.mark.scenario(name="sweep_code")
def test_trials_of_another_search_are_rejected(name: str, value: Any, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from hydra.errors import ConfigCompositionException
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    from hydra_plugins.alexlab_optuna import _checked_study

    journal(tmp_path, name, value)
    spaces = {"optimizer.lr": FloatDistribution(1e-4, 1e-1), "model": CategoricalDistribution(["alexnet", "nin"])}
    with pytest.raises(
        ConfigCompositionException, match=r"is not the journal of this search: trial 0 has .*, outside the search space"
    ):
        _checked_study(tmp_path, spaces, "max")
    (tmp_path / "optuna.journal").write_text("garbage\n")
    with pytest.raises(ConfigCompositionException, match=r"optuna\.journal is not the journal of this search"):
        _checked_study(tmp_path, spaces, "max")


NESTED = [
    ("model.widths", "alexlab.models.weights.pretrained.read_source"),
    ("model.widths.0", "alexlab.models.alexnet.AlexNet"),
    ("optimizer.betas", "torch.optim.SGD"),
    ("scheduler.milestones", "alexlab.training.schedules.cosine"),
    ("loss.class_weights", "alexlab.training.losses.CrossEntropy"),
    ("callbacks.checkpoint.monitor", "lightning.pytorch.callbacks.Timer"),
    ("logger.csv.name", "lightning.pytorch.loggers.CSVLogger"),
    ("augmentation", "torchvision.transforms.v2.Resize"),
    ("augmentation.other.x", "torchvision.transforms.v2.Resize"),
    ("trainer.logger", "lightning.pytorch.loggers.CSVLogger"),
    ("trainer.profiler.x", "lightning.pytorch.profilers.SimpleProfiler"),
    ("callbacks", "lightning.pytorch.callbacks.Timer"),
    ("data.stream", "torch.optim.SGD"),
    ("compile.mode", "torch.optim.SGD"),
    ("seed", "torch.optim.SGD"),
]


@pytest.mark.parametrize(("where", "target"), NESTED)
@pytest.mark.scenario(name="targets")
def test_targets_are_rejected_under_other_keys(where: str, target: str) -> None:
    config = plain(*TINY, "data.root=x")
    node: Any = config
    *parents, last = where.split(".")
    for name in parents:
        node = (
            node.setdefault(name, {}) if isinstance(node.get(name), dict) else node.__setitem__(name, {}) or node[name]
        )
    node[last] = {"_target_": target}
    with pytest.raises(ConfigError, match=rf"{where}\._target_ must (not be set|lie in)"):
        check_targets(config)


@pytest.mark.scenario(name="targets")
def test_a_model_must_be_a_module() -> None:
    for target in (
        "alexlab.models.weights.pretrained.read_source",
        "alexlab.models.init.init_weights",
        "alexlab.models.weights.pretrained.WeightSource",
    ):
        with pytest.raises(ConfigError, match=r"model\._target_ must be a torch\.nn\.Module"):
            instantiate.locate(target, "model")


ELSEWHERE = [
    ("callbacks.x", {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "dirpath": "elsewhere"}, "callbacks.x.dirpath"),
    ("callbacks.x", {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "dirpath": "/etc"}, "callbacks.x.dirpath"),
    ("callbacks.x", {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "filename": "../../x"}, "callbacks.x.filename"),
    ("callbacks.x", {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "filename": "~x"}, "callbacks.x.filename"),
    ("logger.x", {"_target_": "lightning.pytorch.loggers.CSVLogger", "name": "/home/x"}, "logger.x.name"),
    ("logger.x", {"_target_": "lightning.pytorch.loggers.CSVLogger", "version": ".."}, "logger.x.version"),
    ("logger.x", {"_target_": "lightning.pytorch.loggers.MLFlowLogger", "tracking_uri": "http://evil"}, "logger.x.tracking_uri"),
    ("logger.mlflow", {"_target_": "lightning.pytorch.loggers.MLFlowLogger", "tracking_uri": "sqlite:///x.db"}, "logger.mlflow.tracking_uri"),
    ("logger.x", {"_target_": "lightning.pytorch.loggers.WandbLogger", "settings": {"base_url": "evil"}}, "logger.x.settings.base_url"),
    ("logger.x", {"_target_": "lightning.pytorch.loggers.WandbLogger", "entity": "evil"}, "logger.x.entity"),
    ("logger.x", {"_target_": "lightning.pytorch.loggers.CometLogger", "workspace": "evil"}, "logger.x.workspace"),
    ("logger.x", {"_target_": "lightning.pytorch.loggers.CometLogger", "api_key": "evil"}, "logger.x.api_key"),
    ("logger.x", {"_target_": "lightning.pytorch.loggers.WandbLogger", "tags": ["a", "s3://evil/x"]}, "logger.x.tags"),
    ("trainer.profiler", {"_target_": "lightning.pytorch.profilers.SimpleProfiler", "dirpath": "x"}, "trainer.profiler.dirpath"),
    ("trainer.plugins", {"_target_": "lightning.pytorch.plugins.io.AsyncCheckpointIO", "path": "x"}, "trainer.plugins.path"),
    ("trainer.model_registry", "evil", "trainer.model_registry"),
    ("data.cache_dir", "/home/x/.ssh", "data.cache_dir"),
    ("data.cache_dir", "../x", "data.cache_dir"),
]  # fmt: skip


def foreign(key: str, value: Any) -> dict[str, Any]:
    config = plain(*TINY, "data.root=x")
    config["data"]["cache_dir"] = "data/cache"
    node: Any = config
    *parents, last = key.split(".")
    for name in parents:
        node = node.setdefault(name, {})
    node[last] = value
    return config


def write_record(folder: Path, config: dict[str, Any], **values: Any) -> Path:
    folder.mkdir(exist_ok=True)
    found = {"status": "failed", "attempts": [{"start_s": 0.0}], "config": config, "choices": {"model": "alexnet"}}
    (folder / "run.json").write_text(json.dumps(found | values))
    return folder


@pytest.mark.parametrize(
    ("key", "value", "named"), ELSEWHERE, ids=lambda value: value if isinstance(value, str) else ""
)
@pytest.mark.scenario(name="run_folders")
def test_other_locations_must_be_confirmed(key: str, value: Any, named: str, tmp_path: Path) -> None:
    config = foreign(key, value)
    folder = write_record(tmp_path / "run", config)
    for find, override in ((find_resumption, "resume"), (find_rerun, "rerun")):
        with pytest.raises(ConfigError, match=rf"sets {named}=.*, which is outside that folder") as caught:
            find([f"{override}={folder}"])
        (typed,) = shlex.split(str(caught.value).partition("add ")[2].removesuffix(" to the command"))
        if not isinstance(value, dict) or "tags" not in value:
            assert find([f"{override}={folder}", typed]) is not None
    with pytest.raises(ConfigError, match="is outside that folder"):
        check_confined(config, folder, own=foreign("seed", 1))
    check_confined(config, folder, own=copy.deepcopy(config))
    assert {path.name for path in folder.iterdir()} == {"run.json"}


def test_checking_a_resumed_sweep_writes_nothing_elsewhere(tmp_path: Path) -> None:
    folder = sweep_folder(tmp_path / "sweep", overrides=[{"key": "seed", "value": 1}])
    sweep = find_resumed_sweep(["-m", f"resume={folder}"])
    elsewhere = tmp_path / "elsewhere"
    root = write_images(tmp_path / "images", {"train/a": 8, "train/b": 8, "val/a": 1, "val/b": 1})
    config = OmegaConf.create(plain(*TINY, f"data.root={root}", f"data.cache_dir={elsewhere}"))
    with pytest.raises(ConfigError, match=r"sets data\.cache_dir=.*, which is outside that folder"):
        CommandTask(Invocation("train", (), (), sweep=sweep)).check(config, remote=False)
    assert not elsewhere.exists()
    CommandTask(Invocation("train", (), ())).check(config, remote=False)  # the user's own config may


def test_every_option_can_be_resumed(tmp_path: Path) -> None:
    from support.configs import OPTIONS

    for group in ("callbacks", "logger", "debug", "experiment", "trainer"):
        for option in OPTIONS[group]:
            override = f"{group}=[{option}]" if group in ("callbacks", "logger") else f"{group}={option}"
            config = plain("data=folder", "data.root=x", override)
            check_confined(config, tmp_path)
    check_confined(plain(), tmp_path)
    check_confined(plain("logger=wandb", "note='baseline: lr 0.1'", "tags=[team/x]"), tmp_path)


@pytest.mark.scenario(name="run_folders")
def test_generated_data_is_not_written_elsewhere(tmp_path: Path) -> None:
    config = plain("data=digits", f"data.root={tmp_path / 'new'}")
    with pytest.raises(ConfigError, match=r"sets data\.root=.*new, which is outside"):
        check_confined(config, tmp_path)
    (tmp_path / "new").mkdir()
    check_confined(config, tmp_path)
    assert confined_data(config["data"])["generate"] is None
    assert confined_data(plain()["data"])["generate"] == "digits"
    assert confined_data({**config["data"], "cache_dir": "/x"})["cache_dir"] == "data/cache"


@pytest.mark.scenario(name="run_folders")
def test_links_out_of_a_run_folder_are_rejected(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("precious")
    for name in (".lock", "train.log", "metrics.csv", "run.json", "checkpoints", ".hydra", "new/deep", "skipped.csv"):
        for number, target in enumerate((precious / "file", precious, "relative", Path("/dev/null"))):
            folder = write_record(tmp_path / f"run{number}", foreign("seed", 1))
            place = folder / name
            place.parent.mkdir(exist_ok=True)
            kept = (folder / "run.json").read_bytes()
            place.unlink(missing_ok=True)
            place.symlink_to(os.path.relpath(precious, place.parent) if target == "relative" else target)
            with pytest.raises(ConfigError, match="must not contain links to files outside it"):
                check_folder(folder)
            place.unlink()
            (folder / "run.json").write_bytes(kept)
    folder = write_record(tmp_path / "wandb", foreign("seed", 1))
    (folder / "debug-core.log").symlink_to(precious / "file")  # as W&B's service writes it
    check_folder(folder)
    folder = write_record(tmp_path / "hard", foreign("seed", 1))
    os.link(precious / "file", folder / "train.log")
    with pytest.raises(ConfigError, match="must not share files with other folders"):
        find_resumption([f"resume={folder}"])
    (folder / "train.log").unlink()
    os.mkfifo(folder / "train.log")
    with pytest.raises(ConfigError, match="must contain only folders and regular files"):
        find_resumption([f"resume={folder}"])
    (folder / "train.log").unlink()
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/best.ckpt").write_text("x")
    os.link(folder / "checkpoints/best.ckpt", folder / "checkpoints/last.ckpt")
    (folder / "inside").symlink_to("checkpoints")
    assert find_resumption([f"resume={folder}"]) is not None
    assert (precious / "file").read_text() == "precious"
    assert RunRecord(folder).read()["status"] == "failed"
