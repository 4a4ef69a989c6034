"""Values that Lightning or torch reject are reported in one sentence with their key, before any work."""

import copy
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alexlab.cli.arguments import check_arguments, order_arguments
from alexlab.cli.exits import report_bug
from alexlab.config import allowlist, preflight, rehearsal
from alexlab.config.instantiate import make
from alexlab.distributed.devices import num_ranks
from alexlab.errors import AlexlabError, ConfigError, exit_code_of
from alexlab.inference.checkpoint import load_checkpoint
from alexlab.tasks.train import check
from support.runs import TINY, plain

pytestmark = [pytest.mark.rehearsed, pytest.mark.slow]

Changed = Callable[..., dict[str, Any]]
CALLBACKS = "lightning.pytorch.callbacks"
EARLY_STOPPING = "alexlab.training.callbacks.early_stopping.EarlyStopping"
V2 = "torchvision.transforms.v2"


@pytest.fixture
def changed(images: Path, tmp_path: Path) -> Changed:
    """Return a function that sets keys in the config of the tiny net; composing it each time would be slower."""

    def call(values: dict[str, Any]) -> dict[str, Any]:
        config = plain(*TINY, f"data.root={images}", f"data.cache_dir={tmp_path / 'cache'}")
        for key, value in values.items():
            *parents, name = key.split(".")
            node = config
            for parent in parents:
                node = node[parent]
            node[name] = copy.deepcopy(value)
        return config

    return call


