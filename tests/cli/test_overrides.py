import re
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from alexlab.cli.arguments import (
    PATH_KEYS,
    collect_runs,
    expand_run_dirs,
    quote_paths,
)
from alexlab.cli.data_option import select_data
from alexlab.cli.invocation import parse_invocation
from alexlab.config import CONFIG_DIR
from alexlab.config.grammar import quote_path
from alexlab.errors import ConfigError
from support.runs import composed, plain

PATHS = [
    "/data/my cats",
    "/data/学习",
    "/data/été",
    "/data/a=b,c",
    "/data/f(x)&g~h",
    "/data/[1]{2}",
    "/data/it's",
    'say "hi"/x',
    "/back\\slash/",
    "/ends in \\",
    "2012",
    "1e-4",
    "1.5e3",
    "true",
    "/data/50%/#1;!*?|<>",
    " /leading",
    "/date:2026",
    "-dash/x",
]


@pytest.mark.parametrize("path", [*PATHS, "data/plain", "/data/cats_and_dogs-2.0"])
def test_paths_are_taken_as_typed(path: str) -> None:
    (argument,) = quote_paths([f"data.root={path}"])
    (override,) = OverridesParser.create().parse_overrides([argument])
    assert str(override.value()) == path
    assert plain("data=folder", argument)["data"]["root"] == path


@pytest.mark.parametrize("path", PATHS)
def test_commas_separate_paths_in_a_sweep(path: str) -> None:
    if "," in path:
        return
    argument = quote_paths(["-m", f"data.root={path},/other one"])[1]
    (override,) = OverridesParser.create().parse_overrides([argument])
    found = [
        OverridesParser.create().parse_override(f"x={value}").value() for value in override.sweep_string_iterator()
    ]
    assert [str(value) for value in found] == [path, "/other one"]


@pytest.mark.parametrize("flag", ["-m", "--multirun", "--multi", "--m"])
def test_the_flag_of_a_sweep_may_be_abbreviated(flag: str) -> None:
    assert "data.root='/a,/b'" in parse_invocation("train", ["data.root=/a,/b"]).arguments
    assert "data.root=/a,/b" in parse_invocation("train", [flag, "data.root=/a,/b"]).arguments
    with pytest.raises(ConfigError, match="-m starts a sweep: use one of them"):
        parse_invocation("train", [flag, "--cf", "job"])
    with pytest.raises(ConfigError, match="-m resume= needs the folder of a sweep"):
        parse_invocation("train", [flag, "resume=nothing"])


def test_existing_paths_with_commas_are_not_split(tmp_path) -> None:
    (tmp_path / "a,b").mkdir()
    assert quote_paths(["-m", f"data.root={tmp_path}/a,b"])[1] == f"data.root='{tmp_path}/a,b'"


def test_quoted_values_and_other_keys_are_unchanged() -> None:
    arguments = [
        "data.root='/x y'",
        'data.root="/x y"',
        "model=alexnet",
        "optimizer.lr=tag(log,interval(1,2))",
        "data.root=null",
    ]
    assert quote_paths(arguments) == arguments
    assert quote_paths(["-m", "data.root=glob(*)"]) == ["-m", "data.root=glob(*)"]
    assert quote_path("/plain/path") == "/plain/path"


# Words in the comment of a key that holds a path.
OF_A_PATH = re.compile(
    r"\b(file|folder|DIR|list with the SHA-256|lists of files|manifest\.csv|checkpoint|to where|URL|address)\b"
)
NO_PATHS = {"split", "optimized_metric"}


