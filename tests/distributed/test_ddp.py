"""Communication hooks and the other options of DDP, on two ranks."""

import math
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torchvision.models import alexnet

from alexlab.config import build, build_data
from alexlab.config.data import data_config
from alexlab.config.trainer import STRATEGIES, build_trainer
from alexlab.config.validate import check_objects
from alexlab.data.discovery import find_splits
from alexlab.distributed import ddp
from alexlab.distributed.ddp import HOOKS, RANK, START_STEP, HookedDDP, gradient_bytes, traffic
from alexlab.distributed.launch import Limits, launch
from alexlab.errors import ConfigError, NumericError
from alexlab.records.layout import LAST
from alexlab.records.safe_load import load_file
from alexlab.training.console import quiet_lightning
from alexlab.training.module import Classifier
from support.runs import TINY, plain

pytestmark = pytest.mark.slow

Train = Callable[..., float | None]
LIMITS = Limits(timeout_s=60.0, shutdown_s=2)
WIDE = (
    *(
        "model.widths=[8,16,16,16,16]",
        "model.fc_widths=[64]",
        "model.norm=batch",
        "model.init=kaiming",
        "model.dropout=0",
    ),
    *("optimizer=sgd", "optimizer.lr=0.01"),
)
EPOCHS = 8  # of 3 steps
RUNS: dict[str, tuple[str, ...]] = {
    **{hook: (f"trainer.comm_hook={hook}",) for hook in HOOKS},
    "static_graph": ("trainer.static_graph=true",),
    "small buckets": ("trainer.comm_hook=bf16", "trainer.bucket_cap_mb=0.01"),
    "powersgd, small buckets": ("trainer.comm_hook=powersgd", "trainer.bucket_cap_mb=0.01"),
    "powersgd, static_graph": ("trainer.comm_hook=powersgd", "trainer.static_graph=true"),
    "powersgd, accumulated": ("trainer.comm_hook=powersgd", "trainer.accumulate_grad_batches=2"),
}


class Counted(types.ModuleType):
    """Stand-in for `torch.distributed` in the hooks that counts their all-reduces."""

    def __init__(self) -> None:
        super().__init__("counted")
        self.calls, self.num_bytes = 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.distributed, name)

    def all_reduce(self, tensor: torch.Tensor, **options: Any) -> Any:
        self.calls += 1
        self.num_bytes += tensor.nbytes
        return torch.distributed.all_reduce(tensor, **options)


class Losses(Callback):
    def __init__(self) -> None:
        self.steps: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.steps.append(outputs["loss"].item())


def fitted(images: Path, folder: Path, *overrides: str, unused: bool = False) -> dict[str, Any]:
    """Train on this rank and return the losses, the weights, and the calls and bytes of the hook."""
    config = plain(*TINY, *WIDE, f"data.root={images}", "trainer.devices=2", f"trainer.max_epochs={EPOCHS}", *overrides)
    config["callbacks"], config["logger"] = {}, {}
    config["trainer"]["limit_val_batches"], config["elastic"]["timeout_s"] = 0, 60.0
    lightning.seed_everything(1, verbose=False)
    splits = data_config(config).find_splits()
    module = build.classifier(config, splits)
    if unused:
        module.net.register_parameter("unused", torch.nn.Parameter(torch.ones(3)))
    trainer, losses, counted = build_trainer(config, folder, num_ranks=2), Losses(), Counted()
    trainer.callbacks.append(losses)  # type: ignore[attr-defined]
    default_hooks.dist = powerSGD_hook.dist = counted  # type: ignore[attr-defined]
    trainer.fit(module, datamodule=build_data.datamodule(config, splits))
    weights = {name: value.detach().clone() for name, value in module.net.named_parameters()}
    both: list[Any] = [None, None]
    torch.distributed.all_gather_object(both, weights)
    return {
        "losses": losses.steps,
        "weights": weights,
        "ranks agree": all(torch.equal(value, both[1][name]) for name, value in both[0].items()),
        "calls": counted.calls,
        "bytes": counted.num_bytes,
        "steps": trainer.global_step,
        "expected": {hook: gradient_bytes(list(module.parameters()), hook) for hook in HOOKS},
    }


