import re

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException

from alexlab.overrides import quoted_path, selects_own_folder, with_quoted_paths
from conftest import composed, plain

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
    "true",
    "/data/50%/#1;!*?|<>",
    " /leading",
    "/date:2026",
    "-dash/x",
]


@pytest.mark.parametrize("path", [*PATHS, "data/plain", "/data/cats_and_dogs-2.0"])
def test_a_path_arrives_as_it_was_typed(path: str) -> None:
    (argument,) = with_quoted_paths([f"data.root={path}"])
    (override,) = OverridesParser.create().parse_overrides([argument])
    assert str(override.value()) == path
    assert plain("data=folder", argument)["data"]["root"] == path


@pytest.mark.parametrize("path", PATHS)
def test_in_a_sweep_a_comma_divides_paths(path: str) -> None:
    if "," in path:
        return
    argument = with_quoted_paths(["-m", f"data.root={path},/other one"])[1]
    (override,) = OverridesParser.create().parse_overrides([argument])
    found = [
        OverridesParser.create().parse_override(f"x={value}").value() for value in override.sweep_string_iterator()
    ]
    assert [str(value) for value in found] == [path, "/other one"]


def test_in_a_sweep_a_path_that_exists_is_one_path(tmp_path) -> None:
    (tmp_path / "a,b").mkdir()
    assert with_quoted_paths(["-m", f"data.root={tmp_path}/a,b"])[1] == f"data.root='{tmp_path}/a,b'"


def test_what_is_quoted_already_or_no_path_stays() -> None:
    arguments = [
        "data.root='/x y'",
        'data.root="/x y"',
        "model=alexnet",
        "optimizer.lr=tag(log,interval(1,2))",
        "data.root=null",
    ]
    assert with_quoted_paths(arguments) == arguments
    assert with_quoted_paths(["-m", "data.root=glob(*)"]) == ["-m", "data.root=glob(*)"]
    assert quoted_path("/plain/path") == "/plain/path"


def test_a_folder_of_one_s_own_is_no_digits() -> None:
    assert selects_own_folder(["data.root=x"]) == ["data.root=x", "data=folder"]
    for arguments in (["data.root=x", "data=digits"], ["data.root=x", "experiment=cats_and_dogs"], ["seed=1"]):
        assert selects_own_folder(arguments) == arguments


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.max_epoch=3", "there is no key trainer.max_epoch; did you mean trainer.max_epochs"),
        ("modle=alexnet", "there is no key modle; did you mean model?"),
        ("loss.zzz=1", "there is no key loss.zzz; loss has _target_, class_weights, label_smoothing"),
        ("zzz=1", "there is no key zzz; the keys and groups are augmentation, callbacks, class_names, compile, data"),
        ("callbacks.ema.decay=0.9", "callbacks.ema is not part of this run, which has checkpoint, lr, progress, epochs, layers; "
         "add it with 'callbacks=[default,ema]'"),
        ("callbacks.early_stopping.patience=5", "add it with 'callbacks=[default,early_stopping]'"),
        ("logger.wandb.project=x", "add it with 'logger=[tensorboard,csv,wandb]'"),
        ("trainer.max_epochs=many", "trainer.max_epochs must be a whole number, like its default 20; got 'many'"),
        ("trainer.max_epochs=1.5", "trainer.max_epochs must be a whole number, like its default 20; got 1.5"),
        ("optimizer.lr=fast", "optimizer.lr must be a number, like its default 0.001; got 'fast'"),
        ("optimizer.fused=1", "optimizer.fused must be true or false, like its default True; got 1"),
        ("model.widths=64", "model.widths must be a list, each item a whole number"),
        ("model.widths=[a,b]", "model.widths must be a list, each item a whole number"),
        ("model.norm=[lrn]", "model.norm must be text, like its default 'none'; got ['lrn']"),
        ("model=resnext", "Could not find 'model/resnext'"),
    ],
)  # fmt: skip
def test_words(override: str, words: str) -> None:
    with pytest.raises(ConfigCompositionException, match=re.escape(words)):
        composed(override)


def test_an_unknown_option_lists_the_choices() -> None:
    with pytest.raises(Exception, match=r"(?s)Available options in 'model':.*alexnet.*alexnet_half"):
        composed("model=resnext")


def test_what_lightning_takes_in_several_kinds_is_left_to_it() -> None:
    config = plain("trainer.devices=[0,1]", "trainer.precision=16", "optimizer.lr=1", "trainer.max_epochs=null")
    assert config["trainer"]["devices"] == [0, 1]
