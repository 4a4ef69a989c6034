"""Every YAML file in conf/ composes, and the objects that it configures are built."""

import inspect
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning
import pytest

from alexlab.config import build
from alexlab.config.resolve import fill_statistics
from alexlab.config.trainer import build_trainer
from alexlab.config.validate import check_objects
from alexlab.data.discovery import find_splits
from alexlab.distributed.consistency import flatten
from alexlab.distributed.ddp import KEYS
from support.configs import OPTIONS
from support.images import write_images
from support.runs import ROOT, composed, plain

pytestmark = pytest.mark.slow

COUNTS = {
    ".": 13,
    "ablation": 12,
    "augmentation": 14,
    "augmentation/eval": 3,
    "callbacks": 6,
    "data": 6,
    "debug": 7,
    "experiment": 16,
    "hydra/hydra_logging": 1,
    "hydra/job_logging": 1,
    "hydra/launcher": 4,
    "hydra/sweeper": 2,
    "launcher": 4,
    "logger": 4,
    "loss": 2,
    "metrics": 2,
    "model": 32,
    "module": 1,
    "optimizer": 5,
    "paper": 2,
    "scheduler": 8,
    "sweep": 1,
    "trainer": 6,
}
TWO_CLASSES = ("loss=binary_cross_entropy", *(f"experiment=catdog_tf_{number}" for number in (1, 2, 3)))
# Arguments of lightning.Trainer that conf/trainer/default.yaml does not list.
SET_BY_US = {"callbacks", "logger", "default_root_dir", "use_distributed_sampler"}
UNUSED = {
    *("limit_predict_batches", "barebones", "reload_dataloaders_every_n_epochs", "enable_autolog_hparams"),
    "model_registry",
}
NEEDED = {
    "optimizer=any": ["optimizer._target_=torch.optim.NAdam"],
    "scheduler=any": ["scheduler._target_=torch.optim.lr_scheduler.ExponentialLR", "+scheduler.gamma=0.9"],
    "trainer=two_towers": ["model=alexnet_two_tower"],
    "data=streaming": ["data.root=null", "data.url=shards"],
    "debug=limit": ["trainer.limit_train_batches=0.5"],  # a fifth of the 3 batches would be less than one
}


def test_the_number_of_options_in_each_group() -> None:
    assert {group: len(options) for group, options in OPTIONS.items()} == COUNTS


def test_the_authors_recipe_differs_from_the_text_of_the_paper_as_published() -> None:
    """The rows of the table in docs/models.md, in their order; everything else is equal."""
    text, code = (
        dict(flatten(plain(f"experiment={name}", "data.root=x"))) for name in ("alexnet_2012", "alexnet_2012_authors")
    )
    common = {
        "optimizer._target_": "alexlab.training.optimizers.VelocitySGD",
        "data.mean_image": True,
        "data.mean": None,
    }
    assert {key: text[key] for key in common} == common
    differences = {key: (text.get(key), code.get(key)) for key in {**text, **code} if text.get(key) != code.get(key)}
    scheduler = {key: differences.pop(key) for key in list(differences) if key.startswith("scheduler.")}
    assert scheduler["scheduler.milestones"] == (None, [23, 51, 78])
    assert differences == {
        "model.init": ("paper2012", "authors2012"),
        "model.lrn_alpha": (5e-4, 1e-4),  # divided by 5
        "model.norm_side": (None, ["before", "after", "after", "after", "after"]),
        "model.spatial_layers": ([], [2]),
        "augmentation.train.pca.scale": ("eigenvalue", "std"),
        "augmentation.train.pca.end_epoch": (None, 68),
        "augmentation.train.crop.images_per_crop": (1, 32),
        "param_groups.bias_lr": (None, 0.02),
        "param_groups.bias_weight_decay": (None, 0.0),
        "param_groups.layer_lrs": ({}, None),
        "param_groups.layer_lrs.conv1": (None, [[68, 1e-5], [72, 0.0]]),
        "trainer.max_epochs": (90, 93),
        "model.paddings": ([2, 2, 1, 1, 1], [0, 2, 1, 1, 1]),
        "model.conv_ceil": (False, True),
        "model.pool_ceil": (False, True),
    }