def test_all_path_keys_are_listed() -> None:
    """Path keys are recognized by the comment next to them, or by a default with a slash."""
    found_keys = set()
    for path in [
        *CONFIG_DIR.glob("*.yaml"),
        *(CONFIG_DIR / "data").glob("*.yaml"),
        *(CONFIG_DIR / "model").glob("*.yaml"),
    ]:
        # conf/data/digits.yaml is global.
        above = [] if path.parent == CONFIG_DIR or path.read_text().startswith("# @package") else [path.parent.name]
        parents = above
        for line in path.read_text().partition("\nhydra:")[0].splitlines():
            found = re.match(r"( *)(\w+): *([^#]*?) *(#.*)?$", line)
            if found is None:
                continue
            parents = [*parents[: len(above) + len(found[1]) // 2], found[2]]
            value, comment = found[3], found[4] or ""
            is_path = value in ("null", "???") and OF_A_PATH.search(comment)
            if (is_path or re.fullmatch(r"[\w.-]+(/[\w.-]+)+", value)) and found[2] not in NO_PATHS:
                found_keys.add(".".join(parents))
    assert found_keys <= set(PATH_KEYS)
    assert len(found_keys) > 10


@pytest.mark.parametrize("key", ["data.cache_dir", "data.manifest", "hydra.run.dir", "hydra.sweep.dir", "class_names"])
@pytest.mark.parametrize("path", ["/data/a=b,c", "/data/my cats & dogs", "/data/été", "/x/${y", "2012"])
def test_other_path_keys_are_taken_as_typed(key: str, path: str) -> None:
    config = composed(*quote_paths(["-m", f"{key}={path}"] if key.startswith("hydra") else [f"{key}={path}"])[-1:])
    assert OmegaConf.select(config, key) == path


def test_tags_and_notes_are_taken_as_typed() -> None:
    typed = ["note=it's 50 % better, (really) = $5", "tags=[my tag,été,lr=1]"]
    config = composed(*quote_paths(typed))
    assert config.note == "it's 50 % better, (really) = $5"
    assert config.tags == ["my tag", "été", "lr=1"]
    assert quote_paths(["-m", *typed])[1:] == quote_paths(typed)  # a comma in a note does not start a sweep
    with pytest.raises(ConfigError, match=r"tags must be a list, like its default \[\]; got 'a'. Write \[a\]"):
        composed("tags=a")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("16", 16),
        ("-1", -1),
        ("null", None),
        ("cat/été (1).jpg", "cat/été (1).jpg"),
        ("[cat/a (1).jpg,'b, c.jpg', été.jpg]", ["cat/a (1).jpg", "b, c.jpg", "été.jpg"]),
    ],
)
def test_images_to_show_are_a_number_or_paths_as_typed(typed: str, expected: object) -> None:
    assert composed("ckpt=x", *quote_paths([f"show={typed}"]), name="evaluate").show == expected


def test_a_dollar_and_braces_are_an_interpolation_unless_a_file_has_them(tmp_path: Path) -> None:
    def root(path: object) -> Any:
        (argument,) = quote_paths([f"data.cache_dir={path}"])
        return composed(argument).data.cache_dir

    assert root("/runs/${seed}") == "/runs/1"
    for name in ("${seed}", "a${b}c", "\\${seed}", "a'${seed}' x", "\\\\${x}"):
        (tmp_path / name).mkdir()
        assert root(tmp_path / name) == str(tmp_path / name)
        assert root(tmp_path / name / "new") == str(tmp_path / name / "new")


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    assert quote_paths(["data.root=~/my pics", "out=~"]) == ["data.root='/home/me/my pics'", "out=/home/me"]
    assert quote_paths(["-m", "ckpt=~/a,~/b"])[1] == "ckpt=/home/me/a,/home/me/b"
    assert expand_run_dirs(["-m", "resume=~/run", "seed=~1"]) == ["-m", "resume=/home/me/run", "seed=~1"]
    assert collect_runs(["~/a", "out=x"]) == ["out=x", "runs=['/home/me/a']"]
    (tmp_path / "~").mkdir()
    assert quote_paths(["data.root=~"]) == ["data.root='~'"]


def test_a_run_folder_may_have_an_equals_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1").mkdir()
    assert collect_runs(["lr=1", "out=x"]) == ["out=x", "runs=['lr=1']"]


