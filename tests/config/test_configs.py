"""Every YAML in conf/ composes, and what it makes is built."""

import inspect
import sys
from pathlib import Path
from typing import Any

import lightning
import pytest

from alexlab.config import build
from alexlab.data.splits import find_splits
from alexlab.distributed.ddp import KEYS
from support.configs import OPTIONS
from support.images import write_images
from support.runs import ROOT, composed, plain

COUNTS = {
    ".": 11,
    "ablation": 12,
    "augmentation": 14,
    "augmentation/eval": 2,
    "callbacks": 5,
    "data": 4,
    "debug": 5,
    "experiment": 11,
    "hydra/hydra_logging": 1,
    "hydra/job_logging": 1,
    "hydra/launcher": 4,
    "hydra/sweeper": 1,
    "launcher": 4,
    "logger": 4,
    "loss": 2,
    "model": 14,
    "optimizer": 4,
    "scheduler": 7,
    "sweep": 1,
    "trainer": 3,
}
TWO_CLASSES = ("loss=binary_cross_entropy", *(f"experiment=catdog_tf_{number}" for number in (1, 2, 3)))
NEEDED = {
    "optimizer=any": ["optimizer._target_=torch.optim.NAdam"],
    "trainer=two_towers": ["model=alexnet_two_tower"],
    "data=streaming": ["data.root=null", "data.url=shards"],
    "debug=limit": ["trainer.limit_train_batches=0.5"],  # a fifth of the 3 batches would be less than one
}


def test_every_file_is_counted() -> None:
    assert {group: len(options) for group, options in OPTIONS.items()} == COUNTS


@pytest.mark.parametrize(
    ("group", "option"),
    [(group, option) for group, options in OPTIONS.items() if group != "." for option in options],
)
def test_every_option_composes_and_builds(
    group: str, option: str, images: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    monkeypatch.setenv("WANDB_MODE", "offline")
    override = f"{group}={option}"
    own = [] if group == "data" and option == "folder" else ["data=folder"] if group != "data" else []
    config = plain(
        *own,
        f"data.root={images}",
        "data.batch_size=8",
        "trainer.accelerator=cpu",
        override,
        *NEEDED.get(override, []),
    )
    root = write_images(tmp_path / "two", {"a": 10, "b": 10}) if override in TWO_CLASSES else images
    splits = find_splits(str(root), val_fraction=0.2, test_fraction=0.0)
    config, _ = build.measured(config, splits)
    build.check(config, splits, num_ranks=2 if option == "two_towers" else 1)
    assert build.loggers(config, tmp_path) is not None
    assert (
        build.trainer(config, tmp_path, num_ranks=1).max_epochs == config["trainer"]["max_epochs"] or option == "fast"
    )


def test_the_trainer_lists_every_argument_of_lightning_and_the_options_of_ddp() -> None:
    arguments = set(inspect.signature(lightning.Trainer).parameters)
    ours = {"callbacks", "logger", "default_root_dir", "use_distributed_sampler"}
    assert set(plain()["trainer"]) == (arguments - ours) | KEYS


def test_two_devices_by_the_group_or_the_key() -> None:
    assert plain("trainer=ddp")["trainer"]["devices"] == 2
    assert plain("trainer.devices=2")["trainer"]["strategy"] == "auto"


def test_a_data_set_may_choose_its_augmentation_and_a_person_another() -> None:
    assert list(plain()["augmentation"]["train"]) == ["crop"]
    assert list(plain("data=folder", "data.root=x")["augmentation"]["train"]) == ["crop", "flip"]
    assert list(plain("augmentation=color")["augmentation"]["train"]) == ["crop", "flip", "color"]


def test_named_nodes_change_and_go_from_the_command_line() -> None:
    config = plain(
        "augmentation=color", "~augmentation.train.flip", "augmentation.train.color.hue=0.0", "~callbacks.lr"
    )
    assert list(config["augmentation"]["train"]) == ["crop", "color"]
    assert config["augmentation"]["train"]["color"]["hue"] == 0.0
    assert list(config["callbacks"]) == ["checkpoint", "progress", "epochs", "layers"]


def test_no_script_bears_the_name_of_a_module_that_is_imported() -> None:
    scripts = {path.stem for path in (ROOT / "src").glob("*.py")}
    assert scripts
    assert not scripts & (
        set(sys.stdlib_module_names) | {"torch", "lightning", "hydra", "omegaconf", "PIL", "numpy", "rich"}
    )


def test_folders_are_named_by_the_overrides() -> None:
    config = composed("model=alexnet_half", "trainer.devices=2")
    assert config.hydra.run.dir.endswith("_model-alexnet_half_devices-2")
    assert composed().hydra.run.dir.endswith("_defaults")


def test_ablations_combine_and_change_the_chosen_net() -> None:
    config = plain("model=alexnet_two_tower", "ablation=[tanh,no_lrn,drop_conv3]")
    assert (config["model"]["activation"], config["model"]["norm"], config["model"]["skip_convs"]) == (
        "tanh",
        "none",
        [3],
    )
    assert plain("model=alexnet_two_tower")["model"]["norm"] == "lrn"
