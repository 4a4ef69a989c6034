"""Custom YAML files: every error is one sentence that names the file, and none is ignored."""

import re
from pathlib import Path
from typing import Any

import pytest
from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from alexlab.cli.overrides import NAMED_NODES, SIGNATURE_NODES, CompositionError, check_override
from alexlab.config import CONFIG_DIR
from alexlab.errors import ConfigError

GLOBAL = "# @package _global_\n"
# Content of a file -> expected message.
EXPERIMENTS = {
    "optimizer: {lr: 0.5}\n": "mine.yaml: no command reads experiment.*, the package of this file; its first line must be `# @package _global_`",
    "seed: 2\n" + GLOBAL: "its first line must be `# @package _global_`",
    "": "its first line must be `# @package _global_`",
    "# @package global\nseed: 2\n": "no command reads global.*",
    "# @package _global_ # all\nseed: 2\n": "mine.yaml: Too many components",
    "\ufeff" + GLOBAL + "seed: 2\n": "mine.yaml begins with a byte order mark, which hides the first line",
    GLOBAL + "seed: 2\noptimzer: {lr: 1}\n": "mine.yaml, line 3: unknown key optimzer.lr; use optimizer.lr=1",
    GLOBAL + "trainer:\n  max_epoch: 3\n": "line 3: unknown key trainer.max_epoch; use trainer.max_epochs=3",
    GLOBAL + "trainer.max_epochs: 3\n": "line 2: unknown key trainer.max_epochs; in YAML, write `trainer:`",
    GLOBAL + "callbacks: {ema: {decay: 0.5}}\n": "callbacks.ema is not configured",
    GLOBAL + "augmentation: {trian: {}}\n": "did you mean augmentation.train?",
    GLOBAL + "1: 2\n": "unknown key 1",
    GLOBAL + "optimizer:\n\tlr: 0.5\n": r"mine.yaml, line 3: found character '\t' that cannot start any token; YAML is indented with spaces",
    GLOBAL + "optimizer:\n  lr: 0.5\n  lr: 0.6\n": "mine.yaml, line 4: found duplicate key lr",
    GLOBAL + "optimizer: {lr: 0.5\n": "mine.yaml, line 3: expected ',' or '}'",
    GLOBAL + "seed: 1\n---\nseed: 2\n": "mine.yaml, line 3: ",
    GLOBAL + "model: {x: !!python/name:os.system }\n": "mine.yaml, line 2: could not determine a constructor",
    GLOBAL + "optimizer:\n  lr: ${oops\n": "mine.yaml: no viable alternative at input '${oops'",
    GLOBAL + "optimizer:\n  lr: 0,001\n": "mine.yaml, line 3: optimizer.lr must be a number, like its default 0.001; got '0,001'. Write 0.001",
    GLOBAL + 'optimizer:\n  lr: "0.001"\n': "got '0.001'. Write it without quotes",
    GLOBAL + "trainer: {max_epochs: 1.5}\n": "trainer.max_epochs must be an integer, like its default 20; got 1.5",
    GLOBAL + "optimizer:\n": "mine.yaml, line 2: optimizer must be a mapping; got null",
    GLOBAL + "callbacks:\n": "callbacks must be a mapping; got null",
    GLOBAL + "model: alexnet\n": "model must be a mapping; got 'alexnet'",
    GLOBAL + "- seed\n": "mine.yaml must hold keys and values",
    GLOBAL + "seed\n": "mine.yaml must hold keys and values",
    GLOBAL + "defaults: [nope]\n": "mine.yaml: experiment/nope.yaml does not exist; the options of experiment are",
    GLOBAL + "defaults: [optimizer: sgd]\n": "experiment/optimizer/sgd.yaml does not exist; a group outside this folder begins with a slash",
    GLOBAL + "defaults: [mine]\n": "defaults lists must not form a cycle; these do: ",
    GLOBAL + "defaults: [override /optimzer: sgd]\n": "mine.yaml: this command has no config group optimzer; did you mean optimizer?",
    GLOBAL + "defaults: [override /optimizer: sgdd]\n": "mine.yaml: optimizer/sgdd.yaml does not exist; did you mean sgd?",
    GLOBAL + "defaults: {optimizer: sgd}\n": "mine.yaml: Invalid defaults list",
    GLOBAL + "defaults: [optimizer: 3]\n": "mine.yaml: Unsupported item value in defaults : int",
    GLOBAL + "defaults: [override /optimizer: sgd, /trainer: ddp]\n": "mine.yaml: Override 'optimizer : sgd' is defined before",
    GLOBAL + "hydra: {job: {num: x}}\n": "mine.yaml: ValidationError raised while composing config: Value 'x'",
}  # fmt: skip