def test_a_data_root_selects_data_folder() -> None:
    assert select_data(["data.root=x"]) == ["data.root=x", "data=folder"]
    for arguments in (["data.root=x", "data=digits"], ["data.root=x", "experiment=cats_and_dogs"], ["seed=1"]):
        assert select_data(arguments) == arguments


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_epoch=3", "unknown key trainer.max_epoch; use trainer.max_epochs=3"),
        ("modle=alexnet", "unknown key modle; did you mean module or model?"),
        ("loss.zzz=1", "unknown key loss.zzz; loss has _target_, class_weights, label_smoothing"),
        ("zzz=1", "unknown key zzz; the keys and groups are augmentation, callbacks, class_names, compile, data"),
        ("callbacks.ema.decay=0.9", "callbacks.ema is not configured; this run has checkpoint, lr, progress, epochs, layers, "
         "diagnosis; add it with callbacks=ema"),
        ("callbacks.early_stopping.patience=5", "add it with callbacks=early_stopping"),
        ("logger.wandb.project=x", "add it with logger=wandb"),
        ("trainer.max_epochs=many", "trainer.max_epochs must be an integer, like its default 20; got 'many'"),
        ("trainer.max_epochs=1.5", "trainer.max_epochs must be an integer, like its default 20; got 1.5"),
        ("optimizer.lr=fast", "optimizer.lr must be a number, like its default 0.001; got 'fast'"),
        ("optimizer.fused=1", "optimizer.fused must be true or false, like its default True; got 1"),
        ("model.widths=64", "model.widths must be a list, each item an integer"),
        ("model.widths=[a,b]", "model.widths must be a list, each item an integer"),
        ("model.norm=[lrn]", "model.norm must be text, like its default 'none'; got ['lrn']"),
        ("model=resnot", "unknown option model=resnot; the options of model are alexnet, alexnet_authors, alexnet_bn"),
        ("model=alexnet_hlaf", "unknown option model=alexnet_hlaf; did you mean alexnet_half?"),
        ("model={widht: 2}", "unknown key model.widht; did you mean model.width"),
        ("optimizer={lr: fast}", "optimizer.lr must be a number, like its default 0.001; got 'fast'"),
        ("optimizer.lr='0,001'", "optimizer.lr must be a number, like its default 0.001; got '0,001'. Write 0.001"),
        ('optimizer.lr="0.001"', "got '0.001'. Write it without quotes"),
        ('optimizer.fused="true"', "optimizer.fused must be true or false, like its default True; got 'true'. Write it without quotes"),
        ("+optimzer.lr=1", "unknown key optimzer.lr; use optimizer.lr=1"),
        ("+classifier._target_=x.Y", "unknown key classifier; the keys and groups are augmentation"),
        ("++foo=1", "unknown key foo"),
        ("experimnt=x", "unknown key experimnt; did you mean experiment?"),
        ("+elastic.wait_s=1", "unknown key elastic.wait_s; elastic has max_restarts, shutdown_s"),
        ("+param_groups.conv_decay=1", "did you mean param_groups.conv_weight_decay"),
        ("+compile.modes=x", "did you mean compile.mode?"),
        ("+test.x=1", "unknown key test.x; test has views"),
        ("++trainer.max_epoch=1", "use trainer.max_epochs=1"),
        ("+trainer={max_epoch: 1}", "unknown key trainer.max_epoch; use trainer.max_epochs=1"),
        ("+augmentation.trian.x=1", "did you mean augmentation.train?"),
        ("+launcher.jobs=2", "unknown key launcher.jobs; launcher has retry_failed"),
        ("+callbacks.ema.decay=0.9", "callbacks.ema is not configured"),
        ("+hydra.foo=1", "unknown key hydra.foo"),
        ("+hydra.run.foo=1", "unknown key hydra.run.foo; hydra.run has dir"),
        ("hydra.job.num=x", "hydra.job.num: Value 'x' of type 'str' could not be converted to Integer"),
        ("seed.x=1", "seed is a value and has no key x"),
        ("doctor.remedies=1", "doctor.remedies cannot be set, because doctor is null in this config"),
        ("seed=null", "seed must be an integer, like its default 1; got null"),
        ("data.cache_dir=null", "data.cache_dir must be text, like its default 'data/cache'; got null"),
        ("+seed=2", "seed is already set; leave out the + to change it"),
        ("debug.x=1", "debug takes an option and has no keys: debug=NAME"),
        ("~sede", "unknown key sede; did you mean seed or"),
        ("~augmentation.train.flop", "unknown key augmentation.train.flop; augmentation.train has crop"),
        ("~seed", "seed is required and cannot be removed; set another value"),
        ("~trainer.max_epochs", "trainer.max_epochs is required and cannot be removed"),
        ("~data.batch_size", "data.batch_size is required and cannot be removed"),
        ("~model", "model must have an option, such as model=alexnet_quarter; got none"),
        ("model=null", "model=null must name an option"),
        ("seed=1,2", "seed=1,2 has several values: add -m to run each; a list needs brackets, [1,2]"),
        ("model=alexnet,nin", "model=alexnet,nin has several values: add -m to run each"),
        ("callbacks=null", "callbacks=null must name an option; to select none, use callbacks=[]"),
        ("~callbacks", "~callbacks must name an option; to select none, use callbacks=[]"),
    ],
)  # fmt: skip
def test_error_messages(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        composed(override)
    assert "\n" not in str(caught.value)


def test_trainer_keys_of_several_types_are_passed_on() -> None:
    config = plain("trainer.devices=[0,1]", "trainer.precision=16", "optimizer.lr=1", "trainer.max_epochs=null")
    assert config["trainer"]["devices"] == [0, 1]