SCHEDULES = "alexlab.training.schedules"
ALONE = [
    ({"trainer.max_steps": 0}, "trainer.max_steps must be at least 1"),
    ({"trainer.max_epochs": 0}, "trainer.max_epochs or trainer.max_steps must be at least 1"),
    ({"trainer.limit_train_batches": 0}, "trainer.limit_train_batches must be positive; got 0"),
    ({"trainer.accumulate_grad_batches": 0}, "trainer.accumulate_grad_batches must be at least 1; got 0"),
    ({"trainer.check_val_every_n_epoch": 0}, "trainer.check_val_every_n_epoch must be at least 1; got 0"),
    ({"trainer.gradient_clip_val": -1.0}, "trainer.gradient_clip_val must be at least 0; got -1.0"),
    ({"callbacks.b": {"_target_": f"{CALLBACKS}.StochasticWeightAveraging", "swa_lrs": 0.01}}, "neither validated nor saved; use callbacks=ema"),
    ({"callbacks.b": {"_target_": f"{CALLBACKS}.EarlyStopping", "monitor": "val/top1"}}, "callbacks.b must be callbacks=early_stopping"),
    ({"callbacks.b": {"_target_": EARLY_STOPPING}, "trainer.limit_val_batches": 0}, "callbacks.b.monitor=val/top1 needs validations, which trainer.limit_val_batches=0 turns off"),
    ({"scheduler": {"_target_": f"{SCHEDULES}.plateau"}, "trainer.limit_val_batches": 0}, "scheduler.monitor=val/top1 needs validations"),
    ({"trainer.strategy": "fsdp"}, "trainer.strategy must be one of auto, ddp,"),
    ({"trainer.strategy": "deepspeed"}, "got 'deepspeed'; use trainer.strategy=auto, which is DDP on several devices"),
    ({"trainer.strategy": "ddp_spawn"}, "trainer.strategy must be one of auto, ddp,"),
    ({"trainer.strategy": None}, "trainer.strategy must be one of auto, ddp,"),
    ({"trainer.plugins": {"_target_": "lightning.pytorch.plugins.BitsandbytesPrecision", "mode": "nf4"}}, "trainer.plugins"),
    ({"trainer.profiler": {"_target_": "lightning.pytorch.profilers.SimpleProfiler", "nope": 1}}, "trainer.profiler.nope"),
    ({"data.num_workers": -1}, "data.num_workers must be null or a number of processes from 0 to"),
    ({"data.num_workers": 10**6}, "data.num_workers must be null or a number of processes from 0 to"),
    ({"data.batch_size": None}, "data.batch_size must be an integer; got null"),
    ({"data.image_size": None}, "data.image_size must be an integer; got null"),
    ({"data.mean": [float("nan")] * 3}, "data.mean must be one or three numbers from 0 to 1 (pixels are divided by 255), or null to measure; got [nan"),
    ({"seed": -1}, "seed must be an integer from 0 to 4294967295; got -1"),
    ({"seed": 2**32}, "seed must be an integer from 0 to 4294967295"),
    ({"class_names": 5}, "class_names must be null or a JSON file; got 5"),
    ({"optimizer.lr": float("inf")}, "optimizer.lr must be a finite number; got inf"),
    ({"optimizer": {"_target_": "torch.optim.ASGD"}}, "optimizer.lr must be given"),
    ({"optimizer": {"_target_": "torch.optim.SGD", "lr": 1, "momentum": -1}}, "optimizer: Invalid momentum value: -1"),
    ({"optimizer": {"_target_": "torch.optim.SGD", "lr": 1, "nesterov": True}}, "optimizer: Nesterov momentum requires"),
    ({"optimizer.betas": [2.0, 0.9]}, "optimizer: Invalid beta parameter at index 0: 2.0"),
    ({"param_groups.conv_weight_decay": -1}, "param_groups.conv_weight_decay must be at least 0; got -1"),
    ({"param_groups.head_lr": -1}, "param_groups.head_lr must be at least 0; got -1"),
    ({"loss.label_smoothing": float("nan")}, "loss.label_smoothing must be a finite number"),
    ({"elastic.timeout_s": 0}, "elastic.timeout_s must be positive; got 0"),
    ({"trainer.sync_batchnorm": True, "trainer.devices": 2}, "trainer.sync_batchnorm=true needs GPUs"),
    ({"elastic.max_restarts": -1}, "elastic.max_restarts must be at least 0; got -1"),
    ({"trainer.num_nodes": 2}, "trainer.num_nodes=2 needs ranks on several nodes, started by torchrun, srun or mpirun"),
    ({"augmentation.train": None}, "augmentation.train must have a transform"),
    ({"augmentation.eval": {}}, "augmentation.eval must have a transform"),
    ({"augmentation.train.erase": "RandomErasing"}, "augmentation.train.erase must have a _target_"),
    ({"augmentation.train.flip.p": -1}, "augmentation.train.flip: `p` should be"),
    ({"callbacks.lr_find": {"_target_": "alexlab.training.callbacks.lr_finder.LearningRateFinder", "min_lr": 0}}, "callbacks.lr_find: min_lr must be positive"),
    ({"callbacks.lr_find": {"_target_": "alexlab.training.callbacks.lr_finder.LearningRateFinder", "num_steps": 1}}, "num_steps must be at least 2; got 1"),
    ({"callbacks.lr_find": {"_target_": "alexlab.training.callbacks.lr_finder.LearningRateFinder", "smoothing": 1}}, "smoothing must lie in [0, 1); got 1"),
    ({"callbacks.lr_find": {"_target_": "alexlab.training.callbacks.lr_finder.LearningRateFinder", "stop_factor": 1}}, "stop_factor must be greater than 1; got 1"),
    ({"callbacks.checkpoint.every_s": "x"}, "callbacks.checkpoint.every_s must be null or a number; got 'x'"),
]  # fmt: skip
# What only a training finds out.
REHEARSED = [
    ({"trainer.val_check_interval": 1000}, "trainer.val_check_interval=1000 cannot be used: `val_check_interval` (1000) must be less"),
    ({"trainer.val_check_interval": 0}, "trainer.val_check_interval=0 cannot be used: "),
    ({"trainer.limit_train_batches": 0.01}, "trainer.limit_train_batches must leave at least one batch: 0.01 of 3"),
    (
        {"trainer.limit_train_batches": 3, "trainer.accumulate_grad_batches": 2},
        "trainer.limit_train_batches must leave a multiple of trainer.accumulate_grad_batches=2 batches, as the last step of an "
        "epoch would have fewer images; 3 leaves 3 of 6: use trainer.limit_train_batches=2",
    ),
    ({"trainer.limit_val_batches": 0.01}, "trainer.limit_val_batches must leave at least one batch: 0.01 of 2"),
    ({"trainer.limit_test_batches": 0.01}, "trainer.limit_test_batches must leave at least one batch: 0.01 of 1"),
    ({"trainer.overfit_batches": None}, "trainer.overfit_batches must be a number; got null"),
    ({"trainer.fast_dev_run": -1}, "trainer.fast_dev_run=-1 cannot be used: "),
    ({"trainer.precision": "nope"}, "trainer.precision=nope cannot be used: Precision 'nope' is invalid"),
    ({"trainer.precision": "transformer-engine"}, "trainer.precision=transformer-engine cannot be used: "),
    ({"trainer.precision": "bf16-true", "model.norm": "lrn"}, "trainer.precision=bf16-true with model.norm=lrn cannot be used: "),
    ({"trainer.barebones": True}, "trainer.barebones=True cannot be used: "),
    ({"trainer.max_time": "x"}, "trainer.max_time=x cannot be used: "),
    ({"trainer.profiler": "nope"}, "trainer.profiler=nope cannot be used: "),
    ({"trainer.profiler": 5}, "trainer.profiler=5 cannot be used: "),
    ({"trainer.gradient_clip_val": 1.0, "trainer.gradient_clip_algorithm": "nope"}, "trainer.gradient_clip_algorithm=nope cannot be used: "),
    ({"trainer.accumulate_grad_batches": None}, "trainer.accumulate_grad_batches must be an integer; got null"),
    ({"optimizer.lr": None}, "optimizer.lr must be a number; got null"),
    ({"optimizer.betas": [0.9]}, "optimizer.betas=[0.9] cannot be used: "),
    ({"optimizer": {"_target_": "torch.optim.SparseAdam", "lr": 1e-3}}, "optimizer=torch.optim.SparseAdam cannot be used: "),
    ({"scheduler": {"_target_": f"{SCHEDULES}.step", "step_epochs": None}}, "scheduler.step_epochs must be an integer; got null"),
    ({"test.ratio": 0}, "test.ratio=0 cannot be used: "),
    ({"elastic.timeout_s": None}, "elastic.timeout_s must be a number; got null"),
    ({"compile.enabled": True, "compile.mode": "nope"}, "compile.mode=nope cannot be used: "),
    ({"callbacks.b": {"_target_": f"{CALLBACKS}.BatchSizeFinder"}}, "callbacks.b cannot be used: "),
    ({"callbacks.b": {"_target_": f"{CALLBACKS}.LearningRateFinder"}}, "callbacks.b cannot be used: "),
    ({"callbacks.b": {"_target_": f"{CALLBACKS}.RichProgressBar"}}, "callbacks.progress with callbacks.b cannot be used: "),
    ({"callbacks.b": {"_target_": f"{CALLBACKS}.ModelSummary", "max_depth": -5}}, "callbacks.b.max_depth=-5 cannot be used: "),
    ({"callbacks.b": {"_target_": f"{CALLBACKS}.ModelCheckpoint", "monitor": "nope"}}, "callbacks.b.monitor=nope cannot be used: "),
    ({"augmentation.batch": {"m": {"_target_": f"{V2}.MixUp", "alpha": -1.0}}}, "augmentation.batch.m.alpha=-1.0 cannot be used: "),
    ({"augmentation.train.crop.size": 0}, "augmentation.train.crop cannot be used: "),
    ({"augmentation.train.crop.size": 32}, "augmentation.train must return torch.uint8 images of shape (3, 64, 64)"),
    ({"augmentation.train.crop.ratio": 5.0}, "augmentation.train.crop cannot be used: "),
    ({"augmentation.train.n": {"_target_": f"{V2}.Normalize", "mean": [0], "std": [1]}}, "augmentation.train.n cannot be used: "),
    ({"augmentation.train.n": {"_target_": f"{V2}.ToPILImage"}}, "got Image of shape ()"),
]  # fmt: skip