def compose(folder: Path, *overrides: str, name: str = "train", mode: RunMode = RunMode.RUN) -> Any:
    """Return the config of a command with `--config-dir`."""
    path = create_config_search_path(str(CONFIG_DIR))
    path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
    version.setbase("1.3")
    try:
        loader = Hydra.create_main_hydra2(task_name=name, config_search_path=path).config_loader
        return loader.load_configuration(name, list(overrides), mode)
    finally:
        GlobalHydra.instance().clear()


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


@pytest.mark.parametrize(("text", "message"), EXPERIMENTS.items())
def test_errors_in_an_experiment_are_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        compose(write(tmp_path, "experiment/mine", text), "experiment=mine")
    assert "\n" not in str(caught.value) and str(tmp_path / "experiment/mine.yaml") in str(caught.value)


@pytest.mark.parametrize("group", ["ablation", "debug", "sweep", "experiment"])
def test_every_overlay_must_be_global(tmp_path: Path, group: str) -> None:
    write(tmp_path, f"{group}/mine", "seed: 5\n")
    with pytest.raises(ConfigError, match=rf"mine\.yaml: no command reads {group}\.\*"):
        compose(tmp_path, f"{group}=mine")
    write(tmp_path, f"{group}/mine", GLOBAL + "seed: 5\n")
    assert compose(tmp_path, f"{group}=mine").seed == 5


def test_custom_groups_are_overlays(tmp_path: Path) -> None:
    write(tmp_path, "recipe/mine", "seed: 5\n")
    with pytest.raises(ConfigError, match=r"no command reads recipe\.\*"):
        compose(tmp_path, "+recipe=mine")
    write(tmp_path, "recipe/mine", GLOBAL + "optimzer: {lr: 1}\n")
    with pytest.raises(ConfigError, match=r"unknown key optimzer.lr; use optimizer.lr=1"):
        compose(tmp_path, "+recipe=mine")
    with pytest.raises(ConfigError, match=r"folder\.yaml, line \d+: unknown key data\.generate"):
        compose(tmp_path, "+data=folder", name="prepare")


@pytest.mark.parametrize("text", [b"# caf\xe9\n" + GLOBAL.encode(), b"# 1\n\xff\xfes\x00e\x00"])
def test_encoding_errors_name_file_and_line(tmp_path: Path, text: bytes) -> None:
    write(tmp_path, "experiment/mine", text)
    with pytest.raises(ConfigError, match=r"mine\.yaml, line \d: byte 0x\w\w is not UTF-8; save the file as UTF-8"):
        compose(tmp_path, "experiment=mine")