@pytest.fixture(scope="module")
def found(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Results of `fitted` on rank 0 for each of RUNS, and for `all-reduce`, an uncompressed hook with counts."""
    quiet_lightning()
    folder = tmp_path_factory.mktemp("hooks")

    def task() -> dict[str, dict[str, Any]]:
        # As in a build without CUDA, where DDP refuses PyTorch's own bf16 hook.
        torch.version.cuda = torch.version.hip = None
        results = {name: fitted(images, folder, *overrides) for name, overrides in RUNS.items()}
        HOOKS["none"] = default_hooks.allreduce_hook  # affects this process only
        return {**results, "all-reduce": fitted(images, folder)}

    results: dict[str, dict[str, Any]] = launch(task, num_ranks=2, isolated=True, limits=LIMITS)
    return results


@pytest.mark.parametrize("name", RUNS)
def test_every_option_trains_and_ranks_keep_equal_weights(found: dict[str, Any], name: str) -> None:
    run = found[name]
    assert run["ranks agree"]
    assert all(map(math.isfinite, run["losses"]))
    assert sum(run["losses"][-6:]) < 0.9 * sum(run["losses"][:6])


@pytest.mark.parametrize(("name", "tolerance"), [("fp16", 1e-4), ("bf16", 1e-3)])
def test_half_precision_is_close_to_no_hook_but_not_equal(found: dict[str, Any], name: str, tolerance: float) -> None:
    none, run = found["none"], found[name]
    assert run["losses"][:10] == pytest.approx(none["losses"][:10], rel=tolerance)
    assert run["losses"][0] == none["losses"][0]
    assert any(not torch.equal(value, none["weights"][key]) for key, value in run["weights"].items())


def test_powersgd_starts_at_start_step(found: dict[str, Any]) -> None:
    """The weights after a step determine the loss of the next one."""
    none, run = found["none"]["losses"], found["powersgd"]["losses"]
    assert run[: START_STEP + 1] == none[: START_STEP + 1]
    assert run[START_STEP + 1 :] != none[START_STEP + 1 :]


def test_options_without_compression_do_not_change_the_losses(found: dict[str, Any]) -> None:
    for name, other in (("static_graph", "none"), ("all-reduce", "none"), ("small buckets", "bf16")):
        assert found[name]["losses"] == found[other]["losses"], name
    assert found["powersgd, static_graph"]["losses"] == found["powersgd"]["losses"]


def test_small_buckets_need_more_all_reduces(found: dict[str, Any]) -> None:
    assert found["small buckets"]["calls"] > 2 * found["bf16"]["calls"]
    assert found["small buckets"]["bytes"] == found["bf16"]["bytes"]


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("all-reduce", "none"),
        ("fp16", "fp16"),
        ("bf16", "bf16"),
        *((name, "powersgd") for name in RUNS if "sgd" in name),
    ],
)
def test_computed_bytes_equal_the_bytes_sent(found: dict[str, Any], name: str, hook: str) -> None:
    run = found[name]
    steps, expected = run["steps"], run["expected"]
    assert steps == 3 * EPOCHS
    whole = START_STEP if hook == "powersgd" else 0
    assert run["bytes"] == whole * expected["none"] + (steps - whole) * expected[hook]
    assert hook == "none" or 1.9 * expected[hook] < expected["none"]


def test_gradient_bytes_of_alexnet() -> None:
    with torch.device("meta"):
        parameters = list(alexnet().parameters())
    sizes = {hook: gradient_bytes(parameters, hook) for hook in HOOKS}
    assert sizes["none"] == 4 * 61_100_840
    assert sizes["fp16"] == sizes["bf16"] == 2 * 61_100_840
    matrices = [parameter for parameter in parameters if parameter.dim() > 1]
    elements = sum(RANK * (len(matrix) + matrix[0].numel()) for matrix in matrices)
    assert sizes["powersgd"] == 4 * (elements + sum(len(p) for p in parameters if p.dim() == 1))


def test_the_log_line_has_the_reduced_and_the_sent_bytes() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(1000, 1000))]
    assert traffic(parameters, "none", num_ranks=2).startswith(
        "gradients: 4.00 MB all-reduced per step; each of 2 ranks sends 4.00 MB in a ring"
    )
    line = traffic(parameters, "bf16", num_ranks=4)
    assert "2.00 MB all-reduced per step; each of 4 ranks sends 3.00 MB" in line
    assert "trainer.comm_hook=bf16, 4.00 MB without it" in line
    assert "resumed run" not in line
    assert "the weights of a resumed run differ" in traffic(parameters, "powersgd", num_ranks=2)


def test_unused_parameters_need_an_option(images: Path, tmp_path: Path) -> None:
    def task() -> tuple[list[bool], str]:
        overrides = ("trainer.find_unused_parameters=true", "trainer.static_graph=true")
        trained = [fitted(images, tmp_path, override, unused=True)["ranks agree"] for override in overrides]
        try:
            fitted(images, tmp_path, unused=True)
        except RuntimeError as error:
            return trained, str(error)
        return trained, ""

    trained, message = launch(task, num_ranks=2, isolated=True, limits=LIMITS)
    assert trained == [True, True]
    assert "find_unused_parameters=True" in message


def test_an_fp16_overflow_stops_the_run_and_names_the_gradient(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Classifier.training_step

    def training_step(module: Classifier, batch: Any, batch_idx: int) -> Any:
        return own(module, batch, batch_idx) * (1e9 if module.global_step == 2 else 1)

    monkeypatch.setattr(Classifier, "training_step", training_step)
    message = r"the gradient of \S+ must stay finite; it is (inf|nan) at step 2 .*trainer\.comm_hook=bf16"
    with pytest.raises(NumericError, match=message):
        train("trainer.devices=2", "trainer.comm_hook=fp16")
    assert (tmp_path / "run/not_finite_rank0.csv").exists()
    train("trainer.devices=2", "trainer.comm_hook=bf16", "trainer.gradient_clip_val=1.0", run_dir=tmp_path / "other")


@pytest.mark.parametrize("hook", ["bf16", "powersgd"])
def test_a_resumed_run_equals_an_uninterrupted_one_unless_the_hook_has_state(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: str
) -> None:
    monkeypatch.setattr(ddp, "START_STEP", 2)
    overrides = (*WIDE, "trainer.devices=2", f"trainer.comm_hook={hook}")
    train(*overrides, "trainer.max_epochs=3", run_dir=tmp_path / "whole")
    train(*overrides, "trainer.max_epochs=1")
    train(*overrides, "trainer.max_epochs=3", resumed=True)
    whole, resumed = (load_file(tmp_path / name / LAST) for name in ("whole", "run"))
    assert whole["global_step"] == resumed["global_step"] == 9
    equal = [torch.equal(value, resumed["state_dict"][name]) for name, value in whole["state_dict"].items()]
    assert all(equal) if hook == "bf16" else not all(equal)


VALUES = [
    *(f"trainer.comm_hook={hook}" for hook in HOOKS),
    "trainer.static_graph=true",
    "trainer.find_unused_parameters=true",
    "trainer.bucket_cap_mb=50",
]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_value_reaches_the_strategy(images: Path, tmp_path: Path, value: str, strategy: str) -> None:
    overrides = ("trainer.devices=2", f"trainer.strategy={strategy}")
    config = plain(*TINY, f"data.root={images}", *overrides, value)
    name = value.removeprefix("trainer.").partition("=")[0]
    two = build_trainer(config, tmp_path, num_ranks=2).strategy
    assert isinstance(two, HookedDDP)
    assert getattr(two.options, name) == config["trainer"][name]


@pytest.mark.parametrize("value", VALUES)
def test_options_have_no_effect_on_one_device(images: Path, tmp_path: Path, value: str) -> None:
    config = plain(*TINY, f"data.root={images}", value)
    splits = find_splits(str(images), val_fraction=0.2, test_fraction=0.0)
    check_objects(config, splits, num_ranks=1)
    assert not isinstance(build_trainer(config, tmp_path, num_ranks=1).strategy, HookedDDP)


@pytest.mark.parametrize(
    ("change", "num_ranks", "message"),
    [
        ({"comm_hook": "fp8"}, 1, "trainer.comm_hook must be one of none, fp16, bf16, powersgd; got 'fp8'"),
        ({"comm_hook": None}, 2, "trainer.comm_hook must be one of none, fp16, bf16, powersgd; got null"),
        ({"comm_hook": ["bf16"]}, 2, "trainer.comm_hook must be one of none, fp16, bf16, powersgd; got ['bf16']"),
        ({"bucket_cap_mb": 0}, 1, "trainer.bucket_cap_mb must be null or a number of MB, above 0 and at most"),
        ({"bucket_cap_mb": -25.0}, 2, "trainer.bucket_cap_mb must be null or a number of MB, above 0"),
        ({"bucket_cap_mb": 1e30}, 2, "trainer.bucket_cap_mb must be null or a number of MB, above 0"),
        ({"bucket_cap_mb": True}, 2, "trainer.bucket_cap_mb must be null or a number; got"),
        ({"bucket_cap_mb": "25"}, 1, "trainer.bucket_cap_mb must be null or a number; got"),
        ({"static_graph": 1}, 1, "trainer.static_graph must be true or false; got 1"),
        ({"find_unused_parameters": None}, 1, "trainer.find_unused_parameters must be true or false; got null"),
        ({"static_graph": True, "find_unused_parameters": True}, 2, "needs trainer.find_unused_parameters=false"),
        (
            {"static_graph": True, "accumulate_grad_batches": 2},
            2,
            "trainer.static_graph=true needs trainer.accumulate_grad_batches=1, since PyTorch fails",
        ),
        (
            {"comm_hook": "powersgd", "precision": "16-mixed"},
            2,
            "trainer.comm_hook=powersgd does not work with trainer.precision=16-mixed",
        ),
        (
            {"comm_hook": "powersgd", "precision": 16},
            2,
            "trainer.comm_hook=powersgd does not work with trainer.precision=16-mixed",
        ),
        *(
            (
                {"strategy": strategy, name: value},
                2,
                f"trainer.{name} needs trainer.strategy=auto or ddp, since {reason}",
            )
            for strategy, reason in (
                ("two_towers", "trainer=two_towers does not average gradients"),
                (
                    {"_target_": "lightning.pytorch.strategies.DDPStrategy"},
                    "a DDPStrategy takes its arguments from its own node",
                ),
            )
            for name, value in (
                ("comm_hook", "bf16"),
                ("static_graph", True),
                ("find_unused_parameters", True),
                ("bucket_cap_mb", 50),
            )
        ),
        ({"strategy": "fsdp"}, 2, "two_towers or a DDPStrategy; got 'fsdp'; use trainer.strategy=auto"),
        ({"strategy": "ddp_find_unused_parameters_true"}, 2, "trainer.strategy must be one of auto, ddp, two_towers"),
    ],
)
def test_invalid_options(images: Path, change: dict[str, Any], num_ranks: int, message: str) -> None:
    config = plain(*TINY, f"data.root={images}")
    config["trainer"] |= change
    splits = find_splits(str(images), val_fraction=0.2, test_fraction=0.0)
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_objects(config, splits, num_ranks=num_ranks)