@pytest.mark.parametrize(
    ("group", "option"),
    [
        (group, option)
        for group, options in OPTIONS.items()
        for option in options
        if group not in (".", "paper")
        and (group, option) != ("data", "dataset")  # needs a class of the user: test_own_parts.py
    ],
)
def test_every_option_composes_and_builds(
    group: str, option: str, images: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    monkeypatch.setenv("WANDB_MODE", "offline")
    override = f"{group}={option}"
    config = plain(
        *([] if group == "data" else ["data=folder"]),
        f"data.root={images}",
        "data.batch_size=8",
        "trainer.accelerator=cpu",
        override,
        *NEEDED.get(override, []),
    )
    root = write_images(tmp_path / "two", {"a": 10, "b": 10}) if override in TWO_CLASSES else images
    splits = find_splits(str(root), val_fraction=0.2, test_fraction=0.0)
    config, _ = fill_statistics(config, splits)
    check_objects(config, splits, num_ranks=2 if option == "two_towers" else 1)
    assert class_names(build.loggers(config, tmp_path)) == target_names(config["logger"])
    trainer = build_trainer(config, tmp_path, num_ranks=1)
    fast = config["trainer"]["fast_dev_run"]
    assert trainer.max_epochs == (1 if fast else config["trainer"]["max_epochs"])
    assert set(class_names(trainer.callbacks)) >= set(target_names(config["callbacks"]))


@pytest.mark.parametrize("debug", ["default", "doctor", "fast", "limit", "lr_find", "overfit", "profile"])
@pytest.mark.parametrize("experiment", OPTIONS["experiment"])
def test_every_recipe_can_be_debugged(debug: str, experiment: str, tmp_path: Path) -> None:
    classes = {"a": 40, "b": 40} if f"experiment={experiment}" in TWO_CLASSES else {"a": 40, "b": 40, "c": 40}
    root = write_images(tmp_path / "images", classes, size=16)
    size = ["data.batch_size=8", "trainer.accelerator=cpu", "model.weights=null"]
    config = plain(f"experiment={experiment}", f"debug={debug}", f"data.root={root}", *size)
    splits = find_splits(str(root), val_fraction=0.2, test_fraction=0.0)
    config, _ = fill_statistics(config, splits)
    check_objects(config, splits, num_ranks=1)
    if debug == "overfit":
        assert config["augmentation"]["train"] == config["augmentation"]["eval"]
        assert not any(config["augmentation"]["batch"].values())


def class_names(objects: Iterable[object]) -> list[str]:
    return [type(each).__name__ for each in objects]


def target_names(nodes: dict[str, Any]) -> list[str]:
    """Class names of a group of named nodes, of which null ones are left out."""
    return [node["_target_"].rpartition(".")[2] for node in nodes.values() if node is not None]


def test_the_trainer_node_lists_the_arguments_of_lightning_and_the_options_of_ddp() -> None:
    arguments = set(inspect.signature(lightning.Trainer).parameters)
    assert arguments > SET_BY_US | UNUSED
    assert set(plain()["trainer"]) == (arguments - SET_BY_US - UNUSED) | KEYS | {"val_precision"}


def test_two_devices_are_requested_by_option_or_key() -> None:
    assert plain("trainer=ddp")["trainer"]["devices"] == 2
    assert plain("trainer.devices=2")["trainer"]["strategy"] == "auto"


def test_a_data_set_overrides_the_augmentation_and_the_command_line_overrides_both() -> None:
    assert list(plain()["augmentation"]["train"]) == ["crop"]
    assert list(plain("data=folder", "data.root=x")["augmentation"]["train"]) == ["crop", "flip"]
    assert list(plain("augmentation=color")["augmentation"]["train"]) == ["crop", "flip", "color"]


def test_the_command_line_changes_and_removes_named_nodes() -> None:
    config = plain(
        "augmentation=color", "~augmentation.train.flip", "augmentation.train.color.hue=0.0", "~callbacks.lr"
    )
    assert list(config["augmentation"]["train"]) == ["crop", "color"]
    assert config["augmentation"]["train"]["color"]["hue"] == 0.0
    assert list(config["callbacks"]) == ["checkpoint", "progress", "epochs", "layers", "diagnosis"]


def test_no_script_shadows_an_imported_module() -> None:
    scripts = {path.stem for path in (ROOT / "src").glob("*.py")}
    assert scripts
    assert not scripts & (
        set(sys.stdlib_module_names) | {"torch", "lightning", "hydra", "omegaconf", "PIL", "numpy", "rich"}
    )


def test_output_folders_are_named_after_command_and_overrides() -> None:
    config = composed("model=alexnet_half", "trainer.devices=2")
    assert config.hydra.run.dir.endswith("_model-alexnet_half_devices-2")
    assert config.hydra.run.dir.startswith("outputs/train/")
    assert config.hydra.sweep.dir.startswith("outputs/sweeps/")
    assert composed().hydra.run.dir.endswith("_defaults")
    for name in ("benchmark", "report", "summary"):
        hydra = composed(name=name).hydra
        assert hydra.run.dir.startswith(f"outputs/{name}/") and hydra.sweep.dir.startswith(f"outputs/{name}/")
        assert hydra.help.app_name == f"python src/{name}.py"


def test_ablations_combine_and_change_the_chosen_net() -> None:
    config = plain("model=alexnet_two_tower", "ablation=[tanh,no_lrn,drop_conv3]")
    assert (config["model"]["activation"], config["model"]["norm"], config["model"]["skip_convs"]) == (
        "tanh",
        "none",
        [3],
    )
    assert plain("model=alexnet_two_tower")["model"]["norm"] == "lrn"