def rejection(config: dict[str, Any]) -> str:
    with pytest.raises(AlexlabError) as caught:
        check(config)
    assert caught.value.exit_code != 70
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("values", "message"), ALONE)
def test_values_rejected_by_constructors(changed: Changed, values: dict[str, Any], message: str) -> None:
    assert message in rejection(changed(values))


@pytest.mark.parametrize(("values", "message"), REHEARSED)
def test_values_rejected_by_training(changed: Changed, values: dict[str, Any], message: str) -> None:
    assert message in rejection(changed(values))


def test_distribution_arguments_are_validated_after_compilation(
    changed: Changed, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch.compile turns the checks of torch.distributions off for the whole process.
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", False)
    mix = {"m": {"_target_": f"{V2}.MixUp", "alpha": -1.0}}
    assert "augmentation.batch.m.alpha=-1.0 cannot be used: " in rejection(changed({"augmentation.batch": mix}))


@pytest.mark.parametrize(
    "values",
    [
        {"trainer.precision": "16-true"},
        {"trainer.precision": "16-mixed"},
        {"trainer.plugins": [{"_target_": "lightning.pytorch.plugins.DoublePrecision"}], "trainer.precision": "auto"},
        {"trainer.max_epochs": None, "trainer.max_steps": 3},
        {"trainer.devices": "auto"},
        {"trainer.log_every_n_steps": 0},
        {"trainer.num_sanity_val_steps": -1},
        {"trainer.limit_val_batches": 0},
        {"trainer.limit_train_batches": 2, "trainer.val_check_interval": 1},
        {"trainer.enable_progress_bar": False},
        {"data.num_workers": None},
        {"optimizer.capturable": True},
        {"optimizer.lr": 1e35, "trainer.log_every_n_steps": 1},
        {"callbacks.early": {"_target_": EARLY_STOPPING, "monitor": "train/loss", "mode": "auto"}, "trainer.limit_val_batches": 0},
        {"augmentation.train.erase": {"_target_": f"{V2}.RandomErasing", "p": 1.0, "value": "random"}},
        {"augmentation.train.r": {"_target_": f"{V2}.RandomApply", "transforms": [{"_target_": f"{V2}.GaussianBlur", "kernel_size": 3}]}},
        {"augmentation.batch": {"m": {"_target_": f"{V2}.CutMix"}}, "loss.class_weights": "balanced"},
        {"scheduler": {"_target_": f"{SCHEDULES}.multistep", "milestones": []}},
        {"scheduler": {"_target_": f"{SCHEDULES}.plateau", "patience": 0}},
    ],
)  # fmt: skip
def test_trainable_configs_pass(changed: Changed, values: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    check(changed(values))
    assert "no config key explains it" not in caplog.text


@pytest.mark.parametrize(
    "values",
    [
        {"trainer.precision": "bf16-true"},
        {"trainer.precision": "64-true"},
        {"trainer.max_epochs": -1, "trainer.max_steps": 4},
        {"trainer.devices": -1},
        {"trainer.enable_checkpointing": False},
        {"logger": {}},
        {"callbacks": {}},
        {"logger": None, "callbacks": None},
    ],
)
def test_passing_configs_can_be_trained(changed: Changed, values: dict[str, Any], tmp_path: Path) -> None:
    from alexlab.records.run import Run
    from alexlab.tasks.train import main

    folder = tmp_path / "run"
    folder.mkdir()
    score = main(Run(config=changed(values), dir=folder, choices={"model": "alexnet"}))
    assert score is not None and 0 <= score <= 1
    checkpoints = folder / "checkpoints/last.ckpt"
    assert checkpoints.is_file() == ("checkpoint" in (changed(values)["callbacks"] or {}) and values.get("trainer.enable_checkpointing", True))  # fmt: skip


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_nets_of_other_precisions_return_float32(changed: Changed, tmp_path: Path, precision: str) -> None:
    from alexlab.records.run import Run
    from alexlab.tasks.train import main

    folder = tmp_path / "run"
    folder.mkdir()
    main(Run(config=changed({"trainer.precision": precision}), dir=folder, choices={"model": "alexnet"}))
    found = load_checkpoint(str(folder), device="cpu")
    probs = found.inference.probs(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    assert probs.dtype == torch.float32
    assert torch.allclose(probs.sum(1), torch.ones(2))


def test_a_scheduler_whose_state_cannot_be_stored_is_refused(
    changed: Changed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

class Stored(LRScheduler):
    def __init__(self, optimizer):
        self.factor = lambda step: 0.9**step
        super().__init__(optimizer)

    def get_lr(self):
        return [rate * self.factor(self.last_epoch) for rate in self.base_lrs]

def free(optimizer, *, num_epochs, steps_per_epoch):
    return [{"scheduler": LambdaLR(optimizer, lambda step: 0.9**step), "interval": "step"}]
"""
    (tmp_path / "stored_lambda.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    trusted = allowlist._trusted.set(("stored_lambda",))
    message = r"scheduler\.0\.factor must be a tensor or plain data, .*; got builtins\.function: leave it out of state_dict\(\)"
    with pytest.raises(ConfigError, match=message):
        check(changed({"scheduler": {"_target_": "stored_lambda.Stored", "interval": "step", "monitor": None}}))
    check(changed({"scheduler": {"_target_": "stored_lambda.free"}}))
    allowlist._trusted.reset(trusted)


def test_a_rehearsal_writes_nothing(changed: Changed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    elsewhere = {
        "callbacks.b": {"_target_": f"{CALLBACKS}.ModelCheckpoint", "dirpath": str(tmp_path / "kept")},
        "trainer.profiler": {"_target_": "lightning.pytorch.profilers.SimpleProfiler", "dirpath": str(tmp_path / "kept"), "filename": "x"},
    }  # fmt: skip
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    before = children.read_text() if children.exists() else ""
    check(changed(elsewhere))
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}
    assert not children.exists() or children.read_text() == before


def test_an_error_without_a_responsible_key_is_a_bug(
    changed: Changed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise KeyError("ours")

    monkeypatch.setattr(preflight, "fill_statistics", broken)
    with pytest.raises(KeyError, match="ours"):
        check(changed({}))
    monkeypatch.undo()
    monkeypatch.setattr(rehearsal, "_perform", broken)
    check(changed({}))
    assert (
        "the run starts, although training a tiny net with the same settings failed and no config key explains why: 'ours'"
        in caplog.text
    )
    (tmp_path / "run.json").write_text("{}")
    report_bug(KeyError("ours"), tmp_path)
    report_bug(KeyError("ours"), tmp_path / "none")
    output = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert output[1] == f"This is a bug in alexlab. Please report it with the traceback above and {tmp_path}/run.json."
    assert output[3] == "This is a bug in alexlab. Please report it with the traceback above."
    assert exit_code_of(KeyError("ours")) == 70


def test_a_killed_or_hanging_rehearsal_is_ignored(changed: Changed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "_perform", lambda *args: os.kill(os.getpid(), 9))
    check(changed({}))
    monkeypatch.setattr(rehearsal, "TIMEOUT_S", 0.0)
    check(changed({"trainer.val_check_interval": 1000}))


def test_failures_on_the_cpu_are_repeated_on_the_gpu(changed: Changed, monkeypatch: pytest.MonkeyPatch) -> None:
    config, tried = changed({"trainer.accelerator": "gpu"}), []

    def failure(
        config: Any, splits: Any, num_ranks: int, accelerator: str, *, names_key: bool
    ) -> tuple[bool, str] | None:
        tried.append(accelerator)
        return (False, "not here") if accelerator == "cpu" else None

    monkeypatch.setattr(rehearsal, "_failure", failure)
    monkeypatch.setattr(rehearsal, "requested_gpus", lambda **options: 1)
    rehearsal.rehearse(config, None, num_ranks=1)  # type: ignore[arg-type]
    assert tried == ["cpu", "gpu"]


def test_mps_needs_an_apple_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=re.escape("trainer.accelerator=mps needs a Mac with an Apple GPU")):
        num_ranks(accelerator="mps", devices=1)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert num_ranks(accelerator="mps", devices=1) == 1
    with pytest.raises(ConfigError, match=re.escape("trainer.devices must be 1 with trainer.accelerator=mps; got 2")):
        num_ranks(accelerator="mps", devices=2)


def test_errors_name_the_rejected_argument() -> None:
    node = {"_target_": f"{V2}.RandomErasing", "p": 0.5, "scale": [0, 5]}
    with pytest.raises(ConfigError, match=re.escape("augmentation.train.e.scale=[0, 5] cannot be used: Scale should")):
        make(node, "augmentation.train.e")


def test_invalid_flags_are_rejected() -> None:
    with pytest.raises(ConfigError, match="--cfg prints the config of one run, and -m starts a sweep: use one of them"):
        check_arguments("train", ["-m", "seed=1,2", "--cfg", "job"])
    check_arguments("train", ["seed=1", "--cfg", "job"])
    with pytest.raises(
        ConfigError, match=r"scheduler must be one of any, constant, .*; got null; use scheduler=constant"
    ):
        check_arguments("train", ["scheduler=null"])
    check_arguments("train", ["callbacks=null", "logger=null", "ablation=null", "debug=null"])
    overrides = [
        "callbacks=null",
        "debug=null",
        "--cfg",
        "job",
        "seed=1",
        "~augmentation.train.flip",
        "logger=null",
        "data=folder",
    ]
    assert order_arguments(overrides) == [
        *("callbacks=[]", "seed=1", "~augmentation.train.flip", "logger=[]", "data=folder"),
        *("--cfg", "job"),
    ]