def test_custom_options_compose(tmp_path: Path) -> None:
    write(tmp_path, "model/net", "_target_: mine.Net\nnum_classes: null\nin_channels: 3\ndepth: 3\n")
    write(tmp_path, "model/narrow", "defaults: [alexnet, _self_]\nwidths: [8, 8, 8, 8, 8]\n")
    write(
        tmp_path,
        "data/grey",
        f"{GLOBAL}defaults: [folder@data, _self_]\ndata: {{url: null}}\nmodel: {{in_channels: 1}}\n",
    )
    config = compose(tmp_path, "model=net", "data=grey", "data.root=x", "model.depth=4")
    assert (config.model.depth, config.model.in_channels) == (4, 1)
    assert list(compose(tmp_path, "model=narrow").model.widths) == [8] * 5
    assert compose(write(tmp_path, "mine", "defaults: [train, _self_]\nseed: 7\n"), name="mine").seed == 7


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("model/mine", "defaults: [alexnet, _self_]\nwidths: 8\n", "line 2: model.widths must be a list"),
        ("data/mine", f"{GLOBAL}defaults: [folder@data]\ntrainer: {{devices: 2}}\n", "line 3: a later file sets trainer again"),
        ("data/mine", f"{GLOBAL}defaults: [folder@data]\nmodle: {{x: 2}}\n", "unknown key modle; did you mean module or model?"),
        ("augmentation/mine", "defaults: [crop, _self_]\ntrian: {}\n", "line 2: unknown key augmentation.trian"),
    ],
)  # fmt: skip
def test_errors_in_an_option_name_the_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    group = name.partition("/")[0]
    with pytest.raises(ConfigError, match=re.escape(message)):
        compose(write(tmp_path, name, text), f"{group}=mine", "data.root=x")


@pytest.mark.parametrize("name", sorted({path.stem for path in CONFIG_DIR.glob("*.yaml")} - {"command"}))
def test_unknown_keys_are_rejected_in_every_node(tmp_path: Path, name: str) -> None:
    config = compose(tmp_path, "data=folder" if name in ("train", "benchmark") else "hydra.verbose=false", name=name)
    nodes = [
        "",
        *(str(key) for key, node in config.items_ex(resolve=False) if isinstance(node, DictConfig)),
        "data.pack",
    ]
    for node in sorted(set(nodes) - {"hydra"}):
        found = OmegaConf.select(config, node, default=None) if node else config
        if found is None or "_target_" in found or node in NAMED_NODES or node in SIGNATURE_NODES.get(name, ()):
            continue
        for plus in ("+", "++"):
            (override,) = OverridesParser.create().parse_overrides([f"{plus}{node}{'.' * bool(node)}zzz=1"])
            with pytest.raises(CompositionError, match=r"unknown key (\w+\.)*zzz"):
                check_override(override, config, command=name)


DEFAULT = ["checkpoint", "lr", "progress", "epochs", "layers", "diagnosis"]


@pytest.mark.parametrize(
    ("overrides", "callbacks", "loggers"),
    [
        (["callbacks=ema"], [*DEFAULT, "ema"], ["tensorboard", "csv"]),
        (["callbacks=early_stopping", "logger=wandb"], [*DEFAULT, "early_stopping"], ["tensorboard", "csv", "wandb"]),
        (["callbacks=[default,ema]", "logger=csv"], [*DEFAULT, "ema"], ["tensorboard", "csv"]),
        (["callbacks=[ema,default,finetune]"], ["ema", *DEFAULT, "finetune"], ["tensorboard", "csv"]),
        (["callbacks=mine", "logger=[mlflow,wandb]"], [*DEFAULT, "mine"], ["tensorboard", "csv", "mlflow", "wandb"]),
        (["callbacks=[less,more]"], [*DEFAULT, "more"], ["tensorboard", "csv"]),
        (["experiment=ema"], [*DEFAULT, "ema"], ["tensorboard", "csv"]),
        (["callbacks=[]", "logger=[]"], [], []),
        (["~callbacks.lr", "callbacks=ema", "~logger.tensorboard"], [*DEFAULT, "ema"], ["csv"]),
    ],
)
def test_callbacks_and_loggers_are_added_to_the_default_ones(
    tmp_path: Path, overrides: list[str], callbacks: list[str], loggers: list[str]
) -> None:
    write(tmp_path, "callbacks/mine", "mine: {_target_: mine.Callback}\n")
    write(tmp_path, "callbacks/less", "checkpoint: {keep_last: 3}\n")
    write(tmp_path, "callbacks/more", "defaults: [default, _self_]\nmore: {_target_: mine.Callback}\n")
    write(tmp_path, "experiment/ema", GLOBAL + "defaults: [override /callbacks: ema]\n")
    config = compose(tmp_path, *overrides)
    assert sorted(config.callbacks) == sorted(
        set(callbacks) - {override[11:] for override in overrides if override[0] == "~"}
    )
    assert list(config.logger) == loggers
    if "callbacks=[less,more]" in overrides:
        assert config.callbacks.checkpoint.keep_last == 3  # the second default does not undo it


def test_the_learning_rate_finder_runs_without_other_callbacks(tmp_path: Path) -> None:
    callbacks = compose(tmp_path, "debug=lr_find").callbacks
    assert [name for name, node in callbacks.items() if node is not None] == ["lr_find"]
    assert not compose(tmp_path, "debug=fast").callbacks


def test_home_folders_in_yaml_files_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    write(tmp_path, "experiment/mine", GLOBAL + "defaults: [override /data: folder]\ndata: {root: ~/pics}\n")
    config = compose(tmp_path, "experiment=mine", "class_names='~/names.json'")
    assert (config.data.root, config.class_names) == ("/home/me/pics", "/home/me/names.json")


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ("trainer: {max_epochs: 3}\n", ["data.root=pics"], ("folder", "pics", None, 224)),
        ("data: {root: pics, image_size: 96}\n", [], ("folder", "pics", None, 96)),
        ("defaults: [override /data: photographs]\n", ["data.root=pics"], ("folder", "pics", None, 224)),
        ("trainer: {max_epochs: 3}\n", ["data.url=s3://a/b", "data.stream.cache_gb=2"], ("streaming", None, None, 224)),
        ("defaults: [override /data: folder]\n", ["data.url=s3://a/b"], ("streaming", None, None, 224)),
        ("defaults: [override /data: own]\n", ["data.root=pics"], ("own", "pics", None, 32)),
        ("defaults: [override /data: own]\n", [], ("own", "own_digits", "digits", 32)),
        ("trainer: {max_epochs: 3}\n", [], ("digits", "data/digits", "digits", 64)),
        ("trainer: {max_epochs: 3}\n", ["data.root=data/digits"], ("digits", "data/digits", "digits", 64)),
        ("trainer: {max_epochs: 3}\n", ["data=digits", "data.root=pics"], ("digits", "pics", "digits", 64)),
        ("data: {root: pics}\n", ["data.generate=digits"], ("digits", "pics", "digits", 64)),
    ],
)  # fmt: skip
def test_images_elsewhere_are_not_read_as_digits_nor_generated(
    tmp_path: Path, text: str, overrides: list[str], expected: tuple[Any, ...]
) -> None:
    write(tmp_path, "experiment/mine", GLOBAL + text)
    write(tmp_path, "data/own", "defaults: [folder, _self_]\nroot: own_digits\ngenerate: digits\nimage_size: 32\n")
    config = compose(tmp_path, "experiment=mine", *overrides)
    found = (config.hydra.runtime.choices["data"], config.data.root, config.data.generate, config.data.image_size)
    assert found == expected


def test_each_job_of_a_sweep_selects_its_data(tmp_path: Path) -> None:
    write(tmp_path, "experiment/mine", GLOBAL + "data: {image_size: 32}\n")
    master = compose(tmp_path, "experiment=mine,cifar10", "data.url=x", "data.stream.cache_gb=2", mode=RunMode.MULTIRUN)
    assert (master.data.url, "data=streaming" in master.hydra.overrides.task) == ("x", False)
    assert (
        compose(tmp_path, *master.hydra.overrides.task[1:], "experiment=mine").hydra.runtime.choices["data"]
        == "streaming"
    )
